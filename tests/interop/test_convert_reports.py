"""What a conversion says, asks for and refuses; other sizes; and files that are almost what they seem."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from converted import MODELS, assert_round_trip, build_sample, read_checkpoint, sample
from foreign_files import (
    State,
    mae_finetuned,
    mae_pretrained,
    random_weights,
    simmim_finetuned,
    simmim_pretrained,
    sine_cosine,
    swin,
    vit,
    write_mae,
    write_simmim,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

from mim import load_encoder
from mim.convert import convert
from mim.engine import checkpoint
from mim.interop import WeightsFormat, read

HEADS = ["ENCODER.heads", "3", "HEAD.heads", "2"]


def write_timm(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: weight.contiguous() for name, weight in state.items()}, path)
    else:
        torch.save(state, path)
    return path


# -------------------------------------------------------------------- the report


def test_convert_names_what_became_of_each_weight(tmp_path: Path) -> None:
    """Loaded, resized, missing and left over, on both sides of the encoder's edge."""
    state = mae_pretrained()
    del state["blocks.0.norm1.bias"], state["blocks.1.norm1.bias"]
    state["blocks.0.ls1.gamma"] = state["blocks.1.ls1.gamma"] = torch.ones(24)
    state["norm.weight"] = torch.ones(25)
    source = write_mae(tmp_path / "theirs.pth", state, input_size=32)
    lines = convert(source, tmp_path / "ours.pt", "mim", overrides=[*HEADS, "DATA.image_size", "[48, 32]"])
    assert lines[0] == f"{source}: 27 encoder weights loaded"
    names_by_fate = dict(line.strip().split(": ", 1) for line in lines[1:-2])
    assert names_by_fate.pop("loaded").startswith(
        "backbone.{cls_token, pos_embed}, backbone.patch_embed.proj.{weight, bias}, "
    )
    assert names_by_fate == {
        "not in the file, so check them": "DATA.mean [0.485, 0.456, 0.406] (ImageNet's), "
        "DATA.std [0.229, 0.224, 0.225] (ImageNet's)",
        "resized or moved": "backbone.pos_embed 1x17x24 -> 1x25x24",
        "missing in the file, kept as initialised": "backbone.blocks.0-1.norm1.bias",
        "in the file only, left out": "blocks.0-1.ls1.gamma",
        "of another shape, left out": "backbone.norm.weight 25 for 24",
        "and after the encoder": names_by_fate["and after the encoder"],
    }
    assert names_by_fate["and after the encoder"].startswith("head.embed.{weight, bias}, head.mask_token, ")
    _, weights = read_checkpoint(tmp_path / "ours.pt")
    assert lines[-2] == f"{tmp_path / 'ours.pt'} (mim): {len(weights)} weights written"
    assert not {"encoder.backbone.norm.weight", "encoder.backbone.blocks.0.norm1.bias"} & set(weights)


@pytest.mark.parametrize(
    ("to", "out"), [("mae", "a.pth"), ("timm", "a.pth"), ("timm", "a.safetensors"), ("transformers", "a")]
)
def test_converted_file_records_its_source(tmp_path: Path, to: str, out: str) -> None:
    source, target = sample("mae").write(tmp_path / "run.pt"), tmp_path / out
    convert(source, target, to)
    assert recorded(target) == "run.pt (mim)"
    convert(target, tmp_path / "back.pt", "mim")
    assert recorded(tmp_path / "back.pt") == f"{out} ({to})"


def recorded(path: Path) -> str:
    if path.is_dir():
        with safe_open(path / "model.safetensors", framework="pt") as file:
            in_weights = file.metadata()["converted_from"]
        assert json.loads((path / "config.json").read_text())["converted_from"] == in_weights
        return in_weights
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return file.metadata()["converted_from"]
    return torch.load(path, weights_only=True)["converted_from"]


def test_converted_record_holds_no_path_of_this_machine(tmp_path: Path) -> None:
    source, target = sample("mae").write(tmp_path / "run.pt"), tmp_path / "theirs.pth"
    convert(source, target, "mae")
    content = torch.load(target, weights_only=True)
    assert set(content) == {"model", "converted_from", "mim_config"}
    assert str(tmp_path) not in content["converted_from"] + content["mim_config"]


