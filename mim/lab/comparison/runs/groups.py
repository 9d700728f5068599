"""Groups: the runs of one recipe over seeds, with the probes and fine-tunings that came from them, under a name."""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from mim.build import Model, build_without_memory
from mim.config import schema
from mim.encoders.base import FOR_HIDDEN
from mim.lab.comparison.formatting import settings_text
from mim.lab.comparison.runs.provenance import RunCollection, Transfer, start_of
from mim.lab.comparison.runs.recipes import differing_keys, images_per_epoch, recipe_of
from mim.lab.comparison.runs.run import Run
from mim.lab.comparison.runs.studies import Studies
from mim.lab.layout import seedless
from mim.model import MaskedImageModel

SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class EncoderSize:
    """The size of any encoder."""

    name: str
    parameters: int  # without the mask token, which belongs to the method
    grid: tuple[int, int]  # tokens high and wide
    stride: int  # side of a token in pixels

    def __str__(self) -> str:
        return f"{self.name} with {self.parameters:,} parameters and {self.grid[0]} x {self.grid[1]} tokens"


@dataclass(frozen=True, slots=True)
class Group:
    """One recipe over its seeds."""

    name: str
    method: str  # the recipe in one line
    runs: tuple[Run, ...]  # of pretraining; none where probes and fine-tunings started from elsewhere
    transfers: tuple[Transfer, ...]
    encoder: EncoderSize | None  # None where it cannot be built here

    @property
    def compared_runs(self) -> tuple[Run, ...]:
        """The pretraining runs, or the probes and fine-tunings where there are none."""
        return self.runs or tuple(transfer.run for transfer in self.transfers)

    @property
    def is_random(self) -> bool:
        """Whether it is probes and fine-tunings of random weights."""
        return not self.runs and start_of(self.example.settings, self.example.environment) is None

    @property
    def example(self) -> Run:  # stands for all
        return self.compared_runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.compared_runs}))


def group_runs(collection: RunCollection, studies: Studies) -> tuple[Group, ...]:
    """Groups in the order of their first runs."""
    members: list[tuple[list[Run], list[Transfer]]] = [(runs, []) for runs in _by_recipe(collection.pretraining)]
    transfers_of = {run.folder: transfers for runs, transfers in members for run in runs}
    from_elsewhere: dict[Hashable, list[Transfer]] = {}
    for transfer in collection.transfers:
        if transfer.origin is not None:
            transfers_of[transfer.origin.folder].append(transfer)
        else:
            from_elsewhere.setdefault(_start_key(transfer.run, studies), []).append(transfer)
    members += [([], transfers) for transfers in from_elsewhere.values()]
    groups = [_group(runs, transfers) for runs, transfers in members]
    return tuple(replace(group, name=name) for group, name in zip(groups, _names(groups, studies), strict=True))


def _group(runs: list[Run], transfers: list[Transfer]) -> Group:
    """A group that has no name yet."""
    runs = sorted(runs, key=lambda run: run.seed)
    transfers = sorted(transfers, key=lambda transfer: transfer.seeds)
    example = runs[0] if runs else transfers[0].run
    model, encoder = build_without_memory(example.cfg), None
    if model is not None:
        spec = model.encoder.spec
        encoder = EncoderSize(model.encoder.title, _parameters(model), spec.grid, spec.stride)
    return Group("", _method(example, model), tuple(runs), tuple(transfers), encoder)


def _parameters(model: Model) -> int:
    """Parameters of the encoder, without those that stand for hidden cells: they are the method's."""
    parameters = model.encoder.named_parameters()
    return sum(weight.numel() for name, weight in parameters if not name.startswith(FOR_HIDDEN))


