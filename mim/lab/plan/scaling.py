"""Scaling: what a step costs on any number of devices, on paper: a model's exact sizes, and assumptions of machines.

Sources: the exchange of torch's DistributedDataParallel (Li et al. 2020) and fully_shard (Zhao et al. 2023);
benchmarks/exchange.py counts its bytes in real steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from mim.cost.flops import Work
from mim.engine.plan import EngineSettings
from mim.engine.precision import DTYPES
from mim.lab.plan.hardware import GIGA, Assumed, sent

Strategy = Literal["ddp", "fsdp"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
FP32 = 4  # bytes of a weight, of its gradient, and of each of its moments
BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sends at a time
TERA = 1e12


@dataclass(frozen=True, slots=True)
class Unit:
    """Weights that fsdp gathers together. shapes: rows, numbers in a row, and whether it is trained, of each weight."""

    shapes: tuple[tuple[int, int, bool], ...]

    @classmethod
    def of(cls, weights: Sequence[nn.Parameter]) -> "Unit":
        """Of these weights; one without axes is a row."""
        rows = [weight.shape[0] if weight.ndim else 1 for weight in weights]
        return cls(tuple((r, w.numel() // r, w.requires_grad) for r, w in zip(rows, weights, strict=True)))

    def numbers(self, devices: int = 1, *, trained: bool = False) -> int:
        """Numbers in it, with its rows filled up until they share out evenly. trained: only of what is trained."""
        held = [(rows, row) for rows, row, learns in self.shapes if learns or not trained]
        return sum(devices * math.ceil(rows / devices) * row for rows, row in held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a model and its step. blocks, rest: all weights; buffers: bytes; product: bytes of a number in products;
    moments: numbers that the optimizer keeps of each weight; average: whether one of the weights is kept; work: of one
    image, None where it was not counted; recomputed: the forward pass, in the backward pass.
    """

    blocks: tuple[Unit, ...]
    rest: Unit
    buffers: int
    product: int
    moments: int
    average: bool
    work: Work | None
    recomputed: bool

    @property
    def units(self) -> tuple[Unit, ...]:
        """In the order of the forward pass."""
        return (self.rest, *self.blocks)

    def weights(self, *, trained: bool = False) -> int:
        """Numbers in all weights."""
        return sum(unit.numbers(trained=trained) for unit in self.units)

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint, but for some kB."""
        kept = self.weights() * (2 if self.average else 1) + self.moments * self.weights(trained=True)
        return FP32 * kept + self.buffers * (2 if self.average else 1)


def sizes_of(
    model: nn.Module, blocks: Sequence[nn.Module], engine: EngineSettings, work: dict[str, Work] | None
) -> Sizes:
    """Of a model, which may be on the meta device."""
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    rest = [weight for weight in model.parameters() if id(weight) not in inside]
    whole = Work(*(sum(getattr(one, of) for one in work.values()) for of in ("forward", "training"))) if work else None
    return Sizes(
        blocks=tuple(Unit.of(list(block.parameters())) for block in blocks),
        rest=Unit.of(rest),
        buffers=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        product=DTYPES[engine.train.precision].itemsize,
        moments=engine.optimizer.moments,
        average=bool(engine.train.ema),
        work=whole,
        recomputed=engine.train.activation_checkpointing,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a step under one strategy. sent: bytes, by each device; held: bytes of weights, gradients and the optimizer's
    state on each, with what fsdp has whole at a time; waits_s: for the exchange, beyond what computing hides; step_s:
    of all. Both are None where operations were not counted.
    """

    sent: int
    held: int
    waits_s: float | None
    step_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A step on so many devices. batch: its rows; micro: of one forward pass; costs: by strategy."""

    devices: int
    batch: int
    micro: int
    accumulation: int
    costs: dict[Strategy, Cost]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Steps of one run on several numbers of devices. refused: those on which the batch does not come out whole; fixed:
    whether the batch stays; checkpoint: its bytes; images: of the whole run, None where unknown.
    """

    assumed: Assumed
    shares: tuple[Share, ...]
    refused: tuple[int, ...]
    fixed: bool
    checkpoint: int
    images: int | None


