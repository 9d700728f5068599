"""INIT.checkpoint: encoder weights of an earlier run, with a report; another encoder's are refused whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_data import FINETUNE, write_recipe
from small_models import classes
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mim import build_model, build_predictor, load_config
from mim.encoders import Encoder, Swin, ViT
from mim.engine import checkpoint
from mim.interop import read
from mim.interop.initialise import LoadReport, initialise_encoder
from mim.ops.positions import resize_bias_table, resize_positions
from mim.structures import ImageSpec

IMAGE = ImageSpec(1, 32, 32)
SMALL = {"patch": 8, "width": 16, "depth": 2, "heads": 2}
SWIN = {"patch": 4, "width": 8, "depths": (1, 1), "heads": (2, 2), "window": 4}


def vit(hidden: str = "drop", **keys: object) -> ViT:
    return ViT(IMAGE, hidden=hidden, **{**SMALL, **keys})


def write(path: Path, encoder: Encoder, average: Encoder | None = None, config: object = None) -> Path:
    """A checkpoint as a run writes it, with a head beside the encoder, and perhaps an average of both."""
    models = []
    for each in (encoder, average):
        weights = {f"encoder.{name}": weight for name, weight in each.state_dict().items()} if each else {}
        models.append({**weights, "head.norm.weight": torch.ones(4)} if each else {})
    averaged = {f"module.{name}": weight for name, weight in models[1].items()}
    size = f"DATA: {{image_size: [{encoder.image.height}, {encoder.image.width}]}}\n"
    content = {"step": 3, "model": models[0], "ema": averaged and {"n_averaged": torch.tensor(3), **averaged}}
    checkpoint.write(path, {**content, "config": size if config is None else config})
    return path


def shaken(encoder: Encoder, seed: int = 1) -> Encoder:
    """The encoder with weights that are all unlike those of a new one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return encoder


@pytest.fixture
def source() -> ViT:
    return shaken(vit())


def copy(encoder: Encoder) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in encoder.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> Iterator[str]:
    return (name for name in one if torch.equal(one[name], two[name]))


def test_initialise_loads_every_weight_of_the_same_encoder(tmp_path: Path, source: ViT) -> None:
    encoder, path = vit(), write(tmp_path / "a.pt", source)
    report = initialise_encoder(encoder, path)
    assert list(equal(encoder.state_dict(), source.state_dict())) == list(source.state_dict())
    behind = ("head.norm.weight",)
    assert report == LoadReport(str(path), False, sorted(source.state_dict()), [], [], [], [], behind=behind)
    img_BCHW = torch.randn(2, 1, 32, 32)
    assert torch.equal(encoder.eval()(img_BCHW).tokens_BND, source.eval()(img_BCHW).tokens_BND)


def test_initialise_replacing_encoder_from_a_dropping_one_keeps_its_mask_token(tmp_path: Path, source: ViT) -> None:
    encoder = vit("replace")
    token = encoder.mask_token.detach().clone()
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.missing == ["mask_token"]
    assert (report.unexpected, report.reshaped) == ([], [])
    assert torch.equal(encoder.mask_token, token)
    assert set(equal(encoder.state_dict(), {**source.state_dict(), "mask_token": token})) == {*encoder.state_dict()}


@pytest.mark.parametrize("hidden", ["drop", "none"])
def test_initialise_leaves_a_mask_token_in_the_file(tmp_path: Path, hidden: str) -> None:
    source, encoder = vit("replace"), vit(hidden)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.unexpected == ["mask_token"]
    assert (report.missing, report.reshaped) == ([], [])
    assert set(report.loaded) == set(encoder.state_dict())


def test_initialise_keeps_what_has_another_shape(tmp_path: Path, source: ViT) -> None:
    """Without a class token a table of positions with its row fits nowhere; all else is loaded."""
    encoder = vit(class_token=False)
    before = copy(encoder)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.reshaped == ["backbone.pos_embed 1x17x16 for 1x16x16"]
    assert (report.missing, report.unexpected, report.resized) == ([], ["backbone.cls_token"], [])
    assert torch.equal(encoder.backbone.pos_embed, before["backbone.pos_embed"])
    assert torch.equal(encoder.backbone.norm.weight, source.backbone.norm.weight)


