"""tools/evaluate.py dense and retrieval: figures, sheets and errors on runs of the digits."""

import json
from pathlib import Path

import ink  # registers the digits with masks
import numpy as np
import pytest
import torch
from PIL import Image
from processes import PROBE, TINY, TINY_CLASSIFIER, call, evaluate
from run_folders import real_runs
from small_data import write_digits

from mim import build, config
from mim.evaluate.dense import Queries
from mim.evaluate.loading import load
from mim.evaluate.predictor import load_attending
from mim.evaluation.retrieval import has_faiss
from mim.ops.positions import resize_positions

SWIN = {
    **{key: value for key, value in TINY.items() if key.partition(".")[0] not in ("ENCODER", "HEAD")},
    "ENCODER.name": "swin",
    "ENCODER.hidden": "replace",
    "ENCODER.patch": 2,
    "ENCODER.width": 8,
    "ENCODER.depths": "[1, 1]",
    "ENCODER.heads": "[1, 2]",
    "ENCODER.window": 4,
    "HEAD.name": "pixel_shuffle",
}
SHEETS = ["components.png", "foreground.png", "attention.png"]
INK = ("DATA.name", "digits_ink")


def figures(folder: Path, *words) -> dict:
    code, text = evaluate(*words, "--output", folder / "sheets", "--json", folder / "figures.json")
    assert code == 0, text
    for path in json.loads((folder / "figures.json").read_text()).get("pictures", ()):
        assert f"wrote {path}" in text
        assert Image.open(path).size[0] > 200
    return json.loads((folder / "figures.json").read_text())


