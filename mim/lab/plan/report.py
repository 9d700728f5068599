"""PlanReport: what a run will be and cost, before it starts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mim import build
from mim.config import Config
from mim.cost.memory import Memory
from mim.cost.model_summary import Boundary, ModelSummary
from mim.engine.distributed.world import join_world
from mim.engine.optim import without_effect
from mim.engine.plan import EngineSettings, Plan
from mim.evaluation.avg_dist import masker_avg_dist
from mim.lab.dryrun import records
from mim.lab.dryrun.measure import measure_steps
from mim.lab.dryrun.memory import estimate_memory
from mim.lab.dryrun.records import StepRecord
from mim.lab.dryrun.task import DryTask, dry_task
from mim.lab.plan import recipe
from mim.lab.plan.hardware import Assumed
from mim.lab.plan.scaling import Scaling, scale, sizes_of
from mim.model import MaskedImageModel
from mim.ops.intervals import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one part of the model has and does. Operations are of one image, None where they were not counted."""

    part: str
    name: str
    parameters: int
    trained: int
    forward: int | None
    training: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """What the masker hides of every image. side: of a cell, in pixels; avg_dist: in pixels."""

    side: int
    cells: int
    visible: int
    hidden: int
    avg_dist: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What is known of a run before it starts.

    device: of this machine; classes: 0 in pretraining, None where unknown; lines: as the run says at its start; stored:
    the type of the images, empty where unknown; plan: None where the number of images is unknown; operations: of the
    whole run; recomputed: activations, in the backward pass; memory: of a step on one device, for `cpu` and `gpu`,
    empty where it cannot be told; speed: as measured on this machine, None where it was not, and from it images_per_s
    on all devices and the seconds of the run; scaling: None where one number of devices was asked for; missing: what is
    not known and why; warnings: settings without effect.
    """

    device: str
    devices: int
    classes: int | None
    lines: dict[str, str]
    boundaries: tuple[Boundary, ...]
    parts: tuple[Part, ...]
    cells: Cells | None
    stored: str
    batch: int
    peak_rate: float
    plan: Plan | None
    operations: int | None
    recomputed: bool
    memory: dict[str, Memory]
    speed: StepRecord | None
    images_per_s: float | None
    seconds: float | None
    scaling: Scaling | None
    recipe: recipe.Published | None
    missing: tuple[str, ...]
    warnings: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """All of it as plain values."""
        found = asdict(self)
        for kind, memory in self.memory.items():
            found["memory"][kind]["total"] = memory.total
        if self.plan is not None:
            found["plan"] |= {"steps": self.plan.steps, "images_seen": self.plan.images_seen}
        return found


def plan(
    cfg: Config,
    *,
    devices: int = 1,
    images: int | None = None,
    classes: int | None = None,
    steps: int = 0,
    file: Path = Path("benchmarks/steps.jsonl"),
    others: Sequence[int] = (),
    assumed: Assumed | None = None,
) -> PlanReport:
    """What a config's run will be and cost on so many devices, and on paper on `others`.

    images, classes: see bare; steps: real ones that are taken now and remembered in `file`, where those of earlier
    calls are looked for; assumed: of the machines, for `others`. Raises ValueError for what the user can mend.
    """
    if devices < 1 or steps < 0:
        raise ValueError(f"--devices is {devices} and --measure {steps}: at least 1 device, and no fewer than 0 steps")
    found = dry_task(cfg, images, classes)
    task, engine, run = found.task, found.engine_settings(), found.plan(devices)
    with join_world(engine.distributed) as world:
        device = world.device
    speed = _speed(found, run, steps, device, file)
    missing = list(found.missing)
    memory = _memory(found, run, missing)
    try:
        build.init_file(cfg)
    except ValueError as error:
        missing.append(str(error))
    rate = run.batch / speed.seconds(run.accumulation) if speed else None
    known, flops = found.images is not None, task.model_summary.flops
    return PlanReport(
        device=device.type,
        devices=devices,
        classes=found.classes,
        lines=_lines(found, run, engine),
        boundaries=_model_summary(found).boundaries,
        parts=_parts(found),
        cells=_cells(task.model) if isinstance(task.model, MaskedImageModel) else None,
        stored=str(found.stored).removeprefix("torch.") if found.stored else "",
        batch=run.batch,
        peak_rate=run.schedule(engine).peak,
        plan=run if known else None,
        operations=flops * run.images_seen if known and flops else None,
        recomputed=engine.train.activation_checkpointing,
        memory=memory,
        speed=speed,
        images_per_s=rate,
        seconds=run.images_seen / rate if rate and known else None,
        scaling=_scaling(found, run, [devices, *others], assumed or Assumed()) if others else None,
        recipe=recipe.compare(cfg, devices),
        missing=tuple(missing),
        warnings=_warnings(found, run),
    )


def _speed(found: DryTask, run: Plan, steps: int, device: torch.device, file: Path) -> StepRecord | None:
    if not steps:
        return records.find_record(file, found.cfg, found.classes, device)
    if found.classes is None:
        raise ValueError("--measure takes real steps, and the classes are unknown: give their number with --classes N")
    return records.add_record(file, found.cfg, found.classes, device, measure_steps(found, run, steps, device))


def _scaling(found: DryTask, run: Plan, counts: Sequence[int], assumed: Assumed) -> Scaling:
    task, engine = found.task, found.engine_settings()
    sizes = sizes_of(task.model, task.blocks(), engine, task.model_summary.work)
    images = run.images_seen if found.images is not None else None
    return scale(sizes, assumed, counts, batch=engine.train.batch, micro=engine.batch_size, images=images)


def _memory(found: DryTask, run: Plan, missing: list[str]) -> dict[str, Memory]:
    """By kind of device; what cannot be told adds to what is missing."""
    try:
        return {kind: estimate_memory(found, run, gpu=kind == "gpu") for kind in ("cpu", "gpu")}
    except (RuntimeError, TypeError) as error:
        missing.append(
            f"memory: a part cannot be run without values ({str(error).splitlines()[0]}). --measure tells it"
        )
        return {}


def _lines(found: DryTask, run: Plan, engine: EngineSettings) -> dict[str, str]:
    """What the run says at its start, but for what is unknown."""
    lines = {**found.task.describe(), **run.describe(engine)}
    if found.held_out is None:
        lines.pop("evaluation", None)
        lines["images"] = lines["images"].replace(", 0 held out", ", held-out ones unknown")
    if found.images is None:
        del lines["images"], lines["steps"]
    if found.classes is None:
        del lines["classifier"]
        lines |= _model_summary(found).describe()
    return lines


def _model_summary(found: DryTask) -> ModelSummary:
    """That of the task, but for a classifier of unknown classes."""
    whole = found.task.model_summary
    if found.classes is not None:
        return whole
    work = None if whole.work is None else {part: held for part, held in whole.work.items() if part != "classifier"}
    return ModelSummary(tuple(boundary for boundary in whole.boundaries if boundary.what != "scores"), work)


def _parts(found: DryTask) -> tuple[Part, ...]:
    model = found.task.model
    modules: dict[str, tuple[str, list[nn.Module]]] = {"encoder": (model.encoder.name, [model.encoder])}
    if isinstance(model, MaskedImageModel):
        modules |= {"head": (model.head.name, [model.head])}
        modules |= {"rest": (f"{model.target.name}, {model.loss.name}", [model.target, model.loss])}
    elif found.classes is not None:
        modules["classifier"] = (f"{found.classes} classes", [model.norm, model.heads])
    parts = []
    for part, (name, held) in modules.items():
        weights = [parameter for module in held for parameter in module.parameters()]
        work = (found.task.model_summary.work or {}).get(part)
        parts.append(
            Part(
                part={"rest": "target, loss"}.get(part, part),
                name=name,
                parameters=sum(weight.numel() for weight in weights),
                trained=sum(weight.numel() for weight in weights if weight.requires_grad),
                forward=work.forward if work else None,
                training=work.training if work else None,
            )
        )
    return tuple(part for part in parts if part.part != "target, loss" or part.parameters or part.training)


def _warnings(found: DryTask, run: Plan) -> tuple[str, ...]:
    """Settings without effect."""
    task, engine = found.task, build.engine_settings(found.cfg)
    blockless = engine.train.activation_checkpointing and not task.blocks()
    return (
        *run.schedule(engine).warnings(),
        *without_effect(task.model, engine.optimizer, task.lr_scales),
        *(
            ["TRAIN.activation_checkpointing has no effect: no part of this model names its blocks"]
            if blockless
            else []
        ),
    )


def _cells(model: MaskedImageModel) -> Cells:
    masker = model.masker
    return Cells(
        side=masker.cell,
        cells=masker.cells,
        visible=masker.visible,
        hidden=masker.cells - masker.visible,
        avg_dist=masker_avg_dist(masker, model.encoder.image),
    )