def test_initialise_swin_from_its_own_checkpoint(tmp_path: Path) -> None:
    source, encoder = Swin(IMAGE, **SWIN), Swin(IMAGE, **SWIN)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert len(list(equal(encoder.state_dict(), source.state_dict()))) == len(report.loaded) == len(source.state_dict())


def test_load_report_says_in_lines_what_was_left_out() -> None:
    extra = [f"blocks.{block}.norm.{end}" for block in range(3) for end in ("weight", "bias")]
    left_out = {"missing": ["mask_token"], "unexpected": [*extra, "more"], "reshaped": ["pos 1 for 2"]}
    lines = LoadReport("a.pt", False, ["x", "y"], ["x 4 -> 9"], **left_out, notes=("heads: 2 by the width",)).lines()
    assert lines[0] == "a.pt: 2 encoder weights loaded"
    assert lines[1:] == [
        "  resized or moved: x 4 -> 9",
        "  missing in the file, kept as initialised: mask_token",
        "  in the file only, left out: blocks.0-2.norm.{weight, bias}, more",
        "  of another shape, left out: pos 1 for 2",
        "  heads: 2 by the width",
    ]
    assert len(LoadReport("a.pt", False, ["x"], [], [], [], []).lines()) == 1
    averaged = LoadReport("a.pt", True, ["x"], [], [], [], []).lines()
    assert averaged == ["a.pt: 1 encoder weights loaded (their moving average)"]


# -------------------------------------------------------------------- another image size or window


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ((32, 32), (48, 48), "1x17x16 -> 1x37x16"),
        ((32, 32), (32, 48), "1x17x16 -> 1x25x16"),
        ((32, 64), (64, 64), "1x33x16 -> 1x65x16"),
        ((16, 64), (32, 32), "1x17x16 -> 1x17x16"),  # as many rows in another grid
        ((64, 32), (16, 16), "1x33x16 -> 1x5x16"),
    ],
)
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_initialise_vit_of_another_image_size_resizes_its_positions(
    tmp_path: Path, positions: str, old: tuple[int, int], new: tuple[int, int], words: str
) -> None:
    source, encoder = (ViT(ImageSpec(1, *size), positions=positions, **SMALL) for size in (old, new))
    shaken(source)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.resized == [f"backbone.pos_embed {words}"]
    assert report.loaded == sorted(source.state_dict())
    assert (report.missing, report.unexpected, report.reshaped) == ([], [], [])
    table = resize_positions(source.backbone.pos_embed, encoder.spec.grid, old, 1)
    assert torch.equal(encoder.backbone.pos_embed, table)
    assert torch.equal(encoder.backbone.pos_embed[:, 0], source.backbone.pos_embed[:, 0])
    assert encoder.backbone.pos_embed.requires_grad == (positions == "learned")
    assert f"  resized or moved: backbone.pos_embed {words}" in report.lines()


@pytest.mark.parametrize("config", ["SEED: 1\n", "DATA: {name: digits}\n"])
def test_initialise_without_a_known_image_size_takes_the_source_for_square(tmp_path: Path, config: str) -> None:
    encoder = ViT(ImageSpec(1, 48, 48), **SMALL)
    square, wide = (shaken(ViT(ImageSpec(1, *size), **SMALL)) for size in ((32, 32), (16, 32)))
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", square, config=config))
    assert report.resized == ["backbone.pos_embed 1x17x16 -> 1x37x16"]
    report = initialise_encoder(encoder, write(tmp_path / "b.pt", wide, config=config))
    assert (report.resized, report.reshaped) == ([], ["backbone.pos_embed 1x9x16 for 1x37x16"])


def swin(size: tuple[int, int], window: int) -> Swin:
    return Swin(ImageSpec(1, *size), hidden="none", **{**SWIN, "window": window})


