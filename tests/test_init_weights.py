"""INIT.checkpoint: what is known of the model of a file, what a run takes, and what a frozen encoder refuses."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from small_data import FINETUNE, PROBE, RECIPE, logged, write_recipe
from small_models import classes

from mim import build, build_model, load_config, load_encoder, train
from mim.config import Config
from mim.convert import config_of, convert
from mim.encoders import Encoder
from mim.engine import checkpoint
from mim.errors import ConfigError
from mim.init_weights import config_of_checkpoint, find_facts, initialise, weights_file
from mim.interop import read
from mim.readouts import Predictor

NUMBERS = f"channels: 12, mean: {[0.25] * 12}, std: {[0.5] * 12}"
TWELVE = RECIPE.replace("channels: 1", NUMBERS).replace("[32, 32]", "[64, 64]")
SWIN_V2 = """\
TASK: pretrain
DATA: {name: digits, image_size: [32, 32], channels: 1, mean: [0.5], std: [0.5]}
MASKER: {name: random, cell: 8, ratio: 0.75}
ENCODER: {name: swin_v2, hidden: replace, patch: 4, width: 16, depths: [1, 1], heads: [1, 2], window: 4}
HEAD: {name: pixel_shuffle}
"""
BARE_PROBE = """\
TASK: probe
DATA: {name: folder, batch_size: 4, workers: 0, val_share: 0.5}
ENCODER: {hidden: none}
CLASSIFIER: {pool: mean}
TRAIN: {epochs: 1, precision: fp32}
EVALUATE: {confusion: false}
LOG: {tensorboard: false}
"""
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}


def pretrained(folder: Path, text: str = TWELVE, **keys: object) -> tuple[Path, Config]:
    """A run folder with a checkpoint of a model that was never trained, and its config."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    cfg = load_config(write_recipe(folder, text), {name.replace("_", ".", 1): value for name, value in keys.items()})
    state = build_model(cfg).state_dict()
    checkpoint.save(folder / "checkpoints", 1, {"step": 1, "model": state, "ema": {}, "config": cfg.to_yaml()}, keep=1)
    return folder, cfg


def timm_file(path: Path, model: str = "vit_tiny_patch16_224", **keys: object) -> Path:
    torch.save(timm.create_model(model, pretrained=False, **{**TIMM, **keys}).state_dict(), path)
    return path


def arrays(folder: Path, channels: int, size: int = 64) -> Path:
    """Two classes of eight images of many channels."""
    draw = np.random.default_rng(0)
    for label in range(2):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(8):
            pixels_HWC = draw.integers(0, 200, (size, size, channels)) + 50 * label
            np.save(folder / f"class {label}" / f"{number}.npy", pixels_HWC.astype(np.uint8))
    return folder


def start(cfg: Config, model: Predictor | None = None) -> list[str]:
    """The report of a classifier of a config that starts from INIT.checkpoint."""
    task = SimpleNamespace(model=model or build.build_predictor(cfg, classes(2)))
    return initialise(cfg, task)  # type: ignore[arg-type]


# ------------------------------------------------------------- what is taken


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        ({}, ()),
        ({"ENCODER.window": 8, "DATA.image_size": [64, 64]}, (4, 4)),
        ({"DATA.image_size": [64, 64]}, (4, 4)),
        ({"ENCODER.window": 8, "DATA.image_size": [64, 64], "ENCODER.pretrained_windows": []}, ()),
    ],
    ids=["as there", "window", "size", "set"],
)
def test_swin_v2_keeps_the_unit_of_its_distances_at_another_window_by_every_door(
    tmp_path: Path, keys: dict, windows: tuple[int, ...]
) -> None:
    run, cfg = pretrained(tmp_path / "run", SWIN_V2)
    probe = load_config(write_recipe(tmp_path, BARE_PROBE), {**keys, "INIT.checkpoint": run})
    assert probe.ENCODER.pretrained_windows == windows
    assert config_of_checkpoint(cfg.to_yaml(), keys, "run").ENCODER.pretrained_windows == windows
    assert config_of(read(weights_file(run), "weights"), keys).ENCODER.pretrained_windows == windows


