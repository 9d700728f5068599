"""mim.train: what it takes as config, overrides and output."""

import json
from pathlib import Path

import pytest
from processes import FINETUNE, RECIPE, TINY, TINY_CLASSIFIER
from small_data import write_digits

import mim
from mim.tasks.finetune import Finetune

SMALL = {**TINY, "TRAIN.batch": 8, "DATA.batch_size": 8, "CHECKPOINT.every_epochs": 0, "DATA.name": "folder"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of 5 steps on 40 digits; four are held out."""
    images = tmp_path_factory.mktemp("images")
    write_digits(images, 44)
    return {**SMALL, "DATA.path": str(images), "DATA.val_share": 4 / 44}


@pytest.mark.parametrize(
    "make",
    [
        lambda keys: ("quickstart/mae_digits", keys),
        lambda keys: (RECIPE, list(keys.items())),
        lambda keys: (str(RECIPE), [word for pair in keys.items() for word in pair]),
        lambda keys: (mim.load_config(RECIPE, keys), ()),
        lambda keys: (mim.load_config(RECIPE), keys),
    ],
    ids=["name-dict", "path-pairs", "text-words", "config", "config-dict"],
)
def test_train_takes_each_kind_of_config_and_overrides_and_returns_the_summary(tmp_path, small, make):
    config, overrides = make(small)
    summary = mim.train(config, overrides, output=str(tmp_path / "run"), quiet=True)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"]) == (5, 1)
    assert mim.load_config(tmp_path / "run" / "config.yaml").ENCODER.width == 16


def test_train_names_the_run_folder_after_the_file_and_resumes_it(tmp_path, small, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = mim.train("quickstart/mae_digits", small, quiet=True)
    assert Path("runs/mae_digits/summary.json").is_file()
    assert capsys.readouterr().out == ""
    assert mim.train("quickstart/mae_digits", small, quiet=True) == first
    last = next(Path("runs/mae_digits/checkpoints").glob("*.pt"))
    more = mim.train("quickstart/mae_digits", small, "more", resume=str(last))
    assert "resumed from" in capsys.readouterr().out
    assert more["steps"] == 5


def test_train_says_what_to_mend(tmp_path):
    with pytest.raises(ValueError, match="output is missing"):
        mim.train(mim.load_config(RECIPE, SMALL))
    for config, overrides in ((RECIPE, {"MASKER.cell": 3}), (mim.load_config(RECIPE), {"MASKER.cell": 3})):
        with pytest.raises(ValueError, match=r"MASKER\.cell 3"):
            mim.train(config, overrides, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_task_that_does_not_fit(tmp_path, small):
    with pytest.raises(ValueError, match=r"task is Finetune: for TASK pretrain it must be a subclass of Pretrain"):
        mim.train("quickstart/mae_digits", small, output=tmp_path / "run", quiet=True, task=Finetune)


def test_train_resumes_no_classifier_on_other_classes(tmp_path):
    for folder, classes in (("images", "35"), ("other", "36"), ("fewer", "3")):
        for number, name in enumerate(classes):
            write_digits(tmp_path / folder / name, 6, first=10 * number)
    keys = {**TINY_CLASSIFIER, "LABELS.per_class": 0, "DATA.name": "folder", "DATA.labels": "folders"}
    keys |= {"DATA.batch_size": 4, "TRAIN.batch": 4, "DATA.workers": 0, "TRAIN.epochs": 1, "DATA.val_share": 0}
    mim.train(FINETUNE, keys | {"DATA.path": tmp_path / "images"}, tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "config.yaml").read_text()
    for folder, names in (("other", "3, 6"), ("fewer", "3")):
        with pytest.raises(
            ValueError, match=f"trained on 2 classes, 3, 5, and the class folders of .* now name {names}"
        ):
            mim.train(FINETUNE, keys | {"DATA.path": tmp_path / folder}, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    (tmp_path / "images").rename(tmp_path / "moved")
    mim.train(FINETUNE, keys | {"DATA.path": tmp_path / "moved"}, tmp_path / "run", quiet=True)
