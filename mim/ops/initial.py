"""Initial weights of linear layers."""

from typing import Literal

from torch import nn

LinearInit = Literal["xavier", "pytorch"]


def initialise_linear(model: nn.Module, kind: LinearInit) -> None:
    """Fills linear layers xavier-uniform, with zero bias; `pytorch` leaves them as PyTorch made them."""
    if kind == "pytorch":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
