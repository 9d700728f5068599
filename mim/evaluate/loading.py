"""A checkpoint that is evaluated, with its config, and checks of the images that an evaluation needs."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mim import build
from mim.config import Config, Overrides, read_pairs
from mim.config.sections import parse_section
from mim.data.labels.settings import LabelSettings
from mim.data.preprocess import Preprocess
from mim.data.sources.base import Source
from mim.encoders import Encoder
from mim.engine import checkpoint
from mim.engine.distributed.world import World, join_world
from mim.engine.modes import inference
from mim.engine.run_folder import RunFolder
from mim.init_weights import config_of_checkpoint
from mim.io.yaml import read_texts

LOG = logging.getLogger("mim")
LABELS = "LABELS"


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint with its config, on this process's device."""

    path: Path
    cfg: Config
    content: dict
    world: World
    labels: LabelSettings | None = None  # LABELS of the command, for a pretraining, whose config has none

    def sources(self) -> tuple[Source, Source]:
        """The training images and the held-out ones, with labels where there are some."""
        return build.build_sources(self.cfg, self.labels)


@contextmanager
def load(run: Path, overrides: Overrides) -> Iterator[LoadedCheckpoint]:
    """The checkpoint that a path means, with overrides of its config, on the processes that torchrun started."""
    path = checkpoint.find(run)
    content = checkpoint.load(path)
    pairs, labels = read_pairs(overrides), None
    if read_texts(content["config"]).get("TASK") == "pretrain" and pairs.get("TASK", "pretrain") == "pretrain":
        of_labels = {key: pairs.pop(key) for key in list(pairs) if key.startswith(f"{LABELS}.")}
        if of_labels:
            labels = LabelSettings(**parse_section("finetune", LABELS, {}, of_labels, LOG.warning))
    cfg = config_of_checkpoint(content["config"], pairs, str(path))
    if cfg.DATA.mean == "estimate":  # only in a converted file: the config of a run has the numbers
        cfg = build.with_statistics(cfg, build.build_sources(cfg)[0])
    with join_world(cfg.DISTRIBUTED) as world:
        yield LoadedCheckpoint(path, cfg, content, world, labels)


def ready(loaded: LoadedCheckpoint, module: nn.Module, prefix: str) -> Preprocess:
    """See build.ready; the module is the part of the model whose names start with `prefix`, an encoder or what has one.

    Tables of positions are resized where DATA.image_size is another one than in training.
    """
    state = checkpoint.evaluated(loaded.content, prefix)
    encoder, start = (module, "") if isinstance(module, Encoder) else (module.encoder, "encoder.")
    assert isinstance(encoder, Encoder)
    height, width = (int(side) for side in read_texts(loaded.content["config"])["DATA"]["image_size"])
    if (height, width) != tuple(loaded.cfg.DATA.image_size):
        for name in [name for name in state if name.startswith(start)]:
            state[name] = encoder.resize_weight(name.removeprefix(start), state[name], (height, width))
    return build.ready(module, state, loaded.path, loaded.cfg, loaded.world.device)


def ready_encoder(loaded: LoadedCheckpoint) -> tuple[Encoder, Preprocess]:
    """The encoder of a checkpoint, on this process's device and in eval mode, and its preprocessing."""
    encoder: Encoder = loaded.cfg.ENCODER.build(build.image_spec(loaded.cfg))
    return encoder, ready(loaded, encoder, "encoder.")


def inference_mode(loaded: LoadedCheckpoint) -> AbstractContextManager[None]:
    """Inside, nothing is recorded for gradients, and products have the precision of the run."""
    return inference(loaded.cfg.TRAIN, loaded.world.device)


def check_labelled(loaded: LoadedCheckpoint, source: Source) -> None:
    """Raises ValueError where a split has no images, or they have no labels."""
    which = "training" if source.split == "train" else "held-out"
    if not len(source):
        raise ValueError(f"DATA.name {loaded.cfg.DATA.name} has no {which} images: name others with DATA.path")
    if source.label_kind is None:
        raise ValueError(f"the {which} images {no_labels(loaded)}")


def no_labels(loaded: LoadedCheckpoint) -> str:
    """The end of a sentence on images without labels."""
    return (
        f"of DATA.name {loaded.cfg.DATA.name} have no labels: name others with DATA.path, as class folders (a single "
        "one with DATA.labels folders) or as a list with a label after each path"
    )


def origin(loaded: LoadedCheckpoint) -> dict[str, Any]:
    """The checkpoint of some metrics."""
    averaged = " (moving average)" if loaded.content["ema"] else ""
    return {"checkpoint": f"{loaded.path}{averaged}", "step": loaded.content["step"]}


def title(loaded: LoadedCheckpoint) -> str:
    """What a sheet calls the checkpoint: the run folder and its steps, or the name of the file."""
    folder = RunFolder.of_checkpoint(loaded.path)
    step = loaded.content["step"]
    return loaded.path.stem if folder is None else f"{folder.path.resolve().name}, {step:,} step{'s' * (step != 1)}"


def check_finite(loaded: LoadedCheckpoint, what: str, values: Tensor) -> None:
    """Raises ValueError where a checkpoint gives features or scores that are not finite. what: which of the two."""
    if not values.isfinite().all():
        raise ValueError(
            f"{loaded.path} gives {what} that are not finite: its training diverged, so use an earlier checkpoint; or "
            "its products overflow in fp16, so set TRAIN.precision fp32"
        )
