"""Small parts and models for the tests: every registered part of mim, at a size that trains in milliseconds.

A new part joins by itself; only one whose keys are unlike those of its neighbours needs a line in SMALL.
"""

from copy import deepcopy

import pytest
import torch

from mim.criteria.cross_entropy import CrossEntropy
from mim.encoders import Encoder, Swin, SwinV2, ViT
from mim.heads import Head
from mim.heads.pixel_shuffle import PixelShuffle
from mim.heads.transformer import Transformer
from mim.losses import L1, MSE, Loss
from mim.maskers import Masker
from mim.maskers.random import Random
from mim.model import MaskedImageModel
from mim.readouts import Predictor
from mim.readouts.linear import Linear
from mim.registry import keys_of
from mim.structures import ImageSpec, LabelSpec, TargetSpec
from mim.targets import Pixels, Target
from mim.targets.base import Network, TargetContext

CPU = torch.device("cpu")
IMAGE = ImageSpec(3, 32, 64)  # 4 x 8 cells of 8 px; both stages of a Swin of patch 4 have windows of 4 x 4
SWIN = {"patch": 4, "width": 8, "depths": (2, 2), "heads": (2, 2), "window": 4}

SMALL = {  # by section, then by the name of a part; "" for every other part of the section
    "MASKER": {"": {"cell": 8, "ratio": 0.5}},
    "ENCODER": {
        "": {"patch": 8, "width": 16, "depth": 2, "heads": 2},
        "swin": SWIN,
        "swin_v2": SWIN,
        "timm": {"model": "test_vit", "options": ("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2")},
    },
    "HEAD": {
        "": {"width": 16, "depth": 1, "heads": 2},
        "cross_attention": {"width": 16, "depth": 1, "heads": 2, "share": 0.5},
        "convolution": {"width": 16, "depth": 1, "groups": 2},
        "unet": {"width": 16},
    },
    "TARGET": {"": {}, "fourier": {"cell": 4}, "hog": {"cell": 4}, "lowpass": {"radius": 8.0}},
    "LOSS": {"": {}},
}


class Colours(Target, name="colours_of_tests"):
    """A distribution that needs no network: how near each of six colours is to the mean of a square."""

    colours_KC: torch.Tensor

    def __init__(self, image, encoder, *, stride: int = 4):
        super().__init__(image, encoder)
        self.spec = TargetSpec(6, stride, distribution=True)
        self.register_buffer("colours_KC", torch.eye(6, image.channels) - torch.eye(6, image.channels).flip(0))

    def forward(self, img_BCHW):
        mean_BCHW = torch.nn.functional.avg_pool2d(img_BCHW, self.spec.stride)
        return torch.einsum("bchw,kc->bkhw", 4 * mean_BCHW, self.colours_KC.to(mean_BCHW)).softmax(dim=1)


def members(family) -> dict:
    """The family's parts that mim itself ships; tests register parts of their own."""
    return {name: part for name, part in family.members().items() if part.__module__.startswith("mim.")}


def small(part: type, *context, **keys):
    """A part at a small size; `keys` go on top."""
    section = SMALL[part.section]
    part_keys = keys_of(part)
    settings = {key: value for key, value in section.get(part.name, section[""]).items() if key in part_keys}
    make = part.of if issubclass(part, Target) else part
    module = make(*context, **{**settings, **keys})
    return opened(module) if isinstance(module, SwinV2) else module


def opened(encoder: SwinV2) -> SwinV2:
    """With branches that have an effect. Swin V2 starts with a norm of zero behind each, as published, so that at
    first nothing in them has a gradient or changes a feature: what all encoders must do is shown one step later.
    """
    for block in encoder.blocks():
        for norm in (block.norm1, block.norm2):
            torch.nn.init.ones_(norm.weight)
    return encoder


def hidings() -> list[tuple[str, str]]:
    """Every encoder with every way of hiding that it has."""
    return [
        (name, hidden)
        for name, part in members(Encoder).items()
        for hidden in (["drop"] if part.can_drop else []) + ["replace"]
    ]


def each_part(cases: list[tuple[str, str, str]]) -> list:
    """Encoders, ways of hiding and heads for parametrize: fast until each has occurred, slow what comes then."""
    met: set[object] = set()
    params = []
    for encoder, hidden, head in cases:
        parts = {(encoder, hidden), head, (hidden, head)}
        marks = [pytest.mark.slow] if parts <= met else []
        params.append(pytest.param(encoder, hidden, head, marks=marks, id=f"{encoder}-{hidden}-{head}"))
        met |= parts
    return params


