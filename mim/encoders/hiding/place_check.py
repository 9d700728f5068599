"""PlaceCheck: whether a net can compute on visible places alone, from the operations that it runs, without weights."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mim.encoders.hiding.sparse_layers import SparseLayers, mixes_places
from mim.encoders.hiding.visible_places import CellsError, VisiblePlaces
from mim.structures import PatchMask

GRID = (16, 16)  # cells of the images of the check
CELLS = 211  # visible ones: a prime that divides no number of channels, so that a multiple of it counts places

EVERYWHERE = {  # what treats all places alike: reductions over all, products, norms, random numbers, copies
    *("sum", "mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "linalg_vector_norm"),
    *("norm", "softmax", "_softmax", "_safe_softmax", "_log_softmax", "logsumexp", "hardswish", "hardswish_"),
    *("mm", "bmm", "addmm", "baddbmm", "linear", "matmul"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_cudnn_attention"),
    *("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "native_group_norm"),
    *("native_layer_norm", "_fused_rms_norm", "native_dropout", "bernoulli", "bernoulli_", "rand_like", "randn_like"),
    *("clone", "contiguous", "_to_copy", "detach", "alias", "copy_", "zeros_like", "ones_like", "empty_like"),
    *("full_like", "new_empty", "new_zeros", "new_ones", "new_full", "fill_", "zero_", "uniform_", "normal_"),
    *("permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "glu", "empty_strided", "new_empty_strided"),
}
ALONG_CHANNELS = {"cat", "split", "split_with_sizes", "slice", "select", "unbind", "stack", "narrow"}
VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
NUMBERED = {"arange", "linspace", "range"}
PHRASES = {
    "arange": "computes positions",
    "linspace": "computes positions",
    "cat": "puts other tokens beside the places",
    "constant_pad_nd": "pads the map",
    "convolution": "convolves the map outside of a layer",
    "roll": "shifts the map",
    "slice": "cuts the map",
    "view": "takes the map apart",
    "_unsafe_view": "takes the map apart",
    "cumsum": "computes positions",
    "upsample_bilinear2d": "resizes the map",
    "upsample_bicubic2d": "resizes the map",
    "upsample_nearest2d": "resizes the map",
}


class PlaceCheckError(Exception):
    """An operation that needs more of the map than its visible places."""


class PlaceCheck(TorchDispatchMode):
    """Raises PlaceCheckError at the first operation for which the order or the neighbourhood of places has an effect.

    A dimension that CELLS divides counts places. Layers that SparseLayers handles are left out.

    Args:
        backbone: on the meta device, with SparseLayers.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.inside: list[nn.Module] = []
        self._bordered: set[int] = set()  # ids of maps that only the next layer may see
        self._known: dict[int, Tensor] = {}  # tensors that came out of an operation; kept, so that no id comes twice
        for module in backbone.modules():
            module.register_forward_pre_hook(self._enter, prepend=True)
            module.register_forward_hook(self._leave)

    def know(self, tensor: Tensor) -> Tensor:
        """The tensor, as one that comes from the image."""
        self._known[id(tensor)] = tensor
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "batch_norm" in func.overloadpacket.__name__:  # its kernel for the meta device takes most of the time
            output = (torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in func._schema.returns[1:]))
        else:
            output = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(mixes_places(module) for module in self.inside):
            self._judge(func, args, inputs, outputs)
        for each in outputs:
            self.know(each)
        return output

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self.inside.append(module)
        if mixes_places(module) and inputs[0].shape[-1] > 1 and id(inputs[0]) not in self._bordered:
            raise PlaceCheckError("computes on places in an order of their own")

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.inside.pop()
        if isinstance(module, nn.ConstantPad2d):
            self._bordered.add(id(output))

    def _judge(self, func: Any, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        with_places = [each for each in inputs if _places(each.shape)]
        fine = True
        if any(id(each) in self._bordered for each in inputs):
            raise PlaceCheckError("computes on a map with a border")
        if any(id(each) not in self._known for each in with_places):
            raise PlaceCheckError("adds a value of its own to each place")
        if name in NUMBERED:
            fine = not any(_places(each.shape) for each in outputs)
        elif not with_places or torch.Tag.pointwise in func.tags or name in EVERYWHERE:
            return
        elif name in ALONG_CHANNELS:
            fine = all(_places(each.shape) == _places(with_places[0].shape) for each in [*with_places, *outputs])
        elif name == "constant_pad_nd":
            sizes = zip(inputs[0].shape, outputs[0].shape, strict=True)
            fine = all(old == new or (old > 1 and old % CELLS) for old, new in sizes)
        elif name in VIEWS:
            fine = _keeps_places(inputs[0].shape, outputs[0].shape)
        elif name == "convolution":
            fine = _convolves_each_place(inputs[0].shape, *args[1:6])
        elif name.endswith(("adaptive_avg_pool2d", "adaptive_max_pool2d")):
            fine = math.prod(outputs[0].shape[2:]) == 1
        else:
            fine = False
        if not fine:
            raise PlaceCheckError(PHRASES.get(name, f"computes {name} over places"))


def objection_to(backbone: nn.Module) -> str:
    """Why a backbone of timm cannot compute on visible places alone; empty where it can."""
    copied: Any = _on_meta(backbone)
    cell = max(info["reduction"] for info in copied.feature_info)
    with torch.device("meta"), torch.no_grad():
        layers, check = SparseLayers(copied), PlaceCheck(copied)
        hidden_BHW = torch.empty(2, *GRID, dtype=torch.bool)
        visible = layers.visible = VisiblePlaces(PatchMask(hidden_BHW, CELLS), GRID, cell)
        img_BCHW = torch.empty(2, int(copied.in_chans), GRID[0] * cell, GRID[1] * cell)
        places_BCN1 = check.know(visible.gather(img_BCHW))
        try:
            with check:
                output = copied.forward_features(places_BCN1)
                _, maps = copied.forward_intermediates(places_BCN1)
        except (PlaceCheckError, CellsError) as error:
            return f"{_names(check.inside)} {error}"
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError):
            return f"{_names(check.inside)} needs all places of the map, in their order"
    returned = [*maps, output] if isinstance(output, Tensor) else maps
    if not all(_places(each.shape) for each in returned):
        return f"{type(backbone).__name__} returns no map"
    return ""


