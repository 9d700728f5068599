"""Which way of hiding works for a backbone."""

from functools import lru_cache

import torch

from mim.encoders.base import Hiding
from mim.encoders.hiding.backbone import BackboneSettings
from mim.encoders.hiding.base import Way
from mim.encoders.hiding.drop_at_blocks import DropAtBlocks, DropPixelTokens
from mim.encoders.hiding.drop_biases import DropBiases
from mim.encoders.hiding.drop_convit import DropOffsets
from mim.encoders.hiding.drop_hiera import DropHiera
from mim.encoders.hiding.drop_language import DropGemma, DropLanguage
from mim.encoders.hiding.drop_naflex import DropNaFlex
from mim.encoders.hiding.drop_tokens import DropTokens
from mim.encoders.hiding.drop_windows import DropWindows
from mim.encoders.hiding.replace import Replace
from mim.encoders.hiding.sparse import Sparse
from mim.structures import ImageSpec

WAYS: tuple[type[Way], ...] = (
    DropTokens,
    DropBiases,
    DropOffsets,
    DropNaFlex,
    DropLanguage,
    DropGemma,
    DropAtBlocks,
    DropPixelTokens,
    DropHiera,
    DropWindows,
    Replace,
    Sparse,
)


@lru_cache(maxsize=64)
def find_way(settings: BackboneSettings, image: ImageSpec, hiding: Hiding) -> type[Way]:
    """The way for a value of ENCODER.hidden that a backbone can do, from the backbone without weights.

    Raises ValueError where its architecture cannot do it, with the reason and what it can do.
    """
    with torch.device("meta"):
        backbone = settings.build(image)
    objections = []
    for way in WAYS:
        if way.hiding == hiding:
            objection = way.objection(backbone)
            if not objection:
                return way
            objections.append(objection)
    reasons = "; ".join(dict.fromkeys(objections))
    others = dict.fromkeys(way.hiding for way in WAYS if way.hiding != hiding and not way.objection(backbone))
    raise ValueError(
        f"ENCODER.hidden {hiding} is not possible with {type(backbone).__name__} of timm: {reasons}. Use "
        f"{' or '.join(others)}"
    )
