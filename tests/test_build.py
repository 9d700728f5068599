"""From a config to objects: weights follow from the seed alone, shapes need no memory, statistics become numbers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import FINETUNE, PROBE, RECIPE, logged, write_digits, write_recipe
from small_models import classes

from mim import Encoder, build_model, load_config
from mim.build import (
    build_data,
    build_predictor,
    build_task,
    build_without_memory,
    chosen_labels,
    engine_settings,
    with_statistics,
)
from mim.data.sources.classes import class_names
from mim.engine.optim import LARS, AdamW
from mim.readouts import Predictor


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def test_build_model_weights_are_a_function_of_the_seed(recipe: Path) -> None:
    cfg = load_config(recipe)
    torch.manual_seed(1)
    first = build_model(cfg).state_dict()
    torch.manual_seed(2)
    twin = build_model(cfg).state_dict()
    other = build_model(load_config(recipe, ["SEED", "1"])).state_dict()
    assert list(first) == list(twin) == list(other)
    assert all(torch.equal(first[name], twin[name]) for name in first)
    random_names = [name for name in first if not torch.equal(first[name], other[name])]
    assert "encoder.backbone.patch_embed.proj.weight" in random_names
    assert "head.mask_token" in random_names


def test_build_model_leaves_the_global_generator_untouched(recipe: Path) -> None:
    cfg = load_config(recipe)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    build_model(cfg)
    build_without_memory(cfg)
    assert torch.equal(torch.get_rng_state(), before)


def test_build_model_is_built_for_the_images_of_the_config(recipe: Path) -> None:
    model = build_model(load_config(recipe, ["DATA.image_size", "[16, 40]", "DATA.channels", "3"]))
    assert model.encoder.spec.grid == (2, 5)
    img_BCHW = torch.rand(2, 3, 16, 40)
    output = model(img_BCHW, model.sample_mask(img_BCHW))
    assert output.prediction.shape == img_BCHW.shape
    assert output.loss.isfinite()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["ENCODER.hidden", "replace", "HEAD.name", "pixel_shuffle"],
        ["MASKER.name", "grid", "TARGET.normalize", "none"],
        ["MASKER.name", "block", "ENCODER.positions", "learned", "ENCODER.class_token", "false"],
    ],
)
def test_build_without_memory_has_the_names_and_shapes_of_the_model(recipe: Path, overrides: list[str]) -> None:
    with logged():
        cfg = load_config(recipe, overrides)
    shape, model = build_without_memory(cfg), build_model(cfg)
    assert shape is not None
    assert all(parameter.is_meta for parameter in shape.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
    meta, real = shape.state_dict(), model.state_dict()
    assert {name: weight.shape for name, weight in meta.items()} == {name: w.shape for name, w in real.items()}
    assert shape.masker.visible == model.masker.visible


# -------------------------------------------------------------------- classifiers


@pytest.mark.parametrize("text", [FINETUNE, PROBE], ids=["finetune", "probe"])
def test_build_predictor_weights_are_a_function_of_the_seed(tmp_path: Path, text: str) -> None:
    path = write_recipe(tmp_path, text)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_predictor(load_config(path), classes(10)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    twin = build_predictor(load_config(path), classes(10)).state_dict()
    other = build_predictor(load_config(path, ["SEED", "1"]), classes(10)).state_dict()
    assert list(first) == list(twin) == list(other)
    assert all(torch.equal(first[name], twin[name]) for name in first)
    random_names = {name for name in first if not torch.equal(first[name], other[name])}
    assert {"encoder.backbone.patch_embed.proj.weight", "readouts.0.linear.weight"} <= random_names


def test_build_predictor_is_built_for_images_and_classes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, PROBE)
    cfg = load_config(path, ["DATA.image_size", "[16, 40]", "DATA.channels", "3", "PROBE.rates", "[1, 2]"])
    assert [scores.shape for scores in build_predictor(cfg, classes(7))(torch.rand(4, 3, 16, 40))] == 2 * [(4, 7)]


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (FINETUNE, []),
        (FINETUNE, ["FREEZE.tune_blocks", "0.5", "ENCODER.norm", "false", "READOUT.pool", "class"]),
        (PROBE, []),
        (PROBE, ["PROBE.rates", "[0.1, 1]", "READOUT.pool", "both"]),
    ],
)
def test_build_without_memory_has_the_names_and_shapes_of_the_classifier(
    tmp_path: Path, text: str, overrides: list[str]
) -> None:
    cfg = load_config(write_recipe(tmp_path, text), overrides)
    shape, model = build_without_memory(cfg, classes(10)), build_predictor(cfg, classes(10))
    assert isinstance(shape, Predictor)
    assert all(parameter.is_meta for parameter in shape.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
    meta, real = dict(shape.named_parameters()), dict(model.named_parameters())
    assert {name: (weight.shape, weight.requires_grad) for name, weight in meta.items()} == {
        name: (weight.shape, weight.requires_grad) for name, weight in real.items()
    }


def test_build_model_of_a_classifiers_config_names_the_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TASK is finetune: it has a readout, see build_predictor"):
        build_model(load_config(write_recipe(tmp_path, FINETUNE)))


# -------------------------------------------------------------------- a user's encoder that has to look at values

PLUGIN = '''
"""An encoder that looks at the values of its weights while it is built."""

import torch
from torch import nn

from mim import Encoder, Features


class Looking(Encoder, name="looking_{how}"):
    def __init__(self, image, *, hidden: str = "replace", patch: int = 8, width: int = 16):
        super().__init__(image, hidden, width=width, patch=patch)
        self.embed = nn.Conv2d(image.channels, width, patch, patch)
        self.scale = 1 / self.embed.weight.abs().max().{how}

    def forward(self, img_BCHW, mask=None):
        patches_BND = (self.embed(img_BCHW) * float(self.scale)).flatten(2).transpose(1, 2)
        return Features(self.replace_hidden(patches_BND, mask), self.spec.grid)
'''


@pytest.fixture(params=["item()", "tolist()", "detach().numpy()"])
def looking(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The text of a config with such an encoder; nothing of it is left afterwards."""
    module, folder = "mim_test_looking", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / f"{module}.py").write_text(PLUGIN.replace("{how}", request.param))
    monkeypatch.syspath_prepend(str(folder))
    text = RECIPE.replace(
        "{name: vit, hidden: drop, patch: 8, width: 16, depth: 1, heads: 2}", f"{{name: 'looking_{request.param}'}}"
    )
    yield text + f"PLUGINS: [{module}]\n"
    Encoder._members.pop(f"looking_{request.param}", None)
    sys.modules.pop(module, None)


