"""Format: the family of file formats that weights come from and go to. A new one is a file here.

Everything passes through this toolkit's own names: a format reads `ModelWeights` from a file, or writes them to one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mim.interop.files import WeightsFile, read_stored
from mim.io.formatting import printable
from mim.io.limits import SIDE
from mim.registry import Component, one_of

ENCODER = "encoder."
AXES = {  # of weights that tell of the model, by how their names end in any format
    "patch_embed.proj.weight": 4,
    "patch_embeddings.projection.weight": 4,
    "pos_embed": 3,
    "position_embeddings": 3,
    "relative_position_bias_table": 2,
    "logit_scale": 3,
    "fc1.weight": 2,
    "dense.weight": 2,
    "embed.weight": 2,
    "norm.weight": 1,
    ".bias": 1,
}
Sections = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A model's weights under this toolkit's names, and what is known of the model.

    state: named as in a checkpoint's `model` (encoder.*, head.*, norm.*, heads.0.*); sections: config sections with
    the keys that are known; unspecified: keys, as SECTION.key, that matter and that neither weights nor file tell;
    left_out: names of the file's weights that have no place here, left_entries: how many numbers these are; averaged: a
    moving average over training steps; notes: what a person should know, a line each.
    """

    state: dict[str, Tensor]
    sections: Sections
    source: str
    unspecified: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    left_entries: int = 0
    averaged: bool = False
    notes: tuple[str, ...] = ()
    format: str = ""

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names start with a prefix."""
        return {name: held for name, held in self.state.items() if name.startswith(prefix)}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images that the model was made for, where known."""
        size = self.sections.get("DATA", {}).get("image_size")
        whole = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size)
        return (size[0], size[1]) if whole and min(size) > 0 and max(size) <= SIDE else None


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What a format made of weights: ours that it has no place for, and a line that says how to load the rest."""

    left_out: list[str] = field(default_factory=list)
    use: str = ""


class WeightsFormat(Component, ABC, section="FORMAT"):
    """How one code base names its weights, and where it keeps what they do not tell."""

    @abstractmethod
    def recognises(self, stored: WeightsFile) -> bool:
        """Whether a file is in this format, by its keys."""

    @abstractmethod
    def read(self, stored: WeightsFile) -> ModelWeights:
        """The weights under our names.

        Raises ValueError, with the reason, where no encoder here computes the same, and KeyError where a weight lacks
        that tells of the model; `read` names the file.
        """

    @abstractmethod
    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        """Writes a file, or a folder, that the code base itself can load; `weights.sections` must be complete.

        Raises ValueError, with the reason, where its encoders do not compute the same.
        """


def read(path: Path, called: str, given: str = "") -> ModelWeights:
    """Weights from a file, or a folder, of any known format; `given` names it where it is not to be recognised.

    Raises ValueError, naming the file as `called`, where it is missing, damaged, in no known format, or not in the one
    that was given.
    """
    stored = read_stored(path, called)
    try:
        _check_ranks(stored.weights)
    except ValueError as error:
        raise ValueError(f"{called} {path}: {error}") from error
    for name, part in WeightsFormat.members().items():
        if name == given or (not given and part().recognises(stored)):
            try:
                weights = part().read(stored)
            except KeyError as error:
                raise ValueError(f"{called} {path} is no model in the format {name}: it lacks {error}") from error
            except ValueError as error:
                raise ValueError(f"{called} {path} ({name}): {error}") from error
            entries = sum(stored.weights[left].numel() for left in weights.left_out)
            return replace(weights, format=name, left_entries=entries)
    names = ", ".join(map(printable, list(stored.weights)[:5])) or "none"
    raise ValueError(
        f"{called} {path} holds no encoder in a known format. {one_of('', WeightsFormat.members())}. "
        f"Its first weights: {names}"
    )


def _check_ranks(weights: dict[str, Tensor]) -> None:
    """Raises ValueError where a weight that tells of the model has not the axes that it has everywhere."""
    for name, weight in weights.items():
        axes = next((axes for ending, axes in AXES.items() if name.endswith(ending)), weight.ndim)
        if weight.ndim != axes or (name.endswith(tuple(AXES)) and not weight.numel()):
            raise ValueError(
                f"{printable(name)} has the shape {list(weight.shape)}: it is a weight of {axes} axes, none of them empty"
            )


def has_classifier(weights: ModelWeights, pools: Iterable[str]) -> bool:
    """Whether weights end in a fine-tuned classifier on one of these: `class`, the class token behind the encoder's
    norm; `mean`, the mean of such tokens; `mean, norm`, a mean with the norm behind it.
    """
    if weights.sections["TASK"] != "finetune" or "heads.0.weight" not in weights.state:
        return False
    encoder, pooled = weights.sections["ENCODER"], weights.sections["CLASSIFIER"]
    if pooled["norm"] == encoder.get("norm", True):
        return False  # two norms, or none
    return pooled["pool"] + (", norm" if pooled["norm"] else "") in pools


def without(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """A state dict without what stands below these prefixes."""
    return {name: held for name, held in state.items() if not name.startswith(prefixes)}


def supported(sections: Sections, encoders: Iterable[str], called: str) -> str:
    """The name of the encoder. Raises ValueError where a format has none of that kind."""
    name = sections["ENCODER"]["name"]
    if name not in encoders:
        raise ValueError(f"ENCODER.name {name} has no counterpart in {called}: {one_of('', encoders)}")
    return name


EncoderKind = Literal["vit", "beit", "swin", "swin_v2"]


def encoder_kind(names: Iterable[str]) -> EncoderKind | None:
    """Which encoder weights under timm's or the original names belong to; None where to none here."""
    known = set(names)
    if "patch_embed.proj.weight" not in known:
        return None
    if "layers.0.blocks.0.attn.qkv.weight" in known:
        return "swin_v2" if "layers.0.blocks.0.attn.logit_scale" in known else "swin"
    if "blocks.0.attn.qkv.weight" not in known:
        return None
    biased = "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"
    return "beit" if any(name in known for name in (*biased, "blocks.0.attn.q_bias")) else "vit"
