"""tools/evaluate.py: the figures it gives, that it gives them again, and that it leaves the run alone."""

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import ROOT, TINY, call, summary, tool
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SMALL = {**{key: value for key, value in TINY.items() if not key.startswith("HEAD.")}, "EVALUATE.samples": 0}
for foreign in ("EVALUATE.reconstructions", "EVALUATE.knn_bank"):
    del SMALL[foreign]


def evaluate(*words) -> tuple[int, str]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = tool("evaluate").main([str(word) for word in words])
    return code, text.getvalue()


def figures(folder: Path, *words) -> dict:
    code, text = evaluate(*words, "--json", folder / "figures.json")
    assert code == 0, text
    return json.loads((folder / "figures.json").read_text())


def state_of(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining run, a fine-tuning and a probe with two rates that came from it."""
    folder = tmp_path_factory.mktemp("runs")
    assert call(folder / "pretrain", TINY)[0] == 0
    init = {"INIT.checkpoint": folder / "pretrain"}  # its last checkpoint
    for task, more in (("finetune", {}), ("probe", {"CLASSIFIER.rates": "[1.0, 10.0]"})):
        recipe = ROOT / "configs" / task / "digits.yaml"
        code, text = call(folder / task, {**SMALL, **init, **more, "SCHEDULE.warmup_epochs": 0}, recipe)
        assert code == 0, text
    return folder


def test_a_run_folder_means_its_last_checkpoint_or_its_best(runs, tmp_path):
    assert "pretrain/checkpoints/step-14.pt: " in (runs / "finetune" / "log.txt").read_text()
    assert figures(tmp_path, "knn", runs / "pretrain")["checkpoint"].endswith("step-14.pt")
    assert figures(tmp_path, "knn", runs / "finetune")["checkpoint"].endswith("best.pt")
    recipe = ROOT / "configs" / "finetune" / "digits.yaml"
    for path, reason in (("nowhere", "does not exist"), (ROOT / "docs", "is not a run folder with a checkpoint")):
        code, text = call(tmp_path / "run", {**SMALL, "INIT.checkpoint": path}, recipe)
        assert code == 2
        assert f"INIT.checkpoint {path} {reason}" in text


def test_knn_equals_scikit_learn_on_the_written_features(runs, tmp_path):
    metrics = figures(tmp_path, "knn", runs / "pretrain", "--k", 7, "--pool", "both")
    assert evaluate("features", runs / "pretrain", "--pool", "both", "--output", tmp_path / "f.npz")[0] == 0
    data = np.load(tmp_path / "f.npz")
    weigh = lambda distance: np.exp(-distance / 0.07)  # noqa: E731
    theirs = KNeighborsClassifier(7, metric="cosine", weights=weigh).fit(data["train_features"], data["train_labels"])
    assert metrics["knn/top1"] == pytest.approx(theirs.score(data["val_features"], data["val_labels"]), abs=1e-9)
    assert metrics["width"] == data["train_features"].shape[1] == 2 * 16


def test_knn_takes_the_neighbours_of_the_run_unless_it_is_told(runs, tmp_path):
    assert figures(tmp_path, "knn", runs / "pretrain", "EVALUATE.knn", 7)["k"] == 7
    assert figures(tmp_path, "knn", runs / "pretrain", "EVALUATE.knn", 0)["k"] == 20
    assert figures(tmp_path, "knn", runs / "finetune")["k"] == 20  # which has no such key
    assert "1,437" in evaluate("knn", runs / "pretrain")[1]


def test_logistic_equals_scikit_learn_on_the_written_features(runs, tmp_path):
    metrics = figures(tmp_path, "logistic", runs / "pretrain", "--c", 0.1)
    assert evaluate("features", runs / "pretrain", "--output", tmp_path / "f.npz")[0] == 0
    data = np.load(tmp_path / "f.npz")
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    theirs.fit(data["train_features"].astype(float), data["train_labels"])
    score = theirs.score(data["val_features"].astype(float), data["val_labels"])
    assert metrics["logistic/top1"] == pytest.approx(score, abs=1e-9)


def test_features_are_those_of_the_encoder_in_the_order_of_the_data(runs, tmp_path):
    assert evaluate("features", runs / "pretrain", "--pool", "class", "--output", tmp_path / "f.npz")[0] == 0
    data = np.load(tmp_path / "f.npz")
    assert data["train_features"].shape == (1437, 16)
    assert data["val_names"][3] == "digits val image 3"
    assert list(data["classes"]) == list("0123456789")
    from mim import build, config
    from mim.data.preprocess import Preprocess

    content = torch.load(runs / "pretrain" / "checkpoints" / "step-14.pt", weights_only=True)
    cfg = config.parse_config(content["config"])
    model = build.build_model(cfg)
    model.load_state_dict(content["model"])
    val = build.evaluation_data(cfg, build.build_data(cfg)[1])
    images_BCHW = torch.stack([val[0, index].image_CHW for index in range(5)])
    with torch.no_grad():
        encoded = model.encoder.eval()(Preprocess(tuple(cfg.DATA.mean), tuple(cfg.DATA.std))(images_BCHW))
    np.testing.assert_allclose(data["val_features"][:5], encoded.prefix_BKD[:, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("task", ["finetune", "probe"])
def test_classify_gives_the_figures_of_the_training_run(runs, tmp_path, task):
    metrics, trained = figures(tmp_path, "classify", runs / task), summary(runs / task)
    assert metrics["val/top1"] == trained["best/top1"] == trained["val/top1"]
    assert metrics["val/top5"] == trained["val/top5"]
    assert metrics["val/by_class"] == trained["val/by_class"]
    assert metrics["held-out images"] == 360


@pytest.mark.parametrize("words", [("knn", "pretrain"), ("logistic", "pretrain"), ("classify", "finetune")])
def test_evaluating_twice_gives_the_same_figures_and_leaves_the_run_alone(runs, tmp_path, words):
    what, name = words
    before = state_of(runs)
    first, second = (figures(tmp_path, what, runs / name) for _ in range(2))
    assert first == second
    assert state_of(runs) == before


def test_evaluation_on_two_processes_equals_one(runs, warm, tmp_path):
    words = ["knn", str(runs / "pretrain"), "DATA.batch_size", "7", "--json", str(tmp_path / "two.json")]
    code, text = warm.run_program("evaluate", 2, words, tmp_path / "two.log")
    assert code == 0, text
    one = figures(tmp_path, "knn", runs / "pretrain", "DATA.batch_size", "7")
    assert json.loads((tmp_path / "two.json").read_text()) == one


def test_few_labels_shrink_the_bank(runs, tmp_path):
    assert figures(tmp_path, "knn", runs / "pretrain", "--share", 0.1)["training images"] == 140
    assert figures(tmp_path, "knn", runs / "pretrain", "--per-class", 3)["training images"] == 30


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("classify", "pretrain"), "no classifier"),
        (("knn", "nothing"), "nothing does not exist"),
        (("knn", "pretrain", "--k", "0"), "--k is 0"),
        (("logistic", "pretrain", "--c", "0"), "--c is 0"),
        (("knn", "pretrain", "ENCODER.width", "32"), "holds another model"),
        (("knn", "pretrain", "DATA.nam", "x"), "DATA.nam"),
        (("features", "pretrain"), "--output"),
        (("knn", "pretrain", "--share", "2"), "LABELS.share is 2"),
    ],
)
def test_evaluation_mistakes_are_named(runs, words, named):
    what, name, *more = words
    code, text = evaluate(what, runs / name, *more)
    assert code == 2
    assert named in text


def test_evaluation_of_unlabelled_images_says_so(runs, tmp_path):
    from small_data import write_digits

    write_digits(tmp_path / "flat", 30)
    code, text = evaluate("knn", runs / "pretrain", "DATA.name", "folder", "DATA.path", tmp_path / "flat")
    assert code == 2
    assert "no labels" in text


def test_table_lists_every_figure(runs):
    code, text = evaluate("classify", runs / "finetune")
    assert code == 0
    for word in ("checkpoint", "step", "held-out images", "val/top1", "val/top5"):
        assert word in text
