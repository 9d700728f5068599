"""RunResult: the summary of a run, its curves, pictures and encoder, read from its run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from mim.build.encoders import load_encoder
from mim.encoders import Encoder
from mim.engine.run_folder import CONFUSION, RECONSTRUCTIONS, RELIABILITY, SEGMENTATIONS, RunFolder
from mim.metric_keys import (
    KNN_TOP1,
    LOGISTIC_TOP1,
    TRAIN_LOSS,
    VAL_BASELINE,
    VAL_LOSS,
    VAL_MEAN_AP,
    VAL_MIOU,
    VAL_R2,
    VAL_TOP1,
)
from mim.registry import one_of
from mim.results.card import Card, CardPicture, CardTable
from mim.results.chart import Curve, draw_chart
from mim.results.figures import figure_rows, value_text

LOSSES = (TRAIN_LOSS, VAL_LOSS, VAL_BASELINE)
SCORES = (KNN_TOP1, LOGISTIC_TOP1, VAL_TOP1, VAL_MEAN_AP, VAL_MIOU, VAL_R2)
PICTURES = (RECONSTRUCTIONS, SEGMENTATIONS, CONFUSION, RELIABILITY)  # the first that a run has is shown
POSITION = ("step", "epoch", "images_seen", "seconds")  # of a row of metrics.jsonl
SHOWN = (*SCORES, VAL_LOSS, TRAIN_LOSS)  # of them the first two in the short text


class RunResult(dict[str, Any]):
    """What `mim.train` returns: the values of summary.json as a dict, and what else the run folder holds.

    A notebook shows its figures, its curves and its newest pictures. `RunResult.read(folder)` is that of any run
    folder, also while the run trains.

    Attributes: folder, the run folder; finished, whether every step is done.
    """

    def __init__(self, values: Mapping[str, Any], folder: Path, finished: bool = True):
        super().__init__(values)
        self.folder, self.finished = folder, finished

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The result of a run folder; where the run is not finished, the newest value of each metric.

        Raises ValueError where the folder holds no run that has logged a line.
        """
        files = RunFolder(Path(folder))
        if files.summary.is_file():
            return cls(json.loads(files.summary.read_text(encoding="utf-8")), files.path)
        values: dict[str, Any] = {}
        for row in _rows(files):
            values |= row
        if not values:
            raise ValueError(f"{folder} holds neither summary.json nor a row of metrics.jsonl: name a run folder")
        values["steps"] = values.pop("step", 0)
        return cls(values, files.path, finished=False)

    @property
    def name(self) -> str:
        """That of the run folder."""
        return self.folder.resolve().name

    @property
    def metrics(self) -> dict[str, Curve]:
        """Each metric of metrics.jsonl against images seen, by its key, as arrays."""
        points: dict[str, list[tuple[int, float]]] = {}
        for row in _rows(RunFolder(self.folder)):
            for key in row.keys() - set(POSITION):
                points.setdefault(key, []).append((row["images_seen"], row[key]))
        return {key: _curve(points[key]) for key in sorted(points)}

    def curve(self, key: str) -> Curve:
        """One of `metrics`. Raises ValueError where the run has no such metric."""
        metrics = self.metrics
        if key not in metrics:
            raise ValueError(f"{self.folder} has no metric {key}. {one_of(key, metrics)}")
        return metrics[key]

    @property
    def pictures(self) -> dict[str, list[Path]]:
        """The pictures of the evaluations by their kind, such as `reconstructions`, the oldest first."""
        files = {kind: list((self.folder / kind).glob("step-*.png")) for kind in PICTURES}
        return {kind: sorted(paths, key=_step) for kind, paths in files.items() if paths}

    def encoder(self) -> Encoder:
        """The encoder of the run's best or last checkpoint, see mim.load_encoder."""
        return load_encoder(self.folder)

    def __repr__(self) -> str:
        texts = [f"{key} {value_text(key, self[key])}" for key in SHOWN if key in self][:2]
        return f"<{type(self).__name__} {', '.join([f'{self.folder}: {self._state}', *texts])}>"

    def _repr_html_(self) -> str:
        curves, pictures = self.metrics, self.pictures
        panels = [{key: curves[key] for key in keys if key in curves} for keys in (LOSSES, SCORES)]
        newest = [f"{paths[-1].relative_to(self.folder)}" for paths in pictures.values()][:1]
        images = f"{self.get('images_seen', 0):,} images seen in {self.get('seconds', 0):,.0f} s"
        card = Card(
            title=self.name,
            subtitle=" \N{MIDDLE DOT} ".join(filter(None, (self.get("task"), self._state, images))),
            tables=(CardTable(figure_rows({key: value for key, value in self.items() if "/" in key})),),
            chart=draw_chart([panel for panel in panels if panel]),
            pictures=tuple(CardPicture.of_file(self.folder / name, name) for name in newest),
            notes=(f"run folder: {self.folder}",),
        )
        return card.html()

    @property
    def _state(self) -> str:
        steps = f"{self.get('steps', 0):,} steps"
        return steps if self.finished else f"not finished, {steps} so far"


def _rows(files: RunFolder) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a line that is being written or is damaged."""
    if not files.metrics.is_file():
        return []
    rows = []
    for line in files.metrics.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("images_seen"), int):
            rows.append({key: value for key, value in row.items() if isinstance(value, (int, float))})
    return rows


def _curve(points: list[tuple[int, float]]) -> Curve:
    images, values = zip(*points, strict=True)
    return Curve(np.array(images, dtype=np.int64), np.array(values, dtype=np.float64))


def _step(path: Path) -> int:
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else -1
