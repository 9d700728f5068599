"""Bytes that devices exchange in a step, counted in real steps of several processes, beside the formula of a plan.

  torchrun --nproc_per_node 2 benchmarks/exchange.py --config FILE [--steps N] [KEY VALUE ...]

Takes steps on random images under DISTRIBUTED.strategy, on this machine's devices, and adds up the bytes that every
collective was given. The formula leaves out the loss, the gradient's norm and a model's buffers.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mim import build, load_config
from mim.engine.distributed.world import World, join_world
from mim.lab.dryrun.measure import dry_trainer
from mim.lab.dryrun.task import dry_task
from mim.lab.plan.scaling import replica_bytes, sent, shard_bytes, model_sizes

RINGS = {  # by the name of the operation: rings that its tensor travels, and which of its arguments that is
    "allreduce_": (2, 0),
    "all_reduce": (2, 0),
    "_allgather_base_": (1, 0),
    "_reduce_scatter_base_": (1, 1),
    "broadcast_": (1, 0),
}


class Exchanged(TorchDispatchMode):
    """Adds up what each collective was given: calls and bytes, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional") and function._opname != "wait_tensor":
            name = function._opname
            place = RINGS.get(name, (1, 0))[1]
            self.calls[name] += 1
            self.bytes[name] += sum(
                t.numel() * t.element_size() for t in tree_iter(args[place]) if isinstance(t, Tensor)
            )
        return function(*args, **(kwargs or {}))

    def sent(self, devices: int) -> float:
        """Bytes that each device sends for it in rings."""
        return sum(RINGS.get(name, (1, 0))[0] * sent(size, devices) for name, size in self.bytes.items())


def main() -> int:
    """Prints a table on the main rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    try:
        cfg = load_config(args.config, args.overrides)
        with join_world(build.engine_settings(cfg).distributed) as world:
            show(count(cfg, world, args.steps), world, cfg)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def count(cfg: Any, world: World, steps: int) -> Exchanged:
    """Of a step, after one that does not count."""
    held = dry_task(cfg, classes=2 if cfg.TASK != "pretrain" else None)
    trainer = dry_trainer(held, held.plan(world.size), world.device, lambda phase: None, world=world)
    trainer.take_step()
    with Exchanged() as found:
        for _ in range(steps):
            trainer.take_step()
    for name in found.bytes:
        found.bytes[name] //= steps
        found.calls[name] //= steps
    return found


def show(found: Exchanged, world: World, cfg: Any) -> None:
    """StepMeasurement beside the formula."""
    if not world.main:
        return
    held = dry_task(cfg, classes=2 if cfg.TASK != "pretrain" else None)
    engine, plan = held.engine_settings(), held.plan(world.size)
    sizes = model_sizes(held.task.model, held.task.blocks(), engine, None)
    ddp = engine.distributed.strategy == "ddp"
    told = replica_bytes(sizes, world.size)[0] if ddp else shard_bytes(sizes, world.size, plan.accumulation)[0]
    console = Console(highlight=False)
    console.print(
        f"{engine.distributed.strategy}, {world.size} devices, {plan.micro_batch} images a device x "
        f"{plan.accumulation}, {engine.train.precision}; a step:"
    )
    for name, size in found.bytes.most_common():
        console.print(f"  {found.calls[name]:>5} x {name:<22} {size:>15,} bytes", markup=False)
    counted = found.sent(world.size)
    console.print(f"  each device sends {counted:,.0f} bytes; by the formula {told:,} ({counted / told - 1:+.3%})")


if __name__ == "__main__":
    sys.exit(main())