def test_checkpoint_knows_its_encoder_and_its_images(tmp_path: Path) -> None:
    known = find_facts(str(pretrained(tmp_path / "run")[0]))
    assert known is not None
    assert known.values["ENCODER.width"] == 16
    assert known.values["DATA.channels"] == 12
    assert known.values["DATA.mean"] == (0.25,) * 12
    assert not {"ENCODER.hidden", "ENCODER.drop_path", "DATA.path", "DATA.batch_size"} & set(known.values)
    assert known.guesses == known.reasons == {}


def test_nothing_is_known_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert find_facts("") is find_facts(str(tmp_path / "gone")) is None


def test_probe_trains_on_a_run_of_many_channels_without_repeating_its_keys(tmp_path: Path) -> None:
    run, cfg = pretrained(tmp_path / "run")
    data = arrays(tmp_path / "data", 12)
    recipe = write_recipe(tmp_path, BARE_PROBE)
    train(recipe, {"DATA.path": data, "INIT.checkpoint": run}, tmp_path / "probe", quiet=True)
    probe = load_config(tmp_path / "probe" / "config.yaml")
    for key in ("ENCODER.patch", "ENCODER.width", "DATA.channels", "DATA.image_size", "DATA.mean", "DATA.std"):
        assert probe.flat()[key] == cfg.flat()[key]
    lines = (tmp_path / "probe" / "log.txt").read_text().splitlines()
    assert any("taken from there: " in line and "DATA.channels 12" in line for line in lines)
    state = checkpoint.load(checkpoint.find(tmp_path / "probe"))["model"]
    theirs = checkpoint.load(checkpoint.find(run))["model"]
    assert all(torch.equal(state[name], theirs[name]) for name in state if name.startswith("encoder."))
    # the run goes on without what it started from, under the command that started it
    (run / "checkpoints").rename(run / "moved")
    summary = train(recipe, {"DATA.path": data, "INIT.checkpoint": run}, tmp_path / "probe", quiet=True)
    assert summary["epochs"] == 1


@pytest.mark.parametrize("name", ["probe/digits", "finetune/digits", "finetune/cifar10_vit_tiny"])
def test_shipped_recipe_takes_the_encoder_of_any_run(tmp_path: Path, name: str) -> None:
    run, cfg = pretrained(tmp_path / "run")
    probe = load_config(name, {"INIT.checkpoint": run})
    assert (probe.ENCODER.width, probe.ENCODER.patch, probe.DATA.channels) == (16, 8, 12)
    assert (probe.DATA.mean, probe.DATA.image_size) == (cfg.DATA.mean, (64, 64))
    assert probe.ENCODER.norm == load_config(name).ENCODER.norm
    with pytest.raises(ConfigError, match=r"ENCODER\.heads: 4 here, 2 there"):
        load_config(name, {"INIT.checkpoint": run, "ENCODER.heads": 4})


def test_published_recipe_of_another_size_is_refused_with_each_value(tmp_path: Path) -> None:
    run, _ = pretrained(tmp_path / "run", RECIPE)
    with pytest.raises(ConfigError, match=r"ENCODER\.width: 768 here, 16 there"):
        load_config("probe/mae_vit_base", {"INIT.checkpoint": run})


def test_config_object_takes_from_a_checkpoint_that_is_named_later(tmp_path: Path) -> None:
    run, _ = pretrained(tmp_path / "run", RECIPE)
    cfg = load_config(write_recipe(tmp_path, PROBE)).replace({"INIT.checkpoint": str(run), "ENCODER.heads": 4})
    with pytest.raises(ConfigError, match=r"ENCODER\.heads: 4 here, 2 there"):
        train(cfg, output=tmp_path / "probe")
    assert not (tmp_path / "probe").exists()


# ------------------------------------------------------------- what is guessed


