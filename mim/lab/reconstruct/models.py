"""Loading what can predict pixels: a pretraining run, its checkpoint, or a file of MAE or SimMIM with its decoder.

Shapes: B images, C channels, H W pixels.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim import build, init_weights, interop
from mim.config import Config
from mim.convert import config_of, guess_line
from mim.data.preprocess import Preprocess
from mim.engine import checkpoint
from mim.engine.modes import inference
from mim.engine.run_folder import RunFolder
from mim.interop.names import fold_names
from mim.io.weights import CHECKPOINT_FORMAT, read_weights
from mim.model import MaskedImageModel
from mim.pictures.reconstructions import Reconstruction, predict_pixels
from mim.structures import ImageSpec, PatchMask

LOG = logging.getLogger("mim")

HEAD = "head."
CHUNK = 32  # images that go through a model at once


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A pretraining model on its device, ready to predict."""

    name: str
    path: Path
    cfg: Config
    model: MaskedImageModel
    preprocess: Preprocess  # from stored images to what the model sees
    device: torch.device
    step: int = 0  # optimizer steps of its training; 0 where the file does not say
    averaged: bool = False  # whether the weights are moving averages
    has_data: bool = True  # whether the config names the data of the run; a file of MAE or SimMIM names none

    @property
    def image(self) -> ImageSpec:
        return self.model.encoder.image

    @property
    def patch(self) -> int:  # the side of the smallest cell that can be hidden, in pixels
        return self.model.encoder.spec.patch

    @property
    def description(self) -> str:  # the model and its training, for a footnote
        model = self.model
        parts = f"{model.encoder.name} ({model.encoder.hidden}), {model.head.name} head"
        steps = f", {self.step:,} steps" if self.step else ""
        return f"{parts}{steps}{', moving average' if self.averaged else ''}"

    def predict(self, images_BCHW: Tensor, mask: PatchMask) -> Reconstruction:
        """Predicts stored images under a mask, both on the CPU. Raises ValueError where the model cannot."""
        parts = []
        for start in range(0, len(images_BCHW), CHUNK):
            rows = mask.rows(start, start + CHUNK)
            stored_BCHW = images_BCHW[start : start + CHUNK].to(self.device)
            try:
                with inference(self.cfg.TRAIN, self.device):
                    moved = PatchMask(rows.hidden_BHW.to(self.device), rows.visible)
                    part = predict_pixels(self.model, self.preprocess, stored_BCHW, moved)
            except ValueError as error:
                raise ValueError(f"{self.name} cannot take this mask: {error}") from error
            if part is None:
                target = f"{self.name} predicts TARGET.name {self.model.target.name}"
                raise ValueError(f"{target}, which is no picture: there is nothing to draw")
            parts.append(part)
        return Reconstruction.joined(parts)


def load_run(path: Path, overrides: Sequence[str] = (), name: str = "") -> LoadedRun:
    """Loads the model of a run folder (its last checkpoint), of a checkpoint, or of a file of MAE or SimMIM.

    `overrides` are `KEY VALUE` pairs over its config. The name is by default that of its folder or file.
    Raises ValueError where there is no model, where it has no head, and where its weights do not fit its config.
    """
    file = init_weights.weights_file(path)
    content = _checkpoint(file)
    if content is not None:
        cfg = init_weights.config_of_checkpoint(content["config"], overrides, str(file))
        state = checkpoint.evaluated(content)
        step, averaged = content["step"], bool(content["ema"])
        if cfg.TASK != "pretrain":
            raise _headless(file, f"it is of TASK {cfg.TASK}")
    else:
        weights = interop.read(file, "RUN_OR_CHECKPOINT")
        state, step, averaged = weights.state, 0, weights.averaged
        if not any(name.startswith(HEAD) for name in state):
            raise _headless(file, f"format {weights.format}")
        cfg = config_of(weights, overrides)
        for note in (*weights.notes, guess_line(cfg, weights, overrides)):
            if note:
                LOG.info("%s: %s", file, note)
        if weights.left_out:
            LOG.warning("%s: weights that this model does not have, left out: %s", file, fold_names(weights.left_out))
    if not any(name.startswith(HEAD) for name in state):
        raise _headless(file, "its encoder was converted alone")
    model = build.build_model(cfg)
    if cfg.DATA.mean == "estimate":
        raise ValueError(
            f"{file} does not say how its images were normalised: name DATA.mean and DATA.std, as in "
            '--set DATA.mean "[0.5]"'
        )
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.DISTRIBUTED.device != "cpu" else "cpu")
    preprocess = build.ready(model, state, file, cfg, device)
    return LoadedRun(name or run_name(path), file, cfg, model, preprocess, device, step, averaged, content is not None)


def run_name(path: Path) -> str:
    """The name of a run folder; of a file its name, after that of its run folder where it lies in one."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    folder = RunFolder.of_checkpoint(path)
    return path.stem if folder is None else f"{folder.path.name}/{path.stem}"


def size_text(image: ImageSpec) -> str:
    """`32 x 32 px, 3 channels`."""
    return f"{image.height} x {image.width} px, {image.channels} channel{'s' * (image.channels > 1)}"


def _checkpoint(file: Path) -> dict | None:
    """The content of a checkpoint of this toolkit; None for another file."""
    if file.is_dir() or file.suffix == ".safetensors":
        return None
    content = read_weights(file, "RUN_OR_CHECKPOINT")
    return content if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT else None


def _headless(file: Path, reason: str) -> ValueError:
    return ValueError(
        f"{file} has no head that predicts pixels ({reason}): name a pretraining run, one of its checkpoints, or a "
        "file of MAE or SimMIM that holds the decoder beside the encoder"
    )
