"""A transfer study: what each pretraining is worth under each protocol of fine-tuning or probing, beside scratch.

A study file names recipes, not hyper-parameters:

    STARTS:     {MAE: {config: FILE, set: {KEY: VALUE}}, scratch: {then: {KEY: VALUE}}}
    PROTOCOLS:  {fine-tuning: {config: FILE, set: {KEY: VALUE}}}
    SEEDS:      [0, 1]

`set` changes the named config, `then` every protocol from that start (layer decay, say, does not suit random weights).
Every start is trained once a seed, and every protocol once a start and seed, each in a run folder of its own. A study
that is interrupted goes on where it was.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from yacs.config import CfgNode

from mim import config, schema
from mim.engine import checkpoint
from mim.ops.files import write_json, write_text
from mim.registry import one_of
from mim.run import train

KEYS = ("STARTS", "PROTOCOLS", "SEEDS")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config file and what a study sets in it. file: None for a start from random weights; then: see above."""

    file: Path | None
    pairs: dict[str, str] = field(default_factory=dict)
    then: dict[str, str] = field(default_factory=dict)

    def load(self, seed: int, then: dict[str, str], more: dict[str, str]) -> CfgNode:
        """The config under a seed. `more` goes on top, as far as the task has the sections."""
        assert self.file is not None
        task = config.load_config(self.file).TASK
        known = {key: value for key, value in more.items() if key.partition(".")[0] in schema.sections(task)}
        pairs = {**self.pairs, **then, **known, "SEED": str(seed)}
        return config.load_config(self.file, [word for pair in pairs.items() for word in pair])


@dataclass(frozen=True, slots=True)
class Study:
    """A study file."""

    starts: dict[str, Recipe]
    protocols: dict[str, Recipe]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """What a study found: the summary of each run, by start, protocol and seed."""

    study: Study
    pretraining: dict[tuple[str, int], dict[str, Any]]
    transfer: dict[tuple[str, str, int], dict[str, Any]]

    def accuracies(self, protocol: str, start: str) -> list[float]:
        """Held-out top-1 after the last epoch, a seed each."""
        return [self.transfer[protocol, start, seed]["val/top1"] for seed in self.study.seeds]

    def mean_of(self, start: str, figure: str) -> float:
        """The mean over seeds of a figure of a start's pretraining, 0 for a start that has none."""
        return mean(self.pretraining.get((start, seed), {}).get(figure, 0) for seed in self.study.seeds)


def read_study(file: Path) -> Study:
    """A study file.

    Raises ValueError that names the file and the key for what is missing, unknown or of the wrong kind.
    """
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
    protocols = _recipes(file, "PROTOCOLS", raw.get("PROTOCOLS"))
    for name, recipe in protocols.items():
        if recipe.file is None:
            raise ValueError(f"{file}: PROTOCOLS.{name} has no config")
    seeds = raw.get("SEEDS", ["0"])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, str) and s.isdecimal() for s in seeds):
        raise ValueError(f"{file}: SEEDS is {seeds!r}: it must be a list of integers, at least 0")
    return Study(starts, protocols, tuple(map(int, seeds)))


def run_study(study: Study, output: Path, overrides: Sequence[str], say: Callable[[str], None]) -> Results:
    """Trains what is not trained yet, in `output`, and writes results.json there. `say` is told of each run's end.

    KEY VALUE pairs go to every run whose task has that section.

    Every config is loaded before the first run starts. Raises ValueError for what the user can mend.
    """
    more = config.read_pairs(overrides)
    runs = _planned(study, output, more)
    pretraining: dict[tuple[str, int], dict[str, Any]] = {}
    transfer: dict[tuple[str, str, int], dict[str, Any]] = {}
    for number, (start, protocol, seed, cfg, folder) in enumerate(runs, 1):
        source = output / "pretraining" / _folder(start, seed)
        if protocol and (start, seed) in pretraining:
            init = ["INIT.checkpoint", str(checkpoint.last(source / "checkpoints"))]
            cfg = config.parse_config(config.dump(cfg), init)
        found = train(cfg, folder, quiet=True)
        head = f"[{number}/{len(runs)}] {protocol or 'pretraining'}, {start}, seed {seed}"
        if protocol and "val/top1" not in found:
            raise ValueError(f"{folder}: no images are held out, so there is no accuracy to compare")
        if protocol:
            transfer[protocol, start, seed] = found
            say(f"{head}: top-1 {found['val/top1']:.4f} in {found['seconds']:,.0f} s")
        else:
            pretraining[start, seed] = found
            say(f"{head}: {found['epochs']} epochs in {found['seconds']:,.0f} s")
    results = Results(study, pretraining, transfer)
    _write(results, output)
    return results


