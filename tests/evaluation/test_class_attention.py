"""The attention of the class token, against softmax attention that is computed here from the weights of the block."""

import pytest
import torch
from small_models import IMAGE, images, shaken, small

from mim.encoders import Beit, Encoder, Swin, Timm, ViT
from mim.evaluation.class_attention import class_attention, why_no_class_token


def make(encoder_class, **keys) -> Encoder:
    torch.manual_seed(0)
    return shaken(small(encoder_class, IMAGE, hidden="none", **keys).double().eval())


def by_hand(encoder, img_BCHW):
    """Shares (B, A, N) that the class token takes in the last block, from its queries and keys."""
    block = encoder.backbone.blocks[-1]
    inputs = []
    handle = block.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
    encoder(img_BCHW)
    handle.remove()
    tokens_BND = block.norm1(inputs[0])
    queries_BND, keys_BND, _ = (tokens_BND @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=2)
    heads = block.attn.num_heads
    width = tokens_BND.shape[2] // heads
    shares = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores_BN = (queries_BND[:, :1, part] * keys_BND[:, :, part]).sum(dim=2) / width**0.5
        shares.append(scores_BN.exp() / scores_BN.exp().sum(dim=1, keepdim=True))
    return torch.stack(shares, dim=1)


@pytest.mark.parametrize("encoder_class", [ViT, Timm])
def test_class_attention_is_the_softmax_of_the_class_tokens_query_and_all_keys(encoder_class):
    encoder, img = make(encoder_class), images(2, dtype=torch.float64)
    shares_BAhw = class_attention(encoder, img)
    with torch.no_grad():
        expected_BAN = by_hand(encoder, img)
    assert shares_BAhw.shape == (2, 2, 4, 8)
    torch.testing.assert_close(shares_BAhw.flatten(2).double(), expected_BAN[:, :, 1:], rtol=0, atol=1e-6)
    assert shares_BAhw.flatten(2).std(dim=2).min() > 1e-3  # it is not all alike
    whole_BA = shares_BAhw.sum(dim=(2, 3)) + expected_BAN[:, :, 0]  # with the class token's own share
    torch.testing.assert_close(whole_BA, torch.ones_like(whole_BA), rtol=0, atol=1e-6)


def test_class_attention_leaves_registers_out():
    options = ("patch_size=8", "embed_dim=16", "depth=2", "num_heads=2", "reg_tokens=3")
    encoder = make(Timm, model="test_vit", options=options)
    shares_BAhw, expected_BAN = class_attention(encoder, images(1).double()), by_hand(encoder, images(1).double())
    assert encoder.spec.num_prefix == 4
    torch.testing.assert_close(shares_BAhw.flatten(2).double(), expected_BAN[:, :, 4:], rtol=0, atol=1e-6)


def test_class_attention_of_beit_has_its_biases():
    """Without them the shares of a token would not depend on its place."""
    encoder = make(Beit)
    flat = torch.zeros(1, 3, 32, 64, dtype=torch.float64)
    shares_BAhw = class_attention(encoder, flat)
    assert (shares_BAhw.sum(dim=(2, 3)) < 1).all()
    assert (shares_BAhw.sum(dim=(2, 3)) > 0.2).all()


@pytest.mark.parametrize(("encoder_class", "keys", "name"), [(Swin, {}, "swin"), (ViT, {"class_token": False}, "vit")])
def test_an_encoder_without_class_token_is_refused_by_name(encoder_class, keys, name):
    encoder = make(encoder_class, **keys)
    assert why_no_class_token(encoder) == f"{name} has no class token"
    with pytest.raises(ValueError, match=f"{name} has no class token"):
        class_attention(encoder, images(1, dtype=torch.float64))