@pytest.fixture(scope="module")
def run():
    return real_runs().pretraining


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Digits in class folders: 20 training and 10 held-out images."""
    root = tmp_path_factory.mktemp("few")
    for number, path in enumerate(write_digits(root / "all", 30)):
        folder = root / "classes" / ("train" if number < 20 else "val") / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    return root / "classes"


def of(folder: Path) -> tuple[str, ...]:
    return ("DATA.name", "folder", "DATA.path", str(folder))


# ---------------------------------------------------------------- dense


def test_dense_without_labels_writes_three_sheets_and_no_metric(run, tmp_path, few):
    metrics = figures(tmp_path, "dense", run, *of(few))
    assert [Path(path).name for path in metrics["pictures"]] == SHEETS
    assert metrics["images on sheets"] == 8
    assert not [key for key in metrics if key.startswith("dense/")]


@pytest.mark.slow
def test_dense_of_one_named_image_and_of_a_broken_one(run, tmp_path):
    _, two = write_digits(tmp_path / "images", 2)
    two.write_bytes(two.read_bytes()[:50])
    metrics = figures(tmp_path, "dense", run, tmp_path / "images")
    assert (metrics["images on sheets"], metrics["evaluation/left_out"]) == (1, 1)
    code, text = evaluate("dense", run, two, "--output", tmp_path / "none")
    assert code == 3
    assert "none of the images of an evaluation can be read" in text
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_dense_at_another_size_that_is_no_square_resizes_positions(run, tmp_path, few):
    metrics = figures(tmp_path, "dense", run, *of(few), "DATA.image_size", "[32, 48]", "--images", 2)
    assert metrics["images on sheets"] == 2
    words = ("features", run, *of(few), "DATA.image_size", "[64, 16]")  # as many patches, at other places
    assert evaluate(*words, "--output", tmp_path / "f.npz")[0] == 0
    cfg = config.parse_config((run / "config.yaml").read_text(), [*of(few), "DATA.image_size", "[64, 16]"])
    encoder = cfg.ENCODER.build(build.image_spec(cfg)).eval()
    (path,) = (run / "checkpoints").glob("step-*.pt")
    state = torch.load(path, weights_only=True)["model"]
    weights = {name.removeprefix("encoder."): each for name, each in state.items() if name.startswith("encoder.")}
    table_1ND = resize_positions(weights["backbone.pos_embed"], encoder.spec.grid, (32, 32), 1)
    assert not torch.equal(table_1ND, weights["backbone.pos_embed"])
    encoder.load_state_dict({**weights, "backbone.pos_embed": table_1ND})
    data = build.evaluation_data(cfg, build.build_sources(cfg)[1])
    stored = torch.stack([data[0, index].image_CHW for index in range(10)])
    with torch.no_grad():
        expected = encoder((stored.float() / 255 - cfg.DATA.mean[0]) / cfg.DATA.std[0]).pooled("mean")
    np.testing.assert_allclose(np.load(tmp_path / "f.npz")["val_features"], expected.numpy(), atol=1e-5)


def test_dense_draws_what_the_queries_of_a_readout_attend_to(tmp_path, few):
    """Of the readout that attends, of two; also in images of another size than those of its training."""
    readouts = "[{name: linear}, {name: attentive, queries: 4, heads: 2}]"
    code, text = call(tmp_path / "probe", TINY_CLASSIFIER | {"TRAIN.epochs": 1, "READOUT": readouts}, PROBE)
    assert code == 0, text
    for size, sheet in (("[32, 32]", "square"), ("[32, 48]", "wide")):
        words = (*of(few), "DATA.image_size", size, "LABELS.per_class", 0, "--images", 2)
        metrics = figures(tmp_path / sheet, "dense", tmp_path / "probe", *words)
        assert [Path(path).name for path in metrics["pictures"]] == [*SHEETS, "queries.png"]
    with load(tmp_path / "probe", of(few)) as loaded:
        model, readout, title = load_attending(loaded)
        assert readout is next(each for each in model.readouts if each.name == "attentive")
        assert title.startswith("attentive")
        img_BCHW = torch.randn(2, 1, 32, 32)
        shares_BQhw = Queries(model, readout, title).shares(img_BCHW)
        expected_BQHN = readout.attention(model.encoder(img_BCHW))
    torch.testing.assert_close(shares_BQhw.flatten(2), expected_BQHN.mean(dim=2))
    torch.testing.assert_close(shares_BQhw.sum(dim=(2, 3)), torch.ones(2, 4))


@pytest.mark.slow
def test_dense_of_an_encoder_without_class_token_says_so_and_takes_a_stride(tmp_path, few):
    code, text = call(tmp_path / "swin", SWIN)
    assert code == 0, text
    metrics = figures(tmp_path, "dense", tmp_path / "swin", *of(few), "--stride", 2)
    assert [Path(path).name for path in metrics["pictures"]] == ["components.png", "foreground.png"]
    assert metrics["no attention"] == "swin has no class token"
    assert metrics["stride"] == 2
    assert figures(tmp_path, "dense", tmp_path / "swin", *of(few))["stride"] == 4
    code, text = evaluate("dense", tmp_path / "swin", "--stride", 3)
    assert code == 2
    assert "--stride is 3: the maps of swin have the strides 2, 4" in text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--k", 0), "--k is 0: at least 1 neighbour"),
        (("--c", 0), "--c is 0: it must be above 0"),
        (("--patches", -1), "--patches is -1"),
        (("--images", 101), "101 images on a sheet: it holds 0 to 100"),
        (("--channels", "0,1"), "--channels 0,1: name one, three, or pca; these images have channels 0 to 0"),
        (("nowhere.png",), "nowhere.png does not exist"),
    ],
)
def test_dense_refuses_settings_by_name(run, words, reason):
    code, text = evaluate("dense", run, *words)
    assert code == 2
    assert reason in text


@pytest.fixture
def some_ink(monkeypatch):
    """150 training and 40 held-out digits with masks."""
    make = ink.DigitsInk.__init__

    def short(self, split, settings):
        make(self, split, settings)
        self.pictures = self.pictures[: 150 if split == "train" else 40]

    monkeypatch.setattr(ink.DigitsInk, "__init__", short)


def test_dense_with_masks_gives_the_figures_of_scikit_learn(run, tmp_path, some_ink):
    """All patches are fitted, with fixed settings, so that a plain fit can repeat it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import jaccard_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    metrics = figures(tmp_path, "dense", run, *INK, "--patches", 0, "--k", 5, "--c", 0.5, "--images", 2)
    assert [Path(path).name for path in metrics["pictures"]][3:] == ["masks_knn.png", "masks_logistic.png"]
    cfg = config.parse_config((run / "config.yaml").read_text(), list(INK))
    model = build.build_model(cfg)
    (path,) = (run / "checkpoints").glob("step-*.pt")
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    stride, features, labels, pixels = model.encoder.spec.stride, [], [], []
    for source in build.build_sources(cfg):
        stored = np.stack([np.asarray(source.read(index)) for index in range(len(source))])
        masks = np.stack([source.mask(index) for index in range(len(source))])
        img = (torch.from_numpy(stored)[:, None].float() / 255 - cfg.DATA.mean[0]) / cfg.DATA.std[0]
        with torch.no_grad():
            features.append(model.encoder.eval()(img).tokens_BND.flatten(0, 1).numpy())
        side = 32 // stride
        patches = masks.reshape(-1, side, stride, side, stride).transpose(0, 1, 3, 2, 4).reshape(-1, stride**2)
        counts = np.stack([(patches == label).sum(axis=1) for label in (0, 1, -1)], axis=1)
        labels.append(np.array([0, 1, -1])[counts.argmax(axis=1)])
        pixels.append(patches)
    known = labels[0] >= 0
    scale = StandardScaler().fit(features[0][known])
    fits = {
        "knn": KNeighborsClassifier(5, metric="cosine", algorithm="brute"),
        "logistic": LogisticRegression(C=0.5, max_iter=1000),
    }
    for name, model in fits.items():
        model.fit(scale.transform(features[0][known]), labels[0][known])
        answers = np.repeat(model.predict(scale.transform(features[1])), stride**2)
        truth = pixels[1].flatten()
        expected = jaccard_score(truth[truth >= 0], answers[truth >= 0], average="macro")
        assert metrics[f"dense/{name}_miou"] == pytest.approx(expected, abs=2e-3)
        low, high = metrics[f"dense/{name}_miou_interval"]
        assert low < metrics[f"dense/{name}_miou"] < high
        assert set(metrics[f"dense/{name}_by_class"]) == {"paper", "ink"}
    assert metrics["patches"] == known.sum()


