"""tools/evaluate.py corruptions: its accuracies by another way, the same each time, and what it refuses.

Shapes: C channels, H W pixels, 3 red, green, blue.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import ROOT, TINY, call, evaluate
from sklearn.datasets import load_digits
from small_data import digit

from mim.data.corruptions import Corrupted

pytest.importorskip("imagecorruptions", exc_type=ImportError)  # also where libGL is missing

FOREIGN = ("HEAD.", "EVALUATE.reconstructions", "EVALUATE.knn_bank")
SMALL = {key: value for key, value in TINY.items() if not key.startswith(FOREIGN)}
HELD_OUT = 40


def metrics_of(folder: Path, *words) -> dict:
    code, text = evaluate(*words, "--json", folder / "metrics.json")
    assert code == 0, text
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Folders of classes of digits; `val` has HELD_OUT of them."""
    root, classes = tmp_path_factory.mktemp("digits"), load_digits().target
    for number in range(200 + HELD_OUT):
        path = root / ("val" if number >= 200 else "train") / str(classes[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digit(number).save(path)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits) -> Path:
    """A fine-tuning of these, short, and without an initial checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "finetune"
    keys = {"DATA.name": "folder", "DATA.path": digits, "TRAIN.epochs": 6, "SCHEDULE.warmup_epochs": 0}
    keys |= {"DATA.batch_size": 32, "TRAIN.batch": 32, "READOUT.init_std": 0.5, "OPTIMIZER.layer_decay": 1.0}
    code, text = call(folder, SMALL | keys, ROOT / "configs" / "finetune" / "digits.yaml")
    assert code == 0, text
    return folder


def corrupted_copy(digits: Path, folder: Path, name: str, severity: int) -> Path:
    """The held-out digits as files that are corrupted already."""
    for path in sorted((digits / "val").rglob("*.png")):
        image_1HW = torch.from_numpy(np.asarray(Image.open(path)).copy())[None]
        corrupted_1HW = Corrupted(lambda image, _: image, name, severity)(image_1HW, 0)
        copy = folder / "val" / path.relative_to(digits / "val")
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(corrupted_1HW[0].numpy()).save(copy)
    return folder / "val"


@pytest.mark.slow
def test_accuracies_are_those_of_classify_on_corrupted_files(run, digits, tmp_path):
    """Contrast, pixelate and JPEG draw nothing, so files that are corrupted in advance are the same images."""
    words = ["--only", "contrast,pixelate,jpeg_compression", "--output", tmp_path / "pictures"]
    metrics = metrics_of(tmp_path, "corruptions", run, *words)
    assert metrics["held-out images"] == HELD_OUT
    assert metrics["corruptions/clean_top1"] == metrics_of(tmp_path, "classify", run)["val/top1"]
    for name, severity in (("contrast", 5), ("pixelate", 5), ("jpeg_compression", 1)):
        val = corrupted_copy(digits, tmp_path / f"{name}{severity}", name, severity)
        theirs = metrics_of(tmp_path, "classify", run, "DATA.val_path", val)["val/top1"]
        assert metrics["corruptions/by_name"][name]["by_severity"][severity - 1] == pytest.approx(theirs)
    by_name = metrics["corruptions/by_name"]
    means = [np.mean(each["by_severity"]) for each in by_name.values()]
    assert [each["top1"] for each in by_name.values()] == pytest.approx(means)
    assert metrics["corruptions/top1"] == pytest.approx(np.mean(means))
    low, high = metrics["corruptions/top1_interval"]
    assert low < metrics["corruptions/top1"] < high
    assert by_name["contrast"]["by_severity"][4] < metrics["corruptions/clean_top1"]  # a corruption does something
    assert Image.open(metrics["pictures"][0]).width > 300


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_accuracies_are_the_same_each_time(run, tmp_path, workers):
    words = ["corruptions", run, "--only", "gaussian_noise", "--output", tmp_path]
    first = metrics_of(tmp_path, *words)
    torch.rand(3)
    np.random.rand(3)
    assert metrics_of(tmp_path, *words, "DATA.workers", workers, "DATA.batch_size", 7) == first
    assert metrics_of(tmp_path, *words, "SEED", 5) != first


@pytest.mark.slow
def test_chosen_images_are_a_part_of_all(run, tmp_path):
    words = ["corruptions", run, "--only", "contrast", "--output", tmp_path]
    assert metrics_of(tmp_path, *words, "--images", 10)["held-out images"] == 10
    assert metrics_of(tmp_path, *words, "--images", 1000) == metrics_of(tmp_path, *words)


@pytest.mark.slow
def test_a_broken_image_is_left_out_of_each_column(run, digits, tmp_path):
    val = corrupted_copy(digits, tmp_path, "contrast", 1)
    broken, *_ = sorted(val.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    words = ["corruptions", run, "--only", "contrast", "--output", tmp_path, "DATA.val_path", val]
    metrics = metrics_of(tmp_path, *words)
    assert metrics["held-out images"] == HELD_OUT - 1
    assert metrics["evaluation/left_out"] == 1
    assert broken.name in metrics["evaluation/left_out_files"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "mist"], "--only names mist: the corruptions are gaussian_noise"),
        (["--images", "0"], "--images is 0: at least 1 held-out image"),
        (["DATA.image_size", "[16,16]"], "the corruptions need at least 32 pixels a side"),
        (["--setting", "rate 3"], "--setting is 'rate 3'"),
    ],
)
def test_mistakes_are_named(run, tmp_path, words, message):
    code, text = evaluate("corruptions", run, "--output", tmp_path, *words)
    assert code == 2
    assert message in text


@pytest.mark.slow
def test_two_processes_give_what_one_gives(run, warm, tmp_path):
    words = ["corruptions", run, "--only", "gaussian_noise", "--output", tmp_path]
    one = metrics_of(tmp_path, *words)
    code, text = warm.run_program("evaluate", 2, [*words, "--json", tmp_path / "two.json"], tmp_path / "two.log")
    assert code == 0, text
    assert json.loads((tmp_path / "two.json").read_text()) == one