def test_build_encoder_that_needs_values_loads_and_builds(looking: str, tmp_path: Path) -> None:
    cfg = load_config(write_recipe(tmp_path, looking))
    assert build_without_memory(cfg) is None
    img_BCHW = torch.rand(2, 1, 32, 32)
    model = build_model(cfg)
    assert model(img_BCHW, model.sample_mask(img_BCHW)).loss.isfinite()
    train, val = build_data(cfg)
    task = build_task(with_statistics(cfg, train), train, val)
    assert task.model is not None


# -------------------------------------------------------------------- data and settings


def test_build_data_gives_both_splits(recipe: Path) -> None:
    train, val = build_data(load_config(recipe))
    assert (len(train), len(val)) == (1437, 360)
    assert (train.split, val.split) == ("train", "val")


def test_build_data_refuses_channels_that_the_data_set_cannot_have(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"DATA\.channels is 2"):
        build_data(load_config(recipe, ["DATA.channels", "2"]))


def test_build_with_statistics_puts_numbers_for_estimate(recipe: Path, tmp_path: Path) -> None:
    cfg = load_config(recipe)
    train, _ = build_data(cfg)
    numbers = with_statistics(cfg, train)
    assert cfg.DATA.mean == cfg.DATA.std == "estimate"
    assert len(numbers.DATA.mean) == len(numbers.DATA.std) == 1
    assert 0.2 < numbers.DATA.mean[0] < 0.4
    assert 0.2 < numbers.DATA.std[0] < 0.5
    assert load_config(write_recipe(tmp_path, numbers.to_yaml())) == numbers


def test_build_with_statistics_keeps_numbers(recipe: Path) -> None:
    cfg = load_config(recipe, ["DATA.mean", "[0.25]", "DATA.std", "[0.5]"])
    train, _ = build_data(cfg)
    assert with_statistics(cfg, train) is cfg


