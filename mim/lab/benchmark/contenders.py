"""Sides: what trains a model in a benchmark, ours among them."""

from collections.abc import Callable
from dataclasses import dataclass

from mim import build
from mim.data.loading.loader import ImageDataset
from mim.engine.distributed.world import World
from mim.engine.plan import Plan
from mim.lab.dryrun.measure import dry_trainer
from mim.lab.dryrun.task import AbsentImages, DryTask
from mim.lab.dryrun.trainer import PhaseCallback
from mim.model import MaskedImageModel

OURS = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to train the model of a config.

    name: `ours`, or as in --against; model: it and what computes its attention, in words; parameters: trained ones;
    flops: operations of forward and backward on one image, None where not known; make: builds it and gives what takes a
    step, see TimedSteps; notes: in what it differs from ours, a line each.
    """

    name: str
    model: str
    parameters: int
    flops: int | None
    make: Callable[[PhaseCallback], Callable[[], None]]
    notes: tuple[str, ...] = ()


def ours(bare: DryTask, plan: Plan, world: World, *, real: bool) -> Side:
    """The run's own trainer, on its own images or on random ones; under torchrun with DISTRIBUTED.strategy."""
    return _own(OURS, bare, plan, world, compiled=True, real=real)


def eager(bare: DryTask, plan: Plan, world: World, *, real: bool) -> Side:
    """The same without torch.compile. Raises ValueError where ours is not compiled either."""
    if not bare.engine_settings().train.compile:
        raise ValueError("--against eager: TRAIN.compile is false, so that ours is eager already; add --compile")
    return _own("eager", bare, plan, world, compiled=False, real=real)


def _own(name: str, bare: DryTask, plan: Plan, world: World, *, compiled: bool, real: bool) -> Side:
    model = bare.task.model
    parts = [str(model.encoder.name)]
    if isinstance(model, MaskedImageModel):
        parts += [model.head.name, model.target.name, model.loss.name]
    engine = bare.engine_settings(compiled)
    how = "compiled" if engine.train.compile else "eager"
    how += f", {engine.distributed.strategy}" if world.grouped else ""
    how += ", activations recomputed" if engine.train.activation_checkpointing else ""
    return Side(
        name=name,
        model=f"{', '.join(parts)}; {how}",
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        flops=bare.task.model_summary.flops or None,
        make=lambda on_phase: (
            dry_trainer(bare, plan, world.device, on_phase, compiled=compiled, real=real, world=world).take_step
        ),
    )


def own_images(held: DryTask, flag: str) -> ImageDataset:
    """The training images of a config. Raises ValueError, which names the flag that asked, where they are not here."""
    images = held.task.train_data
    if isinstance(images.source, AbsentImages):
        try:
            build.build_data(held.cfg)
        except ValueError as error:
            raise ValueError(f"{flag} reads the config's own images: {error}") from error
        raise ValueError(f"{flag} reads the config's own images: leave out --classes")
    return images
