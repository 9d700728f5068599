"""Scaling tables: a plan for several numbers of devices in words, 80 columns wide."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mim.lab.plan.hardware import GIGA, Assumed
from mim.lab.plan.scaling import STRATEGIES, Cost, Scaling, Share

GIB = 2**30
DAY_S = 86400.0


def show_scaling(scaling: Scaling, console: Console) -> None:
    """Prints it."""
    told = "the batch stays" if scaling.fixed else "the batch grows with the devices, and the learning rate with it"
    _title(console, "On more devices", f"on paper; {told}")
    _print(console, _sizes(scaling))
    if all(share.costs["ddp"].step_s for share in scaling.shares):
        _title(console, "Time of a step", "on paper, from the assumptions below")
        _print(console, _times(scaling))
    lines = [
        "sent: by each device in a step. held: weights, gradients and the optimizer's state, without activations; of "
        "fsdp with what is whole at a time. waits: the share of a step that computing does not hide. images/s: of the "
        "faster one; a node's loaders have to read so many.",
        *(_refused(scaling)),
        _checkpoint(scaling),
        _assumed(scaling.assumed),
    ]
    for line in lines:
        console.print(Padding(Text(line), (0, 0, 0, 2)))


def _sizes(scaling: Scaling) -> Table:
    table = _table(
        "devices",
        "batch",
        "images\na device",
        "accumu-\nlated",
        "ddp\nGB sent",
        "fsdp\nGB sent",
        "ddp\nGiB held",
        "fsdp\nGiB held",
    )
    for share in scaling.shares:
        costs = [share.costs[name] for name in STRATEGIES]
        moved = [f"{cost.sent / GIGA:.2f}" for cost in costs]
        held = [f"{cost.held / GIB:.2f}" for cost in costs]
        table.add_row(
            f"{share.devices:,}", f"{share.batch:,}", f"{share.micro}", f"{share.accumulation}", *moved, *held
        )
    return table


def _times(scaling: Scaling) -> Table:
    days = scaling.images is not None
    heads = ["ddp\nms", "fsdp\nms", "ddp\nwaits", "fsdp\nwaits", "images/s", "images/s\na node", *["days"] * days]
    table = _table("devices", *heads)
    for share in scaling.shares:
        costs = [share.costs[name] for name in STRATEGIES]
        rate = images_per_s(share)
        last = [f"{scaling.images / rate / DAY_S:.3g}"] if scaling.images is not None else []
        table.add_row(
            f"{share.devices:,}",
            *(_ms(cost) for cost in costs),
            *(f"{(cost.waits_s or 0) / (cost.step_s or 1):.0%}" for cost in costs),
            f"{rate:,.0f}",
            f"{rate * min(scaling.assumed.node / share.devices, 1):,.0f}",
            *last,
        )
    return table


def images_per_s(share: Share) -> float:
    """Of all devices, under the strategy that is faster."""
    return share.batch / min(cost.step_s or float("inf") for cost in share.costs.values())


def _ms(cost: Cost) -> str:
    value = 1000 * (cost.step_s or 0)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _refused(scaling: Scaling) -> Iterable[str]:
    if scaling.refused:
        yield f"The batch does not come out whole on {', '.join(map(str, scaling.refused))} devices."


def _checkpoint(scaling: Scaling) -> str:
    size, assumed = scaling.checkpoint, scaling.assumed
    most = max((share.devices for share in scaling.shares), default=1)
    gathers = f", {assumed.ring_s(size, most):.2g} s to gather on {most:,} devices under fsdp" if most > 1 else ""
    return f"A checkpoint: {size / GIGA:.2f} GB{gathers}, {size / GIGA / assumed.disk_gb_s:.2g} s to write; all wait."


def _assumed(assumed: Assumed) -> str:
    return (
        f"Assumed, not measured: {assumed.peak_tflops:g} TFLOP/s a device at its peak, of which forward and backward "
        f"pass reach {assumed.mfu:.0%} at any micro-batch; memory at {assumed.memory_gb_s:,g} GB/s; nodes of "
        f"{assumed.node:g}; collectives at {assumed.node_gb_s:g} GB/s in a node and {assumed.network_gb_s:g} across "
        f"(busbw), {assumed.node_us:g} and {assumed.network_us:g} us a hop; disk at {assumed.disk_gb_s:g} GB/s. "
        "--assume mfu=0.5 network_gb_s=200 sets them."
    )


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    return table


def _title(console: Console, title: str, more: str) -> None:
    console.print()
    console.print(Text.assemble((title, "bold"), (f"   {more}", "dim")))


def _print(console: Console, table: Table) -> None:
    console.print(table)
