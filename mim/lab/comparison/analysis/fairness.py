"""Fairness: settings in which entries differ, and sentences that say why comparing them may not be fair."""

from collections.abc import Sequence

from mim.lab.comparison.analysis.unlike_transfers import transfer_warnings
from mim.lab.comparison.formatting import ABSENT, by_value, join_names, value_text
from mim.lab.comparison.result import Role, Setting
from mim.lab.comparison.runs.groups import Group
from mim.lab.comparison.runs.protocols import Protocol
from mim.lab.comparison.runs.recipes import differing_keys, images_per_epoch, is_path, is_without_effect, recipe_of

METHOD = (
    *("MASKER.", "HEAD.", "TARGET.", "LOSS.", "ENCODER.hidden"),
    *("OPTIMIZER.", "SCHEDULE.", "TRAIN.clip", "TRAIN.ema"),  # each method is published with its own
)
FAIRNESS = (
    *("DATA.", "LABELS.", "AUGMENT.", "AUGMENTATION.", "ENCODER.", "INIT.", "TRAIN.epochs"),
    *("TRAIN.extended_at", "TRAIN.batch", "TRAIN.precision"),
    *("EVALUATE.knn", "EVALUATE.samples", "EVALUATE.crop_pct"),
)
OF_THE_LOSS = ("MASKER.", "TARGET.", "LOSS.", "DATA.", "EVALUATE.samples", "EVALUATE.crop_pct")
OPENINGS = (  # how a warning begins, and the keys that it is about
    ("The data differs", ("DATA.",)),
    ("Training is not equally long", ("TRAIN.epochs",)),
    ("Some were extended, under another course of the learning rate", ("TRAIN.extended_at",)),
    ("Augmentation differs", ("AUGMENT.", "AUGMENTATION.")),
    ("Not all start from the same weights", ("INIT.",)),
    ("Precision differs", ("TRAIN.precision",)),
    ("kNN is not measured alike", ("EVALUATE.knn",)),
    ("Held-out images are not the same", ("EVALUATE.samples", "EVALUATE.crop_pct")),
)
NOT_SHOWN = ("RECIPE", "INIT.checkpoint")
COSTS_ONLY = ("DATA.batch_size",)
MACHINE = ("device", "processes", "threads", "torch")  # keys of environment.json that speed depends on
SIZE = 0.01  # relative difference in encoder parameters, the mask token apart, that is worth a warning
IMAGES = 0.01  # relative difference in images seen that is worth a warning
Values = dict[str, str]  # by name of the entry


def settings_of(groups: Sequence[Group]) -> tuple[Setting, ...]:
    """Every key in which the entries that pretrain differ, and what follows from keys: the method first."""
    compared = _comparable(groups)
    keys = _differing_keys(compared)
    rows: list[tuple[str, Role, Values]] = [(key, _role(key), _values(compared, key)) for key in keys]
    every = dict.fromkeys(key for group in compared for key in group.example.settings)
    others = [key for key in every if (is_without_effect(key) or is_path(key)) and key not in (*keys, *NOT_SHOWN)]
    rows += [(key, "other", _values(compared, key)) for key in others]
    rows += [
        ("seeds", "fairness", {group.name: ", ".join(map(str, group.seeds)) for group in groups}),
        ("encoder", "fairness" if _encoders(groups) else "other", _encoder_texts(groups)),
        ("images seen", "fairness", _images(groups)),
    ]
    names = [group.name for group in groups]
    rows = [row for row in rows if len(set(row[2].values())) > 1]
    rows.sort(key=lambda row: ("method", "fairness", "other").index(row[1]))
    return tuple(Setting(key, role, tuple(values.get(name, ABSENT) for name in names)) for key, role, values in rows)


def warnings_of(groups: Sequence[Group], protocols: Sequence[Protocol]) -> tuple[str, ...]:
    """Why the entries may not compare, in sentences with names and values."""
    compared = _comparable(groups)
    keys = _differing_keys(compared)
    values = {key: _values(compared, key) for key in keys if key not in COSTS_ONLY}
    counts = [group.example.summary.get("images_seen", 0) for group in groups if group.runs]
    warnings = []
    for opening, about in OPENINGS:
        differences = {key: by_name for key, by_name in values.items() if key.startswith(about)}
        if about == ("DATA.",) and not differences:
            differences = _unlike_epochs(compared, keys)
        if about == ("TRAIN.epochs",) and counts and max(counts) - min(counts) > IMAGES * max(counts):
            differences["images seen"] = _images(groups)
        if differences:
            warnings.append(f"{opening}: {_text(differences)}.")
    warnings += [*_encoders(groups), *_seeds(groups), *_missing(groups, protocols), *transfer_warnings(protocols)]
    commits = _over_runs(groups, "git")
    if commits:
        warnings.append(f"Not all were made by the same version: commit {by_value(commits)}.")
    machines = unlike_machines(groups)
    if machines:
        warnings.append(f"Speed, memory and time do not compare: {machines}.")
    return tuple(warnings)


