"""PlanReport: what a run will be and cost, before it starts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mim import build, init_weights
from mim.config import Config
from mim.cost.memory import Memory
from mim.cost.model_summary import Boundary, ModelSummary
from mim.engine.distributed.world import World, join_world
from mim.engine.plan import EngineSettings, Plan
from mim.engine.precision import Precision, resolve_precision
from mim.engine.start import describe_start, start_warnings
from mim.lab.dryrun.measure import measure_steps
from mim.lab.dryrun.memory import estimate_memory
from mim.lab.dryrun.records import StepRecord, add_record, find_record
from mim.lab.dryrun.task import DryTask, dry_task
from mim.lab.plan.hardware import HardwareChoice
from mim.lab.plan.recipe import RecipeComparison, compare_recipe
from mim.lab.plan.scaling import Scaling, model_sizes, scale
from mim.model import MaskedImageModel


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the model."""

    part: str  # encoder, head, readout, or target and loss
    name: str  # as in the config
    parameters: int
    trained: int
    forward: int | None  # operations of the forward pass on one image; None where not counted
    training: int | None  # operations of forward and backward pass on one image; None where not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What is known of a run before it starts."""

    device: str  # kind of this machine's device, cpu or cuda
    devices: int
    classes: int | None  # 0 in pretraining; None where unknown
    lines: dict[str, str]  # what the run will print at its start, by name
    boundaries: tuple[Boundary, ...]
    parts: tuple[Part, ...]
    batch: int  # images of one optimizer step
    peak_rate: float
    plan: Plan | None  # batch and steps; None where the number of images is unknown
    operations: int | None  # of the run; None where unknown
    recomputed: bool  # whether the backward pass computes activations again
    memory: dict[str, Memory]  # of a step on one device, for `cpu` and `gpu`; empty where it cannot be estimated
    precisions: dict[str, Precision]  # of the matrix products, for `cpu` and `gpu`
    speed: StepRecord | None  # a step as measured on this machine; None where it was not measured
    images_per_s: float | None  # on all devices, by the measured step
    seconds: float | None  # of the run, by the measured step
    gpu: str  # name of the GPU that is assumed; empty where none is
    gpu_memory: int | None  # bytes of its memory; None where none is assumed
    scaling: Scaling | None  # the run on paper, on GPUs that are assumed; None where none are
    recipe: RecipeComparison | None  # how the config differs from its recipe; None where it names none
    missing: tuple[str, ...]  # what is unknown and why
    warnings: tuple[str, ...]  # settings without effect

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        values = asdict(self)
        for kind, memory in self.memory.items():
            values["memory"][kind]["total"] = memory.total
        if self.plan is not None:
            values["plan"] |= {"steps": self.plan.steps, "images_seen": self.plan.images_seen}
        return values


def plan_run(
    cfg: Config,
    *,
    devices: int = 1,
    images: int | None = None,
    classes: int | None = None,
    steps: int = 0,
    records: Path = Path("benchmarks/steps.jsonl"),
    other_devices: Sequence[int] = (),
    hardware: HardwareChoice | None = None,
) -> PlanReport:
    """What the run of a config on this number of devices will be and cost.

    Args:
        images, classes: see dry_task.
        steps: real steps to measure and record now; 0 uses an earlier record.
        records: file of measured steps.
        other_devices: other numbers of devices to compare.
        hardware: what to assume of the devices on paper; by default H100s, where there is more than one device.

    Raises ValueError for what the user can mend.
    """
    _check_counts(devices, steps)
    counts = [devices, *other_devices]
    if hardware is None and counts != [1]:
        hardware = HardwareChoice.read()
    dry = dry_task(cfg, images, classes)
    task, settings, plan = dry.task, dry.engine_settings(), dry.plan(devices)
    with join_world(settings.distributed) as world:
        speed = _speed(dry, plan, steps, world.device, records)
        lines = _lines(dry, plan, settings, world)
    precisions = _precisions(cfg.TRAIN.precision, hardware)
    missing = [*dry.missing, *_missing_weights(cfg)]
    memory = _memory(dry, plan, precisions, missing)
    rate = plan.batch / speed.seconds(plan.accumulation) if speed else None
    counted, flops = dry.images is not None, task.model_summary.flops
    return PlanReport(
        device=world.device.type,
        devices=devices,
        classes=dry.classes,
        lines=lines,
        boundaries=_model_summary(dry).boundaries,
        parts=_parts(dry),
        batch=plan.batch,
        peak_rate=plan.schedule(settings).peak,
        plan=plan if counted else None,
        operations=flops * plan.images_seen if counted and flops else None,
        recomputed=settings.train.activation_checkpointing,
        memory=memory,
        precisions=precisions,
        speed=speed,
        images_per_s=rate,
        seconds=plan.images_seen / rate if rate and counted else None,
        gpu=hardware.gpu.title if hardware else "",
        gpu_memory=hardware.gpu.memory_gb * 2**30 if hardware else None,
        scaling=_scaling(dry, plan, counts, hardware, precisions["gpu"]) if hardware else None,
        recipe=compare_recipe(cfg, devices),
        missing=tuple(missing),
        warnings=_warnings(dry, plan),
    )


def _check_counts(devices: int, steps: int) -> None:
    if devices < 1:
        raise ValueError(f"--devices is {devices}: it must be at least 1")
    if steps < 0:
        raise ValueError(f"--measure {steps}: it is a number of steps, at least 0")


