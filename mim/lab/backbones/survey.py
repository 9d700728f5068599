"""What one model of timm can do, found out on the meta device: shapes and operations, no weights.

Shapes: B batch, C channels, H W pixels.
"""

import math
import warnings
from dataclasses import dataclass, field

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor

from mim.cost.formulas import operation_counter
from mim.encoders import Timm
from mim.encoders.hiding.backbone import BackboneSettings
from mim.encoders.hiding.layout import Layout, measure
from mim.maskers.random import Random
from mim.ops.attention import choose_attention
from mim.structures import ImageSpec

WAYS = ("drop", "sparse", "replace")
RATIO = 0.75  # of hidden cells
SIDES = (32, 64, 14)  # multiples of these are tried where a model does not take its own image size
IMAGES = 2
CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True, slots=True)
class Backbone:
    """What a model can do.

    Args:
        model, module: its name, and the module of timm that holds it.
        image: the images for which the rest holds: those of its pretrained weights where it can have them.
        strides: of its stages, each once, in pixels.
        parameters: with those of no use without a classifier.
        flops: forward pass of one whole image; a multiply-add counts as two.
        shares: for each way of hiding that works, operations with 75% hidden as a share of those of whole images.
        reasons: for each way that does not work, why not.
    """

    model: str
    module: str
    image: ImageSpec | None = None
    strides: tuple[int, ...] = ()
    parameters: int = 0
    flops: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def survey(model: str) -> Backbone:
    """What a model of timm can do. Raises ValueError for an unknown name."""
    BackboneSettings(model).check()
    module = timm.models.model_entrypoint(model).__module__.rpartition(".")[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm, on names that it has renamed
        return _survey(model, module)


def _survey(model: str, module: str) -> Backbone:
    try:
        image, layout = _fitting_image(model)
    except ValueError as error:
        return Backbone(model, module, reasons=dict.fromkeys(WAYS, _plain(error, model)))
    with META:
        backbone = BackboneSettings(model).build(image)
    strides = tuple(sorted({stage.stride for stage in layout.stages}))
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    flops = _flops(model, image, "none")
    shares: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for way in WAYS:
        try:
            shares[way] = _flops(model, image, way) / flops
        except (ValueError, RuntimeError, AssertionError) as error:
            reasons[way] = _plain(error, model)
    return Backbone(model, module, image, strides, parameters, flops, shares, reasons)


def _fitting_image(model: str) -> tuple[ImageSpec, Layout]:
    """The first image size that a model takes, and its layout for it."""
    pretrained = get_pretrained_cfg(model)
    channels, *size = (3, 224, 224) if pretrained is None else pretrained.input_size
    sizes = [size, *([math.ceil(side / multiple) * multiple for side in size] for multiple in SIDES)]
    problem: ValueError | None = None
    for high, wide in sizes:
        image = ImageSpec(channels, high, wide)
        try:
            return image, measure(BackboneSettings(model), image)
        except ValueError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _flops(model: str, image: ImageSpec, hidden: str) -> int:
    """Operations of the forward pass of an encoder on one image, hidden cells left out as `hidden` says."""
    with META:
        encoder = Timm(image, model=model, hidden=hidden)  # type: ignore[arg-type]
        encoder.eval().requires_grad_(False)  # the counter's hooks fail on expanded parameters (CaiT)
        img_BCHW: Tensor = torch.empty(IMAGES, image.channels, image.height, image.width)
    choose_attention(encoder, CPU)  # attention as its two products
    mask = None
    if hidden != "none":
        masker = Random(image, cell=encoder.spec.patch, ratio=RATIO)
        mask = masker.sample(IMAGES, None, META)
    with torch.no_grad(), operation_counter() as counter:
        encoder(img_BCHW, mask)
    return counter.get_total_flops() // IMAGES


def _plain(error: Exception, model: str) -> str:
    """The reason in an error message as a sentence, without the names of model and architecture and the way out."""
    text = " ".join(str(error).partition(" Use ")[0].split())
    text = (text.partition(" of timm: ")[2] or text).replace(f"ENCODER.model {model} ", "it ")[:300]
    return text[:1].upper() + text[1:]
