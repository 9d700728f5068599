"""Short runs of fine-tuning and of a probe for each kind of labels, and what mim-evaluate says of their checkpoints.

Shapes: B batch, C channels, H W pixels, K outputs.
"""

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import DIGITS, FINETUNE, PARTS, PROBE, call, last_state, losses, same, summary, timeless_rows, tool
from small_data import write_digits

from mim import build
from mim.config import parse_config
from mim.engine.distributed.world import World
from mim.metric_keys import interval
from mim.pictures.segmentations import draw_segmentations

IMAGES, INK = 72, 127
SMALL = {
    **DIGITS,
    **{"ENCODER.width": 16, "ENCODER.depth": 1, "ENCODER.heads": 2, "ENCODER.drop_path": 0.0},
    **{"DATA.name": "folder", "DATA.val_share": 0.33, "DATA.batch_size": 16, "TRAIN.batch": 16},
    **{"AUGMENT.crop_scale": "[1.0,1.0]", "AUGMENT.crop_ratio": "[1.0,1.0]", "SCHEDULE.warmup_epochs": 0},
    **{"TRAIN.precision": "fp32", "TRAIN.epochs": 12, "EVALUATE.every_epochs": 0, "EVALUATE.confusion": False},
    **{"EVALUATE.resamples": 200, "CHECKPOINT.every_epochs": 0, "LOG.tensorboard": False, "LOG.every_steps": 1},
}
ADAMW = {"OPTIMIZER.name": "adamw", "OPTIMIZER.base_lr": 0.32}
OF_RECIPE = {
    FINETUNE: ADAMW | {"OPTIMIZER.layer_decay": 1.0, "OPTIMIZER.base_lr": 0.16},
    PROBE: ADAMW | {"PROBE.rates": "[0.3,1.0]", "OPTIMIZER.per_batch": 256},
}
OF_KIND = {
    "number": {"LABELS.columns": "[level,spread]", "LABELS.kind": "number", "CRITERION.name": "mse"},
    "classes": {"LABELS.columns": "[bright,rich]", "LABELS.kind": "classes", "CRITERION.name": "binary"},
    "ordinal": {"LABELS.columns": "[level]", "LABELS.bins": "[830,1030]", "CRITERION.name": "ordinal"},
    "mask": {"LABELS.names": "[paper,ink]", "LABELS.ignore": -1, "READOUT.name": "segment_linear", "TRAIN.epochs": 8},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Digits of many levels of brightness and contrast, with a table of these and masks of their ink."""
    folder = tmp_path_factory.mktemp("data")
    lines, rng = ["path,level,spread,bright,rich"], np.random.default_rng(0)
    (folder / "masks").mkdir()
    for path in write_digits(folder / "images", IMAGES):
        ink_HW = np.asarray(Image.open(path)) > INK
        paper, contrast = rng.uniform(40, 130), rng.uniform(40, 120)
        grey_HW = (paper + contrast * np.asarray(Image.open(path)) / 255).astype(np.uint8)
        Image.fromarray(grey_HW).save(path)
        Image.fromarray(ink_HW.astype(np.uint8)).save(folder / "masks" / path.name)
        level, spread = 8 * grey_HW.mean(), grey_HW.std()
        lines.append(f"{path.name},{level:.4f},{spread:.4f},{int(level > 925)},{int(spread > 25)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def keys_of(data: Path, kind: str, recipe: Path) -> dict:
    labels = {"LABELS.masks": data / "masks"} if kind == "mask" else {"LABELS.file": data / "labels.csv"}
    return SMALL | OF_RECIPE[recipe] | {"DATA.path": data / "images"} | labels | OF_KIND[kind]


def trained(output: Path, keys: dict, recipe: Path) -> dict:
    code, text = call(output, keys, recipe)
    assert code == 0, text
    return summary(output)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """A run of a kind of labels under a recipe, made when it is first asked for."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def run(kind: str, recipe: Path = FINETUNE) -> Path:
        output = folder / f"{recipe.parent.name}-{kind}"
        if output not in done:
            done[output] = trained(output, keys_of(data, kind, recipe), recipe)
        return output

    return run


def evaluate(folder: Path, *words) -> dict:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("evaluate").main([str(word) for word in (*words, "--json", folder / "figures.json")])
    assert code == 0, text.getvalue()
    return json.loads((folder / "figures.json").read_text())


def held_out(run: Path):
    """The chosen readout's answers to the held-out images, their labels and paths, from the checkpoint by hand."""
    content = last_state(run)
    cfg = parse_config(content["config"])
    task = build.build_task(cfg, *build.build_data(cfg))
    task.model.load_state_dict(content["model"])
    task.model.eval()
    source = task.held_out.source
    images_BCHW = torch.stack([task.held_out[0, row].image_CHW for row in range(len(source))])
    with torch.no_grad():
        scores = task.model(task.preprocess(images_BCHW))[int(summary(run).get("choice/setting", 0))]
    return scores.double(), task.model.criterion, source, [source.describe(row) for row in range(len(source))]


def by_hand(kind: str, scores: torch.Tensor, criterion) -> np.ndarray:
    """The answers to scores as the papers write them."""
    if kind == "number":
        return (scores * criterion.std_K + criterion.mean_K).numpy()
    if kind == "classes":
        return (1 / (1 + (-scores).exp())).numpy()
    if kind == "ordinal":  # beyond each threshold with the product of the decisions up to there
        beyond = torch.cat(
            [torch.ones(len(scores), 1), scores.sigmoid().cumprod(dim=1), torch.zeros(len(scores), 1)], 1
        )
        return (beyond[:, :-1] - beyond[:, 1:]).numpy()
    resized = torch.nn.functional.interpolate(scores.float(), (32, 32), mode="bilinear", align_corners=False)
    return resized.argmax(dim=1).numpy()


def chance(kind: str, source) -> tuple[str, float]:
    """The metric of a kind, and its value for an answer that knows no image."""
    if kind == "number":
        return "val/r2", 0.0
    if kind == "classes":
        return "val/mean_ap", float(source.labels.mean())
    if kind == "ordinal":
        return "val/top1", np.bincount(source.labels).max() / len(source)
    return "val/miou", np.mean([source.mask(row) == 0 for row in range(len(source))]) / 2


def predicted(run: Path, folder: Path, paths: list[str], *words) -> list[dict[str, str]]:
    evaluate(folder, "predict", run, *paths, "--output", folder / "p.csv", *words)
    with (folder / "p.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


KINDS = [pytest.param(kind, FINETUNE, id=f"finetune-{kind}") for kind in OF_KIND]
KINDS += [pytest.param(kind, PROBE, id=f"probe-{kind}", marks=pytest.mark.slow) for kind in OF_KIND]


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_each_kind_of_labels_is_learned(runs, kind, recipe):
    run = runs(kind, recipe)
    metrics, curve = summary(run), losses(run)
    key, without = chance(kind, held_out(run)[2])
    assert np.mean(curve[-3:]) < 0.75 * np.mean(curve[:3])
    low, high = metrics[interval(key)]
    assert without < low < metrics[key] < high
    assert metrics["val/samples"] == len(held_out(run)[2])


@pytest.mark.parametrize(("kind", "recipe"), KINDS)
def test_classify_gives_the_metrics_of_the_run(runs, tmp_path, kind, recipe):
    run = runs(kind, recipe)
    trained, metrics = summary(run), evaluate(tmp_path, "classify", run)
    again = {key: value for key, value in metrics.items() if key.startswith("val/")}
    assert again == {key: trained[key] for key in again}
    assert chance(kind, held_out(run)[2])[0] in again
    assert metrics["columns" if kind == "number" else "classes"].startswith("all ")


@pytest.mark.parametrize("recipe", [FINETUNE, pytest.param(PROBE, marks=pytest.mark.slow)], ids=["finetune", "probe"])
def test_predict_writes_numbers_in_the_unit_of_the_labels(runs, tmp_path, recipe):
    run = runs("number", recipe)
    scores, criterion, _, paths = held_out(run)
    rows = predicted(run, tmp_path, paths)
    assert list(rows[0]) == ["path", "level", "spread"]
    said_NK = np.array([[float(row["level"]), float(row["spread"])] for row in rows])
    np.testing.assert_allclose(said_NK, by_hand("number", scores, criterion), rtol=1e-5)
    assert said_NK[:, 0].mean() > 10 * said_NK[:, 1].mean()  # no standard deviations


def test_predict_writes_each_class_above_a_half(runs, tmp_path):
    run = runs("classes")
    scores, criterion, _, paths = held_out(run)
    rows, probability_NK = predicted(run, tmp_path, paths), by_hand("classes", scores, criterion)
    said_NK = np.array([[float(row["bright"]), float(row["rich"])] for row in rows])
    np.testing.assert_allclose(said_NK, probability_NK, rtol=1e-4, atol=1e-6)
    expected = ["|".join(np.array(["bright", "rich"])[each_K > 0.5]) for each_K in probability_NK]
    assert [row["classes"] for row in rows] == expected
    assert {"", "bright|rich"} < {*expected}


def test_predict_of_an_ordinal_readout_has_a_probability_for_each_class(runs, tmp_path):
    """It has an output less than classes, so that a softmax of its scores would answer others."""
    run = runs("ordinal")
    scores, criterion, source, paths = held_out(run)
    assert scores.shape[1] == 2
    rows, probability_NK = predicted(run, tmp_path, paths), by_hand("ordinal", scores, criterion)
    names = source.label_spec.names
    said_NK = np.array([[float(row[name]) for name in names] for row in rows])
    np.testing.assert_allclose(said_NK, probability_NK, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said_NK.sum(axis=1), 1, atol=1e-5)
    assert [row["class"] for row in rows] == [names[number] for number in probability_NK.argmax(axis=1)]
    assert len({row["class"] for row in rows}) == 3


@pytest.mark.parametrize("batch", [16, pytest.param(5, marks=pytest.mark.slow)])
def test_predict_writes_masks_that_are_labels_of_the_same_images(runs, tmp_path, data, batch):
    """A picture a mask, as large as its image; read again as LABELS.masks, they are what the readout answers."""
    run = runs("mask")
    scores, criterion, _, paths = held_out(run)
    torn = tmp_path / "torn.png"
    torn.write_bytes(Path(paths[0]).read_bytes()[:60])
    large = tmp_path / "large.png"
    Image.open(paths[1]).resize((96, 64)).save(large)
    words = [data / "images", torn, large, "--output", tmp_path / "masks", "DATA.batch_size", batch]
    metrics = evaluate(tmp_path, "predict", run, *words)
    expected_NHW = by_hand("mask", scores, criterion)
    for path, expected_HW in zip(paths, expected_NHW, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / Path(path).name)), expected_HW)
    assert (metrics["images"], metrics["evaluation/left_out"]) == (IMAGES + 1, 1)
    wide_HW = np.asarray(Image.open(tmp_path / "masks" / "large.png"))
    assert wide_HW.shape == (64, 96)
    assert (wide_HW[:, :16] == 255).all()
    assert (wide_HW[:, 80:] == 255).all()
    assert {*np.unique(wide_HW[:, 16:80])} == {0, 1}
    with (tmp_path / "masks" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["mask"] for row in rows] == [*(f"digit-{number:03d}.png" for number in range(IMAGES)), "", "large.png"]
    shares = [float(row["ink"]) for row in rows if row["path"] in paths]
    np.testing.assert_allclose(shares, expected_NHW.mean(axis=(1, 2)), rtol=1e-6)
    (tmp_path / "masks" / "large.png").unlink()
    keys = {"LABELS.masks": tmp_path / "masks", "LABELS.ignore": 255}
    metrics = evaluate(tmp_path, "classify", run, *(word for pair in keys.items() for word in pair))
    assert metrics["val/miou"] == metrics["val/boundary_f1"] == 1
    assert metrics["held-out images"] == len(paths)