def _missing_weights(cfg: Config) -> list[str]:
    """Why the run could not start from INIT.checkpoint; empty where it can, or needs none."""
    try:
        init_weights.init_file(cfg)
    except ValueError as error:
        return [str(error)]
    return []


def _speed(dry: DryTask, plan: Plan, steps: int, device: torch.device, records: Path) -> StepRecord | None:
    if not steps:
        return find_record(records, dry.cfg, dry.classes, device)
    if dry.classes is None:
        raise ValueError("--measure takes real steps, and the classes are unknown: give their number with --classes N")
    return add_record(records, dry.cfg, dry.classes, device, measure_steps(dry, plan, steps, device))


def _scaling(
    dry: DryTask, plan: Plan, counts: Sequence[int], hardware: HardwareChoice, precision: Precision
) -> Scaling:
    on_gpu = replace(dry, cfg=dry.cfg.replace({"TRAIN.precision": precision}))
    task, settings = dry.task, on_gpu.engine_settings()
    sizes = model_sizes(task.model, task.blocks(), settings, task.model_summary.work)
    images = plan.images_seen if dry.images is not None else None
    assumed = hardware.hardware(precision)
    return scale(
        *(sizes, assumed, counts),
        batch=settings.train.batch,
        micro_batch=settings.batch_size,
        images=images,
        distributed=settings.distributed,
        asynchronous=settings.checkpoint.asynchronous,
    )


def _precisions(precision: str, hardware: HardwareChoice | None) -> dict[str, Precision]:
    """TRAIN.precision on a `cpu`, and on a `gpu`: the assumed one, this machine's, or else one with bf16 products."""
    if hardware is not None:
        on_gpu = hardware.precision(precision)
    elif precision == "auto" and not torch.cuda.is_available():
        on_gpu = "bf16"
    else:
        on_gpu = resolve_precision(precision, torch.device("cuda"))
    return {"cpu": resolve_precision(precision, torch.device("cpu")), "gpu": on_gpu}


def _memory(dry: DryTask, plan: Plan, precisions: dict[str, Precision], missing: list[str]) -> dict[str, Memory]:
    """Memory by kind of device. Where it cannot be estimated, the reason is added to `missing`."""
    dries = {kind: replace(dry, cfg=dry.cfg.replace({"TRAIN.precision": name})) for kind, name in precisions.items()}
    try:
        return {kind: estimate_memory(each, plan, gpu=kind == "gpu") for kind, each in dries.items()}
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        missing.append(f"memory: a part cannot run without values ({reason}). --measure measures it")
        return {}


def _lines(dry: DryTask, plan: Plan, settings: EngineSettings, world: World) -> dict[str, str]:
    """What the run prints at its start, without what is unknown."""
    device = world.device
    train = replace(settings.train, precision=resolve_precision(settings.train.precision, device))
    lines = describe_start(dry.task, plan, replace(settings, train=train), device, dry.stored)
    if dry.stored is None:
        lines["stored images"] = "unknown, uint8 is assumed"
    if plan.world_size == world.size:
        lines["devices"] = world.describe(settings.distributed.strategy)
    if dry.held_out is None:
        lines.pop("evaluation", None)
        lines["images"] = lines["images"].replace(", 0 held out", ", held-out ones unknown")
    if dry.images is None:
        del lines["images"], lines["steps"]
    if dry.classes is None:
        del lines["readout"]
        lines |= _model_summary(dry).describe()
    return lines


def _model_summary(dry: DryTask) -> ModelSummary:
    """The model summary, without a readout of unknown classes."""
    summary = dry.task.model_summary
    if dry.classes is not None:
        return summary
    work = {part: each for part, each in summary.work.items() if part != "readout"} if summary.work else None
    return ModelSummary(tuple(each for each in summary.boundaries if each.what != "scores"), work)


def _parts(dry: DryTask) -> tuple[Part, ...]:
    model, work = dry.task.model, dry.task.model_summary.work or {}
    modules: dict[str, tuple[str, list[nn.Module]]] = {"encoder": (model.encoder.title, [model.encoder])}
    if isinstance(model, MaskedImageModel):
        modules["head"] = (model.head.name, [model.head])
        modules["rest"] = (f"{model.target.name}, {model.loss.name}", [model.target, model.loss])
    elif dry.classes is not None:
        modules["readout"] = (f"{dry.classes} classes", [*model.readouts])
    parts = []
    for part, (name, members) in modules.items():
        weights = [parameter for module in members for parameter in module.parameters()]
        forward, training = (work[part].forward, work[part].training) if part in work else (None, None)
        if part != "rest" or weights or training:
            total = sum(weight.numel() for weight in weights)
            trained = sum(weight.numel() for weight in weights if weight.requires_grad)
            title = "target, loss" if part == "rest" else part
            parts.append(Part(title, name, total, trained, forward, training))
    return tuple(parts)


def _warnings(dry: DryTask, plan: Plan) -> tuple[str, ...]:
    task, settings = dry.task, build.engine_settings(dry.cfg)
    warnings = start_warnings(task, plan, settings)
    if settings.train.activation_checkpointing and not task.blocks():
        warnings.append("TRAIN.activation_checkpointing has no effect: no part of this model names its blocks")
    return tuple(warnings)
