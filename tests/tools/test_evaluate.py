"""tools/evaluate.py: the figures it gives, that it gives them again, and that it leaves the run alone."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import ROOT, TINY, call, evaluate, summary
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SMALL = {**{key: value for key, value in TINY.items() if not key.startswith("HEAD.")}, "EVALUATE.samples": 0}
for foreign in ("EVALUATE.reconstructions", "EVALUATE.knn_bank"):
    del SMALL[foreign]


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
    for task, more in (("finetune", {"READOUT.init_std": 0.5}), ("probe", {"PROBE.rates": "[1.0, 10.0]"})):
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


@pytest.mark.parametrize(
    "words",
    [
        ("knn", "pretrain"),
        pytest.param(("logistic", "pretrain"), marks=pytest.mark.slow),
        ("classify", "finetune"),
    ],
)
def test_evaluating_twice_gives_the_same_figures_and_leaves_the_run_alone(runs, tmp_path, words):
    what, name = words
    before = state_of(runs)
    first, second = (figures(tmp_path, what, runs / name) for _ in range(2))
    assert first == second
    assert state_of(runs) == before


@pytest.mark.slow
def test_evaluation_on_two_processes_equals_one(runs, warm, tmp_path):
    words = ["knn", str(runs / "pretrain"), "DATA.batch_size", "7", "--json", str(tmp_path / "two.json")]
    code, text = warm.run_program("evaluate", 2, words, tmp_path / "two.log")
    assert code == 0, text
    one = figures(tmp_path, "knn", runs / "pretrain", "DATA.batch_size", "7")
    assert json.loads((tmp_path / "two.json").read_text()) == one


def with_classes(run: Path, target: Path, classes: list[str] | None, flipped: bool = False) -> Path:
    """The best checkpoint of a run with other names of its classes; flipped: with the rows of its classifier, too."""
    content = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    del content["classes"]
    content |= {} if classes is None else {"classes": classes}
    if flipped:
        for weights in (content["model"], content["ema"]):
            weights |= {name: weight.flip(0) for name, weight in weights.items() if "readouts.0.linear." in name}
    torch.save(content, target)
    return target


def test_checkpoints_of_classifiers_hold_the_names_of_their_classes(runs):
    for task in ("finetune", "probe"):
        assert torch.load(runs / task / "checkpoints" / "best.pt", weights_only=True)["classes"] == list("0123456789")
    assert "classes" not in torch.load(runs / "pretrain" / "checkpoints" / "step-14.pt", weights_only=True)


def test_classify_compares_classes_by_their_names_and_not_by_their_position(runs, tmp_path):
    other_order = with_classes(runs / "finetune", tmp_path / "other.pt", list("9876543210"), flipped=True)
    metrics, trained = figures(tmp_path, "classify", other_order), summary(runs / "finetune")
    assert metrics["val/top1"] == trained["best/top1"]
    assert len(set(metrics["val/by_class"].values())) > 2  # several classes are predicted
    assert metrics["val/by_class"] == dict(reversed(trained["val/by_class"].items()))
    assert metrics["classes"] == "all 10 of the classifier"


def test_classify_refuses_images_of_other_classes_with_both_lists(runs, tmp_path):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    code, text = evaluate("classify", with_classes(runs / "finetune", tmp_path / "words.pt", words))
    assert code == 2
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 2 more are not among its 10 classes, zero, one, two" in text


def test_classify_takes_some_of_the_classes_and_says_so(runs, tmp_path):
    write_class_folders(tmp_path / "some", "73")
    metrics = figures(tmp_path, "classify", runs / "finetune", "DATA.name", "folder", "DATA.path", tmp_path / "some")
    assert metrics["classes"] == "2 of 10 classes have images here"
    assert list(metrics["val/by_class"]) == ["3", "7"]


def test_classify_of_a_checkpoint_without_names_compares_numbers_and_says_so(runs, tmp_path):
    old = with_classes(runs / "finetune", tmp_path / "old.pt", None)
    code, text = evaluate("classify", old, "--json", tmp_path / "figures.json")
    assert code == 0
    assert "old.pt holds no names of its classes" in " ".join(text.split())
    metrics = json.loads((tmp_path / "figures.json").read_text())
    assert metrics["val/top1"] == summary(runs / "finetune")["best/top1"]
    write_class_folders(tmp_path / "some", "73")
    code, text = evaluate("classify", old, "DATA.name", "folder", "DATA.path", tmp_path / "some")
    assert code == 2
    assert "holds no names of its 10 classes, and the class folders of DATA.path" in text


def write_class_folders(folder: Path, classes: str) -> None:
    """Six digits of each class, three of them held out."""
    from small_data import digit

    for name in classes:
        for number, index in enumerate([index for index in range(200) if index % 10 == int(name)][:6]):
            path = folder / ("train" if number < 3 else "val") / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            digit(index).save(path)


def predictions(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", ["finetune", "probe"])
def test_predict_writes_what_classify_counts(runs, tmp_path, task):
    from mim import build, config

    content = torch.load(runs / task / "checkpoints" / "best.pt", weights_only=True)
    held_out = build.build_data(config.parse_config(content["config"]))[1]
    (tmp_path / "images").mkdir()
    for index in range(len(held_out)):
        held_out.read(index).save(tmp_path / "images" / f"{index:03d}.png")
    words = ["predict", runs / task, tmp_path / "images", "--output", tmp_path / "new" / "p.csv"]
    metrics = figures(tmp_path, *words, "DATA.batch_size", 50)
    rows = predictions(tmp_path / "new" / "p.csv")
    assert list(rows[0]) == ["path", "class", "probability", *"0123456789"]
    assert [row["path"] for row in rows] == [str(tmp_path / "images" / f"{index:03d}.png") for index in range(360)]
    right = [row["class"] == held_out.classes[label] for row, label in zip(rows, held_out.labels, strict=True)]
    assert sum(right) / 360 == summary(runs / task)["best/top1"]
    loss = [-np.log(float(row[held_out.classes[label]])) for row, label in zip(rows, held_out.labels, strict=True)]
    at_best = content["results"]["val/loss"]
    assert np.mean(loss) == pytest.approx(at_best, abs=1e-4)
    for row in rows:
        probabilities = {name: float(row[name]) for name in "0123456789"}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert max(probabilities, key=probabilities.get) == row["class"]
        assert float(row["probability"]) == probabilities[row["class"]]
    assert metrics["images"] == 360
    assert sum(metrics["predicted"].values()) == 360


def test_predict_says_which_layer_of_a_probe_answers(runs, tmp_path):
    from small_data import write_digits

    write_digits(tmp_path, 3)
    best = torch.load(runs / "probe" / "checkpoints" / "best.pt", weights_only=True)["results"]["choice/title"]
    words = ["predict", runs / "probe", tmp_path / "digit-000.png", tmp_path / "digit-002.png"]
    assert figures(tmp_path, *words, "--output", tmp_path / "p.csv")["setting"] == f"{best}, one of 2"
    other = "rate 1" if best == "rate 10" else "rate 10"
    metrics = figures(tmp_path, *words, "--output", tmp_path / "q.csv", "--setting", other)
    assert metrics["setting"] == f"{other}, one of 2"
    first, second = (predictions(tmp_path / name) for name in ("p.csv", "q.csv"))
    assert [row["path"] for row in first] == [row["path"] for row in second]
    assert first != second
    assert figures(tmp_path, "classify", runs / "probe", "--setting", other)["val/top1"] == pytest.approx(
        summary(runs / "probe")[f"val/top1_{other.replace(' ', '_')}"]
    )
    code, text = evaluate(*words, "--output", tmp_path / "p.csv", "--setting", "rate 3")
    assert code == 2
    assert "are: rate 1; rate 10" in text


def test_predict_names_and_counts_broken_images(runs, tmp_path):
    from small_data import write_digits

    paths = write_digits(tmp_path, 4)
    paths[1].write_bytes(paths[1].read_bytes()[:50])
    paths[2] = paths[2].rename(tmp_path / "two\nlines, one name.png")
    words = ["predict", runs / "finetune", *paths, "--output", tmp_path / "p.csv", "--json", tmp_path / "figures.json"]
    code, text = evaluate(*words)
    assert code == 0
    assert f"cannot read {paths[1]}" in text.replace("\n", "")
    assert json.loads((tmp_path / "figures.json").read_text())["evaluation/left_out"] == 1
    rows = predictions(tmp_path / "p.csv")
    assert [row["path"] for row in rows] == list(map(str, paths))
    assert [bool(row["class"]) for row in rows] == [True, False, True, True]
    code, text = evaluate("predict", runs / "finetune", paths[1], "--output", tmp_path / "q.csv")
    assert code == 3
    assert "none of the images of an evaluation can be read" in text
    assert not (tmp_path / "q.csv").exists()


def test_predict_refuses_scores_that_are_not_finite(runs, tmp_path):
    from small_data import write_digits

    content = torch.load(runs / "finetune" / "checkpoints" / "best.pt", weights_only=True)
    for weights in (content["model"], content["ema"]):
        for name in weights:
            if name.endswith("readouts.0.linear.bias"):
                weights[name].fill_(np.nan)
    torch.save(content, tmp_path / "diverged.pt")
    code, text = evaluate(
        "predict", tmp_path / "diverged.pt", *write_digits(tmp_path, 2), "--output", tmp_path / "p.csv"
    )
    assert code == 2
    assert "diverged" in text
    assert not (tmp_path / "p.csv").exists()


def arrays(root: Path, bad: str = "", leave_out: str = "") -> Path:
    """Digits of three classes as floats, nine to train and six held out; a bad one has a NaN."""
    from small_data import digit

    for number in range(15):
        path = root / ("train" if number < 9 else "val") / f"{number % 3}" / f"{number:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        array_HW = np.asarray(digit(3 * number), dtype=np.float32) / 255
        if path.stem == bad:
            array_HW[30, 30] = np.nan
        if path.stem != leave_out:
            np.save(path, array_HW)
    return root


@pytest.mark.parametrize("bad", ["04", "11"], ids=["training", "held-out"])
def test_broken_images_are_left_out_and_named(runs, tmp_path, bad):
    """Every evaluation gives what it gives without the file."""
    folders = arrays(tmp_path / "bad", bad), arrays(tmp_path / "without", leave_out=bad)
    by_command: dict[str, list[dict]] = {}
    for folder in folders:
        keys = ["DATA.name", "folder", "DATA.path", folder, "DATA.missing", "broken"]
        for words in (["knn", runs / "pretrain", "--k", 3], ["logistic", runs / "pretrain"]):
            by_command.setdefault(words[0], []).append(figures(tmp_path, *words, *keys))
        output = ["--output", tmp_path / f"{folder.name}.npz"]
        by_command.setdefault("features", []).append(figures(tmp_path, "features", runs / "pretrain", *output, *keys))
    for left_out, without in by_command.values():
        (name,) = left_out.pop("evaluation/left_out_files")
        assert f"/{bad}.npy: 1 of its 1,024 pixel values are missing" in name
        assert left_out.pop("evaluation/left_out") == 1
        left_out["file"] = without.setdefault("file", None)
        assert left_out == without
    one, other = (np.load(tmp_path / f"{folder.name}.npz") for folder in folders)
    for name in ("train_features", "train_labels", "val_features", "val_labels"):
        np.testing.assert_array_equal(one[name], other[name])
    assert [Path(name).stem for name in one["val_names"]] == [Path(name).stem for name in other["val_names"]]
    assert not any(bad in Path(name).stem for name in (*one["train_names"], *one["val_names"]))


def test_classify_leaves_out_broken_images(runs, tmp_path):
    keys = ["DATA.name", "folder", "DATA.missing", "broken", "DATA.path"]
    left_out, without = (
        figures(tmp_path, "classify", runs / "finetune", *keys, folder)
        for folder in (arrays(tmp_path / "bad", "11"), arrays(tmp_path / "without", leave_out="11"))
    )
    assert left_out.pop("evaluation/left_out") == 1
    assert "/11.npy: " in left_out.pop("evaluation/left_out_files")[0]
    assert left_out == without
    assert without["held-out images"] == 5


def test_evaluation_of_broken_images_alone_ends_with_three(runs, tmp_path):
    folder = arrays(tmp_path / "images")
    for path in (folder / "val").rglob("*.npy"):
        np.save(path, np.full((32, 32), np.inf, np.float32))
    code, text = evaluate("knn", runs / "pretrain", "DATA.name", "folder", "DATA.path", folder)
    assert code == 3
    assert ".npy (1,024 of its 1,024 pixel values are infinite" in text


def test_features_of_a_diverged_encoder_are_refused(runs, tmp_path):
    content = torch.load(runs / "pretrain" / "checkpoints" / "step-14.pt", weights_only=True)
    content["model"]["encoder.backbone.norm.bias"].fill_(np.nan)
    torch.save(content, tmp_path / "diverged.pt")
    for words in (["knn"], ["logistic"], ["features", "--output", tmp_path / "f.npz"]):
        code, text = evaluate(words[0], tmp_path / "diverged.pt", *words[1:])
        assert code == 2
        assert "gives features that are not finite: its training diverged" in text


@pytest.mark.parametrize("task", ["pretrain", "finetune", "probe"])
def test_features_of_images_without_labels_have_labels_of_minus_one(runs, tmp_path, task):
    from small_data import write_digits

    write_digits(tmp_path / "gallery", 12)
    keys = ["DATA.name", "folder", "DATA.path", tmp_path / "gallery", "DATA.labels", "none"]
    assert evaluate("features", runs / task, "--output", tmp_path / "f.npz", *keys, "DATA.val_share", 0)[0] == 0
    data = np.load(tmp_path / "f.npz")
    assert data["train_labels"].tolist() == [-1] * 12
    assert data["train_features"].shape == (12, 16)
    assert data["val_features"].shape == (0, 16)
    assert len(data["classes"]) == 0
    code, text = evaluate("knn", runs / task, *keys)
    assert code == 2
    assert "the training images of DATA.name folder have no labels" in text
    if task != "pretrain":
        code, text = evaluate("classify", runs / task, *keys)
        assert code == 2
        assert "predict says the class of images without labels" in text


def test_evaluations_refuse_labels_that_are_no_classes(runs, tmp_path):
    from small_data import write_digits

    paths = write_digits(tmp_path, 30)
    (tmp_path / "list.txt").write_text("".join(f"{path.name}\t{row / 7:.3f}\n" for row, path in enumerate(paths)))
    for what in ("knn", "logistic"):
        code, text = evaluate(what, runs / "pretrain", "DATA.name", "folder", "DATA.path", tmp_path / "list.txt")
        assert code == 2
        assert "second column of DATA.path" in text
        assert "numbers with decimals" in text


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
        (("knn", "pretrain", "ENCODER.width", "32"), "ENCODER.width"),
        (("knn", "pretrain", "DATA.nam", "x"), "DATA.nam"),
        (("features", "pretrain"), "--output"),
        (("knn", "pretrain", "--share", "2"), "LABELS.share is 2"),
        (("features", "finetune", "--output", "f.csv"), "--output is f.csv: features writes a file"),
        (("predict", "finetune", "--output", "p.csv"), "name images behind RUN"),
        (("predict", "finetune", "DATA.batch_size", "2", "--output", "p.csv"), "name images behind RUN"),
        (("predict", "finetune", "gone.png", "--output", "p.csv"), "gone.png does not exist"),
        (("predict", "finetune", "IMG.png", "--output", "p.csv"), "IMG.png does not exist"),
        (("predict", "finetune", "gone.png"), "--output FILE.csv or FILE.jsonl"),
        (("predict", "finetune", "gone.png", "--output", "p.xlsx"), "--output is p.xlsx"),
        (("predict", "pretrain", "gone.png", "--output", "p.csv"), "has no classifier"),
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
