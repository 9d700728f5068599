"""Frozen: defects by logistic regression on features that stay as they are, and the scores of the study's fine-tunings.

    python examples/solar/frozen.py runs/solar

reads the study in runs/solar/study, and writes `scores.json` to runs/solar, which page.py shows. The features are raw
pixels, HOG, and the mean patch tokens of each encoder of the study. All are judged by the same labels: those that
LABELS.count takes and, where they are few, those of four other LABELS.seed. Features of encoders are kept in
runs/solar/features, so that a second call is quick, and so are answers of fine-tuned runs in runs/solar/answers.

Shapes: N images, D values of a feature.
"""

import argparse
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mim import build, evaluate, load_config
from mim.data.labels.settings import LabelSettings
from mim.data.sources.base import Source
from mim.data.sources.subset import few_labels
from mim.lab.layout import study_run
from mim.lab.study import read_study
from mim.structures import EncoderSpec, ImageSpec
from mim.targets.hog import HOG

CONFIG, STUDY = "finetune/solar", Path("configs/studies/solar/transfer.yaml")
PROBE = "probe, all labels"  # its runs hold the frozen encoder of each start, random weights too
COUNTS = (10, 50, 200, 0)  # labels; 0: all
DRAWS = 5  # of few labels
PENALTIES = np.logspace(-4, 0, 5)  # inverse strengths, of which cross-validation on the labels takes one
SIDE, PIXELS, CELL = 128, 32, 8  # pixels of an image, of its side as raw pixels, and of a cell of HOG
DEFECTIVE = 0  # position among the classes, in the order of their names
Features = dict[str, np.ndarray]  # (D,) by the name of an image
Scores = dict[str, float]  # by metric: auroc, auroc_within, average_precision, balanced_accuracy


@dataclass(frozen=True, slots=True)
class Cells:
    """Both sides of the split, with labels."""

    train: Source
    held_out: Source

    def names(self, source: Source) -> list[str]:
        """The file name of each image."""
        return [Path(source.describe(index)).name for index in range(len(source))]


