"""The mask token behind a stem or a stage.

Shapes: B batch, N tokens, D width.
"""

import pytest
import torch
from small_models import generator, images

from mim.encoders.timm_model import Timm
from mim.engine.modes import recompute_activations
from mim.structures import ImageSpec, PatchMask

IMAGE = ImageSpec(3, 32, 32)
BLOCKS = (  # the first has 64 channels from the stem
    "block_cfg=[{in_chs: 64, out_chs: 8, stride: 2}, {in_chs: 8, out_chs: 8, stride: 2}]",
)


def mask() -> PatchMask:
    order_BL = torch.rand(2, 64, generator=generator(0)).argsort(dim=1)
    return PatchMask.from_tensor((order_BL < 32).view(2, 8, 8), 2)


def test_token_inside_a_block_stays_where_the_block_is_recomputed():
    """The first stage of Xception ends inside its second block."""
    gradients = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        encoder = Timm(IMAGE, model="xception41", hidden="replace", options=BLOCKS, replace_at=1).double()
        if recomputed:
            recompute_activations(encoder.blocks())
        img_BCHW = images(2, IMAGE, dtype=torch.float64)
        encoder(img_BCHW, mask()).tokens_BND.square().sum().backward()
        gradients.append({name: each.grad for name, each in encoder.named_parameters()})
    assert gradients[0]["mask_token"].any()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("model", ["test_vit", "eva02_tiny_patch14_224"])
def test_model_that_drops_tokens_at_random_is_refused(model):
    side = 64 if model == "test_vit" else 56
    with torch.device("meta"), pytest.raises(ValueError, match="patch_drop_rate drops tokens"):
        Timm(ImageSpec(3, side, side), model=model, hidden="replace", options=("depth=1", "patch_drop_rate=0.5"))
