"""Contenders: what trains a model in a benchmark, ours and others."""

from collections.abc import Callable
from dataclasses import dataclass

from mim import build
from mim.data.loading.dataset import ImageDataset
from mim.engine.distributed.world import World
from mim.engine.plan import Plan
from mim.lab.dryrun.measure import dry_trainer
from mim.lab.dryrun.task import AbsentImages, DryTask
from mim.lab.dryrun.trainer import PhaseCallback
from mim.model import MaskedImageModel

OURS = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to train the model of a config."""

    name: str  # `ours`, or as in --against
    model: str  # the model and how it is run, as text
    parameters: int  # number of trained parameters
    flops: int | None  # operations of forward and backward pass on one image; None where unknown
    make: Callable[[PhaseCallback], Callable[[], None]]  # see TimedSteps
    differences: tuple[str, ...] = ()  # from ours, a line each


def ours(dry: DryTask, plan: Plan, world: World, *, real: bool, compiled: bool = True) -> Contender:
    """The run's own trainer, with a plan of one micro-batch per step; under torchrun with DISTRIBUTED.strategy.

    Args:
        real: whether it trains on its own images, in place of random ones.
        compiled: False is the contender `eager`, without torch.compile.

    Raises ValueError for `eager` where TRAIN.compile is false.
    """
    if not compiled and not dry.engine_settings().train.compile:
        raise ValueError("--against eager: TRAIN.compile is false, so ours is eager already; add --compile")
    model, settings = dry.task.model, dry.engine_settings(compiled)
    parts = [model.encoder.title]
    if isinstance(model, MaskedImageModel):
        parts += [model.head.name, model.target.name, model.loss.name]
    mode = "compiled" if settings.train.compile else "eager"
    mode += f", {settings.distributed.strategy}" if world.grouped else ""
    mode += ", activations recomputed" if settings.train.activation_checkpointing else ""
    return Contender(
        name=OURS if compiled else "eager",
        model=f"{', '.join(parts)}; {mode}",
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        flops=dry.task.model_summary.flops or None,
        make=lambda on_phase: (
            dry_trainer(dry, plan, world.device, on_phase, compiled=compiled, real=real, world=world).take_step
        ),
    )


def training_images(dry: DryTask, flag: str) -> ImageDataset:
    """The training images of a config. Raises ValueError, naming the flag, where they are not here."""
    images = dry.task.train_data
    if isinstance(images.source, AbsentImages):
        try:
            build.build_data(dry.cfg)
        except ValueError as error:
            raise ValueError(f"{flag} reads the config's own images: {error}") from error
        raise ValueError(f"{flag} reads the config's own images: leave out --classes")
    return images