def _planned(study: Study, output: Path, more: dict[str, str]) -> list[tuple[str, str, int, CfgNode, Path]]:
    """Every run: start, protocol (empty: pretraining), seed, config and folder. Pretraining comes first."""
    used = set()
    runs: list[tuple[str, str, int, CfgNode, Path]] = []
    for protocol, recipe in (("", None), *study.protocols.items()):
        for start, pretraining in study.starts.items():
            chosen = recipe or pretraining
            if chosen.file is None:
                continue
            for seed in study.seeds:
                cfg = chosen.load(seed, pretraining.then if protocol else {}, more)
                used |= {key for key in more if key.partition(".")[0] in cfg}
                folder = output / (_slug(protocol) if protocol else "pretraining") / _folder(start, seed)
                if any(folder == other[-1] for other in runs):
                    raise ValueError(
                        f"{protocol or 'pretraining'}, {start}: another run has the folder {folder}; rename it"
                    )
                runs.append((start, protocol, seed, cfg, folder))
    unused = [key for key in more if key not in used]
    if unused:
        raise ValueError(f"{unused[0]} is a key of no run of this study")
    return runs


def _write(results: Results, output: Path) -> None:
    study = results.study
    table = {
        protocol: {start: results.accuracies(protocol, start) for start in study.starts} for protocol in study.protocols
    }
    costs = {f"{start}, seed {seed}": found for (start, seed), found in results.pretraining.items()}
    write_json(output / "results.json", {"seeds": list(study.seeds), "val/top1": table, "pretraining": costs})
    write_text(output / "results.md", markdown(results))


def markdown(results: Results) -> str:
    """The table of accuracies, as Markdown."""
    starts = list(results.study.starts)
    lines = [f"| | {' | '.join(starts)} |", f"|---|{'---|' * len(starts)}"]
    for protocol in results.study.protocols:
        cells = [in_words(results.accuracies(protocol, start)) for start in starts]
        lines.append(f"| {protocol} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_words(values: list[float]) -> str:
    """A mean in percent, and the standard deviation where there are several values."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def _recipes(file: Path, key: str, raw: Any) -> dict[str, Recipe]:
    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{file}: {key} must name at least one run, as in {key}: {{NAME: {{config: FILE}}}}")
    found = {}
    for name, entry in raw.items():
        entry = entry or {}
        allowed = ("config", "set", "then") if key == "STARTS" else ("config", "set")
        if not isinstance(entry, dict) or not set(entry) <= set(allowed):
            raise ValueError(f"{file}: {key}.{name} is {entry!r}: it has the keys {', '.join(allowed)}")
        config_file = file.parent / entry["config"] if "config" in entry else None
        if config_file is None and "set" in entry:
            raise ValueError(f"{file}: {key}.{name}.set has no config to change: name one, or use then")
        found[name] = Recipe(config_file, *(_settings(file, f"{key}.{name}", entry, word) for word in ("set", "then")))
    return found


def _settings(file: Path, place: str, entry: dict, key: str) -> dict[str, str]:
    pairs = entry.get(key) or {}
    if not isinstance(pairs, dict):
        raise ValueError(f"{file}: {place}.{key} is {pairs!r}: it must be a mapping of KEY: VALUE")
    return {word: _text(value) for word, value in pairs.items()}


def _text(value: Any) -> str:
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else str(value)


def _folder(start: str, seed: int) -> str:
    return f"{_slug(start)}-seed{seed}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