def unlike_losses(groups: Sequence[Group]) -> str:
    """Why held-out losses do not compare between entries; empty where they do."""
    pretrained = [group for group in groups if group.runs]
    keys = [key for key in _differing_keys(pretrained) if key.startswith(OF_THE_LOSS) and key not in COSTS_ONLY]
    if len({group.encoder.stride for group in pretrained if group.encoder is not None}) > 1:
        keys.append("the encoder's stride")  # targets are made on its grid
    return f"{join_names(keys)} {'differs' if len(keys) == 1 else 'differ'}" if keys else ""


def unlike_machines(groups: Sequence[Group]) -> str:
    """What differs in the machines, processes and software behind speeds; empty where nothing does."""
    values = {key: _over_runs(groups, key) for key in MACHINE}
    return _text({key: by_name for key, by_name in values.items() if by_name})


def _unlike_epochs(groups: Sequence[Group], keys: Sequence[str]) -> dict[str, Values]:
    """Data of one name with another number of images."""
    if "TRAIN.batch" in keys:  # the last batch, which is dropped, differs too
        return {}
    counts = {group.name: images_per_epoch(group.example) for group in groups if group.runs}
    texts = {name: f"{count:,.0f}" for name, count in counts.items() if count}
    return {"images an epoch": texts} if len(set(texts.values())) > 1 else {}


def _encoder_texts(groups: Sequence[Group]) -> Values:
    return {group.name: str(group.encoder) for group in groups if group.encoder is not None}


def _encoders(groups: Sequence[Group]) -> list[str]:
    encoders = {group.name: group.encoder for group in groups if group.encoder is not None}
    sizes = [encoder.parameters for encoder in encoders.values()]
    shapes = {(encoder.name, encoder.grid, encoder.stride) for encoder in encoders.values()}
    if len(shapes) < 2 and (not sizes or max(sizes) - min(sizes) <= SIZE * max(sizes)):
        return []
    return [f"Encoders differ: {by_value(_encoder_texts(groups))}."]


def _seeds(groups: Sequence[Group]) -> list[str]:
    seeds = {group.name: ", ".join(map(str, group.seeds)) for group in groups}
    return [f"Seeds differ: {by_value(seeds)}."] if len(set(seeds.values())) > 1 else []


def _missing(groups: Sequence[Group], protocols: Sequence[Protocol]) -> list[str]:
    """Protocols that only some seeds of an entry went through."""
    warnings = []
    for protocol in protocols:
        for group in groups:
            origins = {origin for origin, _ in protocol.transfers.get(group.name, {})}
            if group.runs and 0 < len(origins) < len(group.seeds):
                warnings.append(f"{protocol.title}: {len(origins)} of the {len(group.seeds)} seeds of {group.name}.")
    return warnings


def _comparable(groups: Sequence[Group]) -> list[Group]:
    """Groups with configs of one task: pretraining, or the task of the first."""
    pretrained = [group for group in groups if group.runs]
    return pretrained or [group for group in groups if group.example.task == groups[0].example.task]


def _differing_keys(groups: Sequence[Group]) -> list[str]:
    """Keys in which any two recipes differ, in the order of the config."""
    recipes = [recipe_of(group.example) for group in groups]
    unlike = set(differing_keys(recipes)) if recipes else set()
    return [key for key in dict.fromkeys(key for recipe in recipes for key in recipe) if key in unlike]


def _role(key: str) -> Role:
    if key.startswith(METHOD):
        return "method"
    return "fairness" if key.startswith(FAIRNESS) and key not in COSTS_ONLY else "other"


def _values(groups: Sequence[Group], key: str) -> Values:
    """The value of each entry: of a path all of it, of a batch of 0 what followed from the devices."""
    values = {}
    for group in groups:
        settings = group.example.settings
        value = settings.get(key) if is_path(key) else recipe_of(group.example).get(key, settings.get(key))
        values[group.name] = ABSENT if value is None else value_text(value)
    return values


def _images(groups: Sequence[Group]) -> Values:
    counts = {group.name: group.example.summary.get("images_seen") for group in groups if group.runs}
    return {name: f"{count:,.0f}" for name, count in counts.items() if count is not None}


def _over_runs(groups: Sequence[Group], key: str) -> Values:
    """A key of environment.json over all runs of each entry (of git the commit); empty where all runs agree."""
    texts: dict[str, dict[str, None]] = {}
    for group in groups:
        values = [run.environment.get(key) for run in group.compared_runs]
        if key == "git":
            values = [str(git.get("commit"))[:8] for git in values if isinstance(git, dict)]
        texts[group.name] = dict.fromkeys(value_text(value) for value in values if value is not None)
    if len({text for each in texts.values() for text in each}) < 2:
        return {}
    return {name: join_names(each) if each else ABSENT for name, each in texts.items()}


def _text(differences: dict[str, Values]) -> str:
    """`TRAIN.epochs is 30 in MAE, 20 in SimMIM; images seen is ...`."""
    return "; ".join(f"{key} is {by_value(by_name, ', ')}" for key, by_name in differences.items())