def test_build_engine_settings_carry_the_config(recipe: Path) -> None:
    overrides = ["SEED", "3", "DATA.batch_size", "16", "TRAIN.batch", "32", "OPTIMIZER.betas", "[0.5, 0.6]"]
    settings = engine_settings(load_config(recipe, overrides))
    assert (settings.seed, settings.batch_size, settings.train.batch) == (3, 16, 32)
    assert settings.optimizer.betas == (0.5, 0.6)
    assert settings.checkpoint.keep == 2
    assert isinstance(settings.optimizer, AdamW)


def test_build_engine_settings_hold_the_optimizer_of_the_config(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, PROBE)
    settings = engine_settings(load_config(path, ["OPTIMIZER.name", "lars", "OPTIMIZER.trust", "0.5"]))
    assert isinstance(settings.optimizer, LARS)
    assert settings.optimizer.trust == 0.5


# -------------------------------------------------------------------- tasks


def task_of(path: Path, *overrides: str):
    """A config's task on its data, with numbers in place of estimated statistics."""
    cfg = load_config(path, ["DATA.mean", "[0.3]", "DATA.std", "[0.4]", *overrides])
    return build_task(cfg, *build_data(cfg))


@pytest.mark.parametrize(("text", "name"), [(RECIPE, "pretrain"), (FINETUNE, "finetune"), (PROBE, "probe")])
def test_build_task_is_the_one_that_the_config_names(tmp_path: Path, text: str, name: str) -> None:
    task = task_of(write_recipe(tmp_path, text))
    assert task.name == name
    assert (len(task.train_data), len(task.held_out)) == (1437, 360)
    assert task.model_summary.flops > 0
    assert chosen_labels(task) is None


@pytest.mark.parametrize("text", [FINETUNE, PROBE], ids=["finetune", "probe"])
def test_build_task_trains_on_the_labels_that_the_config_asks_for(tmp_path: Path, text: str) -> None:
    path = write_recipe(tmp_path, text)
    tasks = [task_of(path, "LABELS.per_class", "3", "LABELS.seed", seed) for seed in ("0", "0", "1")]
    listed = [chosen_labels(task) for task in tasks]
    for task, lines in zip(tasks, listed, strict=True):
        assert len(task.train_data) == 30
        assert len(task.held_out) == 360  # fewer labels to train on are not fewer to judge by
        assert task.labels == "30 of 1,437 labelled to train"
        classes = [line.rpartition("\t")[2] for line in lines.splitlines()]
        assert sorted(classes) == sorted(3 * [str(digit) for digit in range(10)])
    assert listed[0] == listed[1] != listed[2]
    assert task_of(path, "LABELS.share", "0.1").labels == "140 of 1,437 labelled to train"


def test_build_task_gives_its_classifier_every_class_of_the_data(tmp_path: Path) -> None:
    for name in ("five", "four", "one"):
        write_digits(tmp_path / "images" / name, 4)
    task = task_of(
        write_recipe(tmp_path, FINETUNE), "DATA.name", "folder", "DATA.path", str(tmp_path / "images"), "SEED", "1"
    )
    assert task.label_spec.names == ("five", "four", "one")
    assert task.model.readouts[0].linear.out_features == 3


def test_build_class_names_are_the_datas_own_or_numbers(tmp_path: Path) -> None:
    train, _ = build_data(load_config(write_recipe(tmp_path, FINETUNE)))
    train.classes = tuple("abcdefghij")
    assert class_names(train) == tuple("abcdefghij")
    train.classes = ()
    assert class_names(train) == tuple("0123456789")
    train.labels = None
    assert class_names(train) == ()


@pytest.mark.parametrize("text", [FINETUNE, PROBE], ids=["finetune", "probe"])
def test_build_data_without_labels_is_refused_where_the_task_needs_them(tmp_path: Path, text: str) -> None:
    write_digits(tmp_path / "images", 12)
    overrides = ["DATA.name", "folder", "DATA.path", str(tmp_path / "images")]
    with pytest.raises(
        ValueError, match=r"TASK \w+ needs labels, and the training images of DATA\.name folder have none"
    ):
        build_data(load_config(write_recipe(tmp_path, text), overrides))
    train, _ = build_data(load_config(write_recipe(tmp_path), overrides))
    assert train.labels is None


