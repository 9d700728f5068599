"""RunResult: a dict of the summary, the curves and pictures of a run folder, and what a notebook shows of it."""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from mim.results import RunResult

ROWS = [
    {"step": 1, "epoch": 0.5, "images_seen": 8, "seconds": 1.5, "train/loss": 1.5, "train/learning_rate": 0.1},
    {"step": 2, "epoch": 1.0, "images_seen": 16, "seconds": 2.0, "train/loss": 1.25, "train/learning_rate": 0.05},
    {"step": 2, "epoch": 1.0, "images_seen": 16, "seconds": 2.5, "val/loss": 1.0, "knn/top1": 0.5},
]
SUMMARY = {"task": "pretrain", "steps": 2, "images_seen": 16, "seconds": 3, "val/loss": 1.0, "knn/top1": 0.5}
SUMMARY |= {"knn/top1_at_start": 0.25, "knn/top1_interval": [0.4, 0.6], "best/by_class": {"<b>cat": 0.5}}


@pytest.fixture
def folder(tmp_path):
    """A run folder without its checkpoints, and a name that HTML would read as a tag."""
    folder = tmp_path / "a<script>&b"
    (folder / "reconstructions").mkdir(parents=True)
    for step in (2, 10):
        Image.new("RGB", (1500, 30), (step, 0, 0)).save(folder / "reconstructions" / f"step-{step}.png")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"step": 3, "ima')
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def test_result_is_the_summary_as_a_dict(folder):
    result = RunResult.read(folder)
    assert result == SUMMARY
    assert json.loads(json.dumps(result)) == SUMMARY
    assert {**result}["val/loss"] == 1.0
    copied = pickle.loads(pickle.dumps(result))
    assert (copied, copied.folder, copied.finished) == (SUMMARY, folder, True)
    assert repr(result) == f"<RunResult {folder}: 2 steps, knn/top1 0.5000, val/loss 1.0000>"


def test_result_has_curves_against_images_seen_and_pictures_in_order(folder):
    result = RunResult.read(folder)
    assert sorted(result.metrics) == ["knn/top1", "train/learning_rate", "train/loss", "val/loss"]
    images_seen, values = result.curve("train/loss")
    np.testing.assert_array_equal(images_seen, [8, 16])
    np.testing.assert_array_equal(values, [1.5, 1.25])
    assert [path.name for path in result.pictures["reconstructions"]] == ["step-2.png", "step-10.png"]
    with pytest.raises(ValueError, match=r"has no metric val/los\. did you mean 'val/loss'"):
        result.curve("val/los")


def test_result_of_a_run_that_is_not_finished_has_the_newest_values(folder):
    (folder / "summary.json").unlink()
    result = RunResult.read(folder)
    assert not result.finished
    assert (result["train/loss"], result["steps"], result["images_seen"]) == (1.25, 2, 16)
    assert "not finished, 2 steps so far" in result._repr_html_()
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds neither summary\.json nor a row of metrics\.jsonl"):
        RunResult.read(folder)


def test_result_in_a_notebook_is_escaped_and_needs_neither_scripts_nor_network(folder):
    html = RunResult.read(folder)._repr_html_()
    assert "a&lt;script&gt;&amp;b" in html
    assert "&lt;b&gt;cat" in html
    assert not re.search(r"<script|<link|<b>|\son\w+=", html)
    assert re.findall(r'(?:src|href)="(?!#|data:image/png;base64,)', html) == []
    assert 'src="data:image/png' in html
    assert "95%: 0.4000 to 0.6000, at start 0.2500" in html
    assert "<svg" in html
    assert "currentColor" in html
    assert "#010203" not in html
    assert "step-10.png" in html
    assert "step-2.png" not in html


def test_result_without_curves_and_pictures_is_shown_too(tmp_path):
    html = RunResult({"steps": 1}, tmp_path)._repr_html_()
    assert "<svg" not in html
    assert "<img" not in html