@pytest.mark.slow
def test_predict_and_classify_of_masks_on_two_processes_equal_one(runs, warm, tmp_path, data):
    for words in (["classify", runs("mask")], ["predict", runs("mask"), data / "images"]):
        more = [] if words[0] == "classify" else ["--output", tmp_path / "two"]
        words = [*words, *more, "DATA.batch_size", 5, "--json", tmp_path / "two.json"]
        code, text = warm.run_program("evaluate", 2, list(map(str, words)), tmp_path / "two.log")
        assert code == 0, text
        one = evaluate(tmp_path, *(tmp_path / "one" if word == tmp_path / "two" else word for word in words[:-2]))
        two = json.loads((tmp_path / "two.json").read_text())
        assert {**two, "file": ""} == {**one, "file": ""}
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == IMAGES + 1
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_predict_names_the_output_that_the_labels_need(runs, tmp_path):
    for kind, output, way_out in (("mask", "p.csv", "name a folder"), ("number", "folder", "FILE.csv or FILE.jsonl")):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = tool("evaluate").main(
                ["predict", str(runs(kind)), str(tmp_path), "--output", str(tmp_path / output)]
            )
        assert code == 2
        assert way_out in " ".join(text.getvalue().split())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("number", set()),
        ("classes", set()),
        ("ordinal", {"confusion", "reliability"}),
        ("mask", {"confusion", "segmentations"}),
    ],
)
def test_pictures_of_an_evaluation_suit_the_labels(runs, kind, names):
    """The sheet has the first eight held-out images, with the masks that the readout answers."""
    content = last_state(runs(kind))
    cfg = parse_config(content["config"]).replace({"EVALUATE.confusion": True, "EVALUATE.resamples": 0})
    task = build.build_task(cfg, *build.build_data(cfg))
    task.model.load_state_dict(content["model"])
    with torch.no_grad():
        pictures = task.evaluate(task.model.eval(), World(0, 1, torch.device("cpu"))).pictures
    assert pictures.keys() == names
    if kind != "mask":
        return
    scores, criterion, source, _ = held_out(runs(kind))
    grey_NHW = torch.stack([torch.from_numpy(np.array(source.read(row))) for row in range(8)])
    truth_NHW = torch.stack([torch.from_numpy(source.mask(row)) for row in range(8)])
    answers_NHW = torch.from_numpy(by_hand("mask", scores[:8], criterion))
    expected_HW3 = draw_segmentations(grey_NHW[:, None] / 255, truth_NHW, answers_NHW, ("paper", "ink"), "finetune")
    off = (pictures["segmentations"].int() - expected_HW3.int()).abs()
    assert off.max() <= 1  # images were normalised and back
    assert answers_NHW.unique().tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [FINETUNE, PROBE], ids=["finetune", "probe"])
