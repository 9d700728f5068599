"""What a layer of a network is for a target of features: the output of a block, or of its MLP."""

import pytest
import torch
from small_models import assemble, images, shaken
from torch.nn import functional as F

from mim.encoders import Encoder
from mim.structures import ImageSpec
from mim.targets.follower import Follower


def model_of(encoder, hidden="replace", target="follower", **keys):
    return assemble("random", encoder, hidden, "convolution", target, target_keys=keys, encoder_keys={"depth": 3})


def vit_mlps(backbone, tokens_BND):
    """The output of the MLP of each block, by the formulas of a pre-norm transformer."""
    outputs = []
    for block in backbone.blocks:
        tokens_BND = tokens_BND + block.attn(block.norm1(tokens_BND))
        hidden_BND = F.gelu(block.mlp.fc1(block.norm2(tokens_BND)))
        outputs.append(hidden_BND @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)
        tokens_BND = tokens_BND + outputs[-1]
    return outputs


def normed(map_BDhw, axes):
    mean = map_BDhw.mean(dim=axes, keepdim=True)
    return (map_BDhw - mean) / (((map_BDhw - mean) ** 2).mean(dim=axes, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_target_of_mlps_is_data2vecs_mean_of_their_outputs(layers):
    """Each instance-normalised over tokens, then the mean, layer-normalised; without the class token."""
    target = model_of("vit", layers=layers, of="mlp", layer_norm="instance", norm="layer").target.double()
    network, img = shaken(target.network), images(2, dtype=torch.float64)
    tokens_BND = network.backbone.patch_embed(img) + network.backbone.pos_embed[:, 1:]
    class_BKD = (network.backbone.cls_token + network.backbone.pos_embed[:, :1]).expand(2, -1, -1)
    outputs = vit_mlps(network.backbone, torch.cat([class_BKD, tokens_BND], dim=1))[-layers:]
    maps = [output[:, 1:].transpose(1, 2).unflatten(2, network.spec.grid) for output in outputs]
    expected = normed(sum(normed(each, (2, 3)) for each in maps) / layers, (1,))
    torch.testing.assert_close(target(img), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_stage_of_an_mlp_comes_ahead_of_layer_scale_and_residual():
    """In a Beit: the output of a block is the tokens after attention + layer scale x the MLP's output."""
    encoder = shaken(model_of("beit").encoder.double()).eval()
    img = images(2, dtype=torch.float64)
    after_attention, block = [], encoder.backbone.blocks[1]
    handle = block.norm2.register_forward_pre_hook(lambda module, inputs: after_attention.append(inputs[0]))
    (mlp_BDhw,), (block_BDhw,) = (encoder(img, stages=(1,), of=of).stages_BDhw for of in ("mlp", "block"))
    handle.remove()
    before_BDhw = after_attention[0][:, 1:].transpose(1, 2).unflatten(2, encoder.spec.grid)
    scaled_BDhw = block.gamma_2[:, None, None] * mlp_BDhw
    torch.testing.assert_close(before_BDhw + scaled_BDhw, block_BDhw, rtol=0, atol=1e-12)


@torch.no_grad()
def test_stage_of_an_mlp_leaves_no_hook_and_the_tokens_as_they_are():
    encoder, img = model_of("vit", "drop").encoder.eval(), images(2)
    plain, read = encoder(img), encoder(img, stages=(0, 2), of="mlp")
    assert torch.equal(read.tokens_BND, plain.tokens_BND)
    assert len(read.stages_BDhw) == 2
    assert [module for module in encoder.modules() if module._forward_hooks] == []


@torch.no_grad()
def test_teacher_has_the_mlps_of_its_own_network():
    blocks, mlps = (model_of("vit", target="teacher", layers=2, of=of, norm="none").target for of in ("block", "mlp"))
    assert blocks(images(2)).shape == mlps(images(2)).shape
    assert not torch.allclose(blocks(images(2)), mlps(images(2)))


def test_target_of_mlps_refuses_a_network_without_them_and_class_tokens():
    for encoder in ("swin", "timm"):
        with pytest.raises(
            ValueError,
            match=rf"TARGET\.of mlp reads a network of beit or vit.* and this one is {encoder}.*: use TARGET\.of "
            r"block, or ENCODER\.name beit or vit",
        ):
            assemble("random", encoder, "replace", "convolution", "follower", target_keys={"of": "mlp"})
    with pytest.raises(ValueError, match=r"TARGET\.tokens class needs .*TARGET\.of block .*TARGET\.layers is 1 of mlp"):
        model_of("vit", of="mlp", tokens="class")


@pytest.mark.parametrize(
    ("image_size", "keys", "message"),
    [
        ((16, 16), {"tokens": "class", "norm": "instance"}, r"TARGET\.norm instance .*use TARGET\.norm layer or none"),
        ((16, 16), {"tokens": "class", "layer_norm": "layer"}, r"TARGET\.layer_norm layer .*TARGET\.layer_norm none"),
        ((4, 4), {"layer_norm": "instance"}, r"TARGET\.layer_norm instance .* has one: use .*layer or none"),
        ((4, 4), {"norm": "instance"}, r"TARGET\.norm instance .* has one: use .*layer or none"),
    ],
)
def test_norm_that_would_leave_zeros_or_do_nothing_is_refused(image_size, keys, message):
    image = ImageSpec(1, *image_size)
    student = Encoder.named("vit")(image, patch=4, width=8, depth=1, heads=2)
    with pytest.raises(ValueError, match=message):
        Follower(student, **keys)
