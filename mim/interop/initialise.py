"""Initialising an encoder from the weights of a file, with a report of what happened to each weight."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim.encoders import Encoder
from mim.encoders.base import FOR_HIDDEN
from mim.interop.files import read_weights_file
from mim.interop.formats import ENCODER, ModelWeights, UnknownFormat, read_as
from mim.interop.names import fold_names
from mim.interop.own import own_weights
from mim.io.formatting import printable
from mim.io.weights import DERIVED_BUFFERS
from mim.ops.channels import adapt_channels

LEAST_SHARE = 0.5
DECODER = "decoder"  # in every format, the names of weights after the encoder start with it
UNUSED = (*FOR_HIDDEN, "backbone.norm.weight", "backbone.norm.bias")  # where the encoder lacks them, by its own keys
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
    behind: tuple[str, ...] = ()  # names of the file's weights behind the encoder

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

    def faults(self, is_frozen: Callable[[str], bool] = lambda name: True) -> list[str]:
        """The names of weights without which features are not those of the file, as far as no training mends it.

        A mask token does not count where nothing is hidden, nor does a last norm that ENCODER.norm false leaves out.
        """
        unexpected = [name for name in self.unexpected if not name.startswith((*UNUSED, DECODER))]
        names = [*self.missing, *unexpected, *(text.partition(" ")[0] for text in self.reshaped)]
        return [name for name in names if is_frozen(name)]


def initialise_encoder(
    encoder: Encoder,
    path: Path,
    is_frozen: Callable[[str], bool] = lambda name: False,
    adapt_channels: bool = False,
    leave_out: Sequence[str] = (),
) -> LoadReport:
    """INIT.checkpoint: loads an encoder's weights from a file in any known format; heads are left out.

    Args:
        is_frozen: whether no training changes a weight of the encoder, by name.
        adapt_channels, leave_out: see match_weights.

    Raises ValueError where the file is missing or in no known format, where it does not have exactly the weights that
    stay frozen, and as match_weights does; then nothing changes.
    """
    weights = read_for(encoder, path, "INIT.checkpoint")
    state, report = match_weights(encoder, weights, "INIT.checkpoint", adapt_channels, leave_out)
    faults = report.faults(is_frozen)
    if faults:
        details = "\n".join(report.lines()[1:])
        raise ValueError(
            f"INIT.checkpoint {path} has not exactly the weights of ENCODER.name {encoder.name}, and no training mends "
            f"what differs in a frozen encoder: {fold_names(faults)[:500]}\n{details}\nChange ENCODER or DATA so that "
            "they fit (INIT.adapt_channels true adapts the first layer to other channels), or name what the features "
            "do not need with INIT.leave_out, or fine-tune the encoder"
        )
    encoder.load_state_dict(state, strict=False)
    return report


def read_for(encoder: Encoder, path: Path, role: str) -> ModelWeights:
    """The weights of a file in a known format, or under the names of the encoder, whichever fits more of it.

    Raises ValueError where the file is missing, or neither is the case.
    """
    file = read_weights_file(path, role)
    own = own_weights(encoder, file)
    try:
        weights = read_as(file, role)
    except ValueError as error:  # in no known format, or in one whose encoders are not this one
        if own is None or not (isinstance(error, UnknownFormat) or _fits_most(encoder, own)):
            raise
        return own
    return own if own is not None and _fits(encoder, own) > _fits(encoder, weights) else weights


def match_weights(
    encoder: Encoder, weights: ModelWeights, role: str, adapt: bool = False, leave_out: Sequence[str] = ()
) -> tuple[dict[str, Tensor], LoadReport]:
    """The weights of a file that fit an encoder, by the encoder's names and resized where needed, and the report.

    Tables of positions are resized where the image size or the window differs. The encoder may be on the meta device.

    Args:
        adapt: adapt the weights of the first layer to the encoder's channels.
        leave_out: how the names of weights begin that are left out without a word.

    Raises ValueError, calling the file by its `role`, where less than half of the encoder is in the file, less than
    half of the file's encoder fits, or a weight has no usable numbers.
    """
    file = _FileWeights.of(encoder, weights, role, adapt, leave_out)
    theirs = file.weights
    ours = {name: weight for name, weight in encoder.state_dict().items() if not name.endswith(DERIVED_BUFFERS)}
    check_numbers(theirs, ours, f"{role} {weights.source}")
    origin = {name: source for source in theirs for name in encoder.destinations(source) if name in ours}
    state = {name: encoder.resize_weight(name, theirs[source], weights.image_size) for name, source in origin.items()}
    fitting = {name for name in state if ours[name].shape == state[name].shape}
    report = LoadReport(
        weights.source,
        weights.averaged,
        loaded=sorted(fitting),
        resized=[line for name in sorted(fitting) if (line := file.change(name, origin[name], state[name]))],
        missing=[name for name in ours if name not in state],
        unexpected=[*(name for name in theirs if name not in origin.values()), *file.left_out],
        reshaped=[
            f"{name} {shape_text(state[name])} for {shape_text(ours[name])}" for name in state if name not in fitting
        ],
        notes=file.notes,
        behind=file.behind,
    )
    _check_share(report, role, _size(ours, fitting), _size(ours, ours), "of this encoder's weights are in it")
    fitting_entries = _size(theirs, {origin[name] for name in fitting})
    entries = _size(theirs, theirs) + file.left_entries
    _check_share(report, role, fitting_entries, entries, "of its weights fit this encoder")
    return {name: state[name] for name in state if name in fitting}, report


@dataclass(frozen=True, slots=True)
class _FileWeights:
    """The weights of a file for an encoder, by the encoder's names."""

    weights: dict[str, Tensor]
    translated: dict[str, Tensor]  # before channels were adapted
    original: dict[str, Tensor]  # before the encoder translated names and sizes
    behind: tuple[str, ...]  # names of weights behind the encoder
    left_out: tuple[str, ...]  # names of weights that this toolkit has no name for
    left_entries: int  # numbers in these
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, encoder: Encoder, weights: ModelWeights, role: str, adapt: bool, leave_out: Sequence[str]
    ) -> "_FileWeights":
        theirs = {name.removeprefix(ENCODER): weight for name, weight in weights.select(ENCODER).items()}
        names = (*theirs, *weights.left_out, *weights.without(ENCODER))
        unused = [part for part in leave_out if not any(name.startswith(part) for name in names)]
        kept = {name: each for name, each in theirs.items() if not name.startswith(tuple(leave_out))}
        original = {name: weight for name, weight in kept.items() if not encoder.behind(name)}
        translated = encoder.translate(original)
        adapted, note = _adapted(encoder, translated, role) if adapt else (translated, "")
        unfit = (f"INIT.leave_out {printable(part)}: no name in the file begins so" for part in unused)
        return cls(
            weights=adapted,
            translated=translated,
            original=original,
            behind=(*weights.without(ENCODER), *(name for name in kept if encoder.behind(name))),
            left_out=tuple(name for name in weights.left_out if not name.startswith(tuple(leave_out))),
            left_entries=0 if leave_out else weights.left_entries,
            notes=(*weights.notes, *unfit, *([note] if note else [])),
        )

    def change(self, name: str, source: str, weight: Tensor) -> str:
        """What was done to the weight of a name in the file for one of the encoder; empty where nothing was."""
        translated = self.translated[source]
        before = self.original.get(source, translated)
        if name == source and weight is self.weights[source] and before.shape == translated.shape:
            return ""
        moved = "" if name == source else f"{name} "
        return f"{printable(source)} {shape_text(before)} -> {moved}{shape_text(weight)}"