# -------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("source", "keys", "values"),
    [
        (lambda path: write_mae(path, mae_pretrained()), ["ENCODER.heads", "HEAD.heads"], ["3", "2"]),
        (lambda path: write_mae(path, mae_pretrained(width=192, depth=1)), ["HEAD.heads"], ["2"]),
        (lambda path: write_mae(path, mae_finetuned()), ["ENCODER.heads"], ["3"]),
        (lambda path: write_timm(path, random_weights(vit())), ["ENCODER.heads"], ["3"]),
        (
            lambda path: write_timm(path, random_weights(swin(depths=(1,), heads=(2,), windows=(4,)))),
            ["DATA.image_size"],
            ["[16, 16]"],
        ),
        (
            lambda path: write_timm(path, simmim_finetuned(swin(version=2))),
            ["ENCODER.window", "ENCODER.pretrained_windows", "DATA.image_size"],
            ["4", "[2, 4]", "[32, 32]"],
        ),
    ],
    ids=["mae", "mae-decoder", "mae-tuned", "timm-vit", "timm-swin", "simmim-swin_v2"],
)
def test_convert_asks_for_what_a_file_does_not_tell(tmp_path: Path, source, keys: list[str], values: list[str]) -> None:
    path, out = source(tmp_path / "theirs.pth"), tmp_path / "ours.pt"
    with pytest.raises(ValueError, match=r"theirs\.pth does not hold ") as caught:
        convert(path, out, "mim")
    assert f"does not hold {' and '.join(keys)}: give each" in str(caught.value)
    assert not out.exists()
    pairs = [word for pair in zip(keys, values, strict=True) for word in pair]
    convert(path, out, "mim", overrides=pairs)
    cfg, _ = read_checkpoint(out)
    for key, value in zip(keys, values, strict=True):
        section, name = key.split(".")
        setting = cfg.values()[section][name]
        assert str(list(setting) if isinstance(setting, tuple) else setting) == value


def test_convert_says_where_it_took_heads_from_the_published_width(tmp_path: Path) -> None:
    source = write_timm(tmp_path / "theirs.pth", random_weights(vit(width=192, depth=1)))
    lines = convert(source, tmp_path / "ours.pt", "mim")
    (line,) = [line for line in lines if line.startswith("  not in the file, so check them: ")]
    assert "ENCODER.heads 3 (the published ViT of width 192 has 3 heads)" in line
    assert read_checkpoint(tmp_path / "ours.pt")[0].ENCODER.heads == 3


def test_convert_knows_fixed_positions_from_learned_ones(tmp_path: Path) -> None:
    for positions, table in (("sincos", sine_cosine(4, 24)), ("learned", sine_cosine(4, 24) + 0.01)):
        source = write_mae(tmp_path / "theirs.pth", {**mae_pretrained(), "pos_embed": table})
        convert(source, tmp_path / "ours.pt", "mim", overrides=HEADS)
        assert read_checkpoint(tmp_path / "ours.pt")[0].ENCODER.positions == positions


@pytest.mark.parametrize(
    "pairs", [["ENCODER.heads"], ["ENCODER.deepness", "3"], ["ENCODER.heads", "x"], ["ENCODER.heads", "7"]]
)
def test_convert_refuses_pairs_that_are_none(tmp_path: Path, pairs: list[str]) -> None:
    source = write_mae(tmp_path / "theirs.pth", mae_finetuned())
    with pytest.raises(ValueError, match=r"heads|deepness"):
        convert(source, tmp_path / "ours.pt", "mim", overrides=pairs)
    assert not (tmp_path / "ours.pt").exists()


# -------------------------------------------------------------------- what is refused


def too_little(path: Path) -> Path:
    """One block of a ViT, and three under the names of another model."""
    state = random_weights(vit(depth=4))
    others = ("blocks.1.", "blocks.2.", "blocks.3.")
    named = {name.replace("blocks", "stages") if name.startswith(others) else name: w for name, w in state.items()}
    return write_timm(path, named)


