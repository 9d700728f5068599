"""Groups: runs of one recipe over seeds, with the probes and fine-tunings that came from them, under a name."""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from mim.build import Model, build_without_memory
from mim.config.schema import FAMILIES
from mim.lab.comparison.provenance import Gathered, Start, Transfer, start_of
from mim.lab.comparison.recipes import counted, differing, images_an_epoch, in_words
from mim.lab.comparison.runs import Run
from mim.lab.comparison.studies import Studies
from mim.lab.layout import seedless
from mim.model import MaskedImageModel
from mim.registry import keys_of

SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What an encoder is, whichever it is. grid: tokens high and wide; stride: pixels of the image side a token."""

    name: str
    parameters: int
    grid: tuple[int, int]
    stride: int

    def __str__(self) -> str:
        return f"{self.name} with {self.parameters:,} parameters and {self.grid[0]} x {self.grid[1]} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One recipe over its seeds. runs: of pretraining, none where probes and fine-tunings started from elsewhere."""

    name: str
    method: str
    runs: tuple[Run, ...]
    transfers: tuple[Transfer, ...]
    encoder: EncoderFacts | None

    @property
    def everything(self) -> tuple[Run, ...]:
        """The runs that the group is judged by: of pretraining, else the probes and fine-tunings."""
        return self.runs or tuple(other.run for other in self.transfers)

    @property
    def example(self) -> Run:
        """A run that stands for all."""
        return self.everything[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of `everything`, each once."""
        return tuple(sorted({run.seed for run in self.everything}))


@dataclass(slots=True)
class _Bundle:
    """A group that has no name yet."""

    runs: list[Run]
    transfers: list[Transfer]

    @property
    def everything(self) -> list[Run]:
        return self.runs or [other.run for other in self.transfers]


def grouped(gathered: Gathered, studies: Studies) -> tuple[Group, ...]:
    """Every recipe in the order in which its first run was given."""
    bundles = [_Bundle(runs, []) for runs in _by_recipe(gathered.pretraining)]
    by_folder = {run.folder: bundle for bundle in bundles for run in bundle.runs}
    others: dict[Hashable, _Bundle] = {}
    for transfer in gathered.transfers:
        if transfer.origin is not None:
            by_folder[transfer.origin.folder].transfers.append(transfer)
        else:
            others.setdefault(_start_key(transfer.run, studies), _Bundle([], [])).transfers.append(transfer)
    bundles += others.values()
    for bundle in bundles:
        bundle.runs.sort(key=lambda run: run.seed)
        bundle.transfers.sort(key=lambda transfer: transfer.seeds)
    return tuple(_group(bundle, name) for bundle, name in zip(bundles, _names(bundles, studies), strict=True))


def _group(bundle: _Bundle, name: str) -> Group:
    example = bundle.everything[0]
    model = build_without_memory(example.cfg)
    encoder = None
    if model is not None:
        spec = model.encoder.spec
        encoder = EncoderFacts(model.encoder.name, _parameters(model), spec.grid, spec.stride)
    return Group(
        name=name,
        method=_method(example, model if isinstance(model, MaskedImageModel) else None),
        runs=tuple(bundle.runs),
        transfers=tuple(bundle.transfers),
        encoder=encoder,
    )


def _parameters(model: Model) -> int:
    return sum(weight.numel() for weight in model.encoder.parameters())


# ---------------------------------------------------------------- which runs belong together


def _by_recipe(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of one recipe together, in the order of the first. Where two of a recipe have one seed, folders tell apart
    what was meant: repeated studies, else each run for itself.
    """
    recipes: list[list[Run]] = []
    for run in runs:
        for others in recipes:
            if not differing(counted(run), counted(others[0])) and images_an_epoch(run) == images_an_epoch(others[0]):
                others.append(run)
                break
        else:
            recipes.append([run])
    ways: tuple[Callable[[Run], Hashable], ...] = (
        lambda run: None,
        lambda run: (run.folder.parent, seedless(run.folder.name)),
        lambda run: run.folder,
    )
    found: list[list[Run]] = []
    for recipe in recipes:
        for way in ways:
            parts: dict[Hashable, list[Run]] = {}
            for run in recipe:
                parts.setdefault(way(run), []).append(run)
            if all(len({run.seed for run in part}) == len(part) for part in parts.values()):
                found += parts.values()
                break
    return found


def _start_key(run: Run, studies: Studies) -> Hashable:
    """What tells the starts of probes and fine-tunings apart whose pretraining is not compared."""
    start = start_of(run.settings, run.environment)
    place = studies.place(run.folder)
    if place is not None:
        return place.root, place.start_name
    if start is not None:
        return "from", _name_of(start)
    model = build_without_memory(run.cfg)
    if model is None:
        return SCRATCH, run.settings.get("ENCODER.name")
    return SCRATCH, model.encoder.name, _parameters(model)


# ---------------------------------------------------------------- names


def _names(bundles: Sequence[_Bundle], studies: Studies) -> list[str]:
    """A name each, from folders; with the keys that tell them apart where names are equal or say nothing."""
    found = [_name(bundle, studies) for bundle in bundles]
    for name in dict.fromkeys(found):
        same = [place for place, other in enumerate(found) if other == name]
        if len(same) > 1:
            for place, fuller in zip(same, _told_apart([bundles[place] for place in same], name), strict=True):
                found[place] = fuller
    return [f"{name} #{place}" if name in found[:place] else name for place, name in enumerate(found)]


def _name(bundle: _Bundle, studies: Studies) -> str:
    """As a study names it, else what the names of its folders have in common, without seeds."""
    runs = bundle.everything
    places = [studies.place(run.folder) for run in runs]
    named = [
        place.start_name if place is not None else seedless(run.folder.name) or run.folder.parent.name
        for place, run in zip(places, runs, strict=True)
    ]
    stems = list(dict.fromkeys(named))
    if not bundle.runs and None in places:
        start = start_of(runs[0].settings, runs[0].environment)
        if start is not None:
            return _name_of(start)
        return stems[0] if len(stems) == 1 else SCRATCH
    letters = takewhile(lambda same: len(set(same)) == 1, zip(*stems, strict=False))
    common = re.sub(r"[-_., ]+$", "", "".join(letter[0] for letter in letters)) if len(stems) > 1 else stems[0]
    return common if len(common) > 2 else stems[0]


def _name_of(start: Start) -> str:
    return seedless(start.run_folder.name)


def _told_apart(bundles: Sequence[_Bundle], name: str) -> list[str]:
    """Names for groups whose folders are called alike: by keys, else by the folder above, else by number."""
    settings = [counted(bundle.everything[0]) for bundle in bundles]
    keys = list(dict.fromkeys(key for other in settings[1:] for key in differing(settings[0], other)))
    if "TASK" in keys:  # and so nearly every other
        keys = []
    by_keys = [f"{name} ({in_words(own, keys, most=3)})" for own in settings]
    by_parent = [f"{bundle.everything[0].folder.parent.name}/{name}" for bundle in bundles]
    for found in (by_keys if keys else by_parent, by_parent):
        if len(set(found)) == len(found):
            return found
    return [f"{name} #{number}" for number in range(1, len(bundles) + 1)]


# ---------------------------------------------------------------- the method in a line


def _method(run: Run, model: MaskedImageModel | None) -> str:
    """What a run does, in a line, from what every part of a family has, so that a user's own parts are told of too."""
    if run.task != "pretrain":
        start = start_of(run.settings, run.environment)
        return f"{run.settings['ENCODER.name']} · {f'from {start.checkpoint}' if start else 'random weights'}"
    if model is None:
        return " · ".join(_part(run, section) for section in ("MASKER", "ENCODER", "HEAD", "TARGET", "LOSS"))
    masker, encoder = model.masker, model.encoder
    over = "" if model.loss.over == "hidden" else f" over {model.loss.over} cells"
    return " · ".join(
        (
            f"{masker.name} {100 * masker.ratio:.3g}% of {masker.cell} px",
            f"{encoder.name} {encoder.spec.width} wide, {encoder.hidden}",
            _part(run, "HEAD"),
            _part(run, "TARGET"),
            f"{model.loss.name}{over}",
        )
    )


def _part(run: Run, section: str) -> str:
    """A part by name, with whatever is not as it would be by default, and of a head its sizes."""
    name = run.settings[f"{section}.name"]
    told = {}
    for key, kind in keys_of(FAMILIES[section].named(name)).items():
        value = run.settings[f"{section}.{key}"]
        size = section == "HEAD" and kind.annotation is int
        if size or value != (list(kind.default) if isinstance(kind.default, tuple) else kind.default):
            told[key] = value
    return f"{name} {in_words(told, list(told), most=4)}".strip()