def _fits(encoder: Encoder, weights: ModelWeights) -> int:
    """Entries of the encoder for which the weights have the same name and shape."""
    ours = encoder.state_dict()
    theirs = {name.removeprefix(ENCODER): weight for name, weight in weights.select(ENCODER).items()}
    return sum(weight.numel() for name, weight in theirs.items() if name in ours and ours[name].shape == weight.shape)


def _fits_most(encoder: Encoder, weights: ModelWeights) -> bool:
    """Whether most of the encoder is there, with its shape."""
    ours = encoder.state_dict()
    return _fits(encoder, weights) >= LEAST_SHARE * _size(ours, ours)


def _adapted(encoder: Encoder, theirs: dict[str, Tensor], role: str) -> tuple[dict[str, Tensor], str]:
    """The weights with those of the first layer for the encoder's channels, and what was done; empty where nothing."""
    name, channels = encoder.stem_weight, encoder.image.channels
    if name not in theirs or theirs[name].ndim < 2 or theirs[name].shape[1] == channels:
        return theirs, ""
    before = theirs[name].shape[1]
    try:
        adapted = adapt_channels(theirs[name], channels)
    except ValueError as error:
        raise ValueError(f"{role}: INIT.adapt_channels: {error}") from error
    how = "summed" if channels == 1 else f"repeated, times {before} / {channels}"
    return {**theirs, name: adapted}, f"{name} is adapted from {before} to {channels} channels: {how}"


def check_numbers(theirs: dict[str, Tensor], ours: dict[str, Tensor], file: str) -> None:
    """Raises ValueError for a weight of the file, of those that are ours, without usable numbers."""
    for name, weight in theirs.items():
        if name not in ours or not ours[name].is_floating_point():  # a count, such as BatchNorm's of its batches
            continue
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


def shape_text(weight: Tensor) -> str:
    """`64x128`."""
    return "x".join(map(str, weight.shape))