def test_bare_file_is_taken_by_what_its_weights_show_and_its_guesses_are_told(tmp_path: Path) -> None:
    file = timm_file(tmp_path / "theirs.pth", embed_dim=192, num_heads=3)
    cfg = load_config(write_recipe(tmp_path, BARE_PROBE), {"INIT.checkpoint": file})
    assert (cfg.ENCODER.width, cfg.ENCODER.depth, cfg.ENCODER.patch, cfg.DATA.channels) == (192, 2, 8, 3)
    assert (cfg.ENCODER.heads, cfg.DATA.image_size, cfg.DATA.mean) == (3, (32, 32), (0.485, 0.456, 0.406))
    (line,) = [note for note in cfg.notes if "not in the file, so check them" in note]
    for key in ("ENCODER.heads 3", "DATA.image_size [32, 32]", "DATA.mean [0.485, 0.456, 0.406]", "DATA.std"):
        assert key in line
    with pytest.raises(ConfigError, match=r"ENCODER\.depth: 3 here, 2 there"):
        load_config(write_recipe(tmp_path, BARE_PROBE), {"INIT.checkpoint": file, "ENCODER.depth": 3})


def test_load_encoder_and_convert_tell_guesses_and_not_what_the_user_sets(tmp_path: Path) -> None:
    file = timm_file(tmp_path / "theirs.pth", embed_dim=192, num_heads=3)
    with logged() as lines:
        load_encoder(file)
    assert any("ENCODER.heads 3 (the published ViT of width 192 has 3 heads)" in line for line in lines)
    report = convert(file, tmp_path / "ours.pt", "mim", overrides={"ENCODER.heads": 3})
    (line,) = [line for line in report if "not in the file, so check them" in line]
    assert "DATA.mean" in line
    assert "ENCODER.heads" not in line
    with logged() as lines:
        load_encoder(tmp_path / "ours.pt")
    assert lines == []


def test_every_door_refuses_other_values_than_those_of_the_run(tmp_path: Path) -> None:
    from mim import evaluate

    run, _ = pretrained(tmp_path / "run", RECIPE)
    other = {"ENCODER.heads": 4}
    doors = (
        lambda: load_encoder(run, other),
        lambda: convert(run, tmp_path / "out.pth", "timm", overrides=other),
        lambda: evaluate.features(run, other, "mean", tmp_path / "features.npz"),
    )
    for door in doors:
        with pytest.raises(ConfigError, match=r"ENCODER\.heads: 4 here, 2 there"):
            door()
    load_encoder(run, {**other, "INIT.keep": ["ENCODER.heads"]})


# ------------------------------------------------------------- frozen encoders


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"in_chans": 1, "init_values": 1e-5}, "ls1.gamma"),  # LayerScale, which the encoder lacks
        ({"in_chans": 3}, "patch_embed.proj.weight"),
        ({"in_chans": 1, "final_norm": False}, "backbone.norm"),  # of the encoder, and not in the file
    ],
)
def test_frozen_encoder_refuses_what_no_training_mends(tmp_path: Path, theirs: dict, named: str) -> None:
    file = timm_file(tmp_path / "theirs.pth", **theirs)
    keys = {"INIT.checkpoint": file, "INIT.keep": ["DATA.channels"], "ENCODER.norm": True}
    whole = {"READOUT.norm": False}
    for text, more in ((PROBE, {}), (FINETUNE, {**whole, "FREEZE.tune_blocks": 0})):
        with pytest.raises(ValueError, match="no training mends") as caught:
            start(load_config(write_recipe(tmp_path, text), {**keys, **more}))
        assert named in str(caught.value)
    assert any(named in line for line in start(load_config(write_recipe(tmp_path, FINETUNE), {**keys, **whole})))


def test_frozen_encoder_takes_a_file_that_fits(tmp_path: Path) -> None:
    file = timm_file(tmp_path / "theirs.pth", in_chans=1)
    assert start(load_config(write_recipe(tmp_path, PROBE), {"INIT.checkpoint": file}))[0].endswith("weights loaded")


def test_partly_frozen_encoder_refuses_what_is_missing_below(tmp_path: Path) -> None:
    run, _ = pretrained(tmp_path / "run", RECIPE, ENCODER_depth=2)
    file = checkpoint.find(run)
    content = checkpoint.load(file)
    keys = {"INIT.checkpoint": run, "FREEZE.tune_blocks": 1}
    for block, refused in ((1, False), (0, True)):
        name = f"encoder.backbone.blocks.{block}.norm1.bias"
        state = {each: weight for each, weight in content["model"].items() if each != name}
        checkpoint.write(file, {**content, "model": state})
        cfg = load_config(write_recipe(tmp_path, FINETUNE), keys)
        if refused:
            with pytest.raises(ValueError, match=r"blocks\.0\.norm1\.bias"):
                start(cfg)
        else:
            assert any("norm1.bias" in line for line in start(cfg))


