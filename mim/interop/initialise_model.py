"""INIT.parts: a whole pretraining model from the weights of a file, and what begins anew without it."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from mim.interop.formats import ENCODER, ModelWeights, Sections
from mim.interop.initialise import check_numbers, match_weights, shape_text
from mim.interop.names import fold_names
from mim.io.formatting import printable
from mim.io.sections import places
from mim.io.weights import DERIVED_BUFFERS
from mim.model import MaskedImageModel

ROLE = "INIT.checkpoint"
WHOLE = ("HEAD", "TARGET")  # sections that the head was trained with
# these may be others, and the loss is another then; a teacher's file may have moved
OF_THE_LOSS = ("ENCODER.hidden", "MASKER", "TARGET.weight", "TARGET.checkpoint", "LOSS")
OWN = "mim"  # the format of which files say their TARGET; of others, it is that of the published runs
LISTED = 3  # weights of another shape in an error
LONGEST = 2000  # characters of the differences in an error


def initialise_model(
    model: MaskedImageModel, weights: ModelWeights, sections: Sections, keep: Collection[str] = ()
) -> list[str]:
    """INIT.parts model: loads encoder, head and target from a file in any known format, and returns a report in lines.

    Weights of the encoder are resized as match_weights does; all others must be there in their shape.

    Args:
        sections: of the config.
        keep: keys of HEAD and TARGET that may differ from the file's.

    Raises ValueError where the file lacks a weight, or was trained with another head or target; then nothing changes.
    """
    state, report = match_weights(model.encoder, weights, ROLE)
    if report.faults():
        raise ValueError(
            f"{ROLE} {weights.source} does not hold exactly this encoder, as INIT.parts model needs it:\n"
            + "\n".join(report.lines()[1:])[:LONGEST]
            + "\nINIT.parts encoder takes what fits"
        )
    ours, theirs = behind_encoder(model), weights.without(ENCODER)
    whole, free = (WHOLE, OF_THE_LOSS) if weights.format == OWN else (WHOLE[:1], (*WHOLE[1:], *OF_THE_LOSS))
    unlike = differing(weights.sections, sections, whole)
    _check_head(weights, ours, theirs, [line for key, line in unlike.items() if key not in keep])
    check_numbers(theirs, ours, f"{ROLE} {weights.source}")
    model.load_state_dict({**{ENCODER + name: weight for name, weight in state.items()}, **theirs}, strict=False)
    lines = [*report.lines(), f"  and behind the encoder: {fold_names(theirs)}; the optimizer begins anew"]
    others = differing(weights.sections, sections, free)
    if others:
        lines.append(f"  so the loss at the start is not that of its end: {', '.join(others.values())}")
    return lines


def anew_line(model: nn.Module, names_in_file: Iterable[str]) -> str:
    """INIT.parts encoder: which parts of a model begin anew, and what the file holds behind the encoder."""
    modules = dict.fromkeys(name.partition(".")[0] for name in behind_encoder(model))
    parts = ["readout" if module == "readouts" else module for module in modules]
    begin = f"{' and '.join(parts)} begin{'s' * (len(parts) == 1)} anew"
    names = [name for name in names_in_file if not name.startswith(ENCODER)]
    if not names:
        return f"  {begin}: the file holds the encoder alone"
    has_head = isinstance(model, MaskedImageModel) and any(name.startswith("head.") for name in names)
    whole = "; INIT.parts model takes that, too" if has_head else ""
    return f"  {begin}: in the file, and not taken: {fold_names(names)}{whole}"


def behind_encoder(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model that do not belong to its encoder, without buffers that it computes."""
    return {
        name: weight
        for name, weight in model.state_dict().items()
        if not name.startswith(ENCODER) and not name.endswith(DERIVED_BUFFERS)
    }


def differing(theirs: Sections, ours: Sections, keys: Iterable[str]) -> dict[str, str]:
    """The keys, of these keys and sections, that differ between a file and a config: `HEAD.heads 16 there, 8 here`.

    Where the two name different parts, their keys are not compared. What the file does not say does not differ.
    """
    lines: dict[str, str] = {}
    for key in keys:
        section, _, inner = key.partition(".")
        there, here = (places(section, sections.get(section)) for sections in (theirs, ours))
        if there.keys() == here.keys():
            for place in there:
                lines |= _differing_keys(place, there[place], here[place], inner)
        elif not inner and section in theirs and section in ours:
            lines[section] = f"{section} {_names(there)} there, {_names(here)} here"
    return lines


def _differing_keys(place: str, there: Any, here: Any, inner: str) -> dict[str, str]:
    """As differing, of the one key `inner` of a place, or of all that are not of the loss alone."""
    there, here = (keys if isinstance(keys, Mapping) else {} for keys in (there, here))
    section = place.partition(".")[0]
    names = [inner] if inner else [name for name in ("name", *there) if f"{section}.{name}" not in OF_THE_LOSS]
    if not inner and not _same(there.get("name"), here.get("name")):
        names = ["name"]
    lines = {}
    for name in names:
        if name in there and name in here and not _same(there[name], here[name]):
            values = [
                printable(str(list(each) if isinstance(each, tuple) else each)) for each in (there[name], here[name])
            ]
            lines[f"{place}.{name}"] = f"{place}.{name} {values[0]} there, {values[1]} here"
    return lines


def _names(by_place: Mapping[str, Any]) -> str:
    """The parts of a section by name."""
    return printable(" + ".join(str(keys.get("name", "?")) for keys in by_place.values()))


def _same(there: Any, here: Any) -> bool:
    if isinstance(there, int | float) and isinstance(here, int | float):
        return math.isclose(there, here, rel_tol=1e-3)  # weights show mlp_ratio, and are whole
    if isinstance(there, list | tuple) and isinstance(here, list | tuple):
        return list(there) == list(here)
    return str(there) == str(here)


def _check_head(weights: ModelWeights, ours: dict[str, Tensor], theirs: dict[str, Tensor], settings: list[str]) -> None:
    """Raises ValueError where the weights behind the encoder are not those of a model, by name, shape and settings."""
    if not theirs:
        raise ValueError(
            f"{ROLE} {weights.source} holds an encoder alone, and INIT.parts model takes the head, too: name a "
            "pretraining run or a file with its decoder, or set INIT.parts encoder, with which the head begins anew"
        )
    shapes = [
        f"{name} {shape_text(theirs[name])} there, {shape_text(weight)} here"
        for name, weight in ours.items()
        if name in theirs and theirs[name].shape != weight.shape
    ]
    more = max(len(shapes) - LISTED, 0)
    kinds = {
        "trained otherwise": ", ".join(settings),
        "of another shape": ", ".join(shapes[:LISTED]) + (f" and {more} more" if more else ""),
        "missing there": fold_names(name for name in ours if name not in theirs),
        "there only": fold_names(name for name in theirs if name not in ours),
    }
    lines = [f"  {kind}: {names}" for kind, names in kinds.items() if names]
    if lines:
        raise ValueError(
            f"{ROLE} {weights.source} holds another head than this config, and INIT.parts model takes it whole:\n"
            + "\n".join(lines)[:LONGEST]
            + "\nSet HEAD and TARGET as there, or INIT.parts encoder, with which the head begins anew; or keep values "
            "of this config that fit the shapes with INIT.keep"
        )