@pytest.mark.parametrize(
    ("old", "new", "windows"),
    [
        (((32, 32), 4), ((32, 32), 8), [((4, 4), (8, 8)), None]),  # stage 1 is 4 x 4 tokens in both
        (((32, 32), 8), ((32, 32), 4), [((8, 8), (4, 4)), None]),
        (((24, 24), 6), ((32, 32), 8), [((6, 6), (8, 8)), ((3, 3), (4, 4))]),
        (((32, 32), 4), ((64, 64), 8), [((4, 4), (8, 8)), ((4, 4), (8, 8))]),
        (((16, 64), 8), ((32, 32), 8), [((4, 8), (8, 8)), ((2, 8), (4, 4))]),
        (((64, 32), 4), ((32, 64), 4), [None, None]),
    ],
)
def test_initialise_swin_of_another_window_resizes_the_biases_of_each_stage(
    tmp_path: Path, old: tuple, new: tuple, windows: list
) -> None:
    source, encoder = shaken(swin(*old)), swin(*new)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    theirs, ours = source.state_dict(), encoder.state_dict()
    tables = [f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(2)]
    words = [
        f"{name} {theirs[name].shape[0]}x2 -> {ours[name].shape[0]}x2"
        for name, sides in zip(tables, windows, strict=True)
        if sides
    ]
    assert report.resized == words
    assert report.loaded == sorted(theirs)
    for name, sides in zip(tables, windows, strict=True):
        expected = resize_bias_table(theirs[name], sides[1], sides[0]) if sides else theirs[name]
        assert torch.equal(ours[name], expected), name
    assert [name for name in ours if name not in tables and not torch.equal(ours[name], theirs[name])] == []
    encoder(torch.randn(1, 1, *new[0]))


def test_initialise_swin_of_a_cut_window_needs_to_know_its_image_size(tmp_path: Path) -> None:
    """A table of 7 x 15 places is no square window's."""
    source, encoder = shaken(swin((16, 64), 8)), swin((32, 32), 8)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source, config="SEED: 1\n"))
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    assert f"{name} 105x2 for 225x2" in report.reshaped
    assert report.resized == []


def beit(size: tuple[int, int], bias: str) -> Encoder:
    return Encoder.named("beit")(ImageSpec(1, *size), hidden="none", bias=bias, **SMALL)


SHARED = "backbone.rel_pos_bias.relative_position_bias_table"
OF_BLOCK = "backbone.blocks.{}.attn.relative_position_bias_table"


@pytest.mark.parametrize(("old", "new"), [((32, 32), (48, 48)), ((32, 64), (64, 48)), ((64, 64), (32, 32))])
@pytest.mark.parametrize("bias", ["shared", "block"])
def test_initialise_beit_of_another_image_size_resizes_the_biases_between_patches(
    tmp_path: Path, bias: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    source, encoder = shaken(beit(old, bias)), beit(new, bias)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    theirs, ours = source.state_dict(), encoder.state_dict()
    tables = [SHARED] if bias == "shared" else [OF_BLOCK.format(block) for block in range(2)]
    assert report.resized == [f"{name} {len(theirs[name])}x2 -> {len(ours[name])}x2" for name in tables]
    for name in tables:
        expected = resize_bias_table(theirs[name][:-3], encoder.spec.grid, source.spec.grid)
        assert torch.equal(ours[name][:-3], expected)
        assert torch.equal(ours[name][-3:], theirs[name][-3:])  # to and from the class token
    weights = [name for name, _ in encoder.named_parameters() if name not in tables]
    assert all(torch.equal(ours[name], theirs[name]) for name in weights)


@pytest.mark.parametrize("size", [(32, 32), (48, 48)])
def test_initialise_beit_gives_each_block_the_biases_that_all_shared(tmp_path: Path, size: tuple[int, int]) -> None:
    source, encoder = shaken(beit((32, 32), "shared")), beit(size, "block")
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert (report.missing, report.unexpected, report.reshaped) == ([], [], [])
    rows = encoder.state_dict()[OF_BLOCK.format(0)].shape[0]
    assert report.resized == [f"{SHARED} 52x2 -> {OF_BLOCK.format(block)} {rows}x2" for block in range(2)]
    shared = encoder.resize_weight(SHARED, source.state_dict()[SHARED], (32, 32))
    for block in range(2):
        assert torch.equal(encoder.state_dict()[OF_BLOCK.format(block)], shared)
    back = beit((32, 32), "shared")
    assert OF_BLOCK.format(1) in initialise_encoder(back, write(tmp_path / "b.pt", encoder)).unexpected


@pytest.mark.parametrize(
    "build",
    [
        lambda: vit(),
        lambda: ViT(ImageSpec(1, 16, 40), **SMALL),
        lambda: swin((32, 32), 4),
        lambda: swin((16, 64), 8),
        lambda: beit((16, 40), "shared"),
        lambda: beit((32, 32), "block"),
    ],
    ids=["vit", "vit-wide", "swin", "swin-wide", "beit-wide", "beit"],
)
@pytest.mark.parametrize("config", [None, "SEED: 1\n"], ids=["size-known", "size-unknown"])
def test_initialise_of_equal_geometry_passes_every_table_untouched(tmp_path: Path, build, config: str | None) -> None:
    source, encoder = shaken(build()), build()
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source, config=config))
    assert (report.resized, report.missing, report.unexpected, report.reshaped) == ([], [], [], [])
    assert set(equal(encoder.state_dict(), source.state_dict())) == set(source.state_dict())


