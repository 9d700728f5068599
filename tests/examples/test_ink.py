"""examples/ink.py: the masks follow their rule, and the study on them trains a probe of each start."""

import runpy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from processes import ROOT

from mim.data.settings import DataSettings
from mim.data.sources.digits import Digits
from mim.lab.study.file import read_study
from mim.lab.study.runner import run_study

STUDY = ROOT / "configs" / "studies" / "digits" / "ink.yaml"
TINY = {
    **{"ENCODER.width": 16, "ENCODER.depth": 1, "ENCODER.heads": 2, "TRAIN.epochs": 1, "SCHEDULE.warmup_epochs": 0},
    **{"EVALUATE.at_start": "false", "EVALUATE.samples": 40},
}


@pytest.fixture(scope="module")
def ink(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ink")
    runpy.run_path(str(ROOT / "examples" / "ink.py"))["main"](folder)
    return folder


@pytest.mark.slow
def test_ink_has_the_class_of_its_digit_and_paper_none(ink):
    for split, count in (("train", 1437), ("val", 360)):
        digits = Digits(split, DataSettings(channels=1))
        assert len(list((ink / "masks" / split).iterdir())) == len(list((ink / "images" / split).iterdir())) == count
        for row in (0, count // 2, count - 1):
            levels_HW, mask_HW = (
                np.asarray(Image.open(ink / kind / split / f"{row:04d}.png")) for kind in ("images", "masks")
            )
            assert np.array_equal(levels_HW, np.asarray(digits.read(row)))
            assert np.array_equal(mask_HW > 0, levels_HW > 127)
            assert set(np.unique(mask_HW)) == {0, digits.labels[row] + 1}


@pytest.mark.slow
def test_ink_study_gives_miou_of_each_start(ink, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ink").symlink_to(ink)
    study = read_study(STUDY)
    words = [str(word) for pair in TINY.items() for word in pair]
    results = run_study(replace(study, seeds=(0,)), tmp_path / "out", words, 2, lambda line: None)
    assert not results.failed
    (protocol,) = study.protocols
    for trial in results.trials:
        (value,) = results.values(trial.name, protocol, "val/miou").values()
        assert 0 < value < 1