REFUSED = {  # what is read, in which format, and what the error says
    "below a share": (too_little, "", r"holds another encoder: only \d+% of its weights fit this encoder"),
    "resnet": (
        lambda path: write_timm(path, random_weights({"conv1.weight": (8, 3, 7, 7), "fc.weight": (9, 8)})),
        "",
        "conv1.weight",
    ),
    "no weights": (lambda path: write_timm(path, {}), "", "no encoder in a known format.*Its first weights: none"),
    "no file": (lambda path: path, "", "does not exist"),
    "empty": (lambda path: path.touch() or path, "", "cannot be read: it is empty"),
    "mae as simmim": (lambda path: write_mae(path, mae_pretrained()), "simmim", "holds no Swin and no ViT of SimMIM"),
    "simmim as mae": (
        lambda path: write_simmim(path, simmim_pretrained(swin(), 8)),
        "mae",
        "in the format mae: it lacks",
    ),
    "simmim as timm": (
        lambda path: write_simmim(path, simmim_pretrained(swin(), 8)),
        "timm",
        "holds no ViT, Beit, Swin",
    ),
    "mae as mim": (lambda path: write_mae(path, mae_pretrained()), "mim", "lacks the mark of this"),
    "mae as transformers": (lambda path: write_mae(path, mae_pretrained()), "transformers", "model_type is None"),
    "half a name": (
        lambda path: write_timm(path, random_weights({"patch_embed.proj.weight": (8, 3, 4, 4)})),
        "",
        "known format",
    ),
    "no stem": (lambda path: write_mae(path, {"pos_embed": torch.zeros(1, 17, 24)}), "mae", "it lacks"),
    "no positions": (
        lambda path: write_timm(path, without(mae_finetuned(), "pos_embed")),
        "",
        "it lacks 'backbone.pos_embed'",
    ),
    "no table": (
        lambda path: write_timm(path, without(simmim_finetuned(swin()), "0.attn.relative_position_bias_table")),
        "",
        "lacks",
    ),
}


def without(state: State, end: str) -> State:
    return {name: weight for name, weight in state.items() if not name.endswith(end)}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("case", REFUSED)
def test_convert_that_is_refused_writes_nothing(tmp_path: Path, case: str, existing: bool) -> None:
    write, format_name, message = REFUSED[case]
    source, out = write(tmp_path / "theirs.pth"), tmp_path / "out" / "ours.pt"
    if existing:
        out.parent.mkdir()
        out.write_bytes(b"what was there before")
    with pytest.raises(ValueError, match=message) as caught:
        convert(source, out, "mim", format_name, HEADS if "mae" in case else HEADS[:2] if "share" in case else [])
    assert "theirs.pth" in str(caught.value)
    if existing:
        assert [path.name for path in out.parent.iterdir()] == ["ours.pt"]
        assert out.read_bytes() == b"what was there before"
    else:
        assert not out.exists()


@pytest.mark.parametrize("to", ["mae", "simmim", "transformers"])
def test_convert_to_a_format_without_such_an_encoder_writes_nothing(tmp_path: Path, to: str) -> None:
    model = {"mae": "beit", "simmim": "mae", "transformers": "beit"}[to]
    out = tmp_path / "out" / ("theirs" if to == "transformers" else "theirs.pth")
    with pytest.raises(ValueError, match=r"has no counterpart in .*Allowed: "):
        convert(sample(model).write(tmp_path / "ours.pt"), out, to)
    assert not out.exists()


