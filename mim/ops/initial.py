"""Initial weights of linear layers, and the shapes of weights without the time of drawing them."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LinearInit = Literal["xavier", "normal", "pytorch"]
NORMAL_STD = 0.02  # of BERT and its followers
FILLS = {  # what initialisations do to a weight in place
    *("uniform_", "normal_", "erfinv_", "mul_", "div_", "add_", "clamp_", "fill_", "zero_"),
    *("kaiming_uniform_", "trunc_normal_"),
}


class Undrawn(TorchFunctionMode):
    """Inside, no values are drawn for weights on the meta device, which have none: models take half the time."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        weight, *values = args or (None,)
        without_values = isinstance(weight, nn.Parameter) and weight.is_meta
        if without_values and function.__name__ in FILLS and not any(isinstance(value, Tensor) for value in values):
            return weight
        return function(*args, **(kwargs or {}))


def initialise_linear(model: nn.Module, kind: LinearInit) -> None:
    """Fills linear layers xavier-uniform or normal, with zero bias; `pytorch` leaves them as PyTorch made them."""
    if kind == "pytorch":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if kind == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.normal_(module.weight, std=NORMAL_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