def test_dense_chooses_its_settings_on_training_images(run, tmp_path, some_ink, monkeypatch):
    """Other held-out masks change the figures, and not the choice."""
    words = ("dense", run, *INK, "--patches", 600, "--images", 0)
    metrics = figures(tmp_path, *words)
    assert metrics["patches"] == 4 * 150
    true_mask = ink.DigitsInk.mask
    poisoned = lambda self, index: true_mask(self, index) if self.split == "train" else 0 * true_mask(self, index)  # noqa: E731
    monkeypatch.setattr(ink.DigitsInk, "mask", poisoned)
    other = figures(tmp_path, *words)
    assert (other["knn"], other["logistic"]) == (metrics["knn"], metrics["logistic"])
    assert other["dense/knn_miou"] != metrics["dense/knn_miou"]


@pytest.mark.slow
def test_dense_and_retrieval_of_a_pretraining_take_labels_of_the_command(run, tmp_path, few):
    """Masks of a folder, and a table that says what the class folders say."""
    for path in few.rglob("*.png"):
        mask = tmp_path / "masks" / path.relative_to(few)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(Image.open(path)) > ink.INK).astype(np.uint8)).save(mask)
    labels = ("LABELS.masks", tmp_path / "masks", "LABELS.names", "[paper, ink]")
    metrics = figures(tmp_path, "dense", run, *of(few), *labels, "--images", 1)
    assert (metrics["training images"], metrics["held-out images"]) == (20, 10)
    assert set(metrics["dense/knn_by_class"]) == {"paper", "ink"}
    rows = [f"{path},class {path.parent.name}\n" for path in few.rglob("*.png")]
    (tmp_path / "labels.csv").write_text("path,digit\n" + "".join(rows))
    by_table = figures(tmp_path, "retrieval", run, *of(few), "LABELS.file", tmp_path / "labels.csv")
    assert by_table["retrieval/map@10"] == figures(tmp_path, "retrieval", run, *of(few))["retrieval/map@10"]
    code, text = evaluate("dense", run, "LABELS.nonsense", 1)
    assert code == 2
    assert "unknown key LABELS.nonsense" in text


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dense", "retrieval", "masks"])
def test_two_processes_give_the_figures_of_one(run, warm, tmp_path, few, what):
    words = [what, str(run), *of(few), "DATA.batch_size", "7", "--output", str(tmp_path / "sheets")]
    if what == "masks":
        words = ["dense", str(run), "PLUGINS", "[ink]", *INK, "--patches", "3000", "--output", str(tmp_path / "sheets")]
    code, text = warm.run_program("evaluate", 2, [*words, "--json", str(tmp_path / "two.json")], tmp_path / "two.log")
    assert code == 0, text
    two = json.loads((tmp_path / "two.json").read_text())
    assert two == figures(tmp_path, *words[:-2])


