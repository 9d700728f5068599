"""The maps of the stages that an encoder gives to heads.

Shapes: B batch, N tokens, D width, h w entries of a map high and wide.
"""

import pytest
import torch
from small_models import IMAGE, generator, hidings, images, small

from mim.encoders import Encoder, Swin, SwinV2
from mim.maskers.random import Random

HIDINGS = pytest.mark.parametrize(("name", "hidden"), hidings())


def make(name: str, hidden: str):
    torch.manual_seed(0)
    encoder = small(Encoder.named(name), IMAGE, hidden=hidden).eval()
    return encoder, images(2), Random(IMAGE, cell=8, ratio=0.5).sample(2, generator(0), torch.device("cpu"))


@HIDINGS
@torch.no_grad()
def test_stages_are_maps_of_their_width_and_stride_zero_where_dropped(name, hidden):
    encoder, img, mask = make(name, hidden)
    specs = encoder.spec.stages
    assert len(specs) >= 2
    assert [stage.stride for stage in specs] == sorted(stage.stride for stage in specs)
    for given in (mask, None):
        plain, asked = encoder(img, given), encoder(img, given, range(len(specs)))
        assert torch.equal(asked.tokens_BND, plain.tokens_BND)
        assert plain.stages_BDhw == ()
        for stage, map_BDhw in zip(specs, asked.stages_BDhw, strict=True):
            assert map_BDhw.shape == (2, stage.width, 32 // stage.stride, 64 // stage.stride)
            entries_Bhw = map_BDhw.abs().amax(dim=1) > 0
            dropped_Bhw = torch.zeros_like(entries_Bhw)
            if hidden == "drop" and given is not None:
                dropped_Bhw = mask.at(*map_BDhw.shape[2:])
            assert torch.equal(entries_Bhw, ~dropped_Bhw)
    reverse = encoder(img, mask, (1, 0)).stages_BDhw
    for first, second in zip(reverse, reversed(encoder(img, mask, (0, 1)).stages_BDhw), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("name", "hidden"), [pair for pair in hidings() if pair[0] != "timm"])
@torch.no_grad()
def test_stages_are_what_blocks_or_stages_of_timm_put_out(name, hidden):
    """Of the windowed ones the last is behind the last norm."""
    encoder, img, mask = make(name, hidden)
    windowed, outputs = isinstance(encoder, (Swin, SwinV2)), []
    for layer in encoder.backbone.layers if windowed else encoder.backbone.blocks:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    given = mask if hidden == "replace" else None
    features = encoder(img, given, range(2))
    if windowed:
        outputs[-1] = encoder.backbone.norm(outputs[-1])
        expected = [output.permute(0, 3, 1, 2) for output in outputs]
    else:
        expected = [output[:, 1:].mT.unflatten(2, encoder.spec.grid) for output in outputs]
    for map_BDhw, output in zip(features.stages_BDhw, expected, strict=True):
        assert torch.equal(map_BDhw, output)
    if hidden == "drop" and not windowed:
        del outputs[:]
        features = encoder(img, mask, range(2))
        for map_BDhw, output in zip(features.stages_BDhw, outputs, strict=True):
            for image, kept_N in enumerate(features.kept_BN):
                assert torch.equal(map_BDhw[image].flatten(1)[:, kept_N], output[image, 1:].T)