# -------------------------------------------------------------------- averages, mask tokens, runs of other tasks


def test_initialise_prefers_the_moving_average_and_says_so(tmp_path: Path, source: ViT) -> None:
    average, encoder = shaken(vit(), seed=2), vit()
    path = write(tmp_path / "a.pt", source, average)
    report = initialise_encoder(encoder, path)
    assert report.averaged
    assert report.lines() == [f"{path}: {len(average.state_dict())} encoder weights loaded (their moving average)"]
    assert set(equal(encoder.state_dict(), average.state_dict())) == set(average.state_dict())
    weights = read(path, "x")
    assert (weights.averaged, weights.image_size) == (True, (32, 32))


def test_initialise_reads_the_average_as_the_engine_keeps_it(tmp_path: Path) -> None:
    model = build_model(load_config(write_recipe(tmp_path)))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    shaken(model.encoder)
    for _ in range(2):
        average.update_parameters(model)
        shaken(model.encoder, seed=3)
    checkpoint.write(tmp_path / "a.pt", {"model": model.state_dict(), "ema": average.state_dict()})
    cfg = load_config(write_recipe(tmp_path, FINETUNE), ["ENCODER.depth", "1"])
    encoder = build_predictor(cfg, classes(10)).encoder
    assert initialise_encoder(encoder, tmp_path / "a.pt").averaged
    expected = average.module.encoder.state_dict()
    assert set(equal(encoder.state_dict(), expected)) == set(expected)