def raw_features(cells: Cells) -> Iterator[tuple[str, Features]]:
    """Raw pixels and HOG of all cells, by the name of the feature."""
    images = {
        name: np.array(source.read(index).convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for source in (cells.train, cells.held_out)
        for index, name in enumerate(cells.names(source))
    }
    stacked_NHW = torch.from_numpy(np.stack(list(images.values()))).float() / 255
    pixels = torch.nn.functional.interpolate(stacked_NHW[:, None], size=(PIXELS, PIXELS), mode="area")
    encoder = EncoderSpec(width=1, stride=CELL, patch=CELL, grid=(SIDE // CELL,) * 2, drops_hidden=False)
    hog = HOG(ImageSpec(1, SIDE, SIDE), encoder, cell=CELL, window=0)
    with torch.inference_mode():
        histograms = torch.cat([hog(part) for part in stacked_NHW[:, None].split(256)])
    for title, values in (("raw pixels", pixels), ("HOG", histograms)):
        yield title, dict(zip(images, values.flatten(1).numpy(), strict=True))


def encoder_features(run: Path, file: Path) -> Features:
    """The mean patch tokens of all cells, by the frozen encoder of a probe; kept in a file."""
    if not file.is_file():
        evaluate.features(run, [], "mean", file)
    with np.load(file) as arrays:
        return {
            Path(name).name: feature
            for split in ("train", "val")
            for name, feature in zip(arrays[f"{split}_names"].tolist(), arrays[f"{split}_features"], strict=True)
        }


def judge(features: Features, cells: Cells, count: int, draw: int) -> Scores:
    """Scores on the held-out cells, of a fit on `count` labels of the training cells."""
    labelled = few_labels(cells.train, LabelSettings(count=count, seed=draw))
    (x_ND, y_N), (held_out_ND, truth_N) = (
        (np.stack([features[name] for name in cells.names(source)]), np.asarray(source.labels) == DEFECTIVE)
        for source in (labelled, cells.held_out)
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    folds = StratifiedKFold(min(5, int(min(y_N.sum(), (~y_N).sum()))), shuffle=True, random_state=0)
    search = GridSearchCV(model, {"logisticregression__C": PENALTIES}, scoring="roc_auc", cv=folds).fit(x_ND, y_N)
    return scores_of(truth_N, search.predict_proba(held_out_ND)[:, 1], cells.held_out.groups)


def scores_of(truth_N: np.ndarray, share_N: np.ndarray, group_N: np.ndarray | None) -> Scores:
    """All metrics of one answer. share_N: the probability of a defect, by the model."""
    return {
        "auroc": float(roc_auc_score(truth_N, share_N)),
        "auroc_within": auroc_within(truth_N, share_N, np.zeros(len(truth_N)) if group_N is None else group_N),
        "average_precision": float(average_precision_score(truth_N, share_N)),
        "balanced_accuracy": float(balanced_accuracy_score(truth_N, share_N > 0.5)),
    }


def auroc_within(truth_N: np.ndarray, share_N: np.ndarray, group_N: np.ndarray) -> float:
    """The share of pairs of a defective and a functional cell of one group that are in the right order.

    What differs between modules alone, such as their brightness, says nothing here.
    """
    right = pairs = 0.0
    for group in np.unique(group_N):
        true_N = truth_N[group_N == group]
        count = float(true_N.sum() * (~true_N).sum())
        if count:
            right += count * roc_auc_score(true_N, share_N[group_N == group])
            pairs += count
    return right / pairs


def judge_all(folder: Path, cells: Cells) -> dict[str, dict[str, list[Scores]]]:
    """The scores of each feature, by number of labels: one a seed, the mean over the draws of labels."""
    study = read_study(STUDY)
    every: dict[str, list[Features]] = {title: [features] for title, features in raw_features(cells)}
    for start in study.starts:
        runs = [study_run(folder / "study", PROBE, start, seed) for seed in study.seeds]
        files = [folder / "features" / f"{run.name}.npz" for run in runs]
        every[start] = [encoder_features(run, file) for run, file in zip(runs, files, strict=True) if run.is_dir()]
    scores: dict[str, dict[str, list[Scores]]] = {}
    for title, several in every.items():
        for count in COUNTS:
            seeds = []
            for features in several:
                draws = [judge(features, cells, count, draw) for draw in range(DRAWS if count else 1)]
                seeds.append({metric: float(np.mean([each[metric] for each in draws])) for metric in draws[0]})
            scores.setdefault(title, {})[str(count or "all")] = seeds
        print(title, {n: round(float(np.mean([s["auroc"] for s in each])), 3) for n, each in scores[title].items()})
    return scores


def fine_tuned(folder: Path, cells: Cells) -> dict[str, dict[str, list[Scores]]]:
    """The scores of the fine-tunings of the study, in the same form; their answers are kept in a file for each run."""
    study = read_study(STUDY)
    truth_N = np.asarray(cells.held_out.labels) == DEFECTIVE
    scores: dict[str, dict[str, list[Scores]]] = {}
    for start in study.starts:
        for protocol in study.protocols:
            count = re.search(r"\d+|all", protocol)
            if protocol == PROBE or count is None:
                continue
            runs = [study_run(folder / "study", protocol, start, seed) for seed in study.seeds]
            shares = [answers(run, folder, cells) for run in runs if (run / "summary.json").is_file()]
            scores.setdefault(start, {})[count[0]] = [
                scores_of(truth_N, share_N, cells.held_out.groups) for share_N in shares
            ]
    return scores


def answers(run: Path, folder: Path, cells: Cells) -> np.ndarray:
    """The probability of a defect of each held-out cell, by a fine-tuned run."""
    file = folder / "answers" / f"{run.parent.name}-{run.name}.csv"
    if not file.is_file():
        evaluate.predict(run, [folder / "val.txt"], file)
    with file.open(newline="", encoding="utf-8") as rows:
        share_of = {Path(row["path"]).name: float(row["defective"]) for row in csv.DictReader(rows)}
    return np.array([share_of[name] for name in cells.names(cells.held_out)])


def main() -> None:
    """Judges all features and fine-tunings, and writes their scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of prepare.py, with the study in it")
    folder = parser.parse_args().folder
    cells = Cells(*build.build_sources(load_config(CONFIG)))
    frozen, tuned = judge_all(folder, cells), fine_tuned(folder, cells)
    (folder / "scores.json").write_text(json.dumps({"frozen": frozen, "fine-tuned": tuned}, indent=1) + "\n")


if __name__ == "__main__":
    main()
