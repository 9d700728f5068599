"""load_encoder: ready encoders from any format, other sizes, and what is refused, or let through when asked for."""

import re
from pathlib import Path

import pytest
import torch
from converted import MODELS, build_sample, sample, tokens_of
from foreign_files import (
    State,
    mae_finetuned,
    mae_pretrained,
    random_weights,
    simmim_pretrained,
    simmim_vit,
    swin,
    vit,
    write_mae,
    write_simmim,
)
from processes import TINY, call, last_checkpoint
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

import mim
from mim import load_encoder
from mim.convert import convert
from mim.engine import checkpoint
from mim.ops.positions import resize_bias_table

HEADS = ["ENCODER.heads", "3"]


def dinov2(path: Path, registers: int = 4, **keys: object) -> Path:
    """A ViT as DINOv2 has it: layer scale, registers, and positions of the patches alone."""
    shared = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = VisionTransformer(**shared, reg_tokens=registers, init_values=1e-5, **keys)
    save_file(random_weights({name: tuple(weight.shape) for name, weight in model.state_dict().items()}), path)
    return path


# -------------------------------------------------------------------- what comes out


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_load_encoder_of_a_run_is_its_encoder_without_masks(tmp_path: Path, name: str) -> None:
    source = sample(name)
    encoder = load_encoder(source.write(tmp_path / "run.pt"))
    assert (encoder.hidden, encoder.mask_token, encoder.training) == ("none", None, False)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"cpu"}
    img_BCHW = source.images()
    with torch.no_grad():  # attention with a bias takes another kernel where gradients are wanted
        assert torch.equal(tokens_of(encoder, img_BCHW), source.features(img_BCHW))


def test_load_encoder_takes_a_run_folder_by_path_or_by_text(tmp_path: Path) -> None:
    code, text = call(tmp_path / "run", {**TINY, "DATA.batch_size": 256, "TRAIN.batch": 256})
    assert code == 0, text
    img_BCHW = torch.randn(2, 1, 32, 32)
    outputs = [load_encoder(path)(img_BCHW).tokens_BND for path in (tmp_path / "run", str(tmp_path / "run"))]
    outputs.append(load_encoder(last_checkpoint(tmp_path / "run"))(img_BCHW).tokens_BND)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_load_encoder_prefers_the_moving_average(tmp_path: Path) -> None:
    source, other = sample("vit-class"), build_sample(MODELS["vit-class"], seed=2)
    ema = {"n_averaged": torch.tensor(3), **{f"module.{name}": weight for name, weight in source.state.items()}}
    img_BCHW = source.images()
    encoder = load_encoder(other.write(tmp_path / "run.pt", ema=ema))
    assert torch.equal(tokens_of(encoder, img_BCHW), source.features(img_BCHW))


FORMATS = [
    ("mae", "mae", "a.pth"),
    ("mae", "timm", "a.pth"),
    ("swin", "timm", "a.safetensors"),
    ("beit", "simmim", "a.pth"),
]


@pytest.mark.parametrize(("model", "to", "out"), [*FORMATS, ("swin_v2", "transformers", "a")])
def test_load_encoder_of_every_format_gives_the_same_features_and_maps(tmp_path, model: str, to: str, out: str) -> None:
    source = sample(model)
    convert(source.write(tmp_path / "run.pt"), tmp_path / out, to)
    first, second, img_BCHW = load_encoder(tmp_path / "run.pt"), load_encoder(tmp_path / out), source.images()
    assert torch.equal(tokens_of(first, img_BCHW), tokens_of(second, img_BCHW))
    maps = second.feature_maps(img_BCHW)
    assert {stride: map_BDhw.shape[-1] for stride, map_BDhw in maps.items()} == {4: 8, 8: 4, 16: 2, 32: 1}
    assert all(torch.equal(map_BDhw, maps[stride]) for stride, map_BDhw in first.feature_maps(img_BCHW).items())


def test_load_encoder_is_a_public_name() -> None:
    assert mim.load_encoder is load_encoder
    assert "load_encoder" in mim.__all__


def test_load_encoder_trains_when_it_is_told_to(tmp_path: Path) -> None:
    encoder = load_encoder(sample("beit").write(tmp_path / "run.pt")).train()
    encoder(torch.randn(2, 3, 32, 32)).tokens_BND.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_load_encoder_leaves_the_random_state_of_its_caller_alone(tmp_path: Path) -> None:
    """What it draws for a moment and then overwrites must not show."""
    path = sample("mae").write(tmp_path / "run.pt")
    before = torch.manual_seed(5).get_state()  # of a seed that nothing here draws from
    load_encoder(path)
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------- another size, and what is not told


