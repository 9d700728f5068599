"""The settings of TRAIN, CHECKPOINT, LOG and DISTRIBUTED: each key, its default and its range. No torch here."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from mim.io.checks import above_zero, at_least

if TYPE_CHECKING:
    import torch


Compile = bool | Literal["max"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """TRAIN: how long, how much at once, and in which precision.

    Args:
        epochs: passes over the training images.
        extended_at: epochs at which the run was finished and `--extend` prolonged it, rising; `--extend` writes them.
            Up to each of them the learning rate is that of a run which ends there, then that of a longer one; under
            SCHEDULE.name wsd it is that of the longest run throughout.
        batch: images of one optimizer step over all devices; 0 means DATA.batch_size x devices. Gradient accumulation
            follows from it.
        precision: number type of the matrix products; weights stay fp32. `auto` takes bf16 where the device has bf16
            products, else fp32.
        compile: compile the model with torch.compile. `max` also records its kernels as CUDA graphs, which a GPU
            replays without the host (mode reduce-overhead): for small models and batches, at the price of memory. A CPU
            treats it as true, and fsdp and hsdp refuse it.
        clip: largest norm of the gradient; 0 for no clipping.
        activation_checkpointing: compute the activations of each block again in the backward pass, to save memory.
        ema: decay of a moving average of the weights, from 0 to below 1, which evaluations then use; 0 for none.
        deterministic: refuse kernels with results that vary from run to run; `auto` does so on a CPU.
        max_skipped: steps of a run that may be skipped because their loss or gradients are not finite. One more stops
            the run.
    """

    epochs: int = 100
    extended_at: tuple[int, ...] = ()
    batch: int = 0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: Compile = False
    clip: float = 0.0
    activation_checkpointing: bool = False
    ema: float = 0.0
    deterministic: bool | Literal["auto"] = "auto"
    max_skipped: int = 0

    def __post_init__(self) -> None:
        at_least("TRAIN", 1, epochs=self.epochs)
        at_least("TRAIN", 0, batch=self.batch, clip=self.clip, max_skipped=self.max_skipped)
        if not 0 <= self.ema < 1:
            raise ValueError(f"TRAIN.ema is {self.ema}: it is a decay, from 0 (off) up to but not including 1")
        lengths = [0, *self.lengths]
        if any(later <= earlier for earlier, later in pairwise(lengths)):
            raise ValueError(
                f"TRAIN.extended_at is {list(self.extended_at)}: rising numbers from 1 to below TRAIN.epochs "
                f"{self.epochs}"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """The epochs that the run was to have: at first, after each extension, and now."""
        return (*self.extended_at, self.epochs)

    def is_deterministic(self, device: "torch.device") -> bool:
        """`deterministic`, with `auto` resolved."""
        return device.type == "cpu" if self.deterministic == "auto" else self.deterministic


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """CHECKPOINT: when a run writes checkpoints. The end of a run always writes one.

    Args:
        every_epochs: epochs between two checkpoints; 0 for never.
        every_minutes: minutes between two checkpoints; 0 for never.
        keep: number of checkpoint files to keep, the newest.
        asynchronous: write checkpoints while training goes on, from a copy of the state in main memory, which stays
            there for the whole run. Training waits for that copy alone.
    """

    every_epochs: int = 1
    every_minutes: float = 0.0
    keep: int = 2
    asynchronous: bool = False

    def __post_init__(self) -> None:
        at_least("CHECKPOINT", 0, every_epochs=self.every_epochs, every_minutes=self.every_minutes)
        at_least("CHECKPOINT", 1, keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """LOG: what a run writes while it trains.

    Args:
        every_steps: optimizer steps between two log lines. Each line waits for the device.
        tensorboard: write TensorBoard event files; the same as `tensorboard` in the list of trackers.
        trackers: what else shows the run while it trains, by name, or as mappings with keys of a tracker:
            `[csv, {name: wandb, project: plates}]`. A tracker that fails is turned off, and the run goes on.
    """

    every_steps: int = 50
    tensorboard: bool = True
    trackers: tuple[str | dict, ...] = ()

    def __post_init__(self) -> None:
        at_least("LOG", 1, every_steps=self.every_steps)


@dataclass(frozen=True, kw_only=True)
class DistributedSettings:
    """DISTRIBUTED: the devices of a run and how they share the work.

    Args:
        strategy: `ddp` keeps a copy of the model on each device, `fsdp` a shard of each weight; `hsdp` shards each
            weight over the devices of a node, and each node has a copy.
        shard_devices: devices that share one copy of the weights under `hsdp`; 0 means those of a node.
        bucket_mb: MiB of gradients that `ddp` sends at a time, while the backward pass goes on.
        backend: of torch.distributed; `auto` takes nccl on GPUs and gloo on CPUs.
        timeout_s: seconds after which a rank that waits for others gives up and names them.
        device: kind of device; `auto` takes a GPU where there is one.
    """

    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    shard_devices: int = 0
    bucket_mb: float = 25.0
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    timeout_s: int = 1800
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        at_least("DISTRIBUTED", 0, shard_devices=self.shard_devices)
        at_least("DISTRIBUTED", 1, timeout_s=self.timeout_s)
        above_zero("DISTRIBUTED", bucket_mb=self.bucket_mb)
