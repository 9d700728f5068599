"""Fairness: settings in which entries differ, and in sentences why a comparison of them may not be fair."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from mim.lab.comparison.formatting import ABSENT, listed, spread, value_text
from mim.lab.comparison.groups import Group
from mim.lab.comparison.protocols import Protocol
from mim.lab.comparison.recipes import counted, differing, images_an_epoch, is_path, without_effect
from mim.lab.comparison.result import Kind, Setting
from mim.lab.comparison.runs import Run

METHOD = ("MASKER.", "HEAD.", "TARGET.", "LOSS.", "ENCODER.hidden")
FAIR = (
    *("DATA.", "LABELS.", "AUGMENT.", "ENCODER.", "INIT.", "TRAIN.epochs", "TRAIN.batch", "TRAIN.precision"),
    *("EVALUATE.knn", "EVALUATE.samples", "EVALUATE.crop_pct"),
)
OF_THE_LOSS = ("MASKER.", "TARGET.", "LOSS.", "DATA.", "EVALUATE.samples", "EVALUATE.crop_pct")
SENTENCES = (  # what a warning opens with, and the keys that it is about
    ("The data differs", ("DATA.",)),
    ("Training is not equally long", ("TRAIN.epochs",)),
    ("Augmentation differs", ("AUGMENT.",)),
    ("Not all start from the same weights", ("INIT.",)),
    ("Precision differs", ("TRAIN.precision",)),
    ("kNN is not measured alike", ("EVALUATE.knn",)),
    ("Held-out images are not the same", ("EVALUATE.samples", "EVALUATE.crop_pct")),
)
UNTOLD = ("RECIPE", "INIT.checkpoint")
COSTS_ONLY = ("DATA.batch_size",)
MACHINE = ("device", "processes", "threads", "torch")  # of environment.json: what speed depends on
SIZE = 0.01  # relative difference in encoder parameters that is worth a warning
IMAGES = 0.01  # relative difference in images seen that is
Values = dict[str, str]  # by name of the entry


def settings_of(groups: Sequence[Group]) -> tuple[Setting, ...]:
    """Every key in which the entries that pretrain differ, and what follows from keys: the method first."""
    like = _comparable(groups)
    keys = _differing_keys(like)
    rows = [(key, _kind(key), _values(like, key)) for key in keys]
    rows += [(key, "other", values) for key, values in _without_effect(like, keys).items()]
    derived: list[tuple[str, Values]] = [
        ("seeds", {group.name: ", ".join(map(str, group.seeds)) for group in groups}),
        ("encoder", {group.name: str(group.encoder) for group in groups if group.encoder is not None}),
        ("images seen", _images(groups)),
    ]
    rows += [(word, "fairness", values) for word, values in derived if len(set(values.values())) > 1]
    order: list[Kind] = ["method", "fairness", "other"]
    return tuple(
        Setting(key, kind, tuple(values.get(group.name, ABSENT) for group in groups))
        for wanted in order
        for key, kind, values in rows
        if kind == wanted
    )


def _without_effect(groups: Sequence[Group], keys: Sequence[str]) -> dict[str, Values]:
    """What differs beside the recipe: how often something is written, where data lies."""
    every = dict.fromkeys(key for group in groups for key in group.example.settings)
    found = {}
    for key in every:
        if key not in keys and key not in UNTOLD and (without_effect(key) or is_path(key)):
            values = _values(groups, key)
            if len(set(values.values())) > 1:
                found[key] = values
    return found


def warnings_of(groups: Sequence[Group], protocols: Sequence[Protocol]) -> tuple[str, ...]:
    """In sentences, with names and values, why the entries may not compare."""
    like = _comparable(groups)
    keys = _differing_keys(like)
    found = []
    for opening, about in SENTENCES:
        values = {key: _values(like, key) for key in keys}
        shown = {key: by for key, by in values.items() if key.startswith(about) and key not in COSTS_ONLY}
        if about == ("DATA.",) and not shown:
            shown = _unlike_counts(like, keys)
        if about == ("TRAIN.epochs",):
            shown.update(_unlike_images(groups))
        if shown:
            found.append(f"{opening}: {_told(shown)}.")
    found += [*_encoders(groups), *_seeds(groups), *_missing(groups, protocols), *_commits(groups)]
    machines = unlike_machines(groups)
    if machines:
        found.append(f"Speed, memory and time do not compare: {machines}.")
    return tuple(found)


def unlike_losses(groups: Sequence[Group]) -> str:
    """Why held-out losses do not compare between entries; empty where they do."""
    like = [group for group in groups if group.runs]
    keys = [key for key in _differing_keys(like) if key.startswith(OF_THE_LOSS) and key not in COSTS_ONLY]
    if len({group.encoder.stride for group in like if group.encoder is not None}) > 1:
        keys.append("the encoder's stride")  # targets are made on its grid
    return f"{listed(keys)} {'differs' if len(keys) == 1 else 'differ'}" if keys else ""


def unlike_machines(groups: Sequence[Group]) -> str:
    """What differs in the machines, processes and software that speeds were measured on; empty where nothing does."""
    found = {}
    for key in MACHINE:
        values = _over_runs(groups, partial(_recorded, key))
        if values:
            found[key] = values
    return _told(found)


# ---------------------------------------------------------------- the single warnings


def _unlike_counts(groups: Sequence[Group], keys: Iterable[str]) -> dict[str, Values]:
    """Data of one name that holds another number of images."""
    if "TRAIN.batch" in keys:  # the last batch, which is dropped, would differ too
        return {}
    counts = {group.name: images_an_epoch(group.example) for group in groups if group.runs}
    known = {name: f"{count:,.0f}" for name, count in counts.items() if count}
    return {"images an epoch": known} if len(set(known.values())) > 1 else {}


def _unlike_images(groups: Sequence[Group]) -> dict[str, Values]:
    counts = [group.example.figures.get("images_seen", 0) for group in groups if group.runs]
    unlike = counts and max(counts) - min(counts) > IMAGES * max(counts)
    return {"images seen": _images(groups)} if unlike else {}


def _encoders(groups: Sequence[Group]) -> list[str]:
    facts = {group.name: group.encoder for group in groups if group.encoder is not None}
    sizes = [fact.parameters for fact in facts.values()]
    shapes = {(fact.name, fact.grid, fact.stride) for fact in facts.values()}
    if len(shapes) < 2 and (not sizes or max(sizes) - min(sizes) <= SIZE * max(sizes)):
        return []
    return [f"Encoders differ: {spread({name: str(fact) for name, fact in facts.items()})}."]


def _seeds(groups: Sequence[Group]) -> list[str]:
    found = []
    seeds = {group.name: ", ".join(map(str, group.seeds)) for group in groups}
    if len(set(seeds.values())) > 1:
        found.append(f"Seeds differ: {spread(seeds)}.")
    single = [group.name for group in groups if len(group.seeds) == 1]
    if single and len(groups) > 1:
        whose = "each entry" if len(single) == len(groups) else listed(single)
        found.append(f"One seed of {whose}: no interval, and a difference may be chance.")
    return found


def _missing(groups: Sequence[Group], protocols: Sequence[Protocol]) -> list[str]:
    """Protocols that not all runs of an entry went through."""
    found = []
    for protocol in protocols:
        for group in groups:
            origins = {origin for origin, _ in protocol.transfers.get(group.name, {})}
            if group.runs and 0 < len(origins) < len(group.seeds):
                found.append(f"{protocol.title}: {len(origins)} of the {len(group.seeds)} seeds of {group.name}.")
    return found


def _commits(groups: Sequence[Group]) -> list[str]:
    def commit(run: Run) -> str | None:
        git = run.environment.get("git")
        return str(git.get("commit"))[:8] if isinstance(git, dict) else None

    values = _over_runs(groups, commit)
    return [f"Not all were made by the same version: commit {spread(values)}."] if values else []


# ---------------------------------------------------------------- what they are made from


def _comparable(groups: Sequence[Group]) -> list[Group]:
    """Those whose configs can be laid side by side: of pretraining, else of the task of the first."""
    found = [group for group in groups if group.runs]
    return found or [group for group in groups if group.example.task == groups[0].example.task]


def _differing_keys(groups: Sequence[Group]) -> list[str]:
    """Keys of the recipe in which any two differ, in the order of the config."""
    settings = [counted(group.example) for group in groups]
    unlike = {key for other in settings[1:] for key in differing(settings[0], other)}
    return [key for key in dict.fromkeys(key for other in settings for key in other) if key in unlike]


def _kind(key: str) -> Kind:
    if key.startswith(METHOD):
        return "method"
    return "fairness" if key.startswith(FAIR) and key not in COSTS_ONLY else "other"


def _values(groups: Sequence[Group], key: str) -> Values:
    """What each entry has: of a path all of it, of anything else what came out, such as a batch of 0."""
    found = {
        group.name: (group.example.settings if is_path(key) else counted(group.example)).get(
            key, group.example.settings.get(key)
        )
        for group in groups
    }
    return {name: ABSENT if value is None else value_text(value) for name, value in found.items()}


def _images(groups: Sequence[Group]) -> Values:
    counts = {group.name: group.example.figures.get("images_seen") for group in groups if group.runs}
    return {name: f"{count:,.0f}" for name, count in counts.items() if count is not None}


def _recorded(key: str, run: Run) -> Any:
    return run.environment.get(key)


def _over_runs(groups: Sequence[Group], of: Callable[[Run], Any]) -> Values:
    """A value of each entry over all its runs, where not all runs of all entries agree; empty where they do."""
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        known = [value for run in group.everything if (value := of(run)) is not None]
        found[group.name] = dict.fromkeys(value_text(value) for value in known)
    if len({text for texts in found.values() for text in texts}) < 2:
        return {}
    return {name: listed(texts) if texts else ABSENT for name, texts in found.items()}


def _told(values: Mapping[str, Values]) -> str:
    """`TRAIN.epochs is 30 in MAE; 20 in SimMIM. images seen ...`."""
    return "; ".join(f"{key} is {spread(by_name).replace('; ', ', ')}" for key, by_name in values.items())
