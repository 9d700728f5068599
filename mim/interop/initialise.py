"""Placing: each weight of a file in its place in an encoder here, with a report of what became of it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim.encoders import Encoder
from mim.interop.formats import ENCODER, ModelWeights, read
from mim.interop.names import fold_names
from mim.io.formatting import printable
from mim.io.weights import DERIVED_BUFFERS

LEAST_SHARE = 0.5
FLOATING = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each weight, by name; resized and reshaped with both shapes."""

    source: str
    averaged: bool
    loaded: list[str]
    resized: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for a person: counts, then every name that was not loaded as it is."""
        average = " (their moving average)" if self.averaged else ""
        found = [f"{self.source}: {len(self.loaded)} encoder weights loaded{average}"]
        for what, names in (
            ("resized or moved", self.resized),
            ("missing in the file, kept as initialised", [fold_names(self.missing)]),
            ("in the file only, left out", [fold_names(self.unexpected)]),
            ("of another shape, left out", self.reshaped),
        ):
            if any(names):
                found.append(f"  {what}: {', '.join(names)}")
        return [*found, *(f"  {note}" for note in self.notes)]


@dataclass(frozen=True, slots=True)
class MatchedWeights:
    """The weights that fit an encoder, under the names of its state dict, and the report."""

    state: dict[str, Tensor]
    report: LoadReport


def initialise_encoder(encoder: Encoder, path: Path) -> LoadReport:
    """INIT.checkpoint: the encoder starts from the weights of a file in any known format; heads are left out.

    Tables of positions are resized where the image size or the window is another, and pass untouched, to the bit, where
    it is not. Raises ValueError where the file is missing or of another kind, holds less than half of the encoder's
    weights in their shapes, or where less than half of its own find a place; the encoder is then unchanged.
    """
    placed = match_weights(encoder, read(path, "INIT.checkpoint"), "INIT.checkpoint")
    encoder.load_state_dict(placed.state, strict=False)
    return placed.report


def match_weights(encoder: Encoder, weights: ModelWeights, called: str) -> MatchedWeights:
    """The weights of a file that fit an encoder, resized where they must be. The encoder may be on the meta device.

    Raises ValueError, naming the file as `called`, where less than half of either's weights find their match.
    """
    theirs = {name.removeprefix(ENCODER): held for name, held in weights.below(ENCODER).items()}
    own = {name: weight for name, weight in encoder.state_dict().items() if not name.endswith(DERIVED_BUFFERS)}
    _check_numbers(own, theirs, called, weights.source)
    origin = {place: name for name in theirs for place in encoder.destinations(name) if place in own}
    state = {place: encoder.resize_weight(place, theirs[name], weights.image_size) for place, name in origin.items()}
    fitting = {name for name in state if own[name].shape == state[name].shape}
    report = LoadReport(
        weights.source,
        weights.averaged,
        loaded=sorted(fitting),
        resized=[
            f"{printable(origin[name])} {_words(theirs[origin[name]])} -> {'' if name == origin[name] else name + ' '}"
            f"{_words(state[name])}"
            for name in sorted(fitting)
            if name != origin[name] or state[name] is not theirs[origin[name]]
        ],
        missing=[name for name in own if name not in state],
        unexpected=[*(name for name in theirs if name not in origin.values()), *weights.left_out],
        reshaped=[f"{name} {_words(state[name])} for {_words(own[name])}" for name in state if name not in fitting],
        notes=weights.notes,
    )
    _check_share(report, called, _size(own, fitting), _size(own, own), "of this one's weights are in it")
    used, all_of_it = _size(theirs, {origin[name] for name in fitting}), _size(theirs, theirs) + weights.left_entries
    _check_share(report, called, used, all_of_it, "of its weights find a place in this one")
    return MatchedWeights({name: state[name] for name in state if name in fitting}, report)


def _check_numbers(own: dict[str, Tensor], theirs: dict[str, Tensor], called: str, source: str) -> None:
    """Raises ValueError for a weight with a name of ours that holds no numbers to go on from."""
    for name, weight in theirs.items():
        if name not in own:
            continue
        if weight.dtype not in FLOATING:
            raise ValueError(
                f"{called} {source}: {printable(name)} is of type {weight.dtype}, and weights are of "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in FLOATING)}"
            )
        if not weight.float().isfinite().all():
            raise ValueError(
                f"{called} {source}: {printable(name)} holds infinite numbers or NaN: its training had diverged, take an "
                "earlier file"
            )


def _check_share(report: LoadReport, called: str, part: int, whole: int, what: str) -> None:
    if part < LEAST_SHARE * whole or not whole:
        details = "\n".join(report.lines()[1:])[:2000]
        raise ValueError(
            f"{called} {report.source} holds another encoder: only {part / max(whole, 1):.0%} {what}, and at least "
            f"{LEAST_SHARE:.0%} must be\n{details}"
        )


def _size(state: dict[str, Tensor], names: set[str] | dict[str, Tensor]) -> int:
    return sum(state[name].numel() for name in names)


def _words(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
