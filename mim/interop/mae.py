"""mae: files of facebookresearch/mae, from pretraining (with or without decoder), fine-tuning and linear probing.

Shapes: K prefix tokens, N patch tokens, D width.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim.heads import Transformer
from mim.interop import metadata
from mim.interop.files import WeightsFile
from mim.interop.formats import BACKBONE, ENCODER, FUSION, ModelWeights, Sections, WeightsFormat, WriteReport
from mim.interop.kinds import check_encoder, check_keys, encoder_kind, has_classifier, is_linear_probe
from mim.interop.names import add_prefix, rows, same, to_ours, to_theirs
from mim.io.files import write_atomically
from mim.io.limits import SIDE
from mim.ops.positions import sincos_table

BLOCK = same("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
VIT = (
    *same("cls_token", "pos_embed", "patch_embed.proj", "norm"),
    *add_prefix(BLOCK, "blocks.{block}.", "blocks.{block}."),
)
DECODER = (
    *rows(
        ("embed", "decoder_embed"),
        ("mask_token", "mask_token"),
        ("norm", "decoder_norm"),
        ("predict", "decoder_pred"),  # both in the order (row, column, channel)
    ),
    *add_prefix(BLOCK, "layers.{block}.", "decoder_blocks.{block}."),
)
PRETRAINED = (*add_prefix(VIT, BACKBONE), *add_prefix(DECODER, "head."))
FINETUNED = (*add_prefix(VIT, BACKBONE), *rows(("readouts.0.norm", "fc_norm"), ("readouts.0.linear", "head")))
PROBED = (
    *add_prefix(VIT, BACKBONE),
    *add_prefix(same("running_mean", "running_var", "num_batches_tracked"), "readouts.0.norm.", "head.0."),
    *rows(("readouts.0.linear", "head.1")),
)
POSITIONS = "decoder_pos_embed"
TABLE = f"{BACKBONE}pos_embed"
MAE_DECODER = {
    **{"embed": True, "norm": True, "positions": "sincos", "positions_of": "all", "head_width": 0},
    "output": "linear",
}
PUBLISHED_DECODER_HEADS = {512: 16}
PUBLISHED_MODEL = re.compile(r"(?:mae_)?vit_(base|large|huge)_patch\d+\w*")
HEADS_OF = {"base": 12, "large": 16, "huge": 16}


class MAE(WeightsFormat, name="mae"):
    """`{'model': ...}` with the names of models_mae.py and models_vit.py, and often the run's arguments."""

    def recognises(self, file: WeightsFile) -> bool:
        named = "decoder_embed.weight" in file.weights or file.container == "model"
        return named and encoder_kind(file.weights) == "vit"

    def read(self, file: WeightsFile) -> ModelWeights:
        names = file.weights
        table = PROBED if "head.1.weight" in names else FINETUNED if "head.weight" in names else PRETRAINED
        state, left_out = to_ours(table, names)
        arguments, guessed_heads = _from_arguments(file.metadata.get("args"), state)
        published = (
            pretraining(state) if table is PRETRAINED else {**metadata.classification_sections(state), **metadata.CROP}
        )
        record = metadata.read_metadata(file.metadata)
        facts = metadata.merge(published, arguments, record)
        guessed = metadata.without_recorded(guessed_heads, record)
        sections, unspecified, guesses = metadata.infer_sections("vit", state, facts, guessed)
        if "head.embed.weight" in state and "heads" not in sections["HEAD"]:
            unspecified = (*unspecified, "HEAD.heads")
        if POSITIONS in names and is_fixed_table(names[POSITIONS], sections):
            left_out.remove(POSITIONS)  # a head here computes it when it is built
        return ModelWeights(state, sections, str(file.path), unspecified, tuple(left_out), guesses=guesses)

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        check_encoder(weights.sections, ["vit"], "facebookresearch/mae")
        only = {"qkv_bias": True, "norm_eps": 1e-6, "head_width": 0, "patch_norm": False, "norm_first": True}
        check_keys(weights.sections, "facebookresearch/mae", **only)
        weights = with_class_position(weights)
        task, encoder = weights.sections["TASK"], weights.sections["ENCODER"]
        table, ours = FINETUNED, weights.without(f"{ENCODER}mask_token", "head.", "readouts.")
        if task == "pretrain":
            table, ours = PRETRAINED, {**ours, **(weights.select("head.") if has_mae_decoder(weights) else {})}
        elif has_classifier(weights, ["class", "mean, norm"]):
            ours = weights.state
        elif is_linear_probe(weights, "class"):
            table, ours = PROBED, weights.state
        if not encoder["class_token"]:
            raise ValueError("ENCODER.class_token is false: models_mae.py and models_vit.py have no ViT without one")
        if not encoder["norm"] and "readouts.0.norm.weight" not in ours:
            raise ValueError("ENCODER.norm is false: models_mae.py and models_vit.py have no ViT without a last norm")
        theirs, left_out = to_theirs(table, ours)
        if "decoder_embed.weight" in theirs:
            theirs[POSITIONS] = decoder_positions(weights)
        content = {"model": theirs, **metadata.metadata_of(weights, ours)}
        write_atomically(path, lambda file: torch.save(content, file))
        left_out += [name for name in weights.state if name not in ours]
        return WriteReport(left_out, f"torch.load({str(path)!r})['model'] fits models_mae.py or models_vit.py")