def scale(
    sizes: Sizes, assumed: Assumed, counts: Sequence[int], *, batch: int, micro: int, images: int | None = None
) -> Scaling:
    """A step on each number of devices.

    batch: rows of a step, 0 for `micro` on each device; micro: rows of a forward pass at most; images: as in Scaling.
    Raises ValueError for less than one device.
    """
    if min(counts) < 1:
        raise ValueError(f"--devices is {min(counts)}: at least 1")
    shares, refused = [], []
    for devices in dict.fromkeys(counts):
        rows, left = divmod(batch or micro * devices, devices)
        if left or not rows:
            refused.append(devices)
            continue
        own = max(size for size in range(1, min(micro, rows) + 1) if rows % size == 0)
        costs = {name: cost(sizes, assumed, name, devices, own, rows // own) for name in STRATEGIES}
        shares.append(Share(devices=devices, batch=rows * devices, micro=own, accumulation=rows // own, costs=costs))
    return Scaling(
        assumed=assumed,
        shares=tuple(shares),
        refused=tuple(refused),
        fixed=bool(batch),
        checkpoint=sizes.checkpoint,
        images=images,
    )


def cost(sizes: Sizes, assumed: Assumed, strategy: Strategy, devices: int, micro: int, accumulation: int) -> Cost:
    """Of a step of so many micro-batches on each device."""
    if devices == 1 or strategy == "ddp":
        moved, held = replica_bytes(sizes, devices)
    else:
        moved, held = shard_bytes(sizes, devices, accumulation)
    if sizes.work is None:
        return Cost(sent=moved, held=held, waits_s=None, step_s=None)
    speed = TERA * assumed.peak_tflops * assumed.mfu
    forward_s = micro * sizes.work.forward / speed
    backward_s = micro * sizes.work.training / speed - (0 if sizes.recomputed else forward_s)
    waits = _replica_waits if strategy == "ddp" else _shard_waits
    waits_s = waits(sizes, assumed, devices, accumulation, forward_s, backward_s) if devices > 1 else 0.0
    updated = sizes.weights(trained=True) / (devices if strategy == "fsdp" else 1)
    touched = updated * FP32 * (4 + 2 * sizes.moments)  # gradients are read twice, the rest is read and written
    update_s = touched / (GIGA * assumed.memory_gb_s)
    return Cost(
        sent=moved, held=held, waits_s=waits_s, step_s=accumulation * (forward_s + backward_s) + waits_s + update_s
    )


def replica_bytes(sizes: Sizes, devices: int) -> tuple[int, int]:
    """Bytes that each device sends in a step under ddp, and holds: one all-reduce of all gradients in fp32."""
    gradients = FP32 * sizes.weights(trained=True)
    held = gradients * (1 + sizes.moments) + (FP32 * sizes.weights() + sizes.buffers) * (2 if sizes.average else 1)
    return round(2 * sent(gradients, devices)), held


def shard_bytes(sizes: Sizes, devices: int, accumulation: int) -> tuple[int, int]:
    """The same under fsdp.

    In each micro-batch every block is gathered twice, in the precision of the products, and the rest once, in fp32; in
    the last one all gradients are reduced and scattered in fp32. Whole at a time: the rest with its gradients, two
    blocks, and a block's gradients in both precisions; where micro-batches are accumulated, all gradients.
    """
    blocks = sum(block.numbers(devices) for block in sizes.blocks)
    rest, trained = sizes.rest.numbers(devices), sum(unit.numbers(devices, trained=True) for unit in sizes.units)
    payload = accumulation * (2 * sizes.product * blocks + FP32 * rest) + FP32 * trained
    shards = FP32 * ((blocks + rest) * (2 if sizes.average else 1) + (1 + sizes.moments) * trained) / devices
    largest = max((block.numbers() for block in sizes.blocks), default=0)
    whole = (3 * sizes.product + FP32) * largest + FP32 * (sizes.rest.numbers() + sizes.rest.numbers(trained=True))
    if accumulation > 1:
        whole += FP32 * sum(block.numbers(trained=True) for block in sizes.blocks)
    held = shards + whole + sizes.buffers * (2 if sizes.average else 1)
    return round(sent(payload, devices)), round(held)


def _replica_waits(
    sizes: Sizes, assumed: Assumed, devices: int, accumulation: int, forward_s: float, backward_s: float
) -> float:
    """The backward pass of the last micro-batch hides all but the last bucket, as far as it is long enough."""
    gradients = FP32 * sizes.weights(trained=True)
    buckets = max(1, math.ceil(gradients / BUCKET))
    each = assumed.all_reduce_s(gradients / buckets, devices)
    return max(buckets * each - backward_s, each)


def _shard_waits(
    sizes: Sizes, assumed: Assumed, devices: int, accumulation: int, forward_s: float, backward_s: float
) -> float:
    """Each pass hides its own exchange, but for the first gathering and the last scattering."""
    blocks = [assumed.ring_s(sizes.product * block.numbers(devices), devices) for block in sizes.blocks]
    rest = assumed.ring_s(FP32 * sizes.rest.numbers(devices), devices)
    units = [unit.numbers(devices, trained=True) for unit in sizes.units]
    scattered = [assumed.ring_s(FP32 * numbers, devices) for numbers in units if numbers]
    first, last = rest + sum(blocks[:1]), sum(scattered[:1])
    forward = max(rest + sum(blocks) - forward_s, first)
    backward = max(sum(blocks) - backward_s, 0.0)
    in_last = max(sum(blocks) + sum(scattered) - backward_s, last)
    return accumulation * forward + (accumulation - 1) * backward + in_last
