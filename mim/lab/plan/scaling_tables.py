"""A plan for several numbers of devices as tables and notes."""

from rich.console import Console
from rich.text import Text

from mim.lab.console import new_table, number, print_heading, print_notes
from mim.lab.plan.hardware import GIGA, MEANINGS, Hardware
from mim.lab.plan.scaling import Scaling

GIB = 2**30
DAY_S = 86400.0
COLUMNS = ("GB sent", "GiB held")  # of each strategy
LEGEND = (
    "sent: by each device in a step. held: weights, gradients and the optimizer's state, without activations; "
    "{sharded} with what is gathered at a time. waits: the share of a step that computing does not hide. "
    "images/s: of the faster one; the dataloaders of a node must read this many."
)


def show_scaling(scaling: Scaling, console: Console) -> None:
    """Prints what a step exchanges, holds and takes on each number of devices."""
    batch = "the batch stays" if scaling.fixed else "the batch grows with the devices, and the learning rate with it"
    print_heading(console, _title(scaling), f"on paper; {batch}" if len(scaling.rows) > 1 else "on paper")
    names = ("ddp", scaling.sharded)
    heads = ["images\na device", "accumu-\nlated", *(f"{name}\n{what}" for what in COLUMNS for name in names)]
    sizes = new_table("devices", "batch", *heads, words=0)
    for row in scaling.rows:
        costs = list(row.costs.values())
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
    what = "The batch, or the shards of a copy," if scaling.sharded == "hsdp" else "The batch"
    notes = [f"{what} cannot be divided evenly over {refused} devices."] if refused else []
    print_notes(console, [LEGEND.format(sharded=scaling.sharded), *notes, _checkpoint(scaling)])
    _print_assumptions(scaling.hardware, console)


def _title(scaling: Scaling) -> str:
    counts = [row.devices for row in scaling.rows]
    if len(counts) != 1:
        return "On more devices"
    return f"On {counts[0]:,} device{'s' * (counts[0] > 1)}"


def _print_times(scaling: Scaling, console: Console) -> None:
    images = scaling.images
    names = ("ddp", scaling.sharded)
    heads = [*(f"{name}\n{what}" for what in ("ms", "waits") for name in names), "images/s", "images/s\na node"]
    table = new_table("devices", *heads, *(["days"] if images else []), words=0)
    for row in scaling.rows:
        steps = [(cost.step_s or 1, cost.waits_s or 0) for cost in row.costs.values()]
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
    most = scaling.shards(max((row.devices for row in scaling.rows), default=1))
    seconds = hardware.ring_s(size, most)
    gather = f", {seconds:.2g} s to gather on {most:,} devices under {scaling.sharded}" if most > 1 else ""
    write = f"{size / GIGA / hardware.disk_gb_s:.2g} s to write"
    wait = "while training goes on, from a copy in main memory" if scaling.asynchronous else "all devices wait"
    return f"A checkpoint: {size / GIGA:.2f} GB{gather}, {write}; {wait}."


def _print_assumptions(hardware: Hardware, console: Console) -> None:
    print_heading(console, "Assumed, not measured", "--gpu NAME and --assume mfu=0.5 change the figures")
    table = new_table("", hardware.gpu, "from", "", words=3)
    for name, meaning in MEANINGS.items():
        source = hardware.sources.get(name, "assumed")
        table.add_row(Text(name), Text(meaning), Text(source), f"{getattr(hardware, name):,g}")
    console.print(table)
