"""The segment_upernet readout: the same as UPerNet in transformers, which follows mmsegmentation.

Shapes: B batch, K outputs, h w entries high and wide.
"""

from dataclasses import replace

import pytest
import torch
from segmentation import PLAIN, SPEC, assert_same, features, shifted

from mim.readouts.segment_upernet import SegmentUPerNet
from mim.structures import EncoderSpec


def build(spec: EncoderSpec = SPEC) -> SegmentUPerNet:
    torch.manual_seed(0)
    return shifted(SegmentUPerNet(spec, 5, channels=8, dropout=0.0))


def published(readout: SegmentUPerNet):
    """UperNetHead of transformers on the readout's own layers, with GroupNorm in place of BatchNorm."""
    from transformers.models.upernet.configuration_upernet import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    config = UperNetConfig(pool_scales=[1, 2, 3, 6], hidden_size=8, num_labels=5)
    theirs = UperNetHead(config, readout.pyramid.widths)
    pairs = [
        *((block.layers[1], unit) for block, unit in zip(theirs.psp_modules.blocks, readout.pooled, strict=True)),
        *zip(theirs.lateral_convs, readout.lateral, strict=True),
        *zip(theirs.fpn_convs, readout.smooth, strict=True),
        (theirs.bottleneck, readout.bottleneck),
        (theirs.fpn_bottleneck, readout.fuse),
    ]
    for module, (conv, norm, _) in pairs:
        assert module.conv.weight.shape == conv.weight.shape
        module.conv.weight, module.batch_norm = conv.weight, norm
    theirs.classifier = readout.predict
    return theirs


@pytest.mark.slow  # transformers is imported
@pytest.mark.parametrize("spec", [SPEC, PLAIN], ids=["strides", "plain"])
def test_segment_upernet_is_the_one_of_transformers_with_its_gradients(spec):
    readout = build(spec)
    inputs = features(readout)
    assert readout(inputs).shape == ((2, 5, 16, 24) if spec is SPEC else (2, 5, 8, 16))
    assert_same(readout, inputs, published(readout)(readout.pyramid(inputs)))


def test_every_place_sees_the_whole_image():
    """The context of one entry a side reaches all others."""
    readout = build(replace(SPEC, stages=(), stride=4, grid=(16, 16))).eval()
    inputs = features(readout, batch=1)
    changed_BND = inputs.tokens_BND.detach().clone()
    changed_BND[:, -1] += 5
    difference_BKhw = readout(replace(inputs, tokens_BND=changed_BND)) - readout(inputs)
    assert difference_BKhw[0, :, 0, 0].abs().max() > 1e-4


def test_one_image_whose_coarsest_map_has_one_entry_trains():
    """BatchNorm would refuse it: one value a channel."""
    readout = build(replace(SPEC, stages=(), grid=(1, 1)))
    readout(features(readout, batch=1)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in readout.parameters())
    assert readout.pooled[0][0].weight.grad.abs().max() > 0