def pretraining(state: dict[str, Tensor]) -> Sections:
    """The sections of the published MAE pretraining, with the keys of HEAD that the weights show."""
    head = {name.removeprefix("head."): weight for name, weight in state.items() if name.startswith("head.")}
    keys = Transformer.infer_keys(head) if head else {}
    heads = PUBLISHED_DECODER_HEADS.get(keys.get("width", 0))
    patch = state[f"{BACKBONE}patch_embed.proj.weight"].shape[-1]
    return {
        "TASK": "pretrain",
        "MASKER": {"name": "random", "cell": patch, "ratio": 0.75},
        "ENCODER": {"hidden": "drop"},
        "HEAD": {"name": "transformer", **keys, **({"heads": heads} if heads else {})},
        "TARGET": {"name": "pixels", "normalize": "patch"},
        "LOSS": {"name": "mse"},
    }


def decoder_positions(weights: ModelWeights) -> Tensor:
    """The decoder's table of positions, (1, K + N, D): a head here computes it, official files store it."""
    height, width = weights.sections["DATA"]["image_size"]
    patch = weights.sections["ENCODER"]["patch"]
    embed = weights.state["head.embed.weight"]
    return sincos_table((height // patch, width // patch), len(embed), num_prefix=1).to(embed.dtype)


def is_fixed_table(table_1ND: Tensor, sections: Sections) -> bool:
    """Whether a decoder's table of positions equals the sine-cosine one that a head here computes."""
    if "image_size" not in sections["DATA"]:
        return False
    grid = tuple(side // sections["ENCODER"]["patch"] for side in sections["DATA"]["image_size"])
    if table_1ND.shape[1] != 1 + grid[0] * grid[1] or table_1ND.shape[2] % 4:
        return False
    fixed_1ND = sincos_table(grid, table_1ND.shape[2], num_prefix=1)
    return fixed_1ND.shape == table_1ND.shape and torch.allclose(fixed_1ND, table_1ND.float(), atol=1e-4)


def has_mae_decoder(weights: ModelWeights) -> bool:
    """Whether the head is MAE's decoder, which fills in what the encoder dropped, with blocks like the encoder's."""
    head, encoder = weights.sections["HEAD"], weights.sections["ENCODER"]
    if head["name"] != "transformer" or encoder["hidden"] != "drop" or weights.select(FUSION):
        return False
    alike = all(head[key] == encoder[key] for key in ("qkv_bias", "norm_eps"))
    return alike and all(head[key] == value for key, value in MAE_DECODER.items())


def with_class_position(weights: ModelWeights) -> ModelWeights:
    """The same model with a position of the class token, of zeros where it has none: other code bases need one."""
    encoder = weights.sections["ENCODER"]
    if encoder["class_position"] or not encoder["class_token"]:
        return weights
    table_1ND = weights.state[TABLE]
    state = {**weights.state, TABLE: torch.cat([torch.zeros_like(table_1ND[:, :1]), table_1ND], dim=1)}
    sections = {**weights.sections, "ENCODER": {**encoder, "class_position": True}}
    return replace(weights, state=state, sections=sections)


def _from_arguments(arguments: Any, state: dict[str, Tensor]) -> tuple[Sections, dict[str, str]]:
    """The sections that a run's arguments specify, and why heads were guessed: by the width, without a known model."""
    sections: Sections = {}
    arguments = arguments if isinstance(arguments, dict) else {}
    size, ratio, normalize = (arguments.get(key) for key in ("input_size", "mask_ratio", "norm_pix_loss"))
    if isinstance(size, int) and 0 < size <= SIDE:
        sections["DATA"] = {"image_size": [size, size]}
    if isinstance(ratio, float):
        sections["MASKER"] = {"ratio": ratio}
    if isinstance(normalize, bool):
        sections["TARGET"] = {"normalize": "patch" if normalize else "none"}
    model = PUBLISHED_MODEL.fullmatch(str(arguments.get("model")))
    keys, guesses = metadata.published_heads(state)
    if model and keys.get("heads") == HEADS_OF[model[1]]:
        return {**sections, "ENCODER": keys}, {}
    if model:
        keys, guesses = {"heads": HEADS_OF[model[1]]}, {"ENCODER.heads": f"those of {model[0]}, of another width"}
    return {**sections, "ENCODER": keys}, guesses
