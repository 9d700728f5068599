"""Models of this toolkit for conversion tests: every encoder with every head and classifier that other formats know,
small, with weights that all matter, written as a run writes them.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from small_models import classes
from torch import Tensor

from mim import Encoder, MaskedImageModel, Predictor, build_model, build_predictor
from mim.config import Config, parse_config
from mim.engine import checkpoint
from mim.io.weights import DERIVED_BUFFERS

Sections = dict[str, Any]
CLASSES = 5
VIT = {"name": "vit", "patch": 8, "width": 24, "depth": 2, "heads": 3, "mlp_ratio": 2.0}
BEIT = {"name": "beit", "patch": 8, "width": 16, "depth": 2, "heads": 2}
SWIN = {"name": "swin", "patch": 4, "width": 8, "depths": [2, 2], "heads": [2, 4], "window": 4}
SWIN_V2 = {**SWIN, "name": "swin_v2"}
MASKER = {"name": "random", "cell": 8, "ratio": 0.75}
DECODER = {"name": "transformer", "width": 16, "depth": 2, "heads": 2}


def images(height: int, width: int, channels: int = 3) -> Sections:
    plain = {"mean": [0.4] * channels, "std": [0.3] * channels}
    return {"DATA": {"image_size": [height, width], "channels": channels, **plain}}


def pretrained(encoder: Sections, hidden: str, head: Sections, data: Sections, normalize: str = "patch") -> Sections:
    target = {"name": "pixels", "normalize": normalize}
    parts = {"MASKER": MASKER, "HEAD": head, "TARGET": target, "LOSS": {"name": "mse"}}
    return {"TASK": "pretrain", "ENCODER": {**encoder, "hidden": hidden}, **parts, **data}


def tuned(encoder: Sections, pool: str, norm: bool, data: Sections) -> Sections:
    classifier = {"CLASSIFIER": {"pool": pool, "norm": norm}}
    return {"TASK": "finetune", "ENCODER": {**encoder, "hidden": "none"}, **classifier, **data}


SQUARE, TALL, WIDE = images(32, 32), images(48, 32), images(32, 64)
GREY, MANY = images(32, 32, 1), images(32, 64, 12)
SHUFFLE = {"name": "pixel_shuffle"}
PLAIN = {**VIT, "norm": False}
BIASED = {**BEIT, "bias": "block"}
UNSCALED = {**BIASED, "layer_scale": 0.0}
LEARNED = {**VIT, "positions": "learned"}
TWO_TARGETS = [{"name": "pixels", "normalize": "patch"}, {"name": "hog", "weight": 0.5}]
NO_CLASS = {**VIT, "class_token": False}

MODELS: dict[str, Sections] = {
    "mae": pretrained(VIT, "drop", DECODER, SQUARE),
    "mae-tall-grey": pretrained(VIT, "drop", DECODER, images(48, 32, 1)),
    "mae-wide-many": pretrained(LEARNED, "drop", DECODER, MANY, normalize="none"),
    "mae-square-many": pretrained(LEARNED, "drop", DECODER, images(32, 32, 12), normalize="none"),
    "mae-fused": pretrained(VIT, "drop", {**DECODER, "stages": [0]}, SQUARE),
    "mae-two-targets": {**pretrained(VIT, "drop", DECODER, GREY), "TARGET": TWO_TARGETS},
    "vit-replaced": pretrained(VIT, "replace", SHUFFLE, GREY),
    "vit-replaced-wide": pretrained(LEARNED, "replace", SHUFFLE, WIDE),
    "vit-replaced-decoder": pretrained(LEARNED, "replace", DECODER, WIDE),
    "vit-mean": tuned(PLAIN, "mean", True, WIDE),
    "vit-mean-grey": tuned(PLAIN, "mean", True, GREY),
    "vit-class": tuned(VIT, "class", False, TALL),
    "vit-class-many": tuned(LEARNED, "class", False, MANY),
    "vit-mean-of-normed": tuned(VIT, "mean", False, SQUARE),
    "vit-no-class": tuned({**NO_CLASS, "norm": False}, "mean", True, SQUARE),
    "vit-no-class-normed": tuned(NO_CLASS, "mean", False, SQUARE),
    "vit-two-norms": tuned(VIT, "mean", True, SQUARE),
    "vit-probe": {"TASK": "probe", "ENCODER": {**VIT, "hidden": "none"}, **TALL},
    "vit-probe-mean": {
        "TASK": "probe",
        "ENCODER": {**VIT, "hidden": "none"},
        "CLASSIFIER": {"pool": "mean", "rates": [1, 2]},
        **TALL,
    },
    "swin": pretrained(SWIN, "replace", SHUFFLE, SQUARE, normalize="none"),
    "swin-wide-many": pretrained(SWIN, "replace", SHUFFLE, MANY),
    "swin-one-window": pretrained({**SWIN, "window": 8}, "replace", SHUFFLE, images(32, 32, 1)),
    "swin-flat": pretrained({**SWIN, "window": 8}, "replace", SHUFFLE, images(16, 64)),
    "swin-decoder": pretrained(SWIN, "replace", DECODER, WIDE),
    "swin-fused": pretrained(SWIN, "replace", {**SHUFFLE, "stages": [0]}, WIDE),
    "swin-mean": tuned(SWIN, "mean", False, WIDE),
    "swin-mean-many": tuned(SWIN, "mean", False, MANY),
    "swin-mean-square": tuned(SWIN, "mean", False, SQUARE),
    "swin-mean-large": tuned(SWIN, "mean", False, images(64, 96, 12)),
    "swin-large": pretrained(SWIN, "replace", SHUFFLE, images(64, 96)),
    "swin-two-norms": tuned(SWIN, "mean", True, SQUARE),
    "swin_v2": pretrained(SWIN_V2, "replace", SHUFFLE, SQUARE),
    "swin_v2-wide-grey": pretrained(SWIN_V2, "replace", SHUFFLE, images(32, 64, 1)),
    "swin_v2-mean": tuned({**SWIN_V2, "pretrained_windows": [2, 3]}, "mean", False, MANY),
    "swin_v2-mean-square": tuned({**SWIN_V2, "pretrained_windows": [2, 3]}, "mean", False, SQUARE),
    "swin_v2-small": pretrained({**SWIN_V2, "window": 8}, "replace", SHUFFLE, images(32, 32, 1)),
    "beit": pretrained(BEIT, "replace", SHUFFLE, SQUARE),
    "beit-wide-many": pretrained({**BEIT, "layer_scale": 0.0}, "replace", SHUFFLE, MANY),
    "beit-decoder": pretrained(BIASED, "replace", DECODER, TALL),
    "beit-mean": tuned({**BIASED, "norm": False}, "mean", True, TALL),
    "beit-class": tuned(UNSCALED, "class", False, images(32, 48, 1)),
}
VARIANTS = {  # of another size or number of channels than one of the others: conversions of these are slow tests
    *("mae-tall-grey", "mae-square-many", "vit-replaced-wide", "vit-mean-grey", "vit-class-many", "vit-no-class"),
    *("swin-wide-many", "swin-flat", "swin-mean-many", "swin-mean-large", "swin-large"),
    *("swin_v2-wide-grey", "swin_v2-small", "beit-wide-many"),
}


@dataclass(frozen=True)
class Sample:
    """A model in eval mode, with its config and its weights; to be left as it is."""

    cfg: Config
    model: MaskedImageModel | Predictor

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self.model.state_dict().items() if not name.endswith(DERIVED_BUFFERS)}

    def images(self, batch: int = 2) -> Tensor:
        """Normalised images of noise, of the config's size."""
        generator = torch.Generator().manual_seed(3)
        return torch.randn(batch, self.cfg.DATA.channels, *self.cfg.DATA.image_size, generator=generator)

    @torch.no_grad()
    def features(self, img_BCHW: Tensor) -> Tensor:
        """All tokens, the class token first."""
        return tokens_of(self.model.encoder, img_BCHW)

    @torch.no_grad()
    def scores(self, img_BCHW: Tensor) -> Tensor:
        """Class scores."""
        return self.model(img_BCHW)[0]

    def write(self, path: Path, dtype: torch.dtype = torch.float32, **keys: Any) -> Path:
        """A checkpoint, as a run writes it; `keys` go on top."""
        state = {
            name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in self.state.items()
        }
        checkpoint.write(path, {"step": 3, "model": state, "ema": {}, "config": self.cfg.to_yaml(), **keys})
        return path