def smooth_positions(side: int, width: int) -> torch.Tensor:
    """A class token's row, and a table that varies slowly over its places, as trained ones do."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    phases = torch.linspace(0, 3, width)
    table = torch.sin(x[..., None] + phases) * torch.cos(y[..., None] - phases)
    return torch.cat([torch.ones(1, width), table.reshape(-1, width)])[None]


def test_load_encoder_at_another_size_resizes_positions_as_timm_would(tmp_path: Path) -> None:
    """To rounding where timm leaves antialiasing out, too. Its default takes another cubic, of a = -.5 in place of
    -.75, which is off by up to .05 on a table between -1 and 1.
    """
    state = {**mae_finetuned(), "pos_embed": smooth_positions(4, 24)}
    path = write_mae(tmp_path / "theirs.pth", state)
    encoder = load_encoder(path, [*HEADS, "DATA.image_size", "[48, 48]"])
    assert encoder.spec.grid == (6, 6)
    table = encoder.backbone.pos_embed
    plain, default = (resample_abs_pos_embed(state["pos_embed"], [6, 6], [4, 4], antialias=aa) for aa in (False, True))
    torch.testing.assert_close(table, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(table, default, rtol=0, atol=0.05)
    assert encoder(torch.randn(1, 3, 48, 48)).grid == (6, 6)
    assert torch.equal(load_encoder(path, HEADS).backbone.pos_embed, state["pos_embed"])


def test_load_encoder_at_another_size_resizes_biases(tmp_path: Path) -> None:
    state = simmim_pretrained(simmim_vit(), 8)
    path = write_simmim(tmp_path / "theirs.pth", state)
    name = "rel_pos_bias.relative_position_bias_table"
    table, prefix = state[f"encoder.{name}"][:-3], state[f"encoder.{name}"][-3:]
    encoder = load_encoder(path, ["DATA.image_size", "[48, 40]"])
    resized = encoder.state_dict()[f"backbone.{name}"]
    assert torch.equal(resized[:-3], resize_bias_table(table, (6, 5), (4, 4)))
    assert torch.equal(resized[-3:], prefix)
    same = load_encoder(path, ["DATA.image_size", "[32, 32]"]).state_dict()[f"backbone.{name}"]
    assert torch.equal(same, state[f"encoder.{name}"])


def test_load_encoder_asks_for_the_encoders_keys_alone(tmp_path: Path) -> None:
    """Not for those of a decoder that it leaves out."""
    path = write_mae(tmp_path / "theirs.pth", mae_pretrained())
    with pytest.raises(ValueError, match=r"does not hold ENCODER\.heads: give each"):
        load_encoder(path)
    assert load_encoder(path, HEADS).backbone.blocks[0].attn.num_heads == 3


def test_load_encoder_heads_that_are_told_are_those_it_computes_with(tmp_path: Path) -> None:
    path = write_mae(tmp_path / "theirs.pth", mae_pretrained())
    img_BCHW = torch.randn(1, 3, 32, 32)
    three, four = (load_encoder(path, ["ENCODER.heads", heads])(img_BCHW).tokens_BND for heads in ("3", "4"))
    assert not torch.allclose(three, four, atol=1e-3)


def test_load_encoder_of_a_bare_swin_asks_for_its_size(tmp_path: Path) -> None:
    state = random_weights(swin())
    torch.save(state, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=r"does not hold DATA\.image_size"):
        load_encoder(tmp_path / "theirs.pth")
    assert load_encoder(tmp_path / "theirs.pth", ["DATA.image_size", "[64, 32]"]).spec.grid == (8, 4)


# -------------------------------------------------------------------- strict


def test_load_encoder_refuses_a_vit_with_more_than_ours_computes_and_names_it(tmp_path: Path) -> None:
    """A ViT of DINOv2's kind, which would load half and give wrong features without a word."""
    path = dinov2(tmp_path / "dino.safetensors", no_embed_class=False)
    with pytest.raises(ValueError, match="its features would differ") as caught:
        load_encoder(path, ["DATA.image_size", "[32, 32]"])
    message = str(caught.value)
    assert str(path) in message
    assert "in the file only, left out: " in message
    for name in ("backbone.reg_token", "backbone.blocks.0-1.ls1.gamma", "backbone.blocks.0-1.ls2.gamma"):
        assert re.search(re.escape(name).replace("reg_token", r"\{?[\w, ]*reg_token"), message), name
    encoder = load_encoder(path, ["DATA.image_size", "[32, 32]"], strict=False)
    assert encoder(torch.randn(1, 3, 32, 32)).tokens_BND.isfinite().all()


