"""Which way of hiding works for a backbone."""

from torch import nn

from mim.encoders.base import Hiding
from mim.encoders.hiding.base import Way
from mim.encoders.hiding.drop_at_blocks import DropAtBlocks, DropPixelTokens
from mim.encoders.hiding.drop_biases import DropBiases
from mim.encoders.hiding.drop_convit import DropOffsets
from mim.encoders.hiding.drop_hiera import DropHiera
from mim.encoders.hiding.drop_language import DropGemma, DropLanguage
from mim.encoders.hiding.drop_naflex import DropNaFlex
from mim.encoders.hiding.drop_tokens import DropTokens
from mim.encoders.hiding.drop_windows import DropWindows
from mim.encoders.hiding.layout import Layout
from mim.encoders.hiding.replace import Replace
from mim.encoders.hiding.sparse import Sparse

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


def find_way(backbone: nn.Module, layout: Layout, hiding: Hiding, replace_at: int) -> Way:
    """The way for a value of ENCODER.hidden, prepared for a backbone.

    Raises ValueError where the architecture cannot do it, with the reason and what it can do.
    """
    if replace_at and hiding != "replace":
        raise ValueError(f"ENCODER.replace_at {replace_at} has a meaning for ENCODER.hidden replace only, not {hiding}")
    objections = []
    for way in WAYS:
        if way.hiding == hiding and not (objection := way.objection(backbone)):
            return way(backbone, layout, replace_at) if way is Replace else way(backbone, layout)
        if way.hiding == hiding:
            objections.append(objection)
    reasons = "; ".join(dict.fromkeys(objections))
    raise ValueError(
        f"ENCODER.hidden {hiding} is not possible with {type(backbone).__name__} of timm: {reasons}. Use "
        f"{' or '.join(possible_ways(backbone))}"
    )


def possible_ways(backbone: nn.Module) -> list[Hiding]:
    """The values of ENCODER.hidden that hide something and that an architecture can do."""
    return list(dict.fromkeys(way.hiding for way in WAYS if not way.objection(backbone)))
