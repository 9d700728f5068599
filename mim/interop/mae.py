"""mae: files of facebookresearch/mae, of pretraining with or without decoder, of fine-tuning and of linear probing."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim.heads import Transformer
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
from mim.interop.names import below, rows, to_ours, to_theirs
from mim.io.files import write_atomically
from mim.io.limits import SIDE
from mim.ops.positions import sincos_table

BLOCK = rows(*((name, name) for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")))
VIT = (
    *rows(*((name, name) for name in ("cls_token", "pos_embed", "patch_embed.proj", "norm"))),
    *below(BLOCK, "blocks.{block}.", "blocks.{block}."),
)
DECODER = (
    *rows(
        ("embed", "decoder_embed"),
        ("mask_token", "mask_token"),
        ("norm", "decoder_norm"),
        ("predict", "decoder_pred"),  # both in the order (row, column, channel)
    ),
    *below(BLOCK, "layers.{block}.", "decoder_blocks.{block}."),
)
PRETRAINED = (*below(VIT, f"{ENCODER}backbone."), *below(DECODER, "head."))
FINETUNED = (*below(VIT, f"{ENCODER}backbone."), *rows(("norm", "fc_norm"), ("heads.0", "head")))
PROBED = (
    *below(VIT, f"{ENCODER}backbone."),
    *rows(*((f"norm.{name}", f"head.0.{name}") for name in ("running_mean", "running_var", "num_batches_tracked"))),
    *rows(("heads.0", "head.1")),
)
POSITIONS = "decoder_pos_embed"
PUBLISHED_DECODER_HEADS = {512: 16}
PUBLISHED_MODEL = re.compile(r"(?:mae_)?vit_(base|large|huge)_patch\d+\w*")
HEADS_OF = {"base": 12, "large": 16, "huge": 16}


class MAE(WeightsFormat, name="mae"):
    """`{'model': ...}` with the names of models_mae.py and models_vit.py, and mostly the run's arguments."""

    def recognises(self, stored: WeightsFile) -> bool:
        named = "decoder_embed.weight" in stored.weights or stored.holder == "model"
        return named and encoder_kind(stored.weights) == "vit"

    def read(self, stored: WeightsFile) -> ModelWeights:
        names = stored.weights
        table = PROBED if "head.1.weight" in names else FINETUNED if "head.weight" in names else PRETRAINED
        state, left_out = to_ours(table, names)
        own, notes = _known(stored.beside.get("args"), state)
        published = pretraining(state) if table is PRETRAINED else {**metadata.classifying(state), **metadata.CROP}
        sections, unspecified = metadata.described(
            "vit", state, metadata.merged(published, own, metadata.recorded(stored.beside))
        )
        if "head.embed.weight" in state and "heads" not in sections["HEAD"]:
            unspecified = (*unspecified, "HEAD.heads")
        if POSITIONS in names and fixed_positions(names[POSITIONS], sections):
            left_out.remove(POSITIONS)  # a head here makes it anew
        return ModelWeights(state, sections, str(stored.path), unspecified, tuple(left_out), notes=notes)

    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        supported(weights.sections, ["vit"], "facebookresearch/mae")
        task, encoder = weights.sections["TASK"], weights.sections["ENCODER"]
        table, taken = FINETUNED, without(weights.state, f"{ENCODER}mask_token", "head.", "heads.", "norm.")
        if task == "pretrain":
            table, taken = PRETRAINED, {**taken, **(weights.below("head.") if fits_decoder(weights) else {})}
        elif has_classifier(weights, ["class", "mean, norm"]):
            taken = weights.state
        elif task == "linear_probe" and weights.sections["CLASSIFIER"]["pool"] == "class":
            table, taken = PROBED, weights.state
        if not encoder["class_token"]:
            raise ValueError("ENCODER.class_token is false: models_mae.py and models_vit.py have no ViT without one")
        if not encoder["norm"] and "norm.weight" not in taken:
            raise ValueError("ENCODER.norm is false: models_mae.py and models_vit.py have no ViT without a last norm")
        theirs, left_out = to_theirs(table, taken)
        if "decoder_embed.weight" in theirs:
            theirs[POSITIONS] = decoder_positions(weights)
        write_atomically(path, lambda file: torch.save({"model": theirs, **metadata.record(weights, taken)}, file))
        left_out += [name for name in weights.state if name not in taken]
        return WriteReport(left_out, f"torch.load({str(path)!r})['model'] fits models_mae.py or models_vit.py")


def pretraining(state: dict[str, Tensor]) -> Sections:
    """The sections of the published MAE pretraining, and the keys of HEAD that its weights tell, where there is one."""
    head = {name.removeprefix("head."): held for name, held in state.items() if name.startswith("head.")}
    keys = Transformer.infer_keys(head) if head else {}
    heads = PUBLISHED_DECODER_HEADS.get(keys.get("width", 0))
    patch = state[f"{ENCODER}backbone.patch_embed.proj.weight"].shape[-1]
    return {
        "TASK": "pretrain",
        "MASKER": {"name": "random", "cell": patch, "ratio": 0.75},
        "ENCODER": {"hidden": "drop"},
        "HEAD": {"name": "transformer", **keys, **({"heads": heads} if heads else {})},
        "TARGET": {"name": "pixels", "normalize": "patch"},
        "LOSS": {"name": "mse"},
    }


def decoder_positions(weights: ModelWeights) -> Tensor:
    """The decoder's fixed table, (1, K + N, D), which a head here makes anew and official files keep."""
    height, width = weights.sections["DATA"]["image_size"]
    patch = weights.sections["ENCODER"]["patch"]
    embed = weights.state["head.embed.weight"]
    return sincos_table((height // patch, width // patch), len(embed), num_prefix=1).to(embed.dtype)


def fixed_positions(table_1ND: Tensor, sections: Sections) -> bool:
    """Whether a decoder's table is the sine-cosine one that a head here makes."""
    if "image_size" not in sections["DATA"]:
        return False
    grid = tuple(side // sections["ENCODER"]["patch"] for side in sections["DATA"]["image_size"])
    if table_1ND.shape[1] != 1 + grid[0] * grid[1] or table_1ND.shape[2] % 4:
        return False
    own_1ND = sincos_table(grid, table_1ND.shape[2], num_prefix=1)
    return own_1ND.shape == table_1ND.shape and torch.allclose(own_1ND, table_1ND.float(), atol=1e-4)


def fits_decoder(weights: ModelWeights) -> bool:
    """Whether the head is MAE's own: it fills what the encoder dropped."""
    return weights.sections["HEAD"]["name"] == "transformer" and weights.sections["ENCODER"]["hidden"] == "drop"


def _known(arguments: Any, state: dict[str, Tensor]) -> tuple[Sections, tuple[str, ...]]:
    """What a run's arguments say, as config sections; the number of heads at worst by the published width."""
    known: Sections = {}
    arguments = arguments if isinstance(arguments, dict) else {}
    size, ratio, normalize = (arguments.get(key) for key in ("input_size", "mask_ratio", "norm_pix_loss"))
    if isinstance(size, int) and 0 < size <= SIDE:
        known["DATA"] = {"image_size": [size, size]}
    if isinstance(ratio, float):
        known["MASKER"] = {"ratio": ratio}
    if isinstance(normalize, bool):
        known["TARGET"] = {"normalize": "patch" if normalize else "none"}
    model = PUBLISHED_MODEL.fullmatch(str(arguments.get("model")))
    if model:
        return {**known, "ENCODER": {"heads": HEADS_OF[model[1]]}}, ()
    keys, notes = metadata.published_heads(state)
    return {**known, "ENCODER": keys}, notes
