"""Whole pretraining models: of a run, of its checkpoint, or of a file of MAE or SimMIM that holds its decoder."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mim import build, init_weights, interop
from mim.build.encoders import config_of, guess_line
from mim.config import Config, Overrides, parse_config, read_pairs
from mim.data.preprocess import Preprocess
from mim.engine import checkpoint
from mim.errors import ConfigError
from mim.interop import metadata
from mim.interop.initialise_model import WHOLE, differing
from mim.interop.names import fold_names
from mim.io.weights import CHECKPOINT_FORMAT, read_weights
from mim.model import MaskedImageModel

LOG = logging.getLogger("mim")

HEAD = "head."


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The weights of a pretraining model on the CPU, and its config."""

    path: Path  # of the file
    cfg: Config
    state: Mapping[str, Tensor]
    step: int = 0  # optimizer steps of its training; 0 where the file does not say
    averaged: bool = False  # whether the weights are moving averages
    has_data: bool = True  # whether the config names the data of the run; a file of MAE or SimMIM names none


def load_model(path: str | Path, overrides: Overrides = ()) -> tuple[MaskedImageModel, Preprocess]:
    """A pretraining model with all its weights, and its preprocessing, on the CPU and in eval mode.

    `model, preprocess = mim.load_model("runs/mae")`; then `img_BCHW = preprocess(images_BCHW)` normalises images as
    they are stored (uint8, uint16, or floats from 0 to 1), and `model(img_BCHW, model.sample_mask(img_BCHW))` gives
    the loss and the prediction. Weights are the moving average, where the run has one. PLUGINS of the run are imported.

    Args:
        path: a run folder (its last checkpoint), a checkpoint, a pretraining file of facebookresearch/mae or
            microsoft/SimMIM with its decoder, or a folder of transformers' ViTMAE.
        overrides: config keys that the file does not hold, as `{"HEAD.heads": 16}`.

    Raises ValueError where the file is missing or damaged, holds no head, as a fine-tuned run does, or lacks a key that
    is needed. `load_encoder` takes files without a head.
    """
    source = read_pretrained(Path(path), overrides, "weights")
    model = build.build_model(source.cfg)
    checkpoint.load_strict(model, source.state, source.path)
    data = source.cfg.DATA.shared
    return model.eval(), Preprocess(data.mean, data.std)


def read_pretrained(path: Path, overrides: Overrides, role: str) -> Pretrained:
    """Reads the file of a pretraining model; overrides as for load_model.

    Raises ValueError, calling the file by its `role`, where it holds no whole model, or its config is not known.
    """
    file = init_weights.weights_file(path)
    content = _checkpoint(file, role)
    if content is not None:
        cfg = init_weights.config_of_checkpoint(content["config"], overrides, str(file))
        if read_pairs(overrides):
            _check_head(file, parse_config(content["config"]).values(), cfg, WHOLE)
        source = Pretrained(file, cfg, checkpoint.evaluated(content), content["step"], bool(content["ema"]))
        if cfg.TASK != "pretrain":
            raise _headless(file, f"it is of TASK {cfg.TASK}")
    else:
        weights = interop.read(file, role)
        if not any(name.startswith(HEAD) for name in weights.state):
            raise _headless(file, f"format {weights.format}")
        cfg = config_of(weights, overrides)
        _check_head(file, weights.sections, cfg, WHOLE[:1], weights.guesses)  # TARGET is that of the published runs
        for note in (*weights.notes, guess_line(cfg, weights, overrides)):
            if note:
                LOG.info("%s: %s", file, note)
        if weights.left_out:
            LOG.warning("%s: weights that this model does not have, left out: %s", file, fold_names(weights.left_out))
        source = Pretrained(file, cfg, weights.state, averaged=weights.averaged, has_data=False)
    if not any(name.startswith(HEAD) for name in source.state):
        raise _headless(file, "its encoder was converted alone")
    if cfg.DATA.mean == "estimate":
        raise ValueError(
            f"{file} does not say how its images were normalised: name DATA.mean and DATA.std, as in DATA.mean "
            '"[0.5]" (after --set, or in Python as overrides)'
        )
    return source


def _check_head(
    file: Path, theirs: metadata.Sections, cfg: Config, sections: Collection[str], guesses: Collection[str] = ()
) -> None:
    """Raises ConfigError, with both values, where overrides change what the weights of the head predict."""
    unlike = differing(theirs, cfg.values(), sections)
    wrong = {key: line for key, line in unlike.items() if key not in cfg.INIT.keep and key not in guesses}
    if wrong:
        raise ConfigError(
            f"{file} was trained with other values, with which its head predicts something else: "
            f"{', '.join(wrong.values())}. Leave these keys out; or keep the values here with INIT.keep "
            f'"[{", ".join(wrong)}]"'
        )


def _checkpoint(file: Path, role: str) -> dict | None:
    """The content of a checkpoint of this toolkit; None for another file."""
    if file.is_dir() or file.suffix == ".safetensors":
        return None
    content = read_weights(file, role)
    return content if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT else None


def _headless(file: Path, reason: str) -> ValueError:
    return ValueError(
        f"{file} has no head that predicts pixels ({reason}): name a pretraining run, one of its checkpoints, or a "
        "file of MAE or SimMIM that holds the decoder beside the encoder. mim.load_encoder loads encoders alone, "
        "mim-evaluate uses classifiers"
    )
