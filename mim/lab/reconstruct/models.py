"""Opening what can predict pixels: a pretraining run, its checkpoint, or a file of MAE or SimMIM with its decoder.

Shapes: B images, C channels, H W pixels.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from mim import build, config, interop
from mim.config import schema
from mim.data.transforms import Normalize
from mim.engine import checkpoint
from mim.engine.modes import inference
from mim.interop.names import fold_names
from mim.io.weights import CHECKPOINT_FORMAT, read_weights
from mim.model import MaskedImageModel
from mim.pictures.reconstructions import Reconstruction, reconstruct
from mim.structures import ImageSpec, PatchMask

LOG = logging.getLogger("mim")

HEAD = "head."
CHUNK = 32  # images that go through a model at once


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A pretraining model on its device, ready to predict.

    name: of the run, as a person calls it; path: of the file; step: 0 where the file does not tell; averaged: these are
    the moving averages of its weights; of_others: the file is not a run's, so that no data belong to it.
    """

    name: str
    path: Path
    cfg: CfgNode
    model: MaskedImageModel
    normalize: Normalize
    device: torch.device
    step: int = 0
    averaged: bool = False
    of_others: bool = False

    @property
    def image(self) -> ImageSpec:
        """The images that it takes."""
        return self.model.encoder.image

    @property
    def patch(self) -> int:
        """The side of the smallest cell that can be hidden from it, in pixels."""
        return self.model.encoder.spec.patch

    @property
    def words(self) -> str:
        """What it is, for a footnote."""
        model = self.model
        parts = f"{model.encoder.name} ({model.encoder.hidden}), {model.head.name} head"
        steps = f", {self.step:,} steps" if self.step else ""
        return f"{parts}{steps}{', moving average' if self.averaged else ''}"

    def predict(self, images_BCHW: Tensor, mask: PatchMask) -> Reconstruction:
        """Of stored images under a mask, both on the CPU.

        Raises ValueError where it cannot take the mask, and where its target is no picture.
        """
        parts = []
        for start in range(0, len(images_BCHW), CHUNK):
            rows = mask.rows(start, start + CHUNK)
            shown_BCHW = images_BCHW[start : start + CHUNK].to(self.device)
            try:
                with inference(schema.settings(self.cfg, "TRAIN"), self.device):
                    moved = PatchMask(rows.hidden_BHW.to(self.device), rows.visible)
                    part = reconstruct(self.model, self.normalize, shown_BCHW, moved)
            except ValueError as error:
                raise ValueError(f"{self.name} cannot take this mask: {error}") from error
            if part is None:
                raise ValueError(
                    f"{self.name} predicts TARGET.name {self.model.target.name}, which is no picture: nothing can be "
                    "drawn of it"
                )
            parts.append(part)
        return Reconstruction.joined(parts)


def open_run(path: Path, overrides: Sequence[str] = (), name: str = "") -> LoadedRun:
    """The model of a run folder (its last checkpoint), of a checkpoint, or of a file of MAE or SimMIM.

    overrides: `KEY VALUE` pairs over its config, such as what a file of others does not tell.

    Raises ValueError where there is none, where it holds an encoder without a head, and where its weights do not fit
    its config.
    """
    file = build.weights_file(path)
    own = _own(file)
    if own is not None:
        cfg, state = config.parse_config(own["config"], overrides), checkpoint.evaluated(own)
        step, averaged = own["step"], bool(own["ema"])
        if cfg.TASK != "pretrain":
            raise _headless(file, f"it is of TASK {cfg.TASK}")
    else:
        weights = interop.read(file, "RUN_OR_CHECKPOINT")
        state, step, averaged = weights.state, 0, weights.averaged
        if not any(name.startswith(HEAD) for name in state):
            raise _headless(file, f"format {weights.format}")
        cfg = config.describe(weights, overrides)
        for note in weights.notes:
            LOG.info("%s: %s", file, note)
        if weights.left_out:
            LOG.warning("%s: without a place here, left out: %s", file, fold_names(weights.left_out))
    if not any(name.startswith(HEAD) for name in state):
        raise _headless(file, "its encoder was converted alone")
    model = build.build_model(cfg)
    if cfg.DATA.mean == "estimate":
        raise ValueError(
            f"{file} does not tell how its images were normalised: name DATA.mean and DATA.std, as in "
            '--set DATA.mean "[0.5]"'
        )
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.DISTRIBUTED.device != "cpu" else "cpu")
    normalize = build.ready(model, state, file, cfg, device)
    return LoadedRun(name or name_of(path), file, cfg, model, normalize, device, step, averaged, own is None)


def name_of(path: Path) -> str:
    """A run folder's name; a file's own, after that of the run folder that it lies in."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    return f"{path.parent.parent.name}/{path.stem}" if path.parent.name == "checkpoints" else path.stem


def words_of(image: ImageSpec) -> str:
    """The size of images."""
    return f"{image.height} x {image.width} px, {image.channels} channel{'s' * (image.channels > 1)}"


def _own(file: Path) -> dict | None:
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
