"""INIT.checkpoint: the encoder starts from weights of an earlier run."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from mim.encoders import Encoder
from mim.ops.weights import read_weights

LEAST_SHARE = 0.5
PREFIX = "encoder."
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")  # some timm versions keep them in files


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """An encoder's state dict from a file; image_size: height and width it was built for, None where not known."""

    state: dict[str, Tensor]
    image_size: tuple[int, int] | None
    averaged: bool  # a moving average over training steps, which evaluations used


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each weight, by name; resized and reshaped with both shapes."""

    source: Path
    averaged: bool
    loaded: list[str]
    resized: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def lines(self) -> list[str]:
        """The report for a person: counts, then every name that was not loaded as it is."""
        average = " (their moving average)" if self.averaged else ""
        found = [f"{self.source}: {len(self.loaded)} encoder weights loaded{average}"]
        for what, names in (
            ("resized or moved", self.resized),
            ("missing in the file, kept as initialised", self.missing),
            ("in the file only, left out", self.unexpected),
            ("of another shape, left out", self.reshaped),
        ):
            if names:
                found.append(f"  {what}: {', '.join(names)}")
        return found


def initialise_encoder(encoder: Encoder, path: Path) -> LoadReport:
    """Copies the encoder weights of a checkpoint of this toolkit; heads are left out.

    Tables of positions are resized where the image size or the window is another, and pass untouched, to the bit, where
    it is not. Raises ValueError where the file is missing or of another kind, holds less than half of the encoder's
    weights in their shapes, or where less than half of its own find a place; the encoder is then unchanged.
    """
    weights = read_encoder(path)
    own = {name: weight for name, weight in encoder.state_dict().items() if not name.endswith(DERIVED)}
    origin = {place: name for name in weights.state for place in encoder.places(name) if place in own}
    state = {place: encoder.fit(place, weights.state[name], weights.image_size) for place, name in origin.items()}
    fitting = {name for name in state if own[name].shape == state[name].shape}
    report = LoadReport(
        path,
        weights.averaged,
        loaded=sorted(fitting),
        resized=[
            f"{origin[name]} {_words(weights.state[origin[name]])} -> {'' if name == origin[name] else name + ' '}"
            f"{_words(state[name])}"
            for name in sorted(fitting)
            if name != origin[name] or state[name] is not weights.state[name]
        ],
        missing=[name for name in own if name not in state],
        unexpected=[name for name in weights.state if name not in origin.values()],
        reshaped=[f"{name} {_words(state[name])} for {_words(own[name])}" for name in state if name not in fitting],
    )
    _check_share(report, _size(own, fitting), _size(own, own), "of this one's weights are in it")
    used = _size(weights.state, {origin[name] for name in fitting})
    _check_share(report, used, _size(weights.state, weights.state), "of its weights find a place in this one")
    encoder.load_state_dict({name: state[name] for name in fitting}, strict=False)
    return report


def read_encoder(path: Path) -> EncoderWeights:
    """The encoder of a checkpoint of this toolkit, averaged where the run kept an average.

    Raises ValueError where the file is missing or of another kind.
    """
    content = read_weights(path, "INIT.checkpoint")
    content = content if isinstance(content, dict) else {}
    for key, prefix in (("ema", "module." + PREFIX), ("model", PREFIX)):
        weights = content.get(key)
        held = weights if isinstance(weights, dict) else {}
        named = {name: weight for name, weight in held.items() if isinstance(name, str) and isinstance(weight, Tensor)}
        chosen = [name for name in named if name.startswith(prefix) and not name.endswith(DERIVED)]
        state = {name.removeprefix(prefix): named[name] for name in chosen}
        if state:
            return EncoderWeights(state, _image_size(content), key == "ema")
    raise ValueError(f"INIT.checkpoint {path} holds no encoder: it is not a checkpoint of this toolkit")


def _image_size(content: dict) -> tuple[int, int] | None:
    try:
        config = yaml.safe_load(content["config"])
        height, width = config["DATA"]["image_size"]
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError):  # whatever else the file holds there
        return None
    whole = isinstance(height, int) and isinstance(width, int)
    return (height, width) if whole and min(height, width) > 0 else None


def _check_share(report: LoadReport, part: int, whole: int, what: str) -> None:
    if part < LEAST_SHARE * whole:
        details = "\n".join(report.lines()[1:])[:2000]
        raise ValueError(
            f"INIT.checkpoint {report.source} holds another encoder: only {part / whole:.0%} {what}, and at least "
            f"{LEAST_SHARE:.0%} must be\n{details}"
        )


def _size(state: dict[str, Tensor], names: set[str] | dict[str, Tensor]) -> int:
    return sum(state[name].numel() for name in names)


def _words(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
