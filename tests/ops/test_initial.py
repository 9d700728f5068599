"""Initial weights: what is not drawn on the meta device changes neither shapes there nor values elsewhere."""

import pytest
import timm
import torch
from torch import nn

from mim.ops.initial import Undrawn


def filled(device: str) -> list[nn.Parameter]:
    """Weights after each kind of initialisation."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.empty(4, 3, device=device)) for _ in range(7)]
    nn.init.xavier_uniform_(weights[0])
    nn.init.kaiming_uniform_(weights[1], a=5**0.5)
    nn.init.normal_(weights[2], std=0.02)
    nn.init.trunc_normal_(weights[3], std=0.02)
    timm.layers.trunc_normal_(weights[4], std=0.02)
    nn.init.zeros_(weights[5])
    nn.init.constant_(weights[6], 0.1)
    return weights


def test_undrawn_draws_the_same_values_where_there_are_values():
    with Undrawn():
        weights = filled("cpu")
    assert all(map(torch.equal, weights, filled("cpu")))
    assert [weight.unique().numel() for weight in weights] == [12, 12, 12, 12, 12, 1, 1]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "swinv2_cr_tiny_224"])
def test_undrawn_leaves_names_shapes_and_what_is_trained(name):
    with torch.device("meta"):
        drawn = timm.create_model(name)
        with Undrawn():
            undrawn = timm.create_model(name)

    def facts(model: nn.Module) -> dict[str, tuple]:
        return {name: (*weight.shape, weight.dtype, weight.is_meta) for name, weight in model.state_dict().items()}

    assert facts(undrawn) == facts(drawn)
    trained = [[weight.requires_grad for weight in model.parameters()] for model in (undrawn, drawn)]
    assert trained[0] == trained[1]


def test_undrawn_lets_a_weight_of_another_shape_fail():
    with Undrawn(), torch.no_grad():
        weight = nn.Parameter(torch.empty(4, 3, device="meta"))
        with pytest.raises(RuntimeError, match="broadcast"):
            weight.add_(torch.ones(5, device="meta"))
