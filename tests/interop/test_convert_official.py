"""Files in the official layouts of MAE and SimMIM: recognised, read to the last value, and started from.

The files are made in foreign_files, from names alone; what pickles old scripts left in them is there too.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from converted import (
    DECODER,
    SHUFFLE,
    SQUARE,
    SWIN,
    SWIN_V2,
    VIT,
    build_sample,
    pretrained,
    read_checkpoint,
    tokens_of,
    tuned,
)
from foreign_files import (
    State,
    linear,
    mae_finetuned,
    mae_pretrained,
    mae_probed,
    random_weights,
    simmim_config,
    simmim_finetuned,
    simmim_pretrained,
    simmim_vit,
    swin,
    swin_buffers,
    vit,
    write_mae,
    write_simmim,
)
from processes import FINETUNE, ROOT, TINY_CLASSIFIER, call, last_state
from safetensors.torch import save_file
from small_models import classes
from timm.models import beit as timm_beit
from timm.models import swin_transformer, swin_transformer_v2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mim import build_model, build_predictor, load_config, load_encoder
from mim.convert import config_of, convert
from mim.engine.checkpoint import load_strict
from mim.interop import read

NORM = partial(nn.LayerNorm, eps=1e-6)
BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask", "decoder_pos_embed")

# -------------------------------------------------------------------- where each value belongs


def our_name(name: str) -> str:
    """Our name of an official one, said once more and otherwise than in mim.interop."""
    for theirs, ours in (
        ("head.0.", "readouts.0.norm."),
        ("head.1.", "readouts.0.linear."),
        ("head.", "readouts.0.linear."),
        ("fc_norm.", "readouts.0.norm."),
        ("mask_token", "head.mask_token"),
        ("decoder_embed.", "head.embed."),
        ("decoder_blocks.", "head.layers."),
        ("decoder_norm.", "head.norm."),
        ("decoder_pred.", "head.predict."),
        ("decoder.0.", "head.conv."),
        ("encoder.mask_token", "encoder.mask_token"),
    ):
        if name.startswith(theirs):
            return name.replace(theirs, ours, 1)
    parts = name.removeprefix("encoder.").split(".")
    if "downsample" in parts:  # layers.<stage>.downsample...: at the end of a stage there, ahead of the next here
        parts[1] = str(int(parts[1]) + 1)
    return ".".join(["encoder", "backbone", *parts])


SWIN_FILE = partial(swin, windows=(4, 4))
V2_FILE = partial(swin, windows=(4, 4), version=2)
V1_BUFFERS, V2_BUFFERS = swin_buffers(swin()), swin_buffers(swin(version=2), version=2)
ARGUMENTS = {"model": "mae_vit_base_patch16", "input_size": 32}
HEADS, DECODER_HEADS = ["ENCODER.heads", "3"], ["HEAD.heads", "2"]
WINDOW, SIZE = ["ENCODER.window", "4"], ["DATA.image_size", "[32, 32]"]
BEIT_CONFIG = simmim_config(section="VIT")
File = Callable[[Path], Path]

FILES: dict[str, tuple[str, State, File, list[str], dict[str, object]]] = {
    # by name: format, weights, how they are written, pairs that are asked for, and what config comes of it
    "mae pretrained": (
        "mae",
        (state := mae_pretrained()),
        partial(write_mae, weights=state, mask_ratio=0.6, norm_pix_loss=False, **ARGUMENTS),
        DECODER_HEADS,
        {"TASK": "pretrain", "ENCODER.heads": 12, "MASKER.ratio": 0.6, "TARGET.normalize": "none", "HEAD.depth": 2},
    ),
    "mae pretrained, encoder alone": (
        "mae",
        (state := mae_pretrained(decoder=0, width=192, depth=1)),
        partial(write_mae, weights=state, input_size=32),
        [],
        {"TASK": "pretrain", "ENCODER.heads": 3, "TARGET.normalize": "patch", "MASKER.ratio": 0.75},
    ),
    "mae fine-tuned on the mean": (
        "mae",
        (state := mae_finetuned()),
        partial(
            write_mae, weights=state, global_pool=True, **ARGUMENTS | {"model": "vit_large_patch16", "input_size": 32}
        ),
        HEADS,
        {"TASK": "finetune", "READOUT.pool": "mean", "READOUT.norm": "layer", "ENCODER.norm": False},
    ),
    "mae fine-tuned on the class token": (
        "mae",
        (state := mae_finetuned(pool="class")),
        partial(write_mae, weights=state),
        HEADS,
        {"TASK": "finetune", "READOUT.pool": "class", "READOUT.norm": "none", "ENCODER.norm": True},
    ),
    "mae probed": (
        "mae",
        (state := mae_probed()),
        partial(write_mae, weights=state),
        HEADS,
        {"TASK": "probe", "READOUT.pool": "class", "ENCODER.norm": True, "DATA.image_size": [32, 32]},
    ),
    "simmim pretrained swin": (
        "simmim",
        (state := simmim_pretrained(SWIN_FILE(), 8, V1_BUFFERS)),
        partial(write_simmim, weights=state),
        [],
        {
            "TASK": "pretrain",
            "ENCODER.window": 4,
            "MASKER.cell": 16,
            "MASKER.rounding": "ceil_hidden",
            "LOSS.name": "l1",
            "LOSS.eps": 1e-5,
            "TARGET.normalize": "none",
            "DATA.image_size": [32, 32],
        },
    ),
    "simmim fine-tuned swin": (
        "simmim",
        (state := simmim_finetuned(SWIN_FILE(), buffers=V1_BUFFERS)),
        partial(write_simmim, weights=state),
        [],
        {"TASK": "finetune", "READOUT.pool": "mean", "READOUT.norm": "none", "ENCODER.heads": [2, 4]},
    ),
    "simmim pretrained vit": (
        "simmim",
        (state := simmim_pretrained(simmim_vit(), 8)),
        partial(write_simmim, weights=state, config=BEIT_CONFIG),
        [],
        {"TASK": "pretrain", "ENCODER.bias": "shared", "ENCODER.heads": 2, "ENCODER.layer_scale": 0.1},
    ),
    "simmim fine-tuned vit": (
        "simmim",
        (state := simmim_finetuned(simmim_vit(shared=False))),
        partial(write_simmim, weights=state, config=BEIT_CONFIG),
        [],
        {"TASK": "finetune", "ENCODER.bias": "block", "READOUT.pool": "mean", "READOUT.norm": "layer"},
    ),
    "simmim pretrained swin v2": (
        "simmim",
        (state := simmim_pretrained(V2_FILE(), 8, V2_BUFFERS)),
        partial(write_simmim, weights=state, config=simmim_config(section="SWINV2")),
        [],
        {"TASK": "pretrain", "ENCODER.name": "swin_v2", "ENCODER.window": 4, "ENCODER.pretrained_windows": []},
    ),
    "simmim fine-tuned swin v2": (
        "simmim",
        (state := simmim_finetuned(V2_FILE(), buffers=V2_BUFFERS)),
        partial(write_simmim, weights=state, config=simmim_config(section="SWINV2", PRETRAINED_WINDOW_SIZES=[2, 3])),
        [],
        {"TASK": "finetune", "ENCODER.window": 4, "ENCODER.pretrained_windows": [2, 3], "READOUT.pool": "mean"},
    ),
}


@pytest.mark.parametrize("with_format", [False, True], ids=["recognised", "given"])
@pytest.mark.parametrize("name", FILES)
def test_official_file_is_read_to_the_last_value(tmp_path: Path, name: str, with_format: bool) -> None:
    format_name, state, write, pairs, expected = FILES[name]
    path = write(tmp_path / "theirs.pth")
    lines = convert(path, tmp_path / "ours.pt", "mim", format_name if with_format else "", pairs)
    assert not [
        line for line in lines if line.startswith(("  missing", "  in the file only", "  of another", "  resized"))
    ]
    cfg, converted = read_checkpoint(tmp_path / "ours.pt")
    weights = {theirs: weight for theirs, weight in state.items() if not theirs.endswith(BUFFERS)}
    assert sorted(converted) == sorted(map(our_name, weights))
    assert [theirs for theirs, weight in weights.items() if not torch.equal(converted[our_name(theirs)], weight)] == []
    for key, value in expected.items():
        setting = cfg.flat()[key]
        assert (list(setting) if isinstance(setting, tuple) else setting) == value, key
    model = build_model(cfg) if cfg.TASK == "pretrain" else build_predictor(cfg, classes(10))
    if "decoder_pos_embed" in state:
        torch.testing.assert_close(model.head.positions, state["decoder_pos_embed"])
    if name != "mae pretrained, encoder alone":
        load_strict(model, converted, path)


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_official_file_gives_an_encoder_with_the_features_of_its_own(tmp_path: Path, name: str) -> None:
    """Of timm's classes, which the originals subclass or copied."""
    _, state, write, pairs, _ = FILES[name]
    encoder = load_encoder(write(tmp_path / "theirs.pth"), [] if pairs == DECODER_HEADS else pairs)
    shared = {"img_size": 32, "num_classes": 0}
    if name.startswith("mae"):
        width, depth = state["cls_token"].shape[2], 1 if "alone" in name else 2
        pool = "avg" if "fc_norm.weight" in state else "token"
        heads = encoder.backbone.blocks[0].attn.num_heads
        keys = {"patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": heads, "global_pool": pool}
        model: nn.Module = VisionTransformer(**shared, **keys, norm_layer=NORM)
        encoder_state = {
            key: weight for key, weight in state.items() if not key.startswith(("decoder", "mask_token", "head."))
        }
    elif "vit" in name:
        bias = {"use_rel_pos_bias": "fine" in name, "use_shared_rel_pos_bias": "fine" not in name}
        keys = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.1}
        pool = {"global_pool": "avg" if "fine" in name else "token", "use_abs_pos_emb": False}
        model = timm_beit.Beit(**shared, **keys, **bias, **pool, norm_layer=NORM)
        encoder_state = of_encoder(state)
    else:
        keys = {"patch_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
        library, kind = swin_transformer, swin_transformer.SwinTransformer
        if "v2" in name:
            library, kind = swin_transformer_v2, swin_transformer_v2.SwinTransformerV2
            keys |= {"pretrained_window_sizes": (2, 3)} if "fine" in name else {}
        model = kind(**shared, **keys)
        encoder_state = library.checkpoint_filter_fn(of_encoder(state), model)
    model.load_state_dict(encoder_state)
    img_BCHW = torch.randn(2, 3, 32, 32)
    theirs = model.eval().forward_features(img_BCHW)
    theirs = theirs.flatten(1, 2) if theirs.ndim == 4 else theirs
    torch.testing.assert_close(tokens_of(encoder, img_BCHW), theirs, rtol=1e-5, atol=1e-5)


def of_encoder(state: State) -> State:
    """Of SimMIM's pretraining or fine-tuning, what its encoder has."""
    encoder_state = {
        name.removeprefix("encoder."): weight
        for name, weight in state.items()
        if not name.startswith(("decoder.", "head."))
    }
    return {name: weight for name, weight in encoder_state.items() if name != "mask_token"}


@pytest.mark.parametrize(
    ("to", "sections", "official"),
    [
        ("mae", pretrained({**VIT, "mlp_ratio": 4.0}, "drop", DECODER, SQUARE), mae_pretrained()),
        ("mae", tuned({**VIT, "mlp_ratio": 4.0, "norm": False}, "mean", True, SQUARE), mae_finetuned(classes=5)),
        ("mae", tuned({**VIT, "mlp_ratio": 4.0}, "class", False, SQUARE), mae_finetuned(classes=5, pool="class")),
        ("simmim", pretrained(SWIN, "replace", SHUFFLE, SQUARE), simmim_pretrained(swin(), 8)),
        ("simmim", pretrained(SWIN_V2, "replace", SHUFFLE, SQUARE), simmim_pretrained(swin(version=2), 8)),
        ("simmim", tuned(SWIN, "mean", False, SQUARE), simmim_finetuned(swin(), classes=5)),
    ],
    ids=["mae", "mae-mean", "mae-class", "simmim-swin", "simmim-swin_v2", "simmim-tuned"],
)
def test_converted_file_has_the_names_and_shapes_of_official_ones(tmp_path, to: str, sections, official: State) -> None:
    convert(build_sample(sections).write(tmp_path / "ours.pt"), tmp_path / "theirs.pth", to)
    converted = torch.load(tmp_path / "theirs.pth", weights_only=True)["model"]
    assert {name: weight.shape for name, weight in converted.items()} == {
        name: weight.shape for name, weight in official.items()
    }
    if "decoder_pos_embed" in official:
        torch.testing.assert_close(converted["decoder_pos_embed"], official["decoder_pos_embed"])


# -------------------------------------------------------------------- INIT.checkpoint of a real fine-tuning

STILL = {**TINY_CLASSIFIER, "TRAIN.epochs": 1, "OPTIMIZER.base_lr": 0, "SCHEDULE.min_lr": 0}
SWIN_RECIPE = """\
TASK: finetune
DATA: {name: digits, image_size: [32, 32], channels: 1, batch_size: 16, workers: 0}
ENCODER: {name: swin, hidden: none, patch: 4, width: 8, depths: [2, 2], heads: [2, 4], window: 4}
"""


def tuned_from(tmp_path: Path, source: Path, recipe: Path, keys: dict) -> tuple[str, State]:
    """The log of a fine-tuning at a rate of 0, and the encoder that it ends with."""
    code, text = call(tmp_path / "run", {**keys, "INIT.checkpoint": source}, recipe)
    assert code == 0, text
    log = (tmp_path / "run" / "log.txt").read_text()
    assert next(line for line in text.splitlines() if "encoder weights loaded" in line) in log
    weights = last_state(tmp_path / "run")["model"]
    return log, {name: weight for name, weight in weights.items() if name.startswith("encoder.")}


def test_train_starts_from_an_official_mae_file_at_another_size(tmp_path: Path) -> None:
    state = mae_pretrained(width=16, patch=4, channels=1, tokens=64)
    source = write_mae(tmp_path / "mae.pth", state, input_size=32)
    log, weights = tuned_from(tmp_path, source, FINETUNE, {**STILL, "DATA.image_size": "[48, 40]"})
    for text in (
        f"{source}: 28 encoder weights loaded\n",
        "  resized or moved: backbone.pos_embed 1x65x16 -> 1x121x16\n",
        "  in the file only, left out: backbone.norm.{weight, bias}\n",
    ):
        assert text in log
    assert "missing" not in log
    assert not torch.equal(weights["encoder.backbone.pos_embed"][:, 1:65], state["pos_embed"][:, 1:])
    for theirs, weight in state.items():
        if our_name(theirs) in weights and theirs != "pos_embed":
            assert torch.equal(weights[our_name(theirs)], weight), theirs
    assert len(weights) == 28


def test_train_starts_from_an_official_simmim_file(tmp_path: Path) -> None:
    state = simmim_pretrained(swin(channels=1), 8, V1_BUFFERS)
    source, recipe = write_simmim(tmp_path / "simmim.pth", state), tmp_path / "recipe.yaml"
    recipe.write_text(SWIN_RECIPE)
    keys = {key: value for key, value in STILL.items() if not key.startswith("ENCODER")}
    log, tuned_weights = tuned_from(tmp_path, source, recipe, keys)
    weights = {
        name: value for name, value in state.items() if name.startswith("encoder.") and not name.endswith(BUFFERS)
    }
    assert f"{source}: {len(weights) - 1} encoder weights loaded\n" in log
    assert "  in the file only, left out: mask_token\n" in log
    assert "missing" not in log
    assert "resized" not in log
    del weights["encoder.mask_token"]
    assert [name for name, value in weights.items() if not torch.equal(tuned_weights[our_name(name)], value)] == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_train_starts_from_a_file_of_timm(tmp_path: Path, suffix: str) -> None:
    """Of DINO's kind, too: a bare state dict with a class token."""
    keys = {"img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
    state = VisionTransformer(**keys, num_classes=7).state_dict()
    state = random_weights({name: tuple(weight.shape) for name, weight in state.items()})
    source = tmp_path / f"timm{suffix}"
    if suffix == ".pth":
        torch.save(state, source)
    else:
        save_file(state, source)
    log, weights = tuned_from(tmp_path, source, FINETUNE, STILL)
    assert f"{source}: 28 encoder weights loaded\n" in log
    assert "  in the file only, left out: backbone.norm.{weight, bias}\n" in log.replace(
        "{bias, weight}", "{weight, bias}"
    )
    assert "resized" not in log
    assert "missing" not in log
    assert all(torch.equal(weight, state[name.removeprefix("encoder.backbone.")]) for name, weight in weights.items())


# -------------------------------------------------------------------- the published sizes, by name and shape alone


def hollow(shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights of any size that take no memory, and next to no file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def mae_shapes(width: int, depth: int, patch: int, tokens: int, decoder: bool) -> dict[str, tuple[int, ...]]:
    shapes = vit(width=width, depth=depth, patch=patch, tokens=tokens)
    if not decoder:
        return shapes
    decoded = vit(width=512, depth=8, patch=patch, tokens=tokens)
    shapes |= {f"decoder_{name}": shape for name, shape in decoded.items() if name.startswith(("blocks.", "norm."))}
    shapes |= linear("decoder_embed", 512, width) | linear("decoder_pred", 3 * patch**2, 512)
    return {**shapes, "mask_token": (1, 1, 512), "decoder_pos_embed": (1, 1 + tokens, 512)}


SWIN_B = {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
SWIN_L = {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)}


def pretrained_shapes(encoder: dict[str, tuple[int, ...]], stride: int) -> dict[str, tuple[int, ...]]:
    width = encoder["norm.bias"][0]
    shapes = {f"encoder.{name}": shape for name, shape in encoder.items()}
    shapes["encoder.mask_token"] = (1, 1, encoder["patch_embed.proj.bias"][0])
    return {**shapes, "decoder.0.weight": (3 * stride**2, width, 1, 1), "decoder.0.bias": (3 * stride**2,)}


def slow(*values: object):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("recipe", "shapes", "config"),
    [
        ("mae/vit_base", mae_shapes(768, 12, 16, 196, decoder=True), None),
        ("mae/vit_base", mae_shapes(768, 12, 16, 196, decoder=False), None),
        slow("mae/vit_large", mae_shapes(1024, 24, 16, 196, decoder=True), None),
        slow("mae/vit_huge", mae_shapes(1280, 32, 14, 256, decoder=True), None),
        (
            "simmim/swin_base_800ep",
            pretrained_shapes(swin(**SWIN_B, windows=(6, 6, 6, 6)), 32),
            simmim_config(size=192, window=6),
        ),
        slow(
            "simmim/swin_large_800ep",
            pretrained_shapes(swin(**SWIN_L, windows=(12, 12, 12, 6)), 32),
            simmim_config(size=192, window=12),
        ),
        (
            "simmim/vit_base_800ep",
            pretrained_shapes(simmim_vit(width=768, depth=12, heads=12, patch=16, side=14), 16),
            simmim_config(size=224, section="VIT"),
        ),
    ],
    ids=[
        "mae-base",
        "mae-base-encoder",
        "mae-large",
        "mae-huge",
        "simmim-swin-base",
        "simmim-swin-large",
        "simmim-vit",
    ],
)
def test_published_file_is_what_its_recipe_here_builds(tmp_path: Path, recipe: str, shapes, config) -> None:
    path, state = tmp_path / "theirs.pth", hollow(shapes)
    if config is None:
        torch.save({"model": state}, path)
    else:
        write_simmim(path, state, config)
    assert path.stat().st_size < 1e6
    weights = read(path, "IN")
    assert weights.unspecified == ()
    assert set(weights.left_out) <= {"decoder_pos_embed"}  # here it is all zeros, so not the fixed one
    recipe_cfg = load_config(ROOT / "configs" / f"{recipe}.yaml")
    cfg = config_of(weights, [])
    keys = [key for key in recipe_cfg.ENCODER.values() if key not in ("positions", "drop_path")]  # zeros are no sines
    assert {key: getattr(cfg.ENCODER, key) for key in keys} == {key: getattr(recipe_cfg.ENCODER, key) for key in keys}
    assert list(cfg.DATA.image_size) == list(recipe_cfg.DATA.image_size)
    with torch.device("meta"):
        model = build_model(cfg)
    persistent = {name for name in model.state_dict() if not name.endswith(BUFFERS)}
    alone = not weights.select("head.")
    assert set(weights.state) == {name for name in persistent if not (alone and name.startswith("head."))}
    assert all(weight.shape == model.state_dict()[name].shape for name, weight in weights.state.items())
    if not alone:
        assert cfg.HEAD == recipe_cfg.HEAD
        assert cfg.LOSS.values() == recipe_cfg.LOSS.values()


def test_load_encoder_takes_a_decoder_with_positions_of_its_own(tmp_path: Path) -> None:
    """A head here makes its own, so the table is left out and named; the encoder has no part in it."""
    state = mae_pretrained()
    state["decoder_pos_embed"] = torch.zeros_like(state["decoder_pos_embed"])
    path = write_mae(tmp_path / "a.pth", state)
    heads = ["ENCODER.heads", "3"]
    encoder = load_encoder(path, heads)
    assert torch.equal(encoder.backbone.pos_embed, state["pos_embed"])
    assert all(weight.requires_grad for name, weight in encoder.named_parameters() if "pos_embed" not in name)
    lines = convert(path, tmp_path / "b.pt", "mim", overrides=[*heads, "HEAD.heads", "2"])
    assert "  in the file only, left out: decoder_pos_embed" in lines


def test_convert_counts_what_it_cannot_place_in_the_share(tmp_path: Path) -> None:
    """Blocks that are no ViT's but for the first: most of the file would be lost."""
    state = mae_pretrained(decoder=0, depth=6)
    other = {name if ".0." in name else name.replace("blocks.", "mixers."): weight for name, weight in state.items()}
    path = write_mae(tmp_path / "a.pth", other)
    with pytest.raises(ValueError, match=r"holds another encoder: only \d+% of its weights fit this encoder"):
        convert(path, tmp_path / "b.pt", "mim", overrides=["ENCODER.heads", "3"])
    assert not (tmp_path / "b.pt").exists()
