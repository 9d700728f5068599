"""A plan in a terminal: tables and notes."""

from rich.console import Console
from rich.text import Text

from mim.lab.console import byte_unit, new_table, number, print_heading, print_notes
from mim.lab.plan.recipe import RecipeComparison
from mim.lab.plan.report import PlanReport
from mim.lab.plan.scaling_tables import show_scaling

MEMORY = {  # fields of Memory, as they are shown
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
    "average": "average of the weights",
    "batch": "images",
    "activations": "activations for backward",
    "temporary": "temporary",
}
GIB = 2**30
FULL = 0.9  # share of a GPU's memory beyond which what is not included may not fit
EARLY = 0.1  # gradients as a share of the weights, below which the peak comes before most of them
NOT_INCLUDED = (
    "Not included: on a GPU its context and the workspaces of its libraries; on a CPU the program itself and freed "
    "memory that the C library keeps."
)
WITHOUT = "without the time for reading images, evaluations and checkpoints"
KINDS = {"cpu": "on a CPU", "gpu": "on a GPU"}


def show(report: PlanReport, console: Console, measure: str) -> None:
    """Prints a plan. measure: the command that measures steps on this machine."""
    print_heading(console, "The run", "what its log will say at the start")
    width = max(map(len, report.lines)) + 2
    for name, text in report.lines.items():
        print_notes(console, [text], first=f"{name:<{width}}", indent=" " * width)
    print_heading(console, "Boundaries", "what one image becomes on its way")
    table = new_table("", "shape", "axes", "from", words=4)
    for boundary in report.boundaries:
        table.add_row(boundary.what, boundary.size or "one number", boundary.axes, Text(boundary.source))
    console.print(table)
    _show_parts(report, console)
    _show_recipe(report.recipe, console)
    for title, lines in (("Not known", report.missing), ("Warnings", report.warnings)):
        if lines:
            print_heading(console, title)
            print_notes(console, lines, "yellow")
    if report.memory:
        _show_memory(report, console)
    print_heading(console, "Time")
    if report.speed is not None:
        print_notes(console, _time_notes(report))
    else:
        print_notes(console, _not_measured(report))
        console.print(Text(f"  {measure}"), soft_wrap=True)
    if report.scaling is not None:
        show_scaling(report.scaling, console)


def _not_measured(report: PlanReport) -> list[str]:
    """What precedes the command that measures steps."""
    if report.scaling is None:
        assume = "--gpu h100 (or another: an unknown name lists them) computes the time on a GPU from its data sheet."
        return [assume, "Such a step was not measured on this machine. To measure it:"]
    run, rows, notes = report.plan, report.scaling.rows, []
    if rows and rows[0].devices == report.devices and rows[0].images_per_s:
        rate = rows[0].images_per_s
        devices = f"{report.devices:,} x {report.gpu}" if report.devices > 1 else report.gpu
        length = "" if run is None else f", {run.steps:,} steps in {_duration(run.images_seen / rate)}"
        notes.append(f"On paper, on {devices} as assumed below: {number(rate, 3)} images/s{length}, {WITHOUT}.")
    return [*notes, "Not measured. On a machine that has such devices, this measures a step on one of them:"]


def _show_parts(report: PlanReport, console: Console) -> None:
    print_heading(console, "Parameters and operations", "of one image, in GFLOP; a multiply-add counts as two")
    table = new_table("", "", "parameters\nin total", "of these\ntrained", "forward", "forward and\nbackward", words=2)
    rows = [(part.parameters, part.trained, part.forward, part.training) for part in report.parts]
    for part, row in zip(report.parts, rows, strict=True):
        table.add_row(part.part, Text(part.name), *map(_count, row[:2]), *map(_giga, row[2:]))
    if len(rows) > 1:
        sums = [None if None in column else sum(filter(None, column)) for column in zip(*rows, strict=True)]
        table.add_section()
        table.add_row("together", "", *map(_count, sums[:2]), *map(_giga, sums[2:]))
    console.print(table)
    notes = []
    if report.operations is not None and report.plan is not None:
        notes.append(f"The run: {report.operations:.3g} operations on {report.plan.images_seen:,} images.")
    if report.recomputed:
        notes.append("Activation checkpointing runs the forward pass of each block again, which is not counted.")
    print_notes(console, [*notes, "Attention counts as its two matrix products, whatever kernel computes it."])