def fits(hidden: str, head: str) -> bool:
    """Whether a head can work with an encoder that hides in this way."""
    part = Head.named(head)
    return part.fills_dropped if hidden == "drop" else not part.hidden_only


def predicts(hidden: str, head: str, target: TargetSpec) -> bool:
    """Whether a head can predict a target: a U-Net that fills dropped places needs one that is finer than tokens."""
    return not (head == "unet" and hidden == "drop" and target.stride == 8)


def learns(loss: str, target: TargetSpec) -> bool:
    """Whether a loss can learn a target."""
    try:
        small(Loss.named(loss)).check(target)
    except ValueError:
        return False
    return True


def small_network(path: str, model: str, image: ImageSpec) -> Network:
    """What a file of weights would hold, in place of reading one."""
    return Network(small(ViT, image, hidden="none"), None, None, "")


def assemble(masker, encoder, hidden, head, target=Pixels, loss=MSE, image=IMAGE, seed=0, **keys) -> MaskedImageModel:
    """A model of small parts, each a class or a name; `keys` are by section, e.g. `target={"stride": 2}`."""

    def part(family, choice):
        return family.named(choice) if isinstance(choice, str) else choice

    torch.manual_seed(seed)
    encoder = small(part(Encoder, encoder), image, hidden=hidden, **keys.get("encoder_keys", {}))
    context = TargetContext(
        image=image, encoder=encoder, mean=(0.0,) * image.channels, std=(1.0,) * image.channels, load=small_network
    )
    target = small(part(Target, target), context, **keys.get("target_keys", {}))
    return MaskedImageModel(
        small(part(Masker, masker), image, **keys.get("masker_keys", {})),
        encoder,
        small(part(Head, head), encoder.spec, target.spec, **keys.get("head_keys", {})),
        target,
        small(part(Loss, loss), **keys.get("loss_keys", {})),
    )


def mae(image=IMAGE, **keys) -> MaskedImageModel:
    """MAE: drop, transformer head, patch-normalised pixels, squared error."""
    keys = {"masker_keys": {"ratio": 0.75}, "target_keys": {"normalize": "patch"}, **keys}
    return assemble(Random, ViT, "drop", Transformer, Pixels, MSE, image, **keys)


def simmim(image=IMAGE, **keys) -> MaskedImageModel:
    """SimMIM: Swin that replaces, one linear map to pixels, absolute error."""
    keys = {
        "masker_keys": {"ratio": 0.6, "rounding": "ceil_hidden"},
        "loss_keys": {"eps": 1e-5},
        **keys,
    }
    return assemble(Random, Swin, "replace", PixelShuffle, Pixels, L1, image, **keys)


def images(batch: int = 2, image: ImageSpec = IMAGE, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """Normalised images of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, image.channels, image.height, image.width, generator=generator, dtype=dtype)


def shaken(encoder: Encoder, seed: int = 1) -> Encoder:
    """The encoder with every weight moved by noise, also those that start at zero: tables, scales, norms."""
    noise = generator(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))
    return encoder


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(model: MaskedImageModel, img_BCHW: torch.Tensor, seed: int = 0):
    """A mask of the model's own masker."""
    return model.sample_mask(img_BCHW, generator(seed))


def classes(count: int) -> LabelSpec:
    """One class an image, of this number of classes."""
    return LabelSpec("class", tuple(map(str, range(count))))


def finetuned_predictor(encoder: Encoder, outputs: int, tune_blocks="all", **keys) -> Predictor:
    """An encoder with a linear readout of these keys, as fine-tuning trains it."""
    readout = Linear(encoder.spec, outputs, **keys)
    return Predictor(encoder, [readout], CrossEntropy(classes(outputs)), tune_blocks)


def probing_predictor(encoder: Encoder, outputs: int, rates=(1.0,), pool="class", init_std=0.01) -> Predictor:
    """A frozen encoder with one linear readout for each rate, all with equal first weights."""
    readout = Linear(encoder.spec, outputs, pool=pool, norm="batch", init_std=init_std)
    return Predictor(encoder, [deepcopy(readout) for _ in rates], CrossEntropy(classes(outputs)), 0)