def test_load_encoder_refuses_layer_scale_alone(tmp_path: Path) -> None:
    path = dinov2(tmp_path / "dino.safetensors", registers=0)
    with pytest.raises(
        ValueError, match=r"left out: backbone\.blocks\.0-1\.ls1\.gamma, backbone\.blocks\.0-1\.ls2\.gamma"
    ):
        load_encoder(path)
    assert load_encoder(path, strict=False).spec.width == 192


def test_load_encoder_draws_what_a_file_lacks_the_same_in_every_call(tmp_path: Path) -> None:
    torch.save(cut(random_weights(vit()), "blocks.1.mlp.fc2.weight"), tmp_path / "theirs.pth")
    first, second = (load_encoder(tmp_path / "theirs.pth", HEADS, strict=False) for _ in range(2))
    assert torch.equal(first.backbone.blocks[1].mlp.fc2.weight, second.backbone.blocks[1].mlp.fc2.weight)


def cut(state: State, *ends: str) -> State:
    return {name: weight for name, weight in state.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    ("state", "named"),
    [
        (
            cut(random_weights(vit()), "blocks.1.mlp.fc2.bias"),
            "missing in the file, kept as initialised: backbone.blocks.1.mlp.fc2.bias",
        ),
        (
            {**random_weights(vit()), "norm_pre.weight": torch.ones(24)},
            "in the file only, left out: backbone.norm_pre.weight",
        ),
        (
            {**random_weights(vit()), "norm.weight": torch.ones(3)},
            "of another shape, left out: backbone.norm.weight 3 for 24",
        ),
        (
            {**random_weights(vit()), "blocks.0.attn.q_norm.weight": torch.ones(8)},
            "backbone.blocks.0.attn.q_norm.weight",
        ),
    ],
    ids=["missing", "unexpected", "another-shape", "qk-norm"],
)
def test_load_encoder_refuses_weights_that_do_not_all_match(tmp_path: Path, state: State, named: str) -> None:
    torch.save(state, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match="its features would differ") as caught:
        load_encoder(tmp_path / "theirs.pth", HEADS)
    assert named in str(caught.value)
    load_encoder(tmp_path / "theirs.pth", HEADS, strict=False)


def test_load_encoder_refuses_another_depth_than_the_files(tmp_path: Path) -> None:
    path = write_mae(tmp_path / "theirs.pth", mae_pretrained(depth=3))
    with pytest.raises(ValueError, match=r"ENCODER\.depth: 2 here, 3 there"):
        load_encoder(path, [*HEADS, "ENCODER.depth", "2"])
    with pytest.raises(ValueError, match=r"left out: backbone\.blocks\.2\."):
        load_encoder(path, [*HEADS, "ENCODER.depth", "2", "INIT.keep", "[ENCODER.depth]"])


def test_load_encoder_of_a_file_without_most_of_an_encoder_is_refused_even_when_lenient(tmp_path: Path) -> None:
    torch.save(
        cut(random_weights(vit()), "mlp.fc1.weight", "mlp.fc2.weight", "qkv.weight", "0.attn.proj.weight"),
        tmp_path / "a.pth",
    )
    with pytest.raises(ValueError, match=r"lacks|holds another encoder|known format"):
        load_encoder(tmp_path / "a.pth", HEADS, strict=False)


@pytest.mark.parametrize(
    "content", [{"model": {}}, {"model": {"conv1.weight": torch.zeros(3)}}, [1], torch.zeros(2), {}]
)
def test_load_encoder_of_no_encoder_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds no encoder in a known format"):
        load_encoder(tmp_path / "a.pth")


def test_load_encoder_of_a_checkpoint_without_a_config_is_refused(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "a.pt", {"model": dict(sample("mae").state), "ema": {}})
    with pytest.raises(ValueError, match=r"a\.pt does not hold ENCODER\.name"):
        load_encoder(tmp_path / "a.pt")


def test_load_encoder_of_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pth does not exist"):
        load_encoder(tmp_path / "none.pth")


def test_load_encoder_refuses_pairs_that_do_not_fit(tmp_path: Path) -> None:
    path = write_mae(tmp_path / "theirs.pth", mae_pretrained())
    for pairs, message in (
        ([*HEADS, "DATA.image_size", "[33, 32]"], "height"),
        (["ENCODER.heads", "5"], "does not divide"),
        ([*HEADS, "ENCODER.windows", "5"], "unknown key"),
        ([*HEADS, "HEAD.heads", "2"], "HEAD is no section of TASK finetune"),
    ):
        with pytest.raises(ValueError, match=message):
            load_encoder(path, pairs)