@pytest.mark.parametrize("kind", ["number", "mask"])
def test_resumed_run_of_numbers_and_of_masks_ends_where_the_uninterrupted_one_ends(tmp_path, data, kind, recipe):
    """Weights, norms of readouts, moments of labels and metrics, to the bit. Stopped behind the second epoch."""
    keys = keys_of(data, kind, recipe) | {"TRAIN.epochs": 5, "CHECKPOINT.every_epochs": 1, "CHECKPOINT.keep": 9}
    keys |= {"EVALUATE.every_epochs": 1, "AUGMENT.crop_scale": "[0.5,1.0]"}
    trained(tmp_path / "whole", keys, recipe)
    trained(tmp_path / "stopped", keys, recipe)
    folder = tmp_path / "stopped" / "checkpoints"
    steps = sorted(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    for step in steps[2:]:
        (folder / f"step-{step}.pt").unlink()
    (folder / "last").write_text(f"step-{steps[1]}.pt\n")
    (tmp_path / "stopped" / "summary.json").unlink()
    code, text = call(tmp_path / "stopped", keys, recipe, ("--resume",))
    assert code == 0, text
    assert f"step-{steps[1]}" in text
    whole, resumed = (last_state(tmp_path / name) for name in ("whole", "stopped"))
    for part in (*PARTS, "results"):
        same(whole[part], resumed[part], part)
    assert timeless_rows(tmp_path / "whole") == timeless_rows(tmp_path / "stopped")