# ---------------------------------------------------------------- retrieval


def test_retrieval_equals_a_loop_over_the_written_features(run, tmp_path, few):
    metrics = figures(tmp_path, "retrieval", run, *of(few), "--k", 3, "--pool", "both")
    assert evaluate("features", run, "--pool", "both", "--output", tmp_path / "f.npz", *of(few))[0] == 0
    data = np.load(tmp_path / "f.npz")
    bank, queries = (data[f"{split}_features"].astype(float) for split in ("train", "val"))
    bank, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (bank, queries))
    precisions, found = [], {1: 0, 3: 0}
    for query, label in zip(queries, data["val_labels"], strict=True):
        right = data["train_labels"][np.argsort(-bank @ query)[:3]] == label
        hits = np.cumsum(right)
        relevant = (data["train_labels"] == label).sum()
        precisions.append((right * hits / [1, 2, 3]).sum() / min(3, relevant))
        for k in found:
            found[k] += right[:k].any() / len(queries)
    assert metrics["retrieval/map@3"] == pytest.approx(np.mean(precisions))
    assert [metrics[f"retrieval/recall@{k}"] for k in (1, 3)] == pytest.approx(list(found.values()))
    assert metrics["search"] == ("faiss" if has_faiss() else "PyTorch")
    assert (metrics["queries"], metrics["searched images"]) == (10, 20)
    assert Path(metrics["pictures"][0]).name == "neighbours.png"


def test_retrieval_of_named_images_and_without_labels_counts_nothing(run, tmp_path, few):
    write_digits(tmp_path / "mine", 2)
    metrics = figures(tmp_path, "retrieval", run, tmp_path / "mine", *of(few))
    assert metrics["no mAP"] == "IMAGES have no classes"
    assert metrics["queries"] == 2
    without = figures(tmp_path, "retrieval", run, *of(few), "DATA.labels", "none")
    assert without["no mAP"] == "the training images have no classes"
    assert not [key for key in [*metrics, *without] if key.startswith("retrieval/")]


@pytest.mark.slow
def test_retrieval_leaves_broken_files_out_by_name(run, tmp_path, few):
    import shutil

    shutil.copytree(few, tmp_path / "some")
    broken = sorted((tmp_path / "some" / "train").rglob("*.png"))[3]
    broken.write_bytes(b"nothing")
    metrics = figures(tmp_path, "retrieval", run, *of(tmp_path / "some"))
    assert metrics["searched images"] == 19
    assert broken.name in metrics["evaluation/left_out_files"][0]


@pytest.mark.slow
def test_retrieval_with_leave_one_out_searches_among_the_held_out_or_only_images(run, tmp_path, few):
    metrics = figures(tmp_path, "retrieval", run, *of(few / "train"), "DATA.val_share", 0, "--leave-one-out")
    assert metrics["queries"] == metrics["searched images"] == 20
    assert "queries without another image of their class" not in metrics
    held_out = figures(tmp_path, "retrieval", run, *of(few), "--leave-one-out", "--images", 0)
    assert held_out["queries"] == 10
    assert held_out["queries without another image of their class"] == 10
    assert "pictures" not in held_out
    code, text = evaluate("retrieval", run, *of(few / "train"), "DATA.val_share", 0)
    assert code == 2
    assert "has no held-out images to search for: name IMAGES, or let the training images search" in text
    code, text = evaluate("retrieval", run, few, "--leave-one-out")
    assert code == 2
    assert "IMAGES and --leave-one-out both say what is searched for" in text
