"""attention_maps: the weights that blocks use, between all tokens of an image, from an encoder that stays as it was.

Shapes: B batch, A attention heads, N tokens, V windows, T tokens of a window, D width.
"""

import pytest
import torch
from einops import rearrange
from small_models import IMAGE, images, members, shaken, small
from timm.models.swin_transformer import window_reverse
from torch import Tensor, nn

import mim
from mim.encoders import Encoder
from mim.encoders.attention import attention_maps
from mim.structures import Features


def make(name: str, **keys) -> Encoder:
    torch.manual_seed(0)
    return shaken(small(Encoder.named(name), IMAGE, **{"hidden": "none", **keys}).double().eval())


def inputs_and_outputs(encoder: Encoder, img: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of the attention of each block, as it runs by itself."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [
        block.attn.register_forward_hook(lambda _, arguments, output: seen.append((arguments[0], output)))
        for block in encoder.blocks()
    ]
    encoder(img)
    for handle in handles:
        handle.remove()
    return seen


def values(attention: nn.Module, tokens: Tensor) -> Tensor:
    """The values (..., D) that attention sums up; they are the last third of queries, keys and values."""
    width = tokens.shape[-1]
    bias = attention.qkv.bias if getattr(attention, "v_bias", None) is None else attention.v_bias
    return nn.functional.linear(tokens, attention.qkv.weight[-width:], None if bias is None else bias[-width:])


def in_order(block: nn.Module, tokens_VTD: Tensor) -> Tensor:
    """Tokens of windows as the tokens (B, N, D) of the image, by timm's own way back."""
    windows = rearrange(tokens_VTD, "v (p q) d -> v p q d", p=block.window_size[0])
    map_BhwD = window_reverse(windows, block.window_size, *block.input_resolution)
    return map_BhwD.roll(block.shift_size, dims=(1, 2)).flatten(1, 2)


@pytest.mark.parametrize("name", members(Encoder))
@torch.no_grad()
def test_attention_maps_times_the_values_are_what_each_block_puts_out(name):
    encoder, img = make(name), images(2, dtype=torch.float64)
    maps, seen = attention_maps(encoder, img), inputs_and_outputs(encoder, img)
    assert list(maps) == list(range(len(encoder.blocks())))
    for weights_BANN, block, (tokens, output) in zip(maps.values(), encoder.blocks(), seen, strict=True):
        value_BND = values(block.attn, tokens)
        if hasattr(block, "window_size"):
            value_BND, output = in_order(block, value_BND), in_order(block, output)
        heads = weights_BANN.shape[1]
        sums = weights_BANN @ rearrange(value_BND, "b n (a d) -> b a n d", a=heads)
        ours = block.attn.proj(rearrange(sums, "b a n d -> b n (a d)"))
        assert output.std() > 0.01
        torch.testing.assert_close(ours, output, rtol=0, atol=1e-10)
        torch.testing.assert_close(weights_BANN.sum(dim=-1), torch.ones_like(weights_BANN[..., 0]))
    assert any("shift_size" in vars(block) and any(block.shift_size) for block in encoder.blocks()) == ("swin" in name)


@pytest.mark.parametrize("name", ["vit", "beit"])
def test_attention_maps_have_the_class_token_first(name):
    """A change of the first patch changes, on the row of the class token, only its own weight beside the others."""
    encoder, img = make(name), images(2, dtype=torch.float64)
    other = img.clone()
    other[:, :, :8, :8] += 1
    one, two = (next(iter(attention_maps(encoder, each, blocks=[0]).values())) for each in (img, other))
    assert one.shape == (2, 2, 1 + 4 * 8, 1 + 4 * 8)
    assert not one.requires_grad
    ratio_BAN = (two / one)[:, :, 0]
    changes_BAN = (ratio_BAN / ratio_BAN[..., :1] - 1).abs() > 1e-9
    assert changes_BAN.nonzero()[:, 2].unique().tolist() == [1]


SMALL_SWIN = ("embed_dim=8", "depths=[2, 2]", "num_heads=[2, 2]", "window_size=4")
SMALL_CAIT = ("embed_dim=16", "depth=1", "num_heads=2")


