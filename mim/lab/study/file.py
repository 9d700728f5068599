"""A study file: which recipes are trained, what is varied in them, and how each is evaluated.

It names recipes, not hyper-parameters:

    TITLE:      MAE and SimMIM on the digits
    STARTS:     {MAE: {config: FILE, set: {KEY: VALUE}}, scratch: {then: {KEY: VALUE}}}
    GRID:       {MASKER.ratio: [0.5, 0.75], MASKER.cell: [4, 8]}
    LIST:       {deep decoder: {HEAD.depth: 8}, shallow decoder: {HEAD.depth: 1}}
    PROTOCOLS:  {fine-tuning: {config: FILE, set: {KEY: VALUE}}}
    SEEDS:      [0, 1]

GRID tries every combination of its values, LIST (instead of GRID) each of its points, on every start with a config.
`set` changes the named config, `then` every protocol from that start: layer decay does not suit random weights. The
value SEED stands for the seed of each run: `LABELS.seed: SEED` draws few labels anew for each.
"""

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from mim import build, config
from mim.config import Config, schema
from mim.init_weights import facts_of_config, find_facts
from mim.registry import one_of

MARKS_OF_YAML = set(",[]{}:#&*!|>%@`\"'")  # a text with one of them is quoted in a list
SEED = "SEED"  # as a value: the seed of the run
KEYS = ("TITLE", "STARTS", "GRID", "LIST", "PROTOCOLS", "SEEDS")
Pairs = dict[str, str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config file and what a study sets in it."""

    file: Path | None  # None for a start from random weights
    pairs: Pairs = field(default_factory=dict)
    then: Pairs = field(default_factory=dict)  # `then` of the study file

    def load(self, seed: int, point: Pairs, overrides: Pairs, start: Config | None = None) -> Config:
        """The config with a seed, what the point sets, and those overrides whose sections the task has.

        start: the config of the pretraining that it starts from, which has what it does not set itself.
        """
        assert self.file is not None
        sections = schema.sections(config.load_config(self.file).TASK)
        of_task = {key: value for key, value in overrides.items() if key.partition(".")[0] in sections}
        pairs = {**self.pairs, **point, **of_task, SEED: SEED}
        pairs = {key: str(seed) if value == SEED else value for key, value in pairs.items()}
        facts = None if start is None else facts_of_config(start, "its pretraining")
        return build.load_config(self.file, pairs, lambda initial: find_facts(initial) if initial else facts)


@dataclass(frozen=True, slots=True)
class Trial:
    """A start at one point of the grid or list."""

    name: str
    recipe: Recipe
    start: str
    point: Pairs = field(default_factory=dict)  # what the point sets; empty where nothing is varied


@dataclass(frozen=True, slots=True)
class Study:
    """A study file."""

    name: str  # its TITLE, or the name of the file
    trials: tuple[Trial, ...]
    protocols: dict[str, Recipe]
    seeds: tuple[int, ...]
    grid: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of GRID: the values of each key

    @property
    def starts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(trial.start for trial in self.trials))


def read_study(file: Path) -> Study:
    """Reads a study file. Raises ValueError that names the file and the key for what is missing, unknown or wrong."""
    if not file.is_file():
        raise ValueError(f"study {file} does not exist")
    try:
        raw = config.read_mapping(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for key in raw:
        if key not in KEYS:
            raise ValueError(f"{file}: unknown key {key}: {one_of(key, KEYS)}")
    starts = _recipes(file, "STARTS", raw.get("STARTS"))
    protocols = _recipes(file, "PROTOCOLS", raw["PROTOCOLS"]) if "PROTOCOLS" in raw else {}
    for name, recipe in protocols.items():
        if recipe.file is None:
            raise ValueError(f"{file}: PROTOCOLS.{name} has no config")
    if not protocols and any(recipe.file is None for recipe in starts.values()):
        raise ValueError(f"{file}: PROTOCOLS is missing, and a start without a config trains nothing by itself")
    seeds = raw.get("SEEDS", ["0"])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, str) and s.isdecimal() for s in seeds):
        raise ValueError(f"{file}: SEEDS is {seeds!r}: it must be a list of integers, at least 0")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{file}: SEEDS is {seeds!r}: a seed stands twice")
    grid = _grid(file, raw.get("GRID"))
    trials = _trials(starts, _points(file, raw, grid))
    name = raw.get("TITLE", file.stem.replace("_", " "))
    if not isinstance(name, str) or not name:
        raise ValueError(f"{file}: TITLE is {name!r}: it must be a text")
    return Study(name, trials, protocols, tuple(map(int, seeds)), grid)


def _trials(starts: dict[str, Recipe], points: dict[str, Pairs]) -> tuple[Trial, ...]:
    """Every start at every point; a start without a config has nothing to vary."""
    trials = []
    trained = [name for name, recipe in starts.items() if recipe.file is not None]
    for start, recipe in starts.items():
        if recipe.file is None or not points:
            trials.append(Trial(start, recipe, start))
            continue
        for name, point in points.items():
            trials.append(Trial(f"{start}, {name}" if len(trained) > 1 else name, recipe, start, point))
    return tuple(trials)


def _grid(file: Path, raw: Any) -> dict[str, tuple[str, ...]]:
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{file}: GRID is {raw!r}: it must be a mapping of KEY: [VALUE, ...]")
    for key, values in raw.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file}: GRID.{key} is {values!r}: it must be a list of values")
        if len({_text(value) for value in values}) < len(values):
            raise ValueError(f"{file}: GRID.{key} is {values!r}: a value stands twice")
    return {key: tuple(map(_text, values)) for key, values in raw.items()}


def _points(file: Path, raw: dict[str, Any], grid: dict[str, tuple[str, ...]]) -> dict[str, Pairs]:
    """What each point sets, by the name of the point."""
    if "LIST" not in raw:
        short = short_names(tuple(grid))
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())] if grid else []
        return {", ".join(f"{short[key]} {value}" for key, value in point.items()): point for point in points}
    if grid:
        raise ValueError(f"{file}: GRID and LIST: a study has one of them")
    if not isinstance(raw["LIST"], dict) or not raw["LIST"]:
        raise ValueError(f"{file}: LIST is {raw['LIST']!r}: it must name its points, as in NAME: {{KEY: VALUE}}")
    return {name: _settings(file, "LIST", raw["LIST"], name) for name in raw["LIST"]}


def short_names(keys: tuple[str, ...]) -> dict[str, str]:
    """Each key without its section, or with it where keys repeat."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def _recipes(file: Path, key: str, raw: Any) -> dict[str, Recipe]:
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{file}: {key} must name at least one run, as in {key}: {{NAME: {{config: FILE}}}}")
    recipes = {}
    for name, entry in raw.items():
        entry = entry or {}
        allowed = ("config", "set", "then") if key == "STARTS" else ("config", "set")
        if not isinstance(entry, dict) or not set(entry) <= set(allowed):
            raise ValueError(f"{file}: {key}.{name} is {entry!r}: it has the keys {', '.join(allowed)}")
        config_file = file.parent / entry["config"] if "config" in entry else None
        if config_file is None and "set" in entry:
            raise ValueError(f"{file}: {key}.{name}.set has no config to change: name one, or use then")
        recipes[name] = Recipe(
            config_file, *(_settings(file, f"{key}.{name}", entry, which) for which in ("set", "then"))
        )
    return recipes


def _settings(file: Path, section: str, entry: dict, key: str) -> Pairs:
    pairs = entry.get(key) or {}
    if not isinstance(pairs, dict):
        raise ValueError(f"{file}: {section}.{key} is {pairs!r}: it must be a mapping of KEY: VALUE")
    return {name: _text(value) for name, value in pairs.items()}


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_in_list(key)}: {_in_list(each)}' for key, each in value.items())}}}"
    return f"[{', '.join(map(_in_list, value))}]" if isinstance(value, list) else str(value)


def _in_list(value: Any) -> str:
    if isinstance(value, list | dict):
        return _text(value)
    return json.dumps(value) if set(value) & MARKS_OF_YAML else value