def loss_of(model: MaskedImageModel, img_BCHW: Tensor) -> Tensor:
    """Under the same mask for the same images."""
    mask = model.sample_mask(img_BCHW, torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model(img_BCHW, mask).loss


@cache
def sample(name: str) -> Sample:
    """One of MODELS, with weights that all matter."""
    return build_sample(MODELS[name])


def build_sample(sections: Sections, seed: int = 1) -> Sample:
    cfg = parse_config(yaml.safe_dump(sections))
    model = build_model(cfg) if cfg.TASK == "pretrain" else build_predictor(cfg, classes(CLASSES))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weight.fill_(17)
        elif not name.endswith(DERIVED_BUFFERS):
            noise = torch.randn(weight.shape, generator=generator) * 0.2
            weight.add_(noise.abs() if name.endswith("running_var") else noise)
    return Sample(cfg, model.eval())


def tokens_of(encoder: Encoder, img_BCHW: Tensor) -> Tensor:
    """All tokens that an encoder gives, the class token first."""
    features = encoder(img_BCHW)
    prefix = [] if features.prefix_BKD is None else [features.prefix_BKD]
    return torch.cat([*prefix, features.tokens_BND], dim=1)


def read_checkpoint(path: Path) -> tuple[Config, dict[str, Tensor]]:
    """Config and weights of a checkpoint of this toolkit."""
    content = checkpoint.load(path)
    return parse_config(content["config"]), content["model"]


def assert_round_trip(path: Path, source: Sample, left_out: list[str]) -> None:
    """A file holds all weights but those left out, to the bit, and says of them what the first config said."""
    cfg, state = read_checkpoint(path)
    weights = source.state
    assert set(state) == set(weights) - set(left_out)
    for name, weight in state.items():
        assert weight.dtype == weights[name].dtype
        assert torch.equal(weight, weights[name]), name
    flat, theirs = source.cfg.flat(), cfg.flat()
    keys = [key for key in flat if key.startswith("ENCODER.") and (key != "ENCODER.hidden" or not left_out)]
    keys += [f"DATA.{key}" for key in ("image_size", "channels", "mean", "std")]
    if not left_out:
        sections = {"pretrain": ("MASKER.", "HEAD.", "TARGET.", "LOSS."), "finetune": ("CLASSIFIER.",)}
        names = sections.get(source.cfg.TASK, ())
        keys += ["TASK", *(key for key in flat if key.startswith(names) and not key.endswith(".init_std"))]
    assert {key: theirs.get(key) for key in keys} == {key: flat[key] for key in keys}
