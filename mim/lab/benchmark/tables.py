"""Tables and notes of a result, the same for a terminal and for a file, and how a terminal shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mim.lab.benchmark.accuracy import AccuracyResult
from mim.lab.benchmark.accuracy_views import accuracy_lines, accuracy_notes, accuracy_tables
from mim.lab.benchmark.contenders import OURS
from mim.lab.benchmark.loading import LoadingResult
from mim.lab.benchmark.profiling import Profile
from mim.lab.benchmark.rounds import Ratio
from mim.lab.benchmark.run import BenchmarkResult
from mim.lab.console import byte_unit, new_table, number, print_heading, print_notes

Result = BenchmarkResult | LoadingResult | AccuracyResult
PHASES = {"batch": "data", "forward": "forward", "backward": "backward", "update": "optimizer"}
TOP = 15  # operators
NAME = 36  # characters of an operator's name


@dataclass(frozen=True, slots=True)
class ResultView:
    """What is shown of a result."""

    title: str  # of the whole
    tables: dict[str, Table]  # by title
    lines: list[str]  # the ratios
    profiles: dict[str, Table]  # tables of the profiles, by title
    notes: list[str]  # how it was measured
    picture: str = ""  # what the picture shows; empty for none

    @classmethod
    def of(cls, result: Result) -> "ResultView":
        """The view of a result. Its tables can be printed once."""
        if isinstance(result, LoadingResult):
            line = _ratio_line(Ratio("torchvision", result.ratio, min(result.ratios), max(result.ratios)), "")
            return cls("the loader alone", _loading_tables(result), [line], {}, _loading_notes(result))
        if isinstance(result, AccuracyResult):
            tables, lines, notes = accuracy_tables(result), accuracy_lines(result), accuracy_notes(result)
            return cls("time to an accuracy", tables, lines, {}, notes, "accuracy over seconds of training")
        title, profiles = f"{result.batches}, {result.precision}", profile_tables(result.profiles)
        picture = "a step by kernel class" if profiles else ""
        return cls(title, step_tables(result), step_lines(result), profiles, _step_notes(result), picture)


def show(result: Result, console: Console) -> None:
    """Prints a result."""
    view = ResultView.of(result)
    console.print()
    console.print(Text.assemble((result.theme, "bold"), f", {view.title}, {result.machine}"))
    for tables, lines, style in ((view.tables, view.lines, "bold"), (view.profiles, view.notes, "")):
        for title, table in tables.items():
            print_heading(console, title)
            console.print(table)
        console.print()
        print_notes(console, lines, style)


def step_tables(result: BenchmarkResult) -> dict[str, Table]:
    """Tables of time and of work, by title. Where several batches were tried, the first column is the batch."""
    several = len(result.results) > 1
    heads = [*(["batch"] if several else []), ""]
    phases = {phase: name for phase, name in PHASES.items() if result.settings.real or phase != "batch"}
    time = new_table(*heads, "images/s", "ms a step", *phases.values(), words=len(heads))
    unit, size = byte_unit(max(metrics.tensors for each in result.results for metrics in each.metrics))
    columns = ("parameters", "GFLOP\nan image", "TFLOP/s", "MFU", f"tensors,\n{unit}", f"process,\n{unit}")
    work = new_table(*heads, *columns, words=len(heads))
    for each in result.results:
        batch = [f"{each.batch:,}"] if several else []
        for metrics in each.metrics:
            contender, share = metrics.contender, metrics.utilisation(result.ceiling)
            flops, process = contender.flops, metrics.process
            times = [1000 * (seconds or 0) for seconds in (metrics.step_s, *map(metrics.phase_s, phases))]
            time.add_row(*batch, contender.name, number(metrics.images_per_s), *map(number, times))
            work.add_row(
                *(*batch, contender.name, f"{contender.parameters:,}"),
                "-" if flops is None else number(flops / 1e9),
                "-" if flops is None else number(flops * metrics.images_per_s / 1e12),
                "-" if share is None else f"{share:.1%}",
                *(f"{metrics.tensors / size:.2f}", "-" if process is None else f"{process / size:.2f}"),
            )
        for name in each.out_of_memory:
            time.add_row(*batch, name, "out of memory")
    return {"Time": time, "Work and memory": work}


def step_lines(result: BenchmarkResult) -> list[str]:
    """Ours against each other contender, and the best batch of each where several were tried."""
    if len(result.results) == 1:
        return [_ratio_line(ratio, "") for ratio in result.results[0].ratios()]
    best = [metrics for name in (OURS, *result.settings.against) if (metrics := result.best_of(name)) is not None]
    return [
        *(f"Best batch of {each.contender.name}: {each.batch}, {number(each.images_per_s)} images/s" for each in best),
        *(_ratio_line(ratio, f" at batch {each.batch}") for each in result.results for ratio in each.ratios()),
        *(_ratio_line(ratio, ", each at its best batch") for ratio in result.best_ratios()),
    ]


def _step_notes(result: BenchmarkResult) -> list[str]:
    """How it was measured, and how the contenders differ."""
    settings, product = result.settings, result.ceiling
    steps = " and ".join(dict.fromkeys(str(each.steps) for each in result.results))
    contenders = {each.contender.name: each.contender for at in result.results for each in at.metrics}
    images = (
        "the config's own images; waiting for the dataloader is part of a step"
        if settings.real
        else "random images, made on the device; making them is not part of a step"
    )
    order = " of each contender in turn, after one that is not timed" if len(contenders) > 1 else ""
    differences = [(name.split("-")[0], line) for name, each in contenders.items() for line in each.differences]
    return [
        f"{settings.rounds} rounds of {steps} step{'s' * (steps != '1')}{order}; 2 warm-up steps. Times are medians "
        "over rounds, phases over steps. A step is one micro-batch and its update.",
        f"{result.precision}; {images}.",
        "MFU: operations of the model (forward and backward; a multiply-add is two) by the step's time, as a share of "
        f"the best {product.side} x {product.side} matrix product of the same minutes: {number(product.flops / 1e12)} "
        "TFLOP/s.",
        "Memory: the peak of tensors, weights and optimizer included, and by how much the process grew; the first "
        "contender also loads the libraries, the others do not.",
        *(f"{name}: {contender.model}" for name, contender in contenders.items()),
        *dict.fromkeys(f"{name}: {line}" for name, line in differences),
    ]


def _loading_tables(result: LoadingResult) -> dict[str, Table]:
    table = new_table("", "median", "least", "most")
    for name, rates in result.images_per_s.items():
        table.add_row(name, *map(number, (median(rates), min(rates), max(rates))))
    return {"Loading, images/s on one core": table}


def _loading_notes(result: LoadingResult) -> list[str]:
    return [
        f"{len(result.ratios)} rounds of each in turn, in one process on one thread, after one that is not timed.",
        f"ours: DATA.name {result.source}, {result.images:,} images; crops of {result.crops}; batches as stored, "
        "which training normalises on its device.",
        f"torchvision: ImageFolder of {result.files}, RandomResizedCrop of 0.2 to 1 of the area (bicubic), "
        "RandomHorizontalFlip, ToTensor, Normalize, as in MAE's main_pretrain.py.",
    ]


def profile_tables(profiles: Sequence[Profile]) -> dict[str, Table]:
    """Time of a step by kernel class, and the slowest operators of each contender; empty without profiles."""
    if not profiles:
        return {}
    table = new_table("", *(profile.contender for profile in profiles))
    for kernel_class in profiles[0].class_seconds():
        table.add_row(kernel_class, *(_share(each.class_seconds()[kernel_class], each.seconds) for each in profiles))
    table.add_row("together", *(_share(profile.seconds, profile.seconds) for profile in profiles))
    device = {"cpu": "CPU", "cuda": "GPU"}[profiles[0].device]
    tables = {f"Where a step goes: ms of the {device}, under the profiler": table}
    for profile in profiles:
        table = tables[f"Operators of {profile.contender}"] = new_table("", "kind", "calls", "ms", "%", words=2)
        for operator in profile.operators[:TOP]:
            counts = f"{operator.calls:,.0f}", number(1000 * operator.seconds)
            share = f"{operator.seconds / profile.seconds:.1%}"
            table.add_row(_short(operator.name), operator.kernel_class, *counts, share)
    return tables


def _share(seconds: float, total: float) -> str:
    return f"{number(1000 * seconds)} {f'{seconds / total:.0%}':>5}"


def _ratio_line(ratio: Ratio, condition: str) -> str:
    return (
        f"ours / {ratio.against}{condition}: {ratio.ratio:.2f} times the images a second "
        f"({ratio.low:.2f} to {ratio.high:.2f} by round)"
    )


def _short(name: str) -> str:
    name = name.replace("|", "/")  # which separates the cells of markdown
    return name if len(name) <= NAME else f"{name[: NAME - 13]}…{name[-12:]}"
