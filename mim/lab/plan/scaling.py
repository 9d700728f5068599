"""Scaling: what a step costs on any number of devices, computed from the sizes of a model and of hardware.

Sources: the exchange of torch's DistributedDataParallel (Li et al. 2020) and fully_shard (Zhao et al. 2023);
benchmarks/exchange.py counts its bytes in real steps, and benchmarks/link.py measures seconds on a slow link.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from mim.cost.flops import Work
from mim.engine.plan import EngineSettings
from mim.engine.precision import DTYPES
from mim.engine.settings import DistributedSettings
from mim.lab.plan.hardware import GIGA, Hardware, sent

Strategy = Literal["ddp", "fsdp", "hsdp"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
FP32 = 4  # bytes of a weight, of its gradient, and of each of its moments
MIB = 2**20
TERA = 1e12


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Weights that fsdp gathers together."""

    shapes: tuple[tuple[int, int, bool], ...]  # of each weight: rows, elements of a row, and whether it is trained

    @classmethod
    def of(cls, weights: Sequence[nn.Parameter]) -> "WeightGroup":
        """A group of these weights. A weight without axes is one row."""
        rows = [weight.shape[0] if weight.ndim else 1 for weight in weights]
        return cls(tuple((r, w.numel() // r, w.requires_grad) for r, w in zip(rows, weights, strict=True)))

    def elements(self, devices: int = 1, *, trained: bool = False) -> int:
        """Number of elements, with rows padded to a multiple of `devices`. trained: only those of trained weights."""
        shapes = [(rows, row) for rows, row, learns in self.shapes if learns or not trained]
        return sum(devices * math.ceil(rows / devices) * row for rows, row in shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of a model and of its step."""

    blocks: tuple[WeightGroup, ...]  # weights of each block
    rest: WeightGroup  # all other weights
    buffers: int  # bytes of buffers
    product: int  # bytes of an element in matrix products
    bucket: int  # bytes of gradients that DistributedDataParallel sends at a time
    moments: int  # elements that the optimizer keeps for each element of a weight
    average: bool  # whether a moving average of the weights is kept
    work: Work | None  # operations on one image; None where not counted
    recomputed: bool  # whether the backward pass runs the forward pass again

    @property
    def groups(self) -> tuple[WeightGroup, ...]:
        """In the order of the forward pass."""
        return (self.rest, *self.blocks)

    def weights(self, *, trained: bool = False) -> int:
        """Number of elements of all weights."""
        return sum(group.elements(trained=trained) for group in self.groups)

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint, up to some kB."""
        kept = self.weights() * (2 if self.average else 1) + self.moments * self.weights(trained=True)
        return FP32 * kept + self.buffers * (2 if self.average else 1)


def model_sizes(
    model: nn.Module, blocks: Sequence[nn.Module], engine: EngineSettings, work: dict[str, Work] | None
) -> ModelSizes:
    """The sizes of a model, which may be on the meta device."""
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    rest = [weight for weight in model.parameters() if id(weight) not in inside]
    total = Work(*(sum(getattr(one, of) for one in work.values()) for of in ("forward", "training"))) if work else None
    return ModelSizes(
        blocks=tuple(WeightGroup.of(list(block.parameters())) for block in blocks),
        rest=WeightGroup.of(rest),
        buffers=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        product=DTYPES[engine.train.precision].itemsize,
        bucket=round(MIB * engine.distributed.bucket_mb),
        moments=engine.optimizer.moments,
        average=bool(engine.train.ema),
        work=total,
        recomputed=engine.train.activation_checkpointing,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Cost of a step under one strategy, per device."""

    sent: int  # bytes that it sends
    state_bytes: int  # bytes of weights, gradients and optimizer state, with what shards gather at a time
    waits_s: float | None  # seconds of exchange that computing does not hide; None where operations were not counted
    step_s: float | None  # seconds of the step; None where operations were not counted


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """A step on one number of devices."""

    devices: int  # their number
    batch: int  # images of the step
    micro_batch: int  # images of one forward pass
    accumulation: int  # forward passes of one device
    costs: dict[Strategy, StepCost]  # by strategy: that of replicas, and one with shards

    @property
    def images_per_s(self) -> float:
        """Images per second of all devices, under the faster strategy."""
        return self.batch / min(cost.step_s or math.inf for cost in self.costs.values())


@dataclass(frozen=True, slots=True)
class Scaling:
    """Steps of one run on several numbers of devices."""

    hardware: Hardware  # as assumed
    rows: tuple[ScalingRow, ...]  # one for each number of devices
    refused: tuple[int, ...]  # numbers of devices over which the batch cannot be divided evenly
    fixed: bool  # whether the batch is the same on all
    checkpoint: int  # bytes of a checkpoint
    images: int | None  # of the run; None where unknown
    sharded: Strategy  # the strategy with shards
    shard_devices: int  # devices that share a copy under hsdp; 0 for those of a node
    asynchronous: bool  # whether checkpoints are written while training goes on

    def shards(self, devices: int) -> int:
        """Devices that share a copy of the weights, of so many devices."""
        return _shards(self.sharded, self.hardware, devices, self.shard_devices)


def scale(
    sizes: ModelSizes,
    hardware: Hardware,
    counts: Sequence[int],
    *,
    batch: int,
    micro_batch: int,
    images: int | None = None,
    distributed: DistributedSettings | None = None,
    asynchronous: bool = False,
) -> Scaling:
    """The cost of a step on each number of devices, as replicas and in shards.

    Args:
        counts: numbers of devices.
        batch: images of a step; 0 for `micro_batch` on each device.
        micro_batch: images of a forward pass at most.
        images: see Scaling.
        distributed: which strategy with shards, and over how many devices; by default fsdp.
        asynchronous: see Scaling.

    Raises ValueError for less than one device.
    """
    if min(counts) < 1:
        raise ValueError(f"--devices is {min(counts)}: at least 1")
    settings = distributed or DistributedSettings()
    sharded: Strategy = "hsdp" if settings.strategy == "hsdp" else "fsdp"
    rows, refused = [], []
    for devices in dict.fromkeys(counts):
        share, left = divmod(batch or micro_batch * devices, devices)
        shards = _shards(sharded, hardware, devices, settings.shard_devices)
        if left or not share or devices % shards:
            refused.append(devices)
            continue
        micro = max(size for size in range(1, min(micro_batch, share) + 1) if share % size == 0)
        names: tuple[Strategy, ...] = ("ddp", sharded)
        costs = {name: cost(sizes, hardware, name, devices, micro, share // micro, shards) for name in names}
        rows.append(ScalingRow(devices, share * devices, micro, share // micro, costs))
    return Scaling(
        *(hardware, tuple(rows), tuple(refused), bool(batch), sizes.checkpoint, images),
        *(sharded, settings.shard_devices, asynchronous),
    )


def _shards(strategy: Strategy, hardware: Hardware, devices: int, shard_devices: int) -> int:
    return min(shard_devices or int(hardware.node), devices) if strategy == "hsdp" else devices


def cost(
    sizes: ModelSizes,
    hardware: Hardware,
    strategy: Strategy,
    devices: int,
    micro_batch: int,
    accumulation: int,
    shards: int = 0,
) -> StepCost:
    """The cost of a step of `accumulation` micro-batches on each device.

    shards: devices that share a copy of the weights, a divisor of `devices`; 0 for all. Without effect on ddp.
    """
    shards = 1 if strategy == "ddp" else shards or devices
    copies = devices // shards
    if shards == 1:
        sent_bytes, state_bytes = replica_bytes(sizes, devices)
    else:
        sent_bytes, state_bytes = shard_bytes(sizes, shards, accumulation, copies)
    if sizes.work is None:
        return StepCost(sent=sent_bytes, state_bytes=state_bytes, waits_s=None, step_s=None)
    speed = TERA * hardware.peak_tflops * hardware.mfu
    forward_s = micro_batch * sizes.work.forward / speed
    backward_s = micro_batch * sizes.work.training / speed - (0 if sizes.recomputed else forward_s)
    if shards == 1:
        waits_s = _replica_waits(sizes, hardware, devices, backward_s) if devices > 1 else 0.0
    else:
        waits_s = _shard_waits(sizes, hardware, shards, copies, accumulation, forward_s, backward_s)
    elements = sizes.weights(trained=True) / shards
    bytes_moved = elements * FP32 * (4 + 2 * sizes.moments)  # gradients are read twice, the rest is read and written
    update_s = bytes_moved / (GIGA * hardware.memory_gb_s)
    step_s = accumulation * (forward_s + backward_s) + waits_s + update_s
    return StepCost(sent=sent_bytes, state_bytes=state_bytes, waits_s=waits_s, step_s=step_s)


def replica_bytes(sizes: ModelSizes, devices: int) -> tuple[int, int]:
    """Bytes that each device sends in a step under ddp, and bytes that it holds: one all-reduce of fp32 gradients."""
    gradients = FP32 * sizes.weights(trained=True)
    state_bytes = gradients * (1 + sizes.moments) + (FP32 * sizes.weights() + sizes.buffers) * (
        2 if sizes.average else 1
    )
    return round(2 * sent(gradients, devices)), state_bytes


def shard_bytes(sizes: ModelSizes, devices: int, accumulation: int, copies: int = 1) -> tuple[int, int]:
    """The same under fsdp, and with more than one copy of the weights, each on `devices`, under hsdp.

    In each micro-batch, every block is gathered twice, in the precision of the products, and the rest once, in fp32.
    In the last one, all gradients are reduced and scattered in fp32. Gathered at a time are the rest with gradients,
    two blocks, and a block's gradients in both precisions; with gradient accumulation, all gradients. The copies
    exchange the gradients of each shard by an all-reduce in fp32.
    """
    blocks = sum(block.elements(devices) for block in sizes.blocks)
    rest, trained = sizes.rest.elements(devices), sum(group.elements(devices, trained=True) for group in sizes.groups)
    payload = accumulation * (2 * sizes.product * blocks + FP32 * rest) + FP32 * trained
    shards = FP32 * ((blocks + rest) * (2 if sizes.average else 1) + (1 + sizes.moments) * trained) / devices
    largest = max((block.elements() for block in sizes.blocks), default=0)
    gathered = (3 * sizes.product + FP32) * largest + FP32 * (sizes.rest.elements() + sizes.rest.elements(trained=True))
    if accumulation > 1:
        gathered += FP32 * sum(block.elements(trained=True) for block in sizes.blocks)
    state_bytes = shards + gathered + sizes.buffers * (2 if sizes.average else 1)
    between_copies = 2 * sent(FP32 * trained / devices, copies)
    return round(sent(payload, devices) + between_copies), round(state_bytes)


def _replica_waits(sizes: ModelSizes, hardware: Hardware, devices: int, backward_s: float) -> float:
    """The backward pass of the last micro-batch hides the exchange of all but the last bucket, if it is long enough.

    It hides nothing before the gradients of the first whole bucket are there.
    """
    gradients = FP32 * sizes.weights(trained=True)
    buckets = max(1, math.ceil(gradients / sizes.bucket))
    each = hardware.all_reduce_s(gradients / buckets, devices)
    return max(buckets * each - (1 - 1 / buckets) * backward_s, each)


def _shard_waits(
    sizes: ModelSizes,
    hardware: Hardware,
    devices: int,
    copies: int,
    accumulation: int,
    forward_s: float,
    backward_s: float,
) -> float:
    """Each pass hides its own exchange, except for the first gather and the last scatter.

    The exchange between copies runs beside that of a copy, except for its last part.
    """
    blocks = [hardware.ring_s(sizes.product * block.elements(devices), devices) for block in sizes.blocks]
    rest = hardware.ring_s(FP32 * sizes.rest.elements(devices), devices)
    elements = [group.elements(devices, trained=True) for group in sizes.groups]
    scattered = [hardware.ring_s(FP32 * count, devices) for count in elements if count]
    reductions = [hardware.copies_s(FP32 * count, copies, devices) for count in elements if count]
    first, last = rest + sum(blocks[:1]), sum(scattered[:1]) + sum(reductions[:1])
    forward = max(rest + sum(blocks) - forward_s, first)
    backward = max(sum(blocks) - backward_s, 0.0)
    in_last = max(sum(blocks) + sum(scattered) - backward_s, sum(reductions) - backward_s, last)
    return accumulation * forward + (accumulation - 1) * backward + in_last