@pytest.mark.parametrize(
    ("to", "sections", "message"),
    [
        ("mae", MODELS["vit-no-class"], "ENCODER.class_token is false"),
        (
            "mae",
            {**MODELS["vit-two-norms"], "ENCODER": MODELS["vit-mean"]["ENCODER"], "CLASSIFIER": {"norm": False}},
            "norm",
        ),
        ("simmim", {**MODELS["beit-mean"], "CLASSIFIER": {"norm": False}}, "ENCODER.norm is false"),
        ("timm", {**MODELS["beit-mean"], "CLASSIFIER": {"norm": False}}, "ENCODER.norm is false"),
    ],
)
def test_convert_refuses_an_encoder_that_the_originals_do_not_have(tmp_path, to: str, sections, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(build_sample(sections).write(tmp_path / "ours.pt"), tmp_path / "theirs.pth", to)
    assert not (tmp_path / "theirs.pth").exists()


def test_convert_refuses_to_write_over_what_it_reads(tmp_path: Path) -> None:
    source = sample("mae").write(tmp_path / "ours.pt")
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    (tmp_path / "link.pt").symlink_to(source)
    for target in (source, tmp_path / "link.pt", tmp_path / "x" / ".." / "ours.pt"):
        with pytest.raises(ValueError, match="also the input: name another"):
            convert(source, target, "timm")
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before


def test_convert_refuses_to_write_over_the_folder_it_reads(tmp_path: Path) -> None:
    convert(sample("mae").write(tmp_path / "ours.pt"), tmp_path / "theirs", "transformers")
    for target in (tmp_path / "theirs", tmp_path / "theirs" / "model.safetensors"):
        with pytest.raises(ValueError, match="name another"):
            convert(tmp_path / "theirs", target, "timm")
    load_encoder(tmp_path / "theirs")


@pytest.mark.parametrize("to", list(WeightsFormat.members()))
def test_convert_whose_disk_fails_leaves_what_was_there(tmp_path: Path, monkeypatch, to: str) -> None:
    name = "swin" if to == "simmim" else "mae"
    source, out = sample(name).write(tmp_path / "ours.pt"), tmp_path / "out"
    convert(source, out, to)
    files = sorted(path for path in [out, *out.rglob("*")] if path.is_file())
    before = [path.read_bytes() for path in files]

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        convert(source, out, to)
    assert [path.read_bytes() for path in files] == before
    assert not list(tmp_path.rglob("*.partial"))


# -------------------------------------------------------------------- files that are almost what they seem


@pytest.mark.parametrize("holder", ["", "model", "state_dict", "state_dict_ema", "module"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_read_finds_the_weights_of_timm_wherever_they_stand(tmp_path: Path, holder: str, wrapper: str) -> None:
    state = random_weights(vit())
    wrapped = {wrapper + name: weight for name, weight in state.items()}
    torch.save({"epoch": 3, holder: wrapped} if holder else wrapped, tmp_path / "theirs.pth")
    weights = read(tmp_path / "theirs.pth", "IN").state
    assert sorted(weights) == sorted(f"encoder.backbone.{name}" for name in state)
    assert all(torch.equal(weights[f"encoder.backbone.{name}"], weight) for name, weight in state.items())


def test_read_prefers_the_moving_average_of_timm(tmp_path: Path) -> None:
    plain, average = random_weights(vit(), seed=1), random_weights(vit(), seed=2)
    torch.save({"state_dict": plain, "state_dict_ema": average}, tmp_path / "theirs.pth")
    assert torch.equal(read(tmp_path / "theirs.pth", "IN").state["encoder.backbone.cls_token"], average["cls_token"])


def test_convert_takes_the_moving_average_of_a_run_and_says_so(tmp_path: Path) -> None:
    source, other = sample("vit-class"), build_sample(MODELS["vit-class"], seed=2)
    ema = {"n_averaged": torch.tensor(3), **{f"module.{name}": weight for name, weight in source.state.items()}}
    other.write(tmp_path / "run.pt", ema=ema)
    lines = convert(tmp_path / "run.pt", tmp_path / "theirs.pth", "timm")
    assert lines[0].endswith("encoder weights loaded (their moving average)")
    convert(tmp_path / "theirs.pth", tmp_path / "back.pt", "mim")
    assert_round_trip(tmp_path / "back.pt", source, [])


@pytest.mark.parametrize(
    ("to", "out"), [("mae", "a.pth"), ("timm", "a.pth"), ("timm", "a.safetensors"), ("transformers", "a")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_convert_keeps_the_precision_of_weights(tmp_path: Path, to: str, out: str, dtype: torch.dtype) -> None:
    source = sample("mae").write(tmp_path / "ours.pt", dtype)
    convert(source, tmp_path / out, to)
    convert(tmp_path / out, tmp_path / "back.pt", "mim")
    before, after = checkpoint.load(source)["model"], checkpoint.load(tmp_path / "back.pt")["model"]
    assert {weight.dtype for weight in after.values()} == {dtype}
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_convert_writes_weights_that_are_no_block_of_memory(tmp_path: Path) -> None:
    """safetensors refuses them by itself."""
    source = sample("vit-class")
    state = dict(source.state)
    weight = "encoder.backbone.blocks.{}.attn.proj.weight"
    state |= {weight.format(block): torch.randn(24, 24).T for block in range(2)}
    source.write(tmp_path / "ours.pt", model=state)
    convert(tmp_path / "ours.pt", tmp_path / "a.safetensors", "timm")
    convert(tmp_path / "ours.pt", tmp_path / "a", "transformers")
    weights = load_file(tmp_path / "a.safetensors")
    for block in range(2):
        assert torch.equal(weights[f"blocks.{block}.attn.proj.weight"], state[weight.format(block)])


# -------------------------------------------------------------------- other sizes


def smooth(state: State, name: str, side: int, prefix: int) -> State:
    """With a table that varies slowly over its places, as trained ones do: what resizing can be judged on."""
    width, rows = state[name].shape[-1], state[name].shape[-2]
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    phases = torch.linspace(0, 3, width)
    table = torch.sin(x[..., None] + phases) * torch.cos(y[..., None] - phases)
    front = torch.randn(prefix, width)
    body = table.reshape(-1, width)
    assert rows == prefix + len(body)
    return {**state, name: torch.cat([front, body]).reshape(state[name].shape)}


def test_convert_to_another_size_resizes_positions_as_timm_would(tmp_path: Path) -> None:
    """To the bit where timm, too, leaves antialiasing out; its default has another cubic (a = -.5 for -.75), which
    differs by up to .05 at the edges of a table between -1 and 1.
    """
    state = smooth(mae_finetuned(), "pos_embed", side=4, prefix=1)
    source = write_mae(tmp_path / "theirs.pth", state)
    pairs = ["ENCODER.heads", "3", "DATA.image_size", "[64, 48]"]
    lines = convert(source, tmp_path / "ours.pt", "mim", overrides=pairs)
    assert "  resized or moved: backbone.pos_embed 1x17x24 -> 1x49x24" in lines
    cfg, weights = read_checkpoint(tmp_path / "ours.pt")
    assert list(cfg.DATA.image_size) == [64, 48]
    table = weights["encoder.backbone.pos_embed"]
    assert torch.equal(table[:, 0], state["pos_embed"][:, 0])
    plain, default = (resample_abs_pos_embed(state["pos_embed"], [8, 6], [4, 4], antialias=aa) for aa in (False, True))
    torch.testing.assert_close(table, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(table, default, rtol=0, atol=0.05)
    others = [name for name in weights if name.startswith("encoder.") and not name.endswith("pos_embed")]
    assert all(torch.equal(weights[name], state[name.removeprefix("encoder.backbone.")]) for name in others)


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize("window", [3, 6, 8])
def test_convert_to_another_window_resizes_biases_as_timm_would(tmp_path: Path, window: int) -> None:
    """Both place old entries at distances in geometric progression. Between them timm draws straight lines since SciPy
    lost interp2d, and here goes a cubic spline: on a table of sines, whose entries lie a third apart, lines are off by
    (1/3) ** 2 / 8 a direction. For a smaller window both cut the middle out, where the old entries lie almost on the
    new ones.
    """
    state = simmim_pretrained(swin(), 8)
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    for name in tables:
        state = smooth(state, name, side=7, prefix=0)
    source = write_simmim(tmp_path / "theirs.pth", state)
    size = {3: 24, 6: 48, 8: 64}[window]
    pairs = ["ENCODER.window", str(window), "DATA.image_size", f"[{size}, {size}]", "MASKER.cell", "8"]
    lines = convert(source, tmp_path / "ours.pt", "mim", overrides=pairs)
    resized = next(line for line in lines if line.startswith("  resized or moved: "))
    rows = (2 * window - 1) ** 2
    for stage, heads in enumerate((2, 4)):
        name = f"backbone.layers.{stage}.blocks.1.attn.relative_position_bias_table"
        assert f"{name} 49x{heads} -> {rows}x{heads}" in resized
    _, weights = read_checkpoint(tmp_path / "ours.pt")
    worst = 0.0
    for name in tables:
        expected = resize_rel_pos_bias_table(state[name], (window, window), (rows, state[name].shape[1]))
        worst = max(worst, (weights[name.replace("encoder.", "encoder.backbone.")] - expected).abs().max().item())
    assert worst < (0.002 if window < 4 else 0.04)


@pytest.mark.parametrize("to", ["mim", "timm", "mae"])
def test_convert_of_equal_size_leaves_every_table_untouched(tmp_path: Path, to: str) -> None:
    source = write_mae(tmp_path / "theirs.pth", (state := mae_finetuned()))
    pairs = ["ENCODER.heads", "3", "DATA.image_size", "[32, 32]"]
    lines = convert(source, tmp_path / "out.pth", to, overrides=pairs)
    assert not any("resized" in line for line in lines)
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    weights = content.get("state_dict", content.get("model"))
    name = "encoder.backbone.pos_embed" if to == "mim" else "pos_embed"
    assert torch.equal(weights[name], state["pos_embed"])


def test_convert_resized_is_what_timm_loads_strictly(tmp_path: Path) -> None:
    source = sample("swin").write(tmp_path / "ours.pt")
    pairs = ["DATA.image_size", "[96, 96]", "ENCODER.window", "6", "MASKER.cell", "8"]
    lines = convert(source, tmp_path / "theirs.pth", "timm", overrides=pairs)
    model = eval(lines[-1].removeprefix("  to load: "), {"timm": timm}).eval()
    assert any("resized or moved: backbone.layers.0" in line for line in lines)
    encoder, img_BCHW = load_encoder(source, pairs[:4]), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        theirs, ours = model.forward_features(img_BCHW).flatten(1, 2), encoder(img_BCHW).tokens_BND
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
