"""What every readout must do behind every encoder, and how one of one's own joins.

Shapes: B batch, K outputs, h w entries high and wide.
"""

import copy
import functools
import re

import pytest
import torch
from processes import ROOT
from small_models import IMAGE, generator, images, members, small
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mim.encoders import Encoder
from mim.ops.attention import choose_attention
from mim.readouts.base import Readout
from mim.registry import Key, keys_of
from mim.structures import EncoderSpec, Features, ImageSpec, StageSpec

WIDE = ImageSpec(3, 64, 96)
HIERA = ("embed_dim=16", "num_heads=1", "stages=[1,1,1,1]")
BACKBONES = {  # of timm, beside the one that small_models has
    "convnext": {"model": "test_convnext2"},
    "resnet": {"model": "test_resnet"},
    "hiera": {"model": "hiera_tiny_224", "options": HIERA},
}
ENCODERS = [*members(Encoder), *BACKBONES]
READOUTS = {
    name: {"channels": 16} if "channels" in keys_of(part) else {} for name, part in members(Readout).items()
} | {
    "attentive beside": {"class_token": "beside"},
    "attentive block": {"form": "block", "blocks": 1, "queries": 2},
    "segment_linear of two stages": {"stages": (0, -1)},
}
VIT_B = EncoderSpec(768, 16, 16, (14, 14), False, 1, (StageSpec(768, 16),) * 12)
SWIN_B = EncoderSpec(1024, 32, 4, (7, 7), False, 0, tuple(StageSpec(128 * 2**n, 4 * 2**n) for n in range(4)))
SILENT = {"pool.key.bias"}  # a softmax does not change with what all its entries share
EACH = [pytest.mark.parametrize("encoder", ENCODERS), pytest.mark.parametrize("name", READOUTS)]


@functools.cache
def encoded(name: str) -> tuple[Encoder, Tensor, Features]:
    """A small encoder, images that are not square, and its features with all stages."""
    torch.manual_seed(0)
    if name in BACKBONES:
        encoder = small(Encoder.named("timm"), WIDE, hidden="none", **{"options": (), **BACKBONES[name]})
    else:
        encoder = small(Encoder.named(name), IMAGE, hidden="none")
    encoder.eval()
    img_BCHW = images(3, encoder.image)
    return encoder, img_BCHW, encoder(img_BCHW, None, range(len(encoder.spec.stages)))


def of_images(inputs: Features, readout: Readout, rows: slice = slice(None)) -> Features:
    """The features of some images with the maps that a readout asks for."""
    prefix_BKD = None if inputs.prefix_BKD is None else inputs.prefix_BKD[rows]
    maps = tuple(inputs.stages_BDhw[stage][rows] for stage in readout.stages)
    return Features(inputs.tokens_BND[rows], inputs.grid, prefix_BKD=prefix_BKD, stages_BDhw=maps)


def build(encoder: str, name: str, outputs: int = 5) -> tuple[Readout, Features]:
    trunk, _, inputs = encoded(encoder)
    keys = READOUTS[name]
    if keys.get("class_token") and not trunk.spec.num_prefix:
        pytest.skip("this encoder has no class token")
    torch.manual_seed(0)
    return Readout.named(name.split()[0])(trunk.spec, outputs, **keys), inputs


def each(test):
    for mark in EACH:
        test = mark(test)
    return test


@each
def test_every_weight_of_a_readout_and_the_output_of_its_encoder_get_a_gradient(encoder, name):
    readout, inputs = build(encoder, name)
    tokens_BND = inputs.tokens_BND.detach().requires_grad_()
    chosen = of_images(Features(tokens_BND, inputs.grid, None, inputs.prefix_BKD, None, inputs.stages_BDhw), readout)
    scores = readout(chosen)
    (scores * torch.randn(scores.shape, generator=generator(1))).sum().backward(retain_graph=True)
    silent = {
        weight
        for weight, parameter in readout.named_parameters()
        if weight not in SILENT and (parameter.grad is None or not parameter.grad.any())
    }
    assert not silent
    assert tokens_BND.grad.any()  # so that the encoder's last norm is trained, too


@each
@torch.no_grad()
def test_scores_have_the_shape_of_their_labels_and_depend_on_their_own_image_alone(encoder, name):
    readout, inputs = build(encoder, name)
    readout.train()(of_images(inputs, readout))  # so that running statistics are not those of the start
    scores = readout.eval()(of_images(inputs, readout))
    assert scores.shape[:2] == (3, 5)
    if readout.kinds == ("mask",):
        high, wide = scores.shape[2:]
        grid = readout.encoder.grid
        assert high * grid[1] == wide * grid[0]
        assert high >= grid[0]
    else:
        assert scores.ndim == 2
    assert scores.isfinite().all()
    for row in range(3):
        alone = readout(of_images(inputs, readout, slice(row, row + 1)))
        torch.testing.assert_close(alone[0], scores[row], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores[0], scores[1])


