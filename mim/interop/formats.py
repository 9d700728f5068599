"""WeightsFormat: the base class of the file formats that weights are read from and written to.

Every conversion passes through this toolkit's own names: a format reads `ModelWeights` from a file, or writes them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from mim.interop.class_names import read_classes
from mim.interop.files import WeightsFile, read_weights_file
from mim.io.formatting import printable
from mim.io.limits import SIDE
from mim.registry import Component, one_of

ENCODER = "encoder."
BACKBONE = f"{ENCODER}backbone."
FUSION = "head.fusion."  # of the stages of an encoder; no other code base has it
AXES = {  # of the weights from which a config is inferred, by how their names end in any format
    "patch_embed.proj.weight": 4,
    "patch_embeddings.projection.weight": 4,
    "pos_embed": 3,
    "position_embeddings": 3,
    "relative_position_bias_table": 2,
    "logit_scale": 3,
    "fc1.weight": 2,
    "dense.weight": 2,
    "decoder_embed.weight": 2,
    "decoder_pred.weight": 2,
    "blocks.0.attn.proj.weight": 2,
    "head.embed.weight": 2,
    "norm.weight": 1,
    ".bias": 1,
}
Sections = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A model's weights under this toolkit's names, and what is known of the model."""

    state: dict[str, Tensor]  # by name, as in a checkpoint's `model` (encoder.*, head.*, readouts.0.*)
    sections: Sections  # with the keys that are known
    source: str  # path of the file
    unspecified: tuple[str, ...] = ()  # keys, as SECTION.key, that matter and that nothing in the file specifies
    left_out: tuple[str, ...] = ()  # names of the file's weights that this toolkit has no name for
    left_entries: int = 0  # numbers in these weights
    averaged: bool = False  # whether the weights are a moving average over training steps
    notes: tuple[str, ...] = ()  # lines for the user
    plugins: tuple[str, ...] = ()  # Python modules with parts of the model
    guesses: Mapping[str, str] = field(default_factory=dict)  # keys that nothing in the file says: why each was guessed
    classes: tuple[str, ...] = ()  # the names of a classifier's classes; empty where unknown
    format: str = ""  # name of the file's format

    def select(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names start with a prefix."""
        return {name: weight for name, weight in self.state.items() if name.startswith(prefix)}

    def without(self, *prefixes: str) -> dict[str, Tensor]:
        """The weights whose names start with none of these prefixes."""
        return {name: weight for name, weight in self.state.items() if not name.startswith(prefixes)}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the model's images, where known."""
        size = self.sections.get("DATA", {}).get("image_size")
        is_pair = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size)
        return (size[0], size[1]) if is_pair and min(size) > 0 and max(size) <= SIDE else None


SAFETENSORS = ".safetensors"
FILE_ENDINGS = (SAFETENSORS, ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class WriteReport:
    """The result of writing weights in a format."""

    left_out: list[str] = field(default_factory=list)  # names of our weights that the format has no name for
    usage: str = ""  # a line that says how to load the file


class WeightsFormat(Component, ABC, section="FORMAT"):
    """How a code base names its weights, and where its files keep what the weights do not show."""

    writes: ClassVar[Literal["torch", "torch or safetensors", "folder"]] = "torch"

    @abstractmethod
    def recognises(self, file: WeightsFile) -> bool:
        """Whether a file has this format, judged by its keys."""

    def infers_config(self, file: WeightsFile) -> bool:
        """Whether the config is inferred from the shapes of weights, because the file does not hold it."""
        return True

    @abstractmethod
    def read(self, file: WeightsFile) -> ModelWeights:
        """The weights under our names.

        Raises ValueError where no encoder here computes the same, and KeyError where a weight is missing.
        """

    def check_target(self, path: Path) -> None:
        """Raises ValueError where the name of a file to write has the ending of another kind of file."""
        ending = path.suffix.lower()
        if self.writes == "folder" and ending in FILE_ENDINGS and not path.is_dir():
            raise ValueError(f"OUT {path}: {self.name} is written as a folder, so name one without {ending}")
        if self.writes == "torch" and ending == SAFETENSORS:
            raise ValueError(f"OUT {path}: {self.name} is written as PyTorch's pickled file: name it .pt or .pth")

    @abstractmethod
    def write(self, weights: ModelWeights, path: Path) -> WriteReport:
        """Writes a file, or a folder, that the code base itself can load; `weights.sections` must be complete.

        Raises ValueError where the code base has no encoder that computes the same.
        """


class UnknownFormat(ValueError):
    """A file of weights in no known format."""


def read(path: Path, role: str, format_name: str = "", lazy: bool = False) -> ModelWeights:
    """Weights from a file, or a folder, in the named format, or in any known one where `format_name` is empty.

    lazy: weights are read when they are used, and checksums are not compared.

    Raises ValueError, calling the file by its `role`, where it is missing or damaged, or UnknownFormat.
    """
    return read_as(read_weights_file(path, role, lazy), role, format_name)


def read_as(file: WeightsFile, role: str, format_name: str = "") -> ModelWeights:
    """As `read`, of the content of a file."""
    path = file.path
    for name, part in WeightsFormat.members().items():
        if name == format_name or (not format_name and part().recognises(file)):
            if part().infers_config(file):
                try:
                    _check_axes(file.weights)
                except ValueError as error:
                    raise ValueError(f"{role} {path}: {error}") from error
            try:
                weights = part().read(file)
            except KeyError as error:
                raise ValueError(f"{role} {path} is not a model in the format {name}: it lacks {error}") from error
            except ValueError as error:
                raise ValueError(f"{role} {path} ({name}): {error}") from error
            entries = sum(file.weights[left].numel() for left in weights.left_out)
            classes = read_classes(file, weights.state)
            return replace(weights, format=name, left_entries=entries, classes=classes)
    names = ", ".join(map(printable, list(file.weights)[:5])) or "none"
    raise UnknownFormat(
        f"{role} {path} holds no encoder in a known format. {one_of('', WeightsFormat.members())}. "
        f"Its first weights: {names}"
    )


def _check_axes(weights: dict[str, Tensor]) -> None:
    """Raises ValueError for a weight with an unexpected number of axes, or an empty axis, where that is known."""
    for name, weight in weights.items():
        axes = next((axes for ending, axes in AXES.items() if name.endswith(ending)), weight.ndim)
        if weight.ndim != axes or (name.endswith(tuple(AXES)) and not weight.numel()):
            raise ValueError(
                f"{printable(name)} has the shape {list(weight.shape)}: it must have {axes} axes, none of them empty"
            )