# -------------------------------------------------------------------- labels that are no classes


@pytest.fixture
def measurements(tmp_path: Path) -> list[str]:
    """Overrides for thirty digits, each with a measurement as its label."""
    paths = write_digits(tmp_path / "images", 30)
    lines = [f"{path.name}\t{number / 7:.4f}" for number, path in enumerate(paths)]
    (tmp_path / "images" / "list.txt").write_text("\n".join(lines))
    return ["DATA.name", "folder", "DATA.path", str(tmp_path / "images" / "list.txt")]


@pytest.mark.parametrize("text", [FINETUNE, PROBE], ids=["finetune", "probe"])
def test_build_data_refuses_labels_that_are_no_classes(tmp_path: Path, measurements: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=r"TASK \w+ needs classes, and the labels in the second column of .*list\.txt"):
        build_data(load_config(write_recipe(tmp_path, text), measurements))


def test_build_pretraining_with_labels_that_are_no_classes_has_no_knn_and_says_so(
    tmp_path: Path, measurements: list[str]
) -> None:
    with logged() as lines:
        task = task_of(write_recipe(tmp_path), *measurements)
    assert task.settings.knn == 0
    assert [line.startswith("no kNN accuracy: the labels in the second column") for line in lines] == [True]
    with logged() as lines:
        task_of(write_recipe(tmp_path), *measurements, "EVALUATE.knn", "0")
        task_of(write_recipe(tmp_path), *measurements, "DATA.labels", "none")
    assert lines == []


def test_build_data_numbers_held_out_labels_as_the_training_images_do(tmp_path: Path, monkeypatch) -> None:
    cfg = load_config(write_recipe(tmp_path, FINETUNE))
    train, held_out = build_data(cfg)
    before = held_out.labels.copy()
    held_out.classes, held_out.labels = tuple("9876543210"), 9 - held_out.labels
    monkeypatch.setattr("mim.build.data.build_sources", lambda cfg: (train, held_out))
    assert np.array_equal(build_data(cfg)[1].labels, before)
    train.classes = held_out.classes = ()  # numbers alone
    held_out.labels = before + 1
    with pytest.raises(ValueError, match="other classes than the training images: 10 is not among its 10 classes"):
        build_data(cfg)


def test_build_data_joins_the_labels_of_a_table(tmp_path: Path) -> None:
    paths = write_digits(tmp_path / "images", 20)
    rows = [f"{path.name},{number / 20},{number // 2}" for number, path in enumerate(paths)]
    (tmp_path / "images" / "labels.csv").write_text("\n".join(["file,wear,part", *rows]))
    keys = {
        **{"DATA.name": "folder", "DATA.path": tmp_path / "images", "LABELS.file": tmp_path / "images" / "labels.csv"},
        **{"LABELS.path_column": "file", "LABELS.columns": "[wear]", "LABELS.group": "part", "LABELS.folds": 4},
    }
    pairs = [str(word) for pair in keys.items() for word in pair]
    train, held_out = build_data(load_config(write_recipe(tmp_path, FINETUNE), pairs))
    assert (train.label_spec.kind, train.label_spec.names) == ("number", ("wear",))
    assert (len(train), len(held_out)) == (14, 6)
    assert not {*train.groups} & {*held_out.groups}
    cut = load_config(write_recipe(tmp_path, PROBE), [*pairs, "LABELS.bins", "[0.25, 0.75]"])
    assert [source.classes for source in build_data(cut)] == [("<0.25", "0.25 to <0.75", ">=0.75")] * 2


def test_build_data_takes_decimals_for_classes_where_the_config_says_so(
    tmp_path: Path, measurements: list[str]
) -> None:
    cfg = load_config(write_recipe(tmp_path, FINETUNE), [*measurements, "LABELS.kind", "class"])
    assert len(build_data(cfg)[0].classes) == 30
    cfg = load_config(write_recipe(tmp_path, FINETUNE), [*measurements, "LABELS.kind", "number"])
    train, held_out = build_data(cfg)
    assert train.labels.dtype == held_out.labels.dtype == np.float32
    assert sorted([*train.labels[:, 0], *held_out.labels[:, 0]]) == pytest.approx([n / 7 for n in range(30)], abs=1e-4)