@each
@torch.no_grad()
def test_a_copy_of_a_readout_is_its_own(encoder, name):
    """A probe trains several copies side by side."""
    readout, inputs = build(encoder, name)
    twin = copy.deepcopy(readout).eval()
    before = readout.eval()(of_images(inputs, readout))
    assert torch.equal(twin(of_images(inputs, readout)), before)
    for parameter in twin.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    assert torch.equal(readout(of_images(inputs, readout)), before)
    assert not torch.equal(twin(of_images(inputs, readout)), before)
    readout.load_state_dict(twin.state_dict())
    assert torch.equal(readout(of_images(inputs, readout)), twin(of_images(inputs, readout)))


@pytest.mark.parametrize("name", members(Readout))
def test_every_readout_starts_the_same_from_the_same_seed(name):
    first, second = build("vit", name)[0], build("vit", name)[0]
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", members(Readout))
def test_every_key_of_a_readout_has_a_meaning(name):
    for key, spec in keys_of(Readout.named(name)).items():
        assert spec.meaning, key


def test_kinds_say_which_labels_a_readout_answers():
    masks = {name for name, part in members(Readout).items() if part.kinds == ("mask",)}
    assert masks == {"segment_linear", "segment_fpn", "segment_upernet"}
    for name in set(members(Readout)) - masks:
        assert Readout.named(name).kinds == ("class", "classes", "number")


def test_a_readout_of_ones_own_joins_by_its_name_and_keyword_only_arguments(monkeypatch):
    """The example of docs/readouts.md, as it is."""
    monkeypatch.setattr(Readout, "_members", dict(Readout.members()))
    text = (ROOT / "docs/readouts.md").read_text()
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], {"__name__": "my_package.strongest"})
    part = Readout.named("strongest")
    assert part.kinds == ("class", "classes", "number")
    assert keys_of(part) == {"scale": Key(float, 1.0, "factor on the values, above 0.")}
    trunk, _, inputs = encoded("swin")
    readout = part(trunk.spec, 2, scale=3.0)
    expected_BK = 3 * inputs.tokens_BND.max(dim=1).values @ readout.linear.weight.T + readout.linear.bias
    torch.testing.assert_close(readout(of_images(inputs, readout)), expected_BK)
    with pytest.raises(ValueError, match=r"READOUT.scale is 0: it must be above 0"):
        part(trunk.spec, 2, scale=0)


def test_a_readout_of_ones_own_reads_the_stages_that_it_names_and_no_others():
    class Two(Readout):
        name = "two_of_tests"

        def forward(self, features):
            return torch.cat([each.amax(dim=(2, 3)) for each in features.stages_BDhw], dim=1)

    trunk, img_BCHW, inputs = encoded("swin")
    readout = Two(trunk.spec, 24, (1, 0))
    expected_BK = torch.cat([inputs.stages_BDhw[stage].flatten(2).max(dim=2).values for stage in (1, 0)], dim=1)
    assert torch.equal(readout(trunk(img_BCHW, None, readout.stages)), expected_BK)
    with pytest.raises(ValueError, match=r"READOUT.name two_of_tests needs stages \[2\], and the encoder has 2"):
        Two(trunk.spec, 2, (2,))


def test_page_names_every_readout():
    assert set(members(Readout)) <= set(re.findall(r"`(\w+)`", (ROOT / "docs/readouts.md").read_text()))


@pytest.mark.slow
def test_page_has_the_costs_of_readouts():
    text = (ROOT / "docs/readouts.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| ([\d.]+) M, ([\d.]+) G \| ([\d.]+) M, ([\d.]+) G \|", text, flags=re.MULTILINE)
    assert len(rows) == 8
    for keys, *numbers in rows:
        name, *pairs = re.findall(r"`(.*?)`", keys)
        settings = {key: int(value) if value.isdigit() else value for key, value in map(str.split, pairs)}
        for spec, written in zip((VIT_B, SWIN_B), (numbers[:2], numbers[2:]), strict=True):
            for number, exact in zip(written, cost(spec, name, settings), strict=True):
                digits = len(number.partition(".")[2])
                assert round(exact, digits) == float(number), (keys, exact)


def cost(spec: EncoderSpec, name: str, keys: dict) -> tuple[float, float]:
    """Millions of parameters, and thousand millions of products for an image."""
    part = Readout.named(name)
    with torch.device("meta"):
        readout = part(spec, 150 if part.kinds == ("mask",) else 1000, **keys).eval()
        stages = [spec.stages[stage] for stage in readout.stages]
        maps = tuple(torch.empty(1, stage.width, 224 // stage.stride, 224 // stage.stride) for stage in stages)
        inputs = Features(torch.empty(1, spec.grid[0] * spec.grid[1], spec.width), spec.grid, stages_BDhw=maps)
    choose_attention(readout, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        readout(inputs)
    return sum(parameter.numel() for parameter in readout.parameters()) / 1e6, counter.get_total_flops() / 2e9
