"""simmim: files of microsoft/SimMIM, and of its successor in microsoft/Swin-Transformer, pretrained or fine-tuned."""

from pathlib import Path
from typing import Any

import torch

from mim.interop import metadata
from mim.interop.files import WeightsFile
from mim.interop.formats import (
    ENCODER,
    ModelWeights,
    Sections,
    WeightsFormat,
    WriteReport,
    encoder_kind,
    has_classifier,
    supported,
    without,
)
from mim.interop.names import Row, below, rows, to_ours, to_theirs
from mim.io.files import write_atomically
from mim.io.limits import SIDE

STEM = rows(*((name, name) for name in ("patch_embed.proj", "norm")))
MLP = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
BIAS_TABLE = "attn.relative_position_bias_table"
SWIN = (
    *STEM,
    *rows(("patch_embed.norm", "patch_embed.norm")),
    *below(
        rows(
            *((name, name) for name in (*MLP, BIAS_TABLE, "attn.q_bias", "attn.v_bias", "attn.logit_scale")),
            *((name, name) for name in ("attn.cpb_mlp.0", "attn.cpb_mlp.2")),
        ),
        *["layers.{stage}.blocks.{block}."] * 2,
    ),
    *rows(  # theirs ends a stage, ours opens the next
        *(
            (f"layers.{{stage}}.downsample.{name}", f"layers.{{stage-1}}.downsample.{name}")
            for name in ("reduction", "norm")
        )
    ),
)
BEIT = (
    *STEM,
    *rows(*((name, name) for name in ("cls_token", "rel_pos_bias.relative_position_bias_table"))),
    *below(
        rows(*((name, name) for name in (*MLP, BIAS_TABLE, "attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2"))),
        *["blocks.{block}."] * 2,
    ),
)
TABLES = {"swin": SWIN, "swin_v2": SWIN, "beit": BEIT}
MODEL_SECTIONS = {"swin": "SWIN", "swin_v2": "SWINV2", "beit": "VIT"}


class SimMIM(WeightsFormat, name="simmim"):
    """`{'model': ..., 'config': ...}`: pretrained under `encoder.` and `decoder.0`, fine-tuned without a prefix."""

    def recognises(self, stored: WeightsFile) -> bool:
        kind = encoder_kind(stored.below(ENCODER))
        if kind is not None:
            return kind != "vit"
        kind = encoder_kind(stored.weights)
        if kind == "beit":
            return stored.holder == "model" and "config" in stored.beside
        return kind is not None and kind != "vit" and "layers.0.downsample.reduction.weight" in stored.weights

    def read(self, stored: WeightsFile) -> ModelWeights:
        pretrained = encoder_kind(stored.below(ENCODER)) is not None
        kind = encoder_kind(stored.below(ENCODER) if pretrained else stored.weights)
        if kind is None or kind == "vit":
            raise ValueError("it holds no Swin and no ViT of SimMIM")
        state, left_out = to_ours(table(kind, pretrained), stored.weights)
        published = pretraining(kind) if pretrained else {**metadata.classifying(state), **metadata.CROP}
        known = metadata.merged(published, _known(stored.beside.get("config"), kind), metadata.recorded(stored.beside))
        sections, unspecified = metadata.described(kind, state, known)
        return ModelWeights(state, sections, str(stored.path), unspecified, tuple(left_out))

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        kind = supported(weights.sections, TABLES, "microsoft/SimMIM")
        pretrained = weights.sections["TASK"] == "pretrain"
        taken = without(weights.state, "head.", "heads.", "norm.")
        if pretrained and fits_head(weights):
            taken |= weights.below("head.")
        if has_classifier(weights, ["class", "mean, norm"] if kind == "beit" else ["mean"]):
            taken = weights.state
        if not weights.sections["ENCODER"].get("norm", True) and "norm.weight" not in taken:
            raise ValueError("ENCODER.norm is false: SimMIM has no ViT without a last norm")
        theirs, left_out = to_theirs(table(kind, pretrained), taken)
        write_atomically(path, lambda file: torch.save({"model": theirs, **metadata.record(weights, taken)}, file))
        left_out += [name for name in weights.state if name not in taken]
        return WriteReport(left_out, f"torch.load({str(path)!r})['model'] fits the models of microsoft/SimMIM")


def table(kind: str, pretrained: bool) -> tuple[Row, ...]:
    """The names of a pretraining model, or of a fine-tuned one."""
    if pretrained:
        return (
            *below(TABLES[kind], f"{ENCODER}backbone.", ENCODER),
            *rows((f"{ENCODER}mask_token", f"{ENCODER}mask_token"), ("head.conv", "decoder.0")),
        )
    return (*below(TABLES[kind], f"{ENCODER}backbone."), *rows(("norm", "fc_norm"), ("heads.0", "head")))


def pretraining(kind: str) -> Sections:
    """The sections of the published SimMIM pretraining of an encoder."""
    own_windows: Sections = {"pretrained_windows": []} if kind == "swin_v2" else {}
    return {
        "TASK": "pretrain",
        "MASKER": {"name": "random", "cell": 32, "ratio": 0.6, "rounding": "ceil_hidden"},
        "ENCODER": {"hidden": "replace", **own_windows},
        "HEAD": {"name": "pixel_shuffle"},
        "TARGET": {"name": "pixels"},
        "LOSS": {"name": "l1", "eps": 1e-5},
    }


def fits_head(weights: ModelWeights) -> bool:
    """Whether the head is SimMIM's own; others have no place in its files."""
    return weights.sections["HEAD"]["name"] == "pixel_shuffle"


def _known(config: Any, kind: str) -> Sections:
    """What the pickled config of a run says, as config sections."""
    known: Sections = {}
    data, model = (_section(config, name) for name in ("DATA", "MODEL"))
    if isinstance(data.get("IMG_SIZE"), int) and 0 < data["IMG_SIZE"] <= SIDE:
        known["DATA"] = {"image_size": [data["IMG_SIZE"]] * 2}
    masks = {"cell": data.get("MASK_PATCH_SIZE"), "ratio": data.get("MASK_RATIO")}
    if isinstance(masks["cell"], int) and isinstance(masks["ratio"], float):
        known["MASKER"] = masks
    own = _section(model, MODEL_SECTIONS[kind])
    if kind != "beit" and isinstance(own.get("WINDOW_SIZE"), int):
        known["ENCODER"] = {"window": own["WINDOW_SIZE"]}
    windows = own.get("PRETRAINED_WINDOW_SIZES")
    if kind == "swin_v2" and isinstance(windows, list) and all(isinstance(side, int) for side in windows):
        known = metadata.merged(known, {"ENCODER": {"pretrained_windows": windows if any(windows) else []}})
    target = _section(_section(model, "SIMMIM"), "NORM_TARGET")
    if target.get("ENABLE") is True and isinstance(target.get("PATCH_SIZE"), int):
        known["TARGET"] = {"normalize": "window", "window": target["PATCH_SIZE"]}
    return known


def _section(config: Any, name: str) -> dict[str, Any]:
    held = config.get(name) if isinstance(config, dict) else None
    return held if isinstance(held, dict) else {}
