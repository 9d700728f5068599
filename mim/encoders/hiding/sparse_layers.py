"""SparseLayers: layers of a convolutional net that mix places, told which places are hidden.

Shapes: B batch, D width, h w entries of a map high and wide, N visible places of a map.
"""

from typing import Any

import torch
from timm.layers import BlurPool2d, CondConv2d
from timm.layers.space_to_depth import DepthToSpace, SpaceToDepth
from torch import Tensor, nn

from mim.encoders.hiding.visible_places import CellsError, VisiblePlaces

WINDOWED = (  # and their subclasses, such as those with padding `same`
    *(nn.Conv2d, nn.ConvTranspose2d, CondConv2d, nn.MaxPool2d, nn.AvgPool2d, BlurPool2d, nn.ConstantPad2d),
)
SHRINKING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
REARRANGING = (SpaceToDepth, DepthToSpace, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample)


class SparseLayers:
    """Hooks by which a net computes on visible places (B, D, N, 1), in the form of a map of one column.

    Layers that treat each place alone, and norms and pools over all places, do that to such a map by themselves. Only
    layers that mix neighbours get hooks. Those with windows that never leave a cell see each cell as a map of its own.
    Others see the whole map, in which a hidden place is what a place beyond the border is to them: zero for a
    convolution, nothing for a maximum, and left out of an average that leaves the border out. A layer that adds a
    border leaves the map to the next layer. All do nothing while `visible` is None.

    Args:
        backbone: the net; its modules stay as they are.
    """

    def __init__(self, backbone: nn.Module):
        self.visible: VisiblePlaces | None = None
        module: Any
        for module in backbone.modules():
            if mixes_places(module):
                module.register_forward_pre_hook(self._open)
                module.register_forward_hook(self._close)
                module.reads = (self, "visible")

    def _open(self, module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The inputs of a layer with cells or the map in place of the visible places."""
        if self.visible is None or inputs[0].shape[-1] > 1:  # a map with a border
            return None
        if _stays_in_cells(module):
            cells = self.visible.apart(inputs[0])
            if isinstance(module, SHRINKING) and any(cells.shape[2] % step for step in _pair(module.stride)):
                raise CellsError(
                    f"has a stride of {module.stride}, which cells of {cells.shape[2]} entries do not allow"
                )
            return (cells, *inputs[1:])
        fill = float("-inf") if isinstance(module, nn.MaxPool2d) else 0.0
        return (self.visible.scatter(inputs[0], fill), *inputs[1:])

    def _close(self, module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The visible places of the output of a layer."""
        visible = self.visible
        if visible is None or isinstance(module, nn.ConstantPad2d):
            return output
        if _stays_in_cells(module):
            return visible.together(output)
        places_BDN1 = visible.gather(output)
        if isinstance(module, nn.AvgPool2d) and not module.count_include_pad:
            map_BDhw = inputs[0]
            ones_B1N1 = torch.ones_like(visible.gather(map_BDhw[:, :1]))
            share_B1hw = module.forward(visible.scatter(ones_B1N1))  # of each window, what is visible
            places_BDN1 = places_BDN1 / visible.gather(share_B1hw)
        return places_BDN1


def mixes_places(module: nn.Module) -> bool:
    """Whether a layer is one of those that mix neighbouring places and that get hooks."""
    if isinstance(module, nn.Upsample):
        return module.mode == "nearest" and module.size is None
    if isinstance(module, (nn.Conv2d, CondConv2d)):
        return (*_pair(module.kernel_size), *_pair(module.stride)) != (1, 1, 1, 1) or isinstance(module, CondConv2d)
    return isinstance(module, WINDOWED + REARRANGING)


def _stays_in_cells(module: Any) -> bool:
    """Whether no window of a layer reaches from one cell into another."""
    if isinstance(module, REARRANGING):
        return True
    if isinstance(module, (BlurPool2d, CondConv2d, nn.ConstantPad2d)) or module.padding not in (0, (0, 0), "valid"):
        return False
    if getattr(module, "dilation", 1) not in (1, (1, 1)):
        return False
    size, step = _pair(module.kernel_size), _pair(module.stride)
    if isinstance(module, nn.ConvTranspose2d):
        return size == step and module.output_padding == (0, 0)
    return size[0] <= step[0] and size[1] <= step[1]


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
