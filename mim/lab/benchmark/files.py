"""Files of a benchmark: markdown with all that is needed to repeat it, a picture, and plain values for programs."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from mim.io.files import write_atomically, write_text
from mim.lab.benchmark.accuracy import AccuracyResult
from mim.lab.benchmark.accuracy_views import accuracy_picture, accuracy_values
from mim.lab.benchmark.loading import LoadingResult
from mim.lab.benchmark.profile_picture import profile_picture
from mim.lab.benchmark.rounds import ContenderMetrics
from mim.lab.benchmark.run import BenchmarkResult
from mim.lab.benchmark.tables import PHASES, Result, ResultView
from mim.lab.console import markdown


def write(result: Result, folder: Path, arguments: Sequence[str]) -> list[Path]:
    """Appends a result to the file of its config, hardware and day, in a folder. Returns the files that were written.

    arguments: those of tools/benchmark.py.
    """
    stem = f"{result.theme}_{result.machine.slug}_{result.date:%Y-%m-%d}"
    file, picture = folder / f"{stem}.md", folder / f"{stem}_{result.date:%H%M%S}.png"
    folder.mkdir(parents=True, exist_ok=True)
    written = [file]
    png = picture_of(result)
    if png:
        write_atomically(picture, lambda stream: stream.write(png))
        written.append(picture)
    head = f"# {result.theme} on {result.machine}, {result.date:%Y-%m-%d}\n"
    before = file.read_text(encoding="utf-8") if file.is_file() else head
    write_text(file, f"{before}\n{section(result, arguments, picture.name)}")
    return written


def section(result: Result, arguments: Sequence[str], picture: str = "") -> str:
    """A result in markdown. picture: name of the file of its picture."""
    view = ResultView.of(result)
    blocks = [
        f"## {result.date:%H:%M}: {view.title}",
        f"```\n{command(arguments, result)}\n```",
        _tables(view.tables),
        _list([f"**{line}**" for line in view.lines]),
        f"![{result.theme}: {view.picture}]({picture})" if view.picture else "",
        _tables(view.profiles),
        _list([*view.notes, result.machine.describe()]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def command(arguments: Sequence[str], result: Result) -> str:
    """The command that repeats it."""
    grouped = isinstance(result, BenchmarkResult) and result.strategy
    start = ["torchrun", "--nproc_per_node", "1"] if grouped else ["python"]
    return shlex.join([*start, "tools/benchmark.py", *arguments])


def picture_of(result: Result) -> bytes:
    """A PNG file of the profiles, or of accuracy over time; empty where there is nothing to draw."""
    if isinstance(result, AccuracyResult):
        return accuracy_picture(result)
    if isinstance(result, LoadingResult) or not result.profiles:
        return b""
    contenders: dict[str, dict[str, float]] = {
        profile.contender: {str(name): 1000 * seconds for name, seconds in profile.class_seconds().items()}
        for profile in result.profiles
    }
    time = {"cpu": "time of the CPU", "cuda": "time of the GPU"}[result.profiles[0].device]
    batch = f"batch {result.best.batch}, {result.precision}"
    subtitle = f"{result.machine}, PyTorch {result.machine.versions['torch']}; {batch}; {time}, under the profiler"
    return profile_picture(f"{result.theme}: a training step by kernel class", subtitle, contenders)


def to_json(result: Result, arguments: Sequence[str]) -> dict[str, Any]:
    """All of a result as plain values."""
    values = {
        "theme": result.theme,
        "command": command(arguments, result),
        "date": f"{result.date:%Y-%m-%d %H:%M:%S}",
        "machine": asdict(result.machine),
    }
    if isinstance(result, AccuracyResult):
        return values | accuracy_values(result)
    if isinstance(result, LoadingResult):
        rates = {f"{name}_images_per_s": list(each) for name, each in result.images_per_s.items()}
        return {**values, "images": result.images, "crops": result.crops, **rates, "ratio": result.ratio}
    return values | {
        "precision": result.precision,
        "strategy": result.strategy,
        "rounds": result.settings.rounds,
        "real_images": result.settings.real,
        "ceiling": asdict(result.ceiling),
        "batches": [
            {
                "batch": each.batch,
                "steps_a_round": each.steps,
                "out_of_memory": list(each.out_of_memory),
                "contenders": {metrics.contender.name: _metrics(metrics, result) for metrics in each.metrics},
                "ratios": [asdict(ratio) for ratio in each.ratios()],
            }
            for each in result.results
        ],
        "best_ratios": [asdict(ratio) for ratio in result.best_ratios()],
        "profiles": [
            {"contender": profile.contender, "of": profile.device, "classes_s": profile.class_seconds()}
            for profile in result.profiles
        ],
    }


def _metrics(metrics: ContenderMetrics, result: BenchmarkResult) -> dict[str, Any]:
    contender = metrics.contender
    return {
        **{name: getattr(contender, name) for name in ("model", "parameters", "flops")},
        **{name: getattr(metrics, name) for name in ("images_per_s", "step_s", "tensors", "process")},
        "step_s_by_round": list(metrics.round_s),
        "phases_s": {phase: metrics.phase_s(phase) for phase in PHASES},
        "mfu": metrics.utilisation(result.ceiling),
        "differences": list(contender.differences),
    }


def _tables(tables: dict[str, Table]) -> str:
    return "\n\n".join(f"**{title}**\n\n{markdown(table)}" for title, table in tables.items())


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