def test_frozen_encoder_needs_no_mask_token_and_no_norm_that_it_leaves_out(tmp_path: Path) -> None:
    run, _ = pretrained(tmp_path / "run", RECIPE, ENCODER_hidden="replace", HEAD_name="pixel_shuffle", ENCODER_depth=2)
    keys = {"INIT.checkpoint": run, "FREEZE.tune_blocks": 0, "ENCODER.norm": False}
    assert any("mask_token" in line for line in start(load_config(write_recipe(tmp_path, FINETUNE), keys)))


def test_frozen_encoder_leaves_out_what_init_leave_out_names(tmp_path: Path) -> None:
    file = timm_file(tmp_path / "scaled.pth", in_chans=1)
    state = torch.load(file)
    torch.save({**state, "extra.weight": torch.zeros(3)}, file)
    keys = {"INIT.checkpoint": file}
    with pytest.raises(ValueError, match=r"extra\.weight"):
        start(load_config(write_recipe(tmp_path, PROBE), keys))
    cfg = load_config(write_recipe(tmp_path, PROBE), {**keys, "INIT.leave_out": ["backbone.extra", "backbone.exta"]})
    notes = [line for line in start(cfg) if "leave_out" in line]
    assert notes == ["  INIT.leave_out backbone.exta: no name in the file begins so"]


@pytest.mark.parametrize("channels", [1, 4])
def test_first_layer_is_adapted_to_other_channels_as_timm_does(tmp_path: Path, channels: int) -> None:
    file = timm_file(tmp_path / "coloured.pth")
    keys = {"INIT.checkpoint": file, "DATA.channels": channels, "INIT.adapt_channels": True}
    cfg = load_config(write_recipe(tmp_path, PROBE), keys)
    model = build.build_predictor(cfg, classes(2))
    lines = start(cfg, model)
    expected = timm.models.adapt_input_conv(channels, torch.load(file)["patch_embed.proj.weight"])
    assert torch.equal(model.encoder.backbone.patch_embed.proj.weight, expected)
    assert any(f"is adapted from 3 to {channels} channels" in line for line in lines)
    with pytest.raises(ConfigError, match=r"DATA\.channels: \d here, 3 there"):
        load_config(write_recipe(tmp_path, PROBE), {**keys, "INIT.adapt_channels": False})


# ------------------------------------------------------------- plugins

PLUGIN = """
import torch
from torch import nn

from mim.encoders import Encoder
from mim.structures import Features
from mim.targets import Pixels


class {name}(Encoder, name="{name}"):
    def __init__(self, image, *, hidden: str = "replace", width: int = 16):
        super().__init__(image, hidden, width=width, patch=8)
        self.embed = nn.Conv2d(image.channels, width, 8, 8)
        self.scale = nn.BatchNorm1d(width)

    def forward(self, img_BCHW, mask=None):
        tokens_BND = self.replace_hidden(self.embed(img_BCHW).flatten(2).mT, mask)
        return Features(self.scale(tokens_BND.mT).mT, self.spec.grid)


class {name}_target(Pixels, name="{name}_target"):
    pass
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """A module with an encoder and a target of one's own, which can be forgotten as another process would."""
    name = f"mine_{abs(hash(request.node.name)) % 10**9}"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(PLUGIN.replace("{name}", name))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield name
    forget(name)


def forget(name: str) -> None:
    from mim.targets import Target

    sys.modules.pop(name, None)
    Encoder._members.pop(name, None)
    Target._members.pop(f"{name}_target", None)


def of_plugin(name: str) -> str:
    text = RECIPE.replace("hidden: drop, patch: 8, width: 16, depth: 1, heads: 2", "hidden: replace, width: 16")
    text = text.replace("HEAD: {name: transformer, width: 16, depth: 1, heads: 2}", "HEAD: {name: pixel_shuffle}")
    return f"PLUGINS: [{name}]\n" + text.replace("name: vit", f"name: {name}")