def test_initialise_classifier_from_a_replacing_run_leaves_its_mask_token_out_and_names_it(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    pretrained = build_model(load_config(recipe, ["ENCODER.hidden", "replace", "ENCODER.depth", "2", "SEED", "1"]))
    checkpoint.write(tmp_path / "a.pt", {"model": pretrained.state_dict(), "ema": {}})
    encoder = build_predictor(load_config(write_recipe(tmp_path, FINETUNE)), classes(10)).encoder
    report = initialise_encoder(encoder, tmp_path / "a.pt")
    assert report.unexpected == ["mask_token"]
    assert "  in the file only, left out: mask_token" in report.lines()
    assert set(report.loaded) == set(encoder.state_dict())


def test_initialise_encoder_without_norm_leaves_the_norm_out_and_names_it(tmp_path: Path, source: ViT) -> None:
    encoder = vit("none", norm=False)
    report = initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert report.unexpected == ["backbone.norm.weight", "backbone.norm.bias"]
    assert (report.missing, report.reshaped, report.averaged) == ([], [], False)


def test_initialise_pretraining_from_a_fine_tuned_run(tmp_path: Path) -> None:
    cfg = load_config(write_recipe(tmp_path, FINETUNE), ["SEED", "1"])
    classifier = build_predictor(cfg, classes(10))
    checkpoint.write(tmp_path / "a.pt", {"model": classifier.state_dict(), "ema": {}, "config": cfg.to_yaml()})
    encoder = vit("replace")
    report = initialise_encoder(encoder, tmp_path / "a.pt")
    assert (report.missing, report.unexpected) == (["mask_token"], [])
    assert set(equal(classifier.encoder.state_dict(), encoder.state_dict())) == set(classifier.encoder.state_dict())


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("other", [lambda: vit(width=24), lambda: Swin(IMAGE, **SWIN)], ids=["wider", "swin"])
def test_initialise_from_another_encoder_is_refused_and_changes_nothing(tmp_path: Path, source: ViT, other) -> None:
    encoder = other()
    before = copy(encoder)
    with pytest.raises(ValueError, match=r"holds another encoder: only \d+% of this encoder's weights") as caught:
        initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    message = str(caught.value)
    assert str(tmp_path / "a.pt") in message
    assert "at least 50%" in message
    assert set(equal(encoder.state_dict(), before)) == set(before)


def test_initialise_from_too_few_weights_names_the_share(tmp_path: Path, source: ViT) -> None:
    encoder = vit(depth=6)
    state = encoder.state_dict()
    fitting = sum(state[name].numel() for name in source.state_dict())
    share = fitting / sum(weight.numel() for weight in state.values())
    assert share < 0.5
    before = copy(encoder)
    with pytest.raises(ValueError, match=f"only {share:.0%} of this encoder's weights"):
        initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert set(equal(encoder.state_dict(), before)) == set(before)


def test_initialise_from_a_deeper_file_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    """All of the shallow encoder would be filled, but with less than half of what the file holds."""
    source, encoder = shaken(vit(depth=6)), vit(depth=2)
    state, before = source.state_dict(), copy(encoder)
    share = sum(state[name].numel() for name in before) / sum(weight.numel() for weight in state.values())
    assert share < 0.5
    with pytest.raises(ValueError, match=rf"only {share:.0%} of its weights fit this encoder") as caught:
        initialise_encoder(encoder, write(tmp_path / "a.pt", source))
    assert "in the file only, left out: backbone.blocks.2-5.norm1.{weight, bias}, " in str(caught.value)
    assert set(equal(encoder.state_dict(), before)) == set(before)


def test_initialise_from_a_file_of_nearly_the_same_depth_names_the_rest(tmp_path: Path) -> None:
    deep, shallow = shaken(vit(depth=3)), vit(depth=2)
    report = initialise_encoder(shallow, write(tmp_path / "a.pt", deep))
    assert report.missing == []
    assert {name.rpartition("blocks.2.")[0] for name in report.unexpected} == {"backbone."}
    report = initialise_encoder(vit(depth=3), write(tmp_path / "b.pt", shallow))
    assert set(report.missing) == {name for name in deep.state_dict() if name.startswith("backbone.blocks.2.")}
    assert report.unexpected == []


@pytest.mark.parametrize(
    "weights", [{0: torch.zeros(1)}, {"encoder.backbone.pos_embed": 3}, {"encoder.mask_token": None}]
)
def test_initialise_from_weights_of_another_kind_is_refused(tmp_path: Path, weights: dict) -> None:
    torch.save({"model": weights}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"INIT\.checkpoint .*a\.pt holds "):
        initialise_encoder(vit("replace"), tmp_path / "a.pt")


@pytest.mark.parametrize(
    "config", ["vit_base", "", "DATA:\n", "DATA: [1]\n", "DATA: {image_size: [a, b]}\n", ": [", "DATA: 2026-99-99\n", 3]
)
def test_initialise_does_without_a_config_that_is_not_ours(tmp_path: Path, source: ViT, config: object) -> None:
    encoder, path = vit(), write(tmp_path / "a.pt", source, config=config)
    assert initialise_encoder(encoder, path).loaded == sorted(source.state_dict())


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"head.weight": torch.zeros(2)}},
        {"model": {}},
        {"model": None},
        {"model": "vit_base"},
        {"model": torch.zeros(3)},
        {"model": [torch.zeros(3)]},
        {"state": 3},
        torch.zeros(3),
        [1, 2],
        {},
    ],
)
def test_initialise_from_a_file_without_an_encoder_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"INIT\.checkpoint .*a\.pt holds no encoder"):
        initialise_encoder(vit(), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"hello world, no checkpoint\n", b"(a mark\n", b"PK\x03\x04 broken"])
def test_initialise_from_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"INIT\.checkpoint .*a\.pt"):
        initialise_encoder(vit(), path)


def test_initialise_from_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"INIT\.checkpoint .*none\.pt does not exist"):
        initialise_encoder(vit(), tmp_path / "none.pt")


def test_initialise_takes_what_a_model_of_a_config_saves(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    first = build_model(load_config(recipe, ["SEED", "1"]))
    checkpoint.save(tmp_path, 4, {"model": first.state_dict()}, keep=1)
    second = build_model(load_config(recipe, ["ENCODER.hidden", "replace"]))
    report = initialise_encoder(second.encoder, tmp_path / "step-4.pt")
    assert report.missing == ["mask_token"]
    for name, weight in first.encoder.state_dict().items():
        assert torch.equal(second.encoder.state_dict()[name], weight)
