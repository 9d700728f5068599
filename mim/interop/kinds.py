"""Which encoder weights belong to, and with which classifier."""

from collections.abc import Iterable
from typing import Any, Literal

from mim.interop.formats import ModelWeights, Sections
from mim.registry import one_of

EncoderKind = Literal["vit", "beit", "swin", "swin_v2"]


def has_classifier(weights: ModelWeights, pools: Iterable[str]) -> bool:
    """Whether weights include a fine-tuned classifier with one of these ways of pooling.

    `class` and `mean` pool tokens after the encoder's norm; `mean, norm` is a mean that the norm follows.
    """
    if weights.sections["TASK"] != "finetune" or "readouts.0.linear.weight" not in weights.state:
        return False
    encoder, readout = weights.sections["ENCODER"], _linear(weights)
    has_norm = readout.get("norm") != "none"
    if readout.get("norm", "batch") == "batch" or has_norm == encoder.get("norm", True):
        return False  # two norms, or none
    return readout["pool"] + (", norm" if has_norm else "") in pools


def is_linear_probe(weights: ModelWeights, pool: str) -> bool:
    """Whether weights are of one linear probe behind a batch norm, with this way of pooling."""
    readout = _linear(weights) if weights.sections["TASK"] == "probe" else {}
    return (readout.get("pool"), readout.get("norm")) == (pool, "batch")


def _linear(weights: ModelWeights) -> dict[str, Any]:
    """READOUT where it is one linear layer; empty otherwise."""
    readout = weights.sections.get("READOUT")
    return readout if isinstance(readout, dict) and readout.get("name", "linear") == "linear" else {}


def check_encoder(sections: Sections, encoders: Iterable[str], code_base: str) -> str:
    """The name of the encoder. Raises ValueError where a code base has no such encoder."""
    name = sections["ENCODER"]["name"]
    if name not in encoders:
        raise ValueError(f"ENCODER.name {name} has no counterpart in {code_base}: {one_of('', encoders)}")
    return name


def check_keys(sections: Sections, code_base: str, **only: Any) -> None:
    """Raises ValueError where a key of ENCODER has another value than the only one that a code base computes."""
    for key, value in only.items():
        ours = sections["ENCODER"].get(key, value)
        if ours != value:
            raise ValueError(f"ENCODER.{key} is {as_text(ours)}: encoders of {code_base} have {as_text(value)} only")


def as_text(value: Any) -> str:
    """A value as a config has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def encoder_kind(names: Iterable[str]) -> EncoderKind | None:
    """The encoder of weights under timm's or the original names; None where they belong to no encoder here."""
    present = set(names)
    if "patch_embed.proj.weight" not in present:
        return None
    if "layers.0.blocks.0.attn.qkv.weight" in present:
        return "swin_v2" if "layers.0.blocks.0.attn.logit_scale" in present else "swin"
    if "blocks.0.attn.qkv.weight" not in present or "pos_embed_win" in present:  # the latter: Hiera
        return None
    biases = "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"
    return "beit" if any(name in present for name in (*biases, "blocks.0.attn.q_bias")) else "vit"
