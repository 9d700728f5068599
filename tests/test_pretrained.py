"""mim.load_model: a whole pretraining model with its preprocessing, from a run, a checkpoint or a foreign file."""

import sys
from pathlib import Path

import pytest
import torch
from converted import MODELS, build_sample, loss_of, sample
from processes import RECIPE, TINY

import mim
from mim import build, load_model
from mim.convert import convert
from mim.engine.distributed.world import World
from mim.pretrained import read_pretrained


@pytest.mark.parametrize("name", ["mae", "mae-wide-many", "swin", "beit-decoder"])
def test_load_model_of_a_checkpoint_is_the_model_of_the_run(tmp_path: Path, name: str) -> None:
    source = sample(name)
    model, preprocess = load_model(source.write(tmp_path / "run.pt"))
    img_BCHW = source.images()
    assert torch.equal(loss_of(model, img_BCHW), loss_of(source.model, img_BCHW))
    assert not any(module.training for module in model.modules())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert preprocess.mean_C11.flatten().tolist() == pytest.approx([0.4] * img_BCHW.shape[1])
    stored = torch.full((1, img_BCHW.shape[1], 4, 4), 255, dtype=torch.uint8)
    assert torch.allclose(preprocess(stored), torch.tensor((1 - 0.4) / 0.3))


@pytest.mark.parametrize(
    ("name", "to", "file"), [("mae", "mae", "a.pth"), ("mae", "transformers", "a"), ("swin", "simmim", "a.pth")]
)
def test_load_model_takes_foreign_files_with_their_decoder(tmp_path: Path, name: str, to: str, file: str) -> None:
    source = sample(name)
    convert(source.write(tmp_path / "run.pt"), tmp_path / file, to)
    model, _ = load_model(str(tmp_path / file))
    assert torch.equal(loss_of(model, source.images()), loss_of(source.model, source.images()))


def test_load_model_prefers_the_moving_average(tmp_path: Path) -> None:
    source, other = sample("mae"), build_sample(MODELS["mae"], seed=2)
    ema = {"n_averaged": torch.tensor(3), **{f"module.{name}": weight for name, weight in source.state.items()}}
    path = other.write(tmp_path / "run.pt", ema=ema)
    assert torch.equal(loss_of(load_model(path)[0], source.images()), loss_of(source.model, source.images()))
    stored = read_pretrained(path, (), "weights")
    assert (stored.step, stored.averaged, stored.has_data) == (3, True, True)


def test_load_model_of_a_run_folder_has_the_held_out_loss_of_its_end(tmp_path: Path) -> None:
    keys = {**TINY, "TRAIN.batch": 256, "DATA.batch_size": 256, "CHECKPOINT.every_epochs": 0}
    summary = mim.train(RECIPE, keys, tmp_path / "run", quiet=True)
    model, preprocess = load_model(tmp_path / "run")
    cfg = mim.load_config(tmp_path / "run" / "config.yaml")
    task = build.build_task(cfg, *build.build_data(cfg))
    task.preprocess = preprocess
    with torch.no_grad():
        report = task.evaluate(model, World(0, 1, torch.device("cpu")))
    assert report.metrics["val/loss"] == summary["val/loss"]


def test_load_model_imports_the_plugins_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_target_of_mine.py").write_text("FOUND = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = sample("mae")
    config = source.cfg.replace({"PLUGINS": ["a_target_of_mine"]}).to_yaml()
    load_model(source.write(tmp_path / "run.pt", config=config))
    assert sys.modules.pop("a_target_of_mine").FOUND


@pytest.mark.parametrize("name", ["vit-mean", "vit-probe"])
def test_load_model_of_a_classifier_names_what_loads_it(tmp_path: Path, name: str) -> None:
    path = sample(name).write(tmp_path / "run.pt")
    task = sample(name).cfg.TASK
    with pytest.raises(ValueError, match=rf"run\.pt has no head .*TASK {task}.*mim\.load_encoder .*mim-evaluate"):
        load_model(path)


def test_load_model_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "gone")
    source = sample("mae")
    content = source.cfg.replace({"DATA.mean": "estimate", "DATA.std": "estimate"}).to_yaml()
    path = source.write(tmp_path / "run.pt", config=content)
    with pytest.raises(ValueError, match=r"does not say how its images were normalised: name DATA\.mean and DATA\.std"):
        load_model(path)
    _, preprocess = load_model(path, {"DATA.mean": [0.5] * 3, "DATA.std": [0.25] * 3})
    assert preprocess.std_C11.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize("to", ["", "mae"])
def test_load_model_refuses_a_head_that_predicts_something_else(tmp_path: Path, to: str) -> None:
    path = sample("mae").write(tmp_path / "run.pt")
    if to:
        convert(path, tmp_path / "full.pth", to)
        path = tmp_path / "full.pth"
    there = sample("mae").cfg.HEAD.values()["heads"]
    here = there // 2
    text = rf"HEAD\.heads {there} there, {here} here.*INIT\.keep \"\[HEAD\.heads\]\""
    with pytest.raises(mim.ConfigError, match=text):
        load_model(path, {"HEAD.heads": here})
    model, _ = load_model(path, {"HEAD.heads": here, "INIT.keep": ["HEAD.heads"]})
    assert model.head.layers[0].attn.num_heads == here
    load_model(path, {"HEAD.heads": there})


def test_load_model_is_a_public_name() -> None:
    assert mim.load_model is load_model
    assert "load_model" in mim.__all__


def test_load_model_leaves_the_random_state_of_its_caller_alone(tmp_path: Path) -> None:
    path = sample("mae").write(tmp_path / "run.pt")
    before = torch.manual_seed(5).get_state()  # of a seed that nothing here draws from
    load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
