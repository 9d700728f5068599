"""Initialising an encoder from the weights of a file, with a report of what happened to each weight."""

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
FLOATING = (*(torch.float32, torch.bfloat16, torch.float16, torch.float64), *(torch.float8_e4m3fn, torch.float8_e5m2))


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What happened to each weight of an encoder: names, and where shapes differ both of them."""

    source: str  # path of the file
    averaged: bool  # whether the weights are a moving average over training steps
    loaded: list[str]
    resized: list[str]  # those of the loaded ones that were resized or moved to another name
    missing: list[str]  # of the encoder's weights: the file lacks them
    unexpected: list[str]  # of the file's weights: the encoder lacks them
    reshaped: list[str]  # their shape does not fit
    notes: tuple[str, ...] = ()  # lines for the user

    def lines(self) -> list[str]:
        """The report as text: a count, then the names of all weights that were not loaded unchanged."""
        average = " (their moving average)" if self.averaged else ""
        lines = [f"{self.source}: {len(self.loaded)} encoder weights loaded{average}"]
        for outcome, names in (
            ("resized or moved", self.resized),
            ("missing in the file, kept as initialised", [fold_names(self.missing)]),
            ("in the file only, left out", [fold_names(self.unexpected)]),
            ("of another shape, left out", self.reshaped),
        ):
            if any(names):
                lines.append(f"  {outcome}: {', '.join(names)}")
        return [*lines, *(f"  {note}" for note in self.notes)]


def initialise_encoder(encoder: Encoder, path: Path) -> LoadReport:
    """INIT.checkpoint: loads an encoder's weights from a file in any known format; heads are left out.

    Raises ValueError where the file is missing or in no known format, and as match_weights does; then nothing changes.
    """
    state, report = match_weights(encoder, read(path, "INIT.checkpoint"), "INIT.checkpoint")
    encoder.load_state_dict(state, strict=False)
    return report


def match_weights(encoder: Encoder, weights: ModelWeights, role: str) -> tuple[dict[str, Tensor], LoadReport]:
    """The weights of a file that fit an encoder, by the encoder's names and resized where needed, and the report.

    Tables of positions are resized where the image size or the window differs. The encoder may be on the meta device.
    Raises ValueError, calling the file by its `role`, where less than half of the encoder is in the file, less than
    half of the file's encoder fits, or a weight has no usable numbers.
    """
    theirs = {name.removeprefix(ENCODER): weight for name, weight in weights.select(ENCODER).items()}
    ours = {name: weight for name, weight in encoder.state_dict().items() if not name.endswith(DERIVED_BUFFERS)}
    _check_numbers({name: weight for name, weight in theirs.items() if name in ours}, f"{role} {weights.source}")
    origin = {name: source for source in theirs for name in encoder.destinations(source) if name in ours}
    state = {name: encoder.resize_weight(name, theirs[source], weights.image_size) for name, source in origin.items()}
    fitting = {name for name in state if ours[name].shape == state[name].shape}
    report = LoadReport(
        weights.source,
        weights.averaged,
        loaded=sorted(fitting),
        resized=[
            f"{printable(origin[name])} {_shape(theirs[origin[name]])} -> {'' if name == origin[name] else name + ' '}"
            f"{_shape(state[name])}"
            for name in sorted(fitting)
            if name != origin[name] or state[name] is not theirs[origin[name]]
        ],
        missing=[name for name in ours if name not in state],
        unexpected=[*(name for name in theirs if name not in origin.values()), *weights.left_out],
        reshaped=[f"{name} {_shape(state[name])} for {_shape(ours[name])}" for name in state if name not in fitting],
        notes=weights.notes,
    )
    _check_share(report, role, _size(ours, fitting), _size(ours, ours), "of this encoder's weights are in it")
    fitting_entries = _size(theirs, {origin[name] for name in fitting})
    entries = _size(theirs, theirs) + weights.left_entries
    _check_share(report, role, fitting_entries, entries, "of its weights fit this encoder")
    return {name: state[name] for name in state if name in fitting}, report


def _check_numbers(weights: dict[str, Tensor], file: str) -> None:
    for name, weight in weights.items():
        if weight.dtype not in FLOATING:
            raise ValueError(
                f"{file}: {printable(name)} is of type {weight.dtype}, and weights are of "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in FLOATING)}"
            )
        if not weight.float().isfinite().all():
            raise ValueError(
                f"{file}: {printable(name)} contains infinite numbers or NaN: its training diverged, so use an earlier "
                "checkpoint"
            )


def _check_share(report: LoadReport, role: str, part: int, total: int, share: str) -> None:
    if part < LEAST_SHARE * total or not total:
        details = "\n".join(report.lines()[1:])[:2000]
        raise ValueError(
            f"{role} {report.source} holds another encoder: only {part / max(total, 1):.0%} {share}, and at least "
            f"{LEAST_SHARE:.0%} must be\n{details}"
        )


def _size(state: dict[str, Tensor], names: set[str] | dict[str, Tensor]) -> int:
    return sum(state[name].numel() for name in names)


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