def _show_memory(report: PlanReport, console: Console) -> None:
    memories = report.memory.values()
    unit, size = byte_unit(max(memory.total for memory in memories))
    digits = 2 if unit == "GiB" else 1
    print_heading(console, "Memory", f"of a step on one device, estimated peak of tensors in {unit}")
    table = new_table("", *(f"{KINDS[kind]}, {report.precisions[kind]}" for kind in report.memory))
    for field, name in MEMORY.items():
        sizes = [getattr(memory, field) for memory in memories]
        if any(sizes):
            table.add_row(name, *(_size(each / size, digits) for each in sizes))
    table.add_section()
    table.add_row("peak", *(f"{memory.total / size:.{digits}f}" for memory in memories), style="bold")
    console.print(table)
    notes = []
    if report.speed is not None:
        measured, kind = report.speed.measured, "a CPU" if report.device == "cpu" else "a GPU"
        growth = measured.process
        process = "" if growth is None else f"; the process grew by {growth / size:.{digits}f} {unit}"
        notes.append(f"Measured here, on {kind}: {measured.tensors / size:.{digits}f} {unit} of tensors{process}.")
    if all(memory.gradients < EARLY * memory.weights for memory in memories):
        notes.append("The peak comes as the backward pass begins, so it holds few gradients.")
    gpu = report.memory.get("gpu")
    if gpu is not None and report.gpu_memory is not None:
        share = gpu.total / report.gpu_memory
        fits = "the step fits" if share < FULL else "the step may not fit" if share <= 1 else "the step does not fit"
        notes.append(
            f"The {report.gpu} has {report.gpu_memory / GIB:g} GiB (assumed: its data sheet): {fits} ({share:.0%})."
        )
    print_notes(console, [*notes, NOT_INCLUDED])


def _time_notes(report: PlanReport) -> list[str]:
    speed, run, rate = report.speed, report.plan, report.images_per_s
    assert speed is not None
    assert rate is not None
    step_s = report.batch / rate
    step = f"{number(1000 * step_s, 3)} ms" if step_s < 10 else f"{number(step_s, 3)} s"
    threads = f", threads: {speed.hardware['threads']}" if "threads" in speed.hardware else ""
    scaled = f", as if {report.devices} devices were {report.devices} times as fast" if report.devices > 1 else ""
    notes = [
        f"{number(rate, 3)} images/s and {step} a step{scaled}. Measured {speed.date} on "
        f"{speed.hardware['device']}{threads}, PyTorch {speed.torch}."
    ]
    if run is not None and report.seconds is not None:
        notes.append(f"The run: {run.steps:,} steps in {_duration(report.seconds)}, {WITHOUT}.")
    return notes


def _show_recipe(recipe: RecipeComparison | None, console: Console) -> None:
    if recipe is None:
        print_heading(console, "Recipe")
        note = "None. RECIPE mae/vit_base, or another of configs/, shows how this file differs from it."
        print_notes(console, [note])
        return
    print_heading(console, f"Against {recipe.name}", "the recipe that this file names")
    if not recipe.differences:
        print_notes(console, ["No difference." if recipe.differences is not None else "Its file is not here."])
        return
    rows = [(each.key, each.here, each.there) for each in recipe.differences]
    fits = sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True)) <= console.width
    table, group = new_table("", "here", recipe.name, words=3), ""
    for difference, row in zip(recipe.differences, rows, strict=True):
        new_group = difference.group != group
        group = difference.group
        if fits:
            if new_group:
                table.add_section()
                table.add_row(Text(group, "bold"))
            table.add_row(*map(Text, row))
        else:  # long values, such as paths, on lines of their own
            if new_group:
                console.print(Text(f"  {group}", "bold"))
            console.print(Text(f"  {row[0]}\n    here: {row[1]}\n    {recipe.name}: {row[2]}"), soft_wrap=True)
    if fits:
        console.print(table)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _giga(operations: int | None) -> str:
    return "-" if operations is None else f"{operations / 1e9:,.3g}"


def _size(value: float, digits: int) -> str:
    """A size above zero is never shown as zero."""
    return f"< {10**-digits:g}" if 0 < value < 10**-digits else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{number(seconds / size, 3)} {unit}"
    return f"{seconds:.0f} seconds"