def _by_recipe(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of one recipe together. Where two have one seed, folders decide: repeated studies, or each run by itself."""
    recipes: list[list[Run]] = []
    for run in runs:
        recipe, images = recipe_of(run), images_per_epoch(run)
        for others in recipes:
            if not differing_keys([recipe_of(others[0]), recipe]) and images_per_epoch(others[0]) == images:
                others.append(run)
                break
        else:
            recipes.append([run])
    ways: tuple[Callable[[Run], Hashable], ...] = (
        lambda run: None,
        lambda run: (run.folder.parent, seedless(run.folder.name)),
        lambda run: run.folder,
    )
    groups: list[list[Run]] = []
    for recipe_runs in recipes:
        for way in ways:
            parts: dict[Hashable, list[Run]] = {}
            for run in recipe_runs:
                parts.setdefault(way(run), []).append(run)
            if all(len({run.seed for run in part}) == len(part) for part in parts.values()):
                groups += parts.values()
                break
    return groups


def _start_key(run: Run, studies: Studies) -> Hashable:
    """What identifies the start of a transfer that came from no compared pretraining."""
    position, start = studies.position(run.folder), start_of(run.settings, run.environment)
    if position is not None:
        return position.root, position.start_name
    if start is not None:
        return "from", start.name
    model = build_without_memory(run.cfg)
    return (SCRATCH, run.cfg.ENCODER.name) + (() if model is None else (_parameters(model),))


def _names(groups: Sequence[Group], studies: Studies) -> list[str]:
    """A name for each group, from folders; with the keys that tell them apart where names repeat."""
    names = [_name(group, studies) for group in groups]
    for name in dict.fromkeys(names):
        same = [index for index, other in enumerate(names) if other == name]
        if len(same) > 1:
            for index, fuller in zip(same, _told_apart([groups[index] for index in same], name), strict=True):
                names[index] = fuller
    return [f"{name} #{index}" if name in names[:index] else name for index, name in enumerate(names)]


def _name(group: Group, studies: Studies) -> str:
    """The name in its study, or else what the names of its folders have in common, without seeds."""
    runs = group.compared_runs
    positions = [studies.position(run.folder) for run in runs]
    every = [
        position.start_name if position is not None else seedless(run.folder.name) or run.folder.parent.name
        for position, run in zip(positions, runs, strict=True)
    ]
    stems = list(dict.fromkeys(every))
    if not group.runs and None in positions:
        start = start_of(runs[0].settings, runs[0].environment)
        return start.name if start is not None else stems[0] if len(stems) == 1 else SCRATCH
    letters = takewhile(lambda same: len(set(same)) == 1, zip(*stems, strict=False))
    common = re.sub(r"[-_., ]+$", "", "".join(letter[0] for letter in letters)) if len(stems) > 1 else stems[0]
    return common if len(common) > 2 else stems[0]


def _told_apart(groups: Sequence[Group], name: str) -> list[str]:
    """Names for groups with equal names: with keys, or else the folder above, or else a number."""
    recipes = [recipe_of(group.example) for group in groups]
    keys = differing_keys(recipes)
    by_keys = [f"{name} ({settings_text(recipe, keys, most=3)})" for recipe in recipes]
    by_parent = [f"{group.example.folder.parent.name}/{name}" for group in groups]
    for names in (by_keys if keys and "TASK" not in keys else by_parent, by_parent):
        if len(set(names)) == len(names):
            return names
    return [f"{name} #{number}" for number in range(1, len(groups) + 1)]


def _method(run: Run, model: Model | None) -> str:
    """What a run does, in one line, from what every part has, so that a user's own parts are described too."""
    if run.task != "pretrain":
        start = start_of(run.settings, run.environment)
        return f"{run.cfg.ENCODER.name} · {f'from {start.checkpoint}' if start else 'random weights'}"
    if not isinstance(model, MaskedImageModel):
        return " · ".join(_part(run, section) for section in ("MASKER", "ENCODER", "HEAD", "TARGET", "LOSS"))
    masker, encoder = model.masker, model.encoder
    over = "" if model.loss.over == "hidden" else f" over {model.loss.over} cells"
    masks = f"{masker.name} {100 * masker.ratio:.3g}% of {masker.cell} px"
    size = f"{encoder.title} {encoder.spec.width} wide, {encoder.hidden}"
    return " · ".join((masks, size, _part(run, "HEAD"), _part(run, "TARGET"), f"{model.loss.name}{over}"))


def _part(run: Run, section: str) -> str:
    """The name of each part, the keys that differ from their defaults, and the sizes of a head."""
    texts = []
    for part in run.cfg.parts(section):
        values = part.values()
        keys = {
            key: values[key]
            for key, kind in schema.section_keys(run.task, section, part.name).items()
            if values[key] != kind.default or (section == "HEAD" and kind.annotation is int and kind.default)
        }
        texts.append(f"{part.name} {settings_text(keys, list(keys), most=4)}".strip())
    return " + ".join(texts)
