"""Terminal: a plan as tables and lines, at whatever width there is."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mim.lab.plan.report import PlanReport
from mim.lab.plan.scaling_tables import show_scaling

GIB, MIB = 2**30, 2**20
HELD = {  # fields of Memory, in words
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
    "average": "average of the weights",
    "batch": "images",
    "activations": "activations for backward",
    "temporary": "temporary",
}
EARLY = 0.1  # gradients, as a share of the weights, below which the peak came before most of them
DEVICES = {"cpu": "on a CPU", "gpu": "on a GPU"}


def show(planned: PlanReport, console: Console, measure: str) -> None:
    """Prints all of it. measure: the command that measures steps on this machine."""
    _heading(console, "The run", "as it will say at its start")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 0, 0, 2))
    for name, text in planned.lines.items():
        table.add_row(Text(name), Text(text))
    console.print(table)
    _heading(console, "Boundaries", "what one image becomes on its way")
    console.print(_boundaries(planned))
    _say(console, _images(planned))
    _heading(console, "Parameters and operations", "of one image, in GFLOP; a multiply-add counts as two")
    console.print(_parts(planned))
    _say(console, _operations(planned))
    if planned.memory:
        _heading(console, "Memory", f"of a step on one device, estimated peak of tensors in {_unit(planned)[0]}")
        console.print(_memory(planned))
        _say(console, _beside(planned))
    _heading(console, "Time")
    _say(console, _time(planned, measure))
    if planned.scaling is not None:
        show_scaling(planned.scaling, console)
    _show_recipe(planned, console)
    for title, texts in (("Not known", planned.missing), ("Warnings", planned.warnings)):
        if texts:
            _heading(console, title)
            _say(console, texts, "yellow")


def _boundaries(planned: PlanReport) -> Table:
    table = _table(("", "shape", "axes", "from"))
    for boundary in planned.boundaries:
        table.add_row(boundary.what, boundary.size or "-", boundary.axes, Text(boundary.of))
    return table


def _images(planned: PlanReport) -> list[str]:
    found = []
    if planned.cells is not None:
        cells, distance = planned.cells, planned.cells.avg_dist
        half = "" if distance.half is None else f" ± {distance.half:.2f}"
        found.append(
            f"{cells.visible} of {cells.cells} cells of {cells.side} px are visible and {cells.hidden} hidden "
            f"({cells.hidden / cells.cells:.1%}); a hidden pixel is {distance.mean:.2f}{half} px from the nearest "
            f"visible one (AvgDist, {distance.runs} masks)."
        )
    stored = planned.stored or "unknown, and taken for uint8"
    return [*found, f"The type in which images are stored: {stored}."]


def _parts(planned: PlanReport) -> Table:
    table, parts = (
        _table(("", "", "parameters", "trained", "forward", "and backward"), right=(2, 3, 4, 5)),
        planned.parts,
    )
    for part in parts:
        counts = f"{part.parameters:,}", f"{part.trained:,}"
        table.add_row(part.part, Text(part.name), *counts, _giga(part.forward), _giga(part.training))
    if len(parts) > 1:
        sums = sum(part.parameters for part in parts), sum(part.trained for part in parts)
        table.add_section()
        work = [[part.forward for part in parts], [part.training for part in parts]]
        table.add_row("together", "", *(f"{count:,}" for count in sums), *(_giga(_sum(column)) for column in work))
    return table


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _operations(planned: PlanReport) -> list[str]:
    found = []
    if planned.operations is not None and planned.plan is not None:
        found.append(f"The whole run: {planned.operations:.3g} operations on {planned.plan.images_seen:,} images.")
    if planned.recomputed:
        found.append("Activation checkpointing runs the forward pass of each block once more, which is not counted.")
    return [*found, "Attention counts as its two products, whatever kernel computes it."]


def _memory(planned: PlanReport) -> Table:
    table = _table(("", *(DEVICES[kind] for kind in planned.memory)), right=(1, 2))
    for field, name in HELD.items():
        sizes = [getattr(memory, field) for memory in planned.memory.values()]
        if any(sizes):
            table.add_row(name, *(_size(size, planned) for size in sizes))
    table.add_section()
    table.add_row("peak", *(_size(memory.total, planned) for memory in planned.memory.values()), style="bold")
    return table


def _beside(planned: PlanReport) -> list[str]:
    found = []
    if planned.speed is not None:
        measured = planned.speed.measured
        unit, kind = _unit(planned)[0], "a CPU" if planned.device == "cpu" else "a GPU"
        grown = (
            ""
            if measured.process is None
            else f", for which the process grew by {_size(measured.process, planned)} {unit}"
        )
        found.append(f"StepMeasurement here, on {kind}: {_size(measured.tensors, planned)} {unit} of tensors{grown}.")
    if all(memory.gradients < EARLY * memory.weights for memory in planned.memory.values()):
        found.append("Gradients are hardly in it: the peak comes as the backward pass begins.")
    return [
        *found,
        "On a GPU its context and the workspaces of its libraries come on top; on a CPU the program itself, and what "
        "the C library keeps of freed memory.",
    ]


def _time(planned: PlanReport, measure: str) -> list[str]:
    speed, run = planned.speed, planned.plan
    if speed is None or planned.images_per_s is None:
        return [f"Such a step was not measured on this machine. To measure it: {measure}"]
    step_s = planned.batch / planned.images_per_s
    step = f"{_count(1000 * step_s)} ms" if step_s < 10 else f"{_count(step_s)} s"
    threads = f", threads: {speed.hardware['threads']}" if "threads" in speed.hardware else ""
    scaled = f", as if {planned.devices} devices were {planned.devices} times as fast" if planned.devices > 1 else ""
    found = [
        f"{_count(planned.images_per_s)} images/s and {step} a step{scaled}. StepMeasurement {speed.date} on "
        f"{speed.hardware['device']}{threads}, PyTorch {speed.torch}."
    ]
    if run is not None and planned.seconds is not None:
        found.append(
            f"The whole run: {run.steps:,} steps in {_duration(planned.seconds)}, without what reading images, "
            "evaluations and checkpoints take."
        )
    return found


def _show_recipe(planned: PlanReport, console: Console) -> None:
    found = planned.recipe
    if found is None:
        _heading(console, "Recipe")
        _say(console, ["None: RECIPE mae/vit_base, or another of configs/, would tell how this file differs from it."])
        return
    _heading(console, f"Against {found.name}", "the recipe that this file names")
    if not found.differences:
        _say(console, ["No difference." if found.differences is not None else "Its file is not at hand."])
        return
    table, group = _table(("", "here", found.name)), ""
    for difference in found.differences:
        if difference.group != group:
            if group:
                table.add_section()
            group = difference.group
            table.add_row(Text(group, "bold"))
        table.add_row(Text(difference.key), Text(difference.here), Text(difference.there))
    console.print(table)


def _table(heads: tuple[str, ...], right: tuple[int, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(heads):
        justify: Any = "right" if place in right else "left"
        table.add_column(Text(head), justify=justify, overflow="fold", no_wrap=place in right)
    return table


def _heading(console: Console, title: str, more: str = "") -> None:
    console.print()
    console.print(Text.assemble((title, "bold"), (f"   {more}", "dim") if more else ""))


def _say(console: Console, texts: Iterable[str], style: str = "") -> None:
    for text in texts:
        console.print(Padding(Text(text, style), (0, 0, 0, 2)))


def _unit(planned: PlanReport) -> tuple[str, int]:
    most = max(memory.total for memory in planned.memory.values())
    return ("GiB", GIB) if most >= GIB else ("MiB", MIB)


def _size(count: int, planned: PlanReport) -> str:
    unit, size = _unit(planned)
    return f"{count / size:.2f}" if unit == "GiB" else f"{count / size:.1f}"


def _giga(operations: int | None) -> str:
    return "-" if operations is None else f"{operations / 1e9:,.3g}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{_count(seconds / size)} {unit}"
    return f"{seconds:.0f} seconds"