def _on_meta(backbone: nn.Module) -> nn.Module:
    """A copy without weights, in training mode."""
    memo: dict[int, Any] = {}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in backbone.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(backbone, memo).train()


def _names(inside: Sequence[nn.Module]) -> str:
    """The class of the innermost module, and of the one around it where that is a class of timm too."""
    own = [type(module).__name__ for module in inside if type(module).__module__.startswith("timm")]
    return " in ".join(dict.fromkeys([type(module).__name__ for module in inside[-1:]] + own[-1:])) or "the model"


def _places(shape: Sequence[int]) -> list[int]:
    """The dimensions that count places."""
    return [size for size in shape if size and size % CELLS == 0]


def _keeps_places(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a view leaves places together: alone in a dimension, or behind dimensions that it merges or splits."""
    left, right = [size for size in before if size != 1], [size for size in after if size != 1]
    while left or right:
        old, new = [left.pop(0)], [right.pop(0)]
        while math.prod(old) != math.prod(new):
            shorter, rest = (old, left) if math.prod(old) < math.prod(new) else (new, right)
            shorter.append(rest.pop(0))
        if not _places([*old, *new]) or len(old) == len(new) == 1:
            continue
        counts = [dims[-1] for dims in (old, new) if len(dims) > 1]
        alone = all(len(_places(dims)) == 1 and dims[-1] % CELLS == 0 for dims in (old, new))
        if not alone or len(counts) > 1 or math.isqrt(counts[0] // CELLS) ** 2 * CELLS != counts[0]:
            return False
    return True


def _convolves_each_place(
    shape: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether a convolution mixes no places: along their dimensions its kernel has size 1."""
    axes = [axis for axis, size in enumerate(shape[2:]) if size % CELLS == 0]
    return all((weight.shape[2 + axis], stride[axis], padding[axis]) == (1, 1, 0) for axis in axes)
