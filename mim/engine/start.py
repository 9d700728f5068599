"""What a run says before its first step."""

import torch

from mim.engine.distributed.world import World
from mim.engine.optim import without_effect
from mim.engine.plan import EngineSettings, Plan
from mim.engine.precision import describe_precision
from mim.engine.protocol import Task


def describe_start(
    task: Task, plan: Plan, settings: EngineSettings, device: torch.device, stored: torch.dtype | None
) -> dict[str, str]:
    """What a run is about to do, a line each.

    Args:
        settings: with a TRAIN.precision that is not `auto`.
        stored: number type of the stored images; None where it is unknown.
    """
    return {
        **task.describe(),
        "stored images": str(stored).removeprefix("torch.") if stored else "unknown: the first cannot be read",
        **plan.describe(settings),
        "precision": describe_precision(settings.train.precision, device),
    }


def start_warnings(task: Task, plan: Plan, settings: EngineSettings, world: World | None = None) -> list[str]:
    """Settings of a run that have no effect, or not the one that they seem to have, a sentence each.

    world: the processes of the run; None where they are not known yet.
    """
    optimizer, schedule = settings.optimizer, plan.schedule(settings)
    lines = [*schedule.warnings(), *optimizer.warnings(schedule)]
    lines += without_effect(task.model, optimizer, task.lr_scales)
    strategy, shard_devices = settings.distributed.strategy, settings.distributed.shard_devices
    if shard_devices and strategy != "hsdp":
        lines.append(f"DISTRIBUTED.shard_devices {shard_devices} has no effect under DISTRIBUTED.strategy {strategy}")
    if world is not None and strategy != "ddp" and not world.grouped:
        lines.append(f"DISTRIBUTED.strategy {strategy} has no effect on one process without torchrun")
    return lines
