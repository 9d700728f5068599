"""A plan for several numbers of devices as tables and notes."""

from rich.console import Console
from rich.text import Text

from mim.lab.console import new_table, number, print_heading, print_notes
from mim.lab.plan.hardware import GIGA, MEANINGS, Hardware
from mim.lab.plan.scaling import STRATEGIES, Scaling

GIB = 2**30
DAY_S = 86400.0
LEGEND = (
    "sent: by each device in a step. held: weights, gradients and the optimizer's state, without activations; "
    "fsdp with what is gathered at a time. waits: the share of a step that computing does not hide. "
    "images/s: of the faster one; the dataloaders of a node must read this many."
)


def show_scaling(scaling: Scaling, console: Console) -> None:
    """Prints what a step exchanges, holds and takes on each number of devices."""
    batch = "the batch stays" if scaling.fixed else "the batch grows with the devices, and the learning rate with it"
    print_heading(console, _title(scaling), f"on paper; {batch}" if len(scaling.rows) > 1 else "on paper")
    heads = ("images\na device", "accumu-\nlated", "ddp\nGB sent", "fsdp\nGB sent", "ddp\nGiB held", "fsdp\nGiB held")
    sizes = new_table("devices", "batch", *heads, words=0)
    for row in scaling.rows:
        costs = [row.costs[name] for name in STRATEGIES]
        counts = f"{row.devices:,}", f"{row.batch:,}", str(row.micro_batch), str(row.accumulation)
        sent, state_gib = (
            [f"{cost.sent / GIGA:.2f}" for cost in costs],
            [f"{cost.state_bytes / GIB:.2f}" for cost in costs],
        )
        sizes.add_row(*counts, *sent, *state_gib)
    console.print(sizes)
    if all(row.costs["ddp"].step_s for row in scaling.rows):
        print_heading(console, "Time of a step", "on paper, from the assumptions below")
        _print_times(scaling, console)
    refused = ", ".join(map(str, scaling.refused))
    notes = [f"The batch cannot be divided evenly over {refused} devices."] if refused else []
    print_notes(console, [LEGEND, *notes, _checkpoint(scaling)])
    _print_assumptions(scaling.hardware, console)


def _title(scaling: Scaling) -> str:
    counts = [row.devices for row in scaling.rows]
    if len(counts) != 1:
        return "On more devices"
    return f"On {counts[0]:,} device{'s' * (counts[0] > 1)}"


def _print_times(scaling: Scaling, console: Console) -> None:
    images = scaling.images
    heads = ["ddp\nms", "fsdp\nms", "ddp\nwaits", "fsdp\nwaits", "images/s", "images/s\na node"]
    table = new_table("devices", *heads, *(["days"] if images else []), words=0)
    for row in scaling.rows:
        steps = [(row.costs[name].step_s or 1, row.costs[name].waits_s or 0) for name in STRATEGIES]
        rate = row.images_per_s
        table.add_row(
            f"{row.devices:,}",
            *(number(1000 * step_s, 3) for step_s, _ in steps),
            *(f"{waits_s / step_s:.0%}" for step_s, waits_s in steps),
            f"{rate:,.0f}",
            f"{rate * min(scaling.hardware.node / row.devices, 1):,.0f}",
            *([f"{images / rate / DAY_S:.3g}"] if images else []),
        )
    console.print(table)


def _checkpoint(scaling: Scaling) -> str:
    size, hardware = scaling.checkpoint, scaling.hardware
    most = max((row.devices for row in scaling.rows), default=1)
    gather = f", {hardware.ring_s(size, most):.2g} s to gather on {most:,} devices under fsdp" if most > 1 else ""
    write = f"{size / GIGA / hardware.disk_gb_s:.2g} s to write"
    return f"A checkpoint: {size / GIGA:.2f} GB{gather}, {write}; all devices wait."


def _print_assumptions(hardware: Hardware, console: Console) -> None:
    print_heading(console, "Assumed, not measured", "--gpu NAME and --assume mfu=0.5 change the figures")
    table = new_table("", hardware.gpu, "from", "", words=3)
    for name, meaning in MEANINGS.items():
        source = hardware.sources.get(name, "assumed")
        table.add_row(Text(name), Text(meaning), Text(source), f"{getattr(hardware, name):,g}")
    console.print(table)
