"""simmim: files of microsoft/SimMIM, and of SimMIM in microsoft/Swin-Transformer, pretrained or fine-tuned."""

from pathlib import Path
from typing import Any

import torch

from mim.interop import metadata
from mim.interop.files import WeightsFile
from mim.interop.formats import BACKBONE, ENCODER, FUSION, ModelWeights, Sections, WeightsFormat, WriteReport
from mim.interop.kinds import check_encoder, check_keys, encoder_kind, has_classifier
from mim.interop.names import Row, add_prefix, rows, same, to_ours, to_theirs
from mim.io.files import write_atomically
from mim.io.limits import SIDE

BIAS_TABLE = "attn.relative_position_bias_table"
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", BIAS_TABLE, "attn.q_bias", "attn.v_bias")
DOWNSAMPLE = rows(  # theirs is at the end of a stage, ours at the start of the next one
    *(
        (f"layers.{{stage}}.downsample.{name}", f"layers.{{stage-1}}.downsample.{name}")
        for name in ("reduction", "norm")
    )
)
SWIN = (
    *same("patch_embed.proj", "patch_embed.norm", "norm"),
    *add_prefix(
        same(*BLOCK, "attn.logit_scale", "attn.cpb_mlp.0", "attn.cpb_mlp.2"), *["layers.{stage}.blocks.{block}."] * 2
    ),
    *DOWNSAMPLE,
)
BEIT = (
    *same("patch_embed.proj", "norm", "cls_token", "rel_pos_bias.relative_position_bias_table"),
    *add_prefix(same(*BLOCK, "gamma_1", "gamma_2"), *["blocks.{block}."] * 2),
)
TABLES = {"swin": SWIN, "swin_v2": SWIN, "beit": BEIT}
MODEL_SECTIONS = {"swin": "SWIN", "swin_v2": "SWINV2", "beit": "VIT"}


class SimMIM(WeightsFormat, name="simmim"):
    """`{'model': ..., 'config': ...}`: pretrained under `encoder.` and `decoder.0`, fine-tuned without a prefix."""

    def recognises(self, file: WeightsFile) -> bool:
        kind = encoder_kind(file.strip_prefix(ENCODER))
        if kind is not None:
            return kind != "vit"
        kind = encoder_kind(file.weights)
        if kind == "beit":
            return file.container == "model" and "config" in file.metadata
        return kind is not None and kind != "vit" and "layers.0.downsample.reduction.weight" in file.weights

    def read(self, file: WeightsFile) -> ModelWeights:
        pretrained = encoder_kind(file.strip_prefix(ENCODER)) is not None
        kind = encoder_kind(file.strip_prefix(ENCODER) if pretrained else file.weights)
        if kind is None or kind == "vit":
            raise ValueError("it holds no Swin and no ViT of SimMIM")
        state, left_out = to_ours(table(kind, pretrained), file.weights)
        published = pretraining(kind) if pretrained else {**metadata.classification_sections(state), **metadata.CROP}
        config = _from_config(file.metadata.get("config"), kind)
        record = metadata.read_metadata(file.metadata)
        guessed = {"ENCODER.pretrained_windows": "as in the published pretraining"}
        guessed = metadata.without_recorded(guessed, config, record) if pretrained and kind == "swin_v2" else {}
        facts = metadata.merge(published, config, record)
        sections, unspecified, guesses = metadata.infer_sections(kind, state, facts, guessed)
        return ModelWeights(state, sections, str(file.path), unspecified, tuple(left_out), guesses=guesses)

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        kind = check_encoder(weights.sections, TABLES, "microsoft/SimMIM")
        check_keys(weights.sections, "microsoft/SimMIM", norm_eps=1e-6)
        pretrained = weights.sections["TASK"] == "pretrain"
        ours = weights.without("head.", "readouts.")
        if pretrained and has_simmim_head(weights):
            ours |= weights.select("head.")
        if has_classifier(weights, ["class", "mean, norm"] if kind == "beit" else ["mean"]):
            ours = weights.state
        if not weights.sections["ENCODER"].get("norm", True) and "readouts.0.norm.weight" not in ours:
            raise ValueError("ENCODER.norm is false: SimMIM has no ViT without a last norm")
        theirs, left_out = to_theirs(table(kind, pretrained), ours)
        content = {"model": theirs, **metadata.metadata_of(weights, ours)}
        write_atomically(path, lambda file: torch.save(content, file))
        left_out += [name for name in weights.state if name not in ours]
        return WriteReport(left_out, f"torch.load({str(path)!r})['model'] fits the models of microsoft/SimMIM")


def table(kind: str, pretrained: bool) -> tuple[Row, ...]:
    """The names of a pretraining model, or of a fine-tuned one."""
    if pretrained:
        return (
            *add_prefix(TABLES[kind], BACKBONE, ENCODER),
            *same(f"{ENCODER}mask_token"),
            *rows(("head.conv", "decoder.0")),
        )
    return (*add_prefix(TABLES[kind], BACKBONE), *rows(("readouts.0.norm", "fc_norm"), ("readouts.0.linear", "head")))


def pretraining(kind: str) -> Sections:
    """The sections of the published SimMIM pretraining of an encoder."""
    windows: Sections = {"pretrained_windows": []} if kind == "swin_v2" else {}
    return {
        "TASK": "pretrain",
        "MASKER": {"name": "random", "cell": 32, "ratio": 0.6, "rounding": "ceil_hidden"},
        "ENCODER": {"hidden": "replace", **windows},
        "HEAD": {"name": "pixel_shuffle"},
        "TARGET": {"name": "pixels"},
        "LOSS": {"name": "l1", "eps": 1e-5},
    }


def has_simmim_head(weights: ModelWeights) -> bool:
    """Whether the head is SimMIM's; its files have no names for another one."""
    return weights.sections["HEAD"]["name"] == "pixel_shuffle" and not weights.select(FUSION)


def _from_config(config: Any, kind: str) -> Sections:
    """The sections that the pickled config of a run specifies."""
    sections: Sections = {}
    data, model = (_section(config, name) for name in ("DATA", "MODEL"))
    if isinstance(data.get("IMG_SIZE"), int) and 0 < data["IMG_SIZE"] <= SIDE:
        sections["DATA"] = {"image_size": [data["IMG_SIZE"]] * 2}
    masks = {"cell": data.get("MASK_PATCH_SIZE"), "ratio": data.get("MASK_RATIO")}
    if isinstance(masks["cell"], int) and isinstance(masks["ratio"], float):
        sections["MASKER"] = masks
    encoder = _section(model, MODEL_SECTIONS[kind])
    if kind != "beit" and isinstance(encoder.get("WINDOW_SIZE"), int):
        sections["ENCODER"] = {"window": encoder["WINDOW_SIZE"]}
    windows = encoder.get("PRETRAINED_WINDOW_SIZES")
    if kind == "swin_v2" and isinstance(windows, list) and all(isinstance(side, int) for side in windows):
        windows = windows if any(windows) else []
        sections = metadata.merge(sections, {"ENCODER": {"pretrained_windows": windows}})
    target = _section(_section(model, "SIMMIM"), "NORM_TARGET")
    if target.get("ENABLE") is True and isinstance(target.get("PATCH_SIZE"), int):
        sections["TARGET"] = {"normalize": "window", "window": target["PATCH_SIZE"]}
    return sections


def _section(config: Any, name: str) -> dict[str, Any]:
    keys = config.get(name) if isinstance(config, dict) else None
    return keys if isinstance(keys, dict) else {}
