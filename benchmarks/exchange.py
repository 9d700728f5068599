"""Bytes that devices exchange in a step: counted in real steps of several processes, and by the formula of a plan.

  torchrun --nproc_per_node 2 benchmarks/exchange.py --config FILE [--steps N] [KEY VALUE ...]

Takes steps on random images under DISTRIBUTED.strategy, on this machine's devices, and adds up the bytes that go into
each collective. The formula leaves out the loss, the gradient norm and a model's buffers.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mim import build, load_config
from mim.engine.distributed.world import World, join_world
from mim.lab.dryrun.measure import dry_trainer
from mim.lab.dryrun.task import DryTask, dry_task
from mim.lab.plan.scaling import model_sizes, replica_bytes, sent, shard_bytes

RINGS = {  # by name of the collective: how often its input goes around the ring, and the index of that argument
    "allreduce_": (2, 0),
    "all_reduce": (2, 0),
    "_allgather_base_": (1, 0),
    "_reduce_scatter_base_": (1, 1),
    "broadcast_": (1, 0),
}


class Exchanged(TorchDispatchMode):
    """Counts calls and input bytes of each collective, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.sent = 0.0  # bytes that each device sends for them in rings

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace in ("c10d", "_c10d_functional") and function._opname != "wait_tensor":
            name = function._opname
            times, index = RINGS.get(name, (1, 0))
            size = sum(t.numel() * t.element_size() for t in tree_iter(args[index]) if isinstance(t, Tensor))
            self.calls[name] += 1
            self.bytes[name] += size
            self.sent += times * sent(size, _devices(args))
        return function(*args, **(kwargs or {}))


def _devices(args: Sequence[Any]) -> int:
    """Those of a collective, which under hsdp is one of a copy, or one between copies."""
    if isinstance(args[-1], str):  # of a functional collective, the name of its group
        return dist.distributed_c10d._resolve_process_group(args[-1]).size()
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and arg._type().name() == "ProcessGroup":
            return dist.ProcessGroup.unbox(arg).size()
    return dist.get_world_size()


def main() -> int:
    """Exit codes: 0 done, 2 something for the user to mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = parser.parse_intermixed_args()
    try:
        cfg = load_config(args.config, args.overrides)
        with join_world(build.engine_settings(cfg).distributed) as world:
            dry = dry_task(cfg, classes=2 if cfg.TASK != "pretrain" else None)
            exchanged = count(dry, world, args.steps)
            if world.main:
                show(exchanged, dry, world)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def count(dry: DryTask, world: World, steps: int) -> Exchanged:
    """The exchange of one step, the mean of several, after one that is not counted."""
    trainer = dry_trainer(dry, dry.plan(world.size), world.device, lambda phase: None, world=world)
    trainer.take_step()
    with Exchanged() as exchanged:
        for _ in range(steps):
            trainer.take_step()
    exchanged.sent /= steps
    for name in exchanged.bytes:
        exchanged.bytes[name] //= steps
        exchanged.calls[name] //= steps
    return exchanged


def show(exchanged: Exchanged, dry: DryTask, world: World) -> None:
    """Prints the counted bytes and those of the formula."""
    settings, plan = dry.engine_settings(), dry.plan(world.size)
    strategy = settings.distributed.strategy
    sizes = model_sizes(dry.task.model, dry.task.blocks(), settings, None)
    of_a_node = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    shards = (settings.distributed.shard_devices or of_a_node) if strategy == "hsdp" else world.size
    if strategy == "ddp":
        formula = replica_bytes(sizes, world.size)[0]
    else:
        formula = shard_bytes(sizes, shards, plan.accumulation, world.size // shards)[0]
    console = Console(highlight=False)
    console.print(
        f"{strategy}, {world.size} devices, {plan.micro_batch} images a device x {plan.accumulation}, "
        f"{settings.train.precision}; a step:"
    )
    for name, size in exchanged.bytes.most_common():
        console.print(f"  {exchanged.calls[name]:>5} x {name:<22} {size:>15,} bytes", markup=False)
    counted = exchanged.sent
    console.print(
        f"  each device sends {counted:,.0f} bytes; by the formula {formula:,} ({counted / formula - 1:+.3%})"
    )


if __name__ == "__main__":
    sys.exit(main())