def test_probe_takes_the_plugin_of_its_run(tmp_path: Path, plugin: str) -> None:
    run, _ = pretrained(tmp_path / "run", of_plugin(plugin))
    forget(plugin)
    cfg = load_config(write_recipe(tmp_path, BARE_PROBE), {"INIT.checkpoint": run, "DATA.name": "digits"})
    assert (cfg.ENCODER.name, cfg.PLUGINS) == (plugin, (plugin,))
    assert start(cfg)[0].endswith("7 encoder weights loaded")


def test_load_encoder_and_convert_import_the_plugin_of_a_run(tmp_path: Path, plugin: str) -> None:
    run, _ = pretrained(tmp_path / "run", of_plugin(plugin))
    forget(plugin)
    img_BCHW = torch.rand(2, 1, 32, 32)
    features = load_encoder(run)(img_BCHW).tokens_BND
    convert(run, tmp_path / "copy.pt", "mim")
    forget(plugin)
    assert torch.equal(load_encoder(tmp_path / "copy.pt")(img_BCHW).tokens_BND, features)


def test_vit_with_a_target_of_ones_own_is_loaded_and_converted(tmp_path: Path, plugin: str) -> None:
    text = f"PLUGINS: [{plugin}]\n" + RECIPE.replace("name: pixels", f"name: {plugin}_target")
    run, cfg = pretrained(tmp_path / "run", text)
    forget(plugin)
    assert load_encoder(run).spec.width == 16
    assert plugin not in sys.modules, "the encoder needs nothing of it"
    convert(run, tmp_path / "theirs.pth", "timm")
    keys = {**TIMM, "depth": 1, "in_chans": 1, "checkpoint_path": str(tmp_path / "theirs.pth")}
    model = timm.create_model("vit_tiny_patch16_224", **keys)
    ours = build_model(cfg).encoder.state_dict()["backbone.blocks.0.mlp.fc1.weight"]
    assert torch.equal(model.blocks[0].mlp.fc1.weight, ours)


def test_plugin_that_cannot_be_imported_is_named_with_the_reason(tmp_path: Path, plugin: str) -> None:
    run, _ = pretrained(tmp_path / "run", of_plugin(plugin))
    forget(plugin)
    (tmp_path / "modules" / f"{plugin}.py").unlink()
    for door in (
        lambda: load_encoder(run),
        lambda: convert(run, tmp_path / "out.pt", "mim"),
        lambda: load_config(write_recipe(tmp_path, BARE_PROBE), {"INIT.checkpoint": run}),
    ):
        with pytest.raises(ConfigError, match=f"ENCODER.name {plugin} .*No module named '{plugin}'"):
            door()


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.net."])
def test_state_dict_under_the_names_of_ones_own_encoder_starts_it(tmp_path: Path, plugin: str, prefix: str) -> None:
    keys = {"ENCODER.name": plugin, "PLUGINS": [plugin], "ENCODER.width": 16}
    cfg = load_config(write_recipe(tmp_path, BARE_PROBE), {**keys, "DATA.name": "digits", "DATA.channels": 1})
    source = build.build_predictor(cfg, classes(2)).encoder
    with torch.no_grad():
        for weight in source.parameters():
            weight.normal_()
        source.scale.num_batches_tracked.fill_(7)
    state = {prefix + name: weight for name, weight in source.state_dict().items()}
    torch.save({**state, **({"head.weight": torch.zeros(2)} if prefix else {})}, tmp_path / "own.pth")
    own = cfg.replace({"INIT.checkpoint": str(tmp_path / "own.pth"), "DATA.image_size": [32, 32]})
    model = build.build_predictor(own, classes(2))
    assert any("check what no shape of a weight shows, such as heads" in line for line in start(own, model))
    assert all(torch.equal(weight, source.state_dict()[name]) for name, weight in model.encoder.state_dict().items())
    loaded = load_encoder(tmp_path / "own.pth", {**keys, "DATA.channels": 1, "DATA.image_size": [32, 32]})
    assert all(torch.equal(weight, source.state_dict()[name]) for name, weight in loaded.state_dict().items())
