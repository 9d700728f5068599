"""Loading what can predict pixels: a pretraining run, its checkpoint, or a file of MAE or SimMIM with its decoder.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim import build
from mim.config import Config
from mim.data.preprocess import Preprocess
from mim.engine.modes import inference
from mim.engine.run_folder import RunFolder
from mim.model import MaskedImageModel
from mim.pictures.reconstructions import Reconstruction, predict_pixels
from mim.pretrained import Pretrained, read_pretrained
from mim.structures import ImageSpec, PatchMask

CHUNK = 32  # images that go through a model at once


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A pretraining model on its device, ready to predict."""

    name: str
    source: Pretrained  # its file and config
    model: MaskedImageModel
    preprocess: Preprocess  # from stored images to what the model sees
    device: torch.device

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def cfg(self) -> Config:
        return self.source.cfg

    @property
    def image(self) -> ImageSpec:
        return self.model.encoder.image

    @property
    def patch(self) -> int:  # the side of the smallest cell that can be hidden, in pixels
        return self.model.encoder.spec.patch

    @property
    def description(self) -> str:  # the model and its training, for a footnote
        model = self.model
        parts = f"{model.encoder.title} ({model.encoder.hidden}), {model.head.name} head"
        steps = f", {self.source.step:,} steps" if self.source.step else ""
        return f"{parts}{steps}{', moving average' if self.source.averaged else ''}"

    def predict(self, images_BCHW: Tensor, mask: PatchMask) -> Reconstruction:
        """Predicts stored images under a mask, both on the CPU. Raises ValueError where the model cannot."""
        parts = []
        for start in range(0, len(images_BCHW), CHUNK):
            rows = mask.rows(start, start + CHUNK)
            stored_BCHW = images_BCHW[start : start + CHUNK].to(self.device)
            try:
                with inference(self.cfg.TRAIN, self.device):
                    part = predict_pixels(self.model, self.preprocess, stored_BCHW, rows.to(self.device))
            except ValueError as error:
                raise ValueError(f"{self.name} cannot take this mask: {error}") from error
            if part is None:
                target = f"{self.name} predicts TARGET.name {self.model.target.name}"
                raise ValueError(
                    f"{target}, which is no picture, and pixels alone are drawn here: pictures of its principal "
                    "components are in `reconstructions` of the run folder, where EVALUATE.reconstructions is above 0"
                )
            parts.append(part)
        return Reconstruction.joined(parts)


def load_run(path: Path, overrides: Sequence[str] = (), name: str = "") -> LoadedRun:
    """Loads the model of a run folder (its last checkpoint), of a checkpoint, or of a file of MAE or SimMIM.

    `overrides` are `KEY VALUE` pairs over its config. The name is by default that of its folder or file.
    Raises ValueError where there is no model, where it has no head, and where its weights do not fit its config.
    """
    source = read_pretrained(path, overrides, "RUN_OR_CHECKPOINT")
    cfg, model = source.cfg, build.build_model(source.cfg)
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.DISTRIBUTED.device != "cpu" else "cpu")
    preprocess = build.ready(model, source.state, source.path, cfg, device)
    return LoadedRun(name or run_name(path), source, model, preprocess, device)


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