def test_attention_maps_of_timms_swin_are_those_of_our_own():
    theirs = make("timm", model="swin_tiny_patch4_window7_224", options=SMALL_SWIN)
    ours = make("swin", patch=4)
    ours.backbone.load_state_dict(theirs.backbone.state_dict())
    img = images(2, dtype=torch.float64)
    maps, expected = attention_maps(theirs, img), attention_maps(ours, img)
    assert [tuple(each.shape) for each in maps.values()] == [(2, 2, 128, 128)] * 2 + [(2, 2, 32, 32)] * 2
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("cait_xxs24_224", SMALL_CAIT, "block 0 has no shares"),
        ("xcit_nano_12_p8_224", ("embed_dim=16", "depth=1", "num_heads=2"), "XCABlock of timm does not attend"),
        ("swin_tiny_patch4_window7_224", (*SMALL_SWIN[:-1], "window_size=3"), "windows of .* do not divide the grid"),
    ],
)
def test_attention_of_another_form_is_refused(model, options, reason):
    with pytest.raises(ValueError, match=reason):
        attention_maps(make("timm", model=model, options=options), images(1, dtype=torch.float64))


def test_attention_maps_of_swin_are_zero_between_windows():
    maps = attention_maps(make("swin"), images(1, dtype=torch.float64), blocks=[0, 1])
    first, shifted = (weights_BANN[0, 0].unflatten(1, (8, 16)).unflatten(0, (8, 16)) for weights_BANN in maps.values())
    window = first[0, 0].nonzero()
    assert window.amax(dim=0).tolist() == [3, 3]
    assert len(window) == 16
    inside = (shifted[3, 3] > 1e-9).nonzero()  # the second block's windows begin two tokens further
    assert (inside.amin(dim=0).tolist(), inside.amax(dim=0).tolist()) == ([2, 2], [5, 5])


@pytest.mark.parametrize("name", members(Encoder))
def test_attention_maps_leave_the_encoder_as_it_was(name):
    encoder, img = make(name, hidden="replace"), images(2, dtype=torch.float64)
    encoder.blocks()[0].eval()
    hooks = [list(module._forward_pre_hooks) + list(module._forward_hooks) for module in encoder.modules()]
    for fused in (True, False):
        for module in encoder.modules():
            if "fused_attn" in vars(module):
                module.fused_attn = fused
        before, state = encoder(img).tokens_BND, {key: value.clone() for key, value in encoder.state_dict().items()}
        switches = [(module.training, vars(module).get("fused_attn")) for module in encoder.modules()]
        attention_maps(encoder, img)
        assert torch.equal(encoder(img).tokens_BND, before)
        assert switches == [(module.training, vars(module).get("fused_attn")) for module in encoder.modules()]
        assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert hooks == [list(module._forward_pre_hooks) + list(module._forward_hooks) for module in encoder.modules()]


def test_attention_maps_leave_the_encoder_as_it_was_when_it_fails():
    encoder = make("vit")
    with pytest.raises((AssertionError, RuntimeError)):
        attention_maps(encoder, torch.zeros(1, 3, 7, 7, dtype=torch.float64))
    assert all(vars(module).get("fused_attn", True) for module in encoder.modules())
    assert not any(module._forward_pre_hooks for module in encoder.modules())


class Opaque(Encoder):
    """Blocks that are no attention, or one that never shows its weights."""

    name = "opaque"

    def __init__(self, *blocks: nn.Module):
        super().__init__(IMAGE, "none", width=3, patch=8)
        self.layers = nn.ModuleList(blocks)

    def blocks(self):
        return list(self.layers)

    def forward(self, img_BCHW, mask=None):
        return Features(img_BCHW.flatten(2).transpose(1, 2), self.spec.grid)


def test_attention_maps_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match=r"block 2: the 2 blocks of this encoder are 0 to 1"):
        attention_maps(make("vit"), images(1, dtype=torch.float64), blocks=[0, 2])
    with pytest.raises(ValueError, match=r"opaque has no blocks"):
        attention_maps(Opaque(), images(1))
    with pytest.raises(ValueError, match=r"block 0 shows no attention.*attn_drop"):
        attention_maps(Opaque(nn.Linear(3, 3)), images(1))
    silent = nn.Module()
    silent.attn_drop = nn.Dropout(0.0)
    with pytest.raises(ValueError, match=r"block 0 shows no attention.*fused_attn"):
        attention_maps(Opaque(silent), images(1))


def test_attention_maps_is_a_public_name():
    assert mim.attention_maps is attention_maps
