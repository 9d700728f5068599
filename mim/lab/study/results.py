"""What a study found: metrics of every trial over its seeds, as tables, files and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mim.build import image_spec
from mim.config import Config
from mim.evaluation.avg_dist import masker_avg_dist
from mim.io.files import write_json, write_text
from mim.lab.label_metrics import MAIN, LabelMetric
from mim.lab.layout import RESULTS, RESULTS_TABLE, slug
from mim.lab.study.file import Study, Trial, short_names
from mim.lab.study.pictures import PERCENT, Dot, Scale, draw_heat_maps, draw_over, draw_points, interval_text
from mim.metric_keys import KNN_TOP1, VAL_LOSS, VAL_TOP1
from mim.ops.intervals import Estimate, estimate

AVG_DIST = "AvgDist, px"
LEAST = 3  # different values of AvgDist that make a picture over it worth drawing


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of trials."""

    title: str
    values: dict[str, Estimate]  # by name of the trial
    measured: bool = True  # over seeds, not computed from the config alone
    scale: Scale = PERCENT

    def text(self, trial: str) -> str:
        """The metric of a trial as text; a dash where there is none."""
        value = self.values.get(trial)
        if value is None:
            return "–"
        interval = f" {interval_text(value, self.scale)}" if self.measured and value.half is not None else ""
        return self.scale.text(value.mean) + interval


@dataclass
class Results:
    """The results of a study. Its `summaries` are by trial, protocol (empty: pretraining) and seed."""

    study: Study
    configs: dict[str, Config]
    summaries: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # why runs failed, by name

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Trials with at least one run that did not fail."""
        known = {trial for trial, _, _ in self.summaries}
        return tuple(trial for trial in self.study.trials if trial.name in known)

    def values(self, trial: str, protocol: str, key: str) -> dict[int, float]:
        """A metric of the runs of a trial under a protocol, by seed."""
        values = {seed: self.summaries.get((trial, protocol, seed), {}).get(key) for seed in self.study.seeds}
        return {seed: value for seed, value in values.items() if isinstance(value, (int, float))}

    def metrics(self) -> list[Metric]:
        """The main metric of each protocol, and kNN; where masks differ, also what they hide."""
        columns = [(protocol, protocol, main) for protocol in self.study.protocols for main in MAIN]
        columns += [("", "", main) for main in MAIN]
        metrics = []
        for title, protocol, main in [*columns, ("kNN", "", LabelMetric(KNN_TOP1, ""))]:
            by_trial = {trial.name: self.values(trial.name, protocol, main.key) for trial in self.trials}
            means = {name: estimate(list(map(main.in_unit, each.values()))) for name, each in by_trial.items() if each}
            if means:
                metrics.append(Metric(_metric_title(title, main), means, scale=_scale(main, means)))
        return [*metrics, *self._masks()]

    def _main_keys(self) -> list[str]:
        """Keys of the metrics that judge the protocols; top-1 always, whose entry names all protocols."""
        keys = {key for summary in self.summaries.values() for key in summary}
        return [main.key for main in MAIN if main.key == VAL_TOP1 or main.key in keys]

    def _by_protocol(self, trial: str, key: str) -> dict[str, dict[int, float]]:
        return {protocol: self.values(trial, protocol, key) for protocol in self.study.protocols}

    def _masks(self) -> list[Metric]:
        """Hidden share and AvgDist, where trials differ in them."""
        shares, distances = {}, {}
        for trial in self.trials:
            cfg = self.configs[trial.name]
            if cfg.TASK == "pretrain":
                image = image_spec(cfg)
                masker = cfg.MASKER.build(image)
                shares[trial.name] = Estimate(100 * masker.ratio, None, 1)
                distances[trial.name] = masker_avg_dist(masker, image)
        if len({(shares[name].mean, distances[name].mean) for name in shares}) < 2:
            return []
        return [Metric("hidden, %", shares, measured=False), Metric(AVG_DIST, distances, measured=False)]

    def table(self) -> list[list[str]]:
        """Rows of cells, headings first; the longer of trials and metrics goes down."""
        metrics, names = self.metrics(), [trial.name for trial in self.trials]
        rows = [["", *(metric.title for metric in metrics)]]
        rows += [[name, *(metric.text(name) for metric in metrics)] for name in names]
        return rows if len(names) >= len(metrics) else [list(column) for column in zip(*rows, strict=True)]

    def write(self, output: Path) -> None:
        """Writes results.json, results.md and the pictures to `output`."""
        keys = (KNN_TOP1, *self._main_keys(), VAL_LOSS, "epochs", "images_seen", "images_per_s", "seconds")
        trials = {
            trial.name: {
                "start": trial.start,
                "set": trial.point,
                "pretraining": {key: self.values(trial.name, "", key) for key in keys},
                **{key: self._by_protocol(trial.name, key) for key in self._main_keys()},
            }
            for trial in self.trials
        }
        means = {metric.title: {name: e.mean for name, e in metric.values.items()} for metric in self.metrics()}
        content = {"seeds": list(self.study.seeds), "trials": trials, "means": means, "failed": self.failed}
        write_json(output / RESULTS, content)
        write_text(output / RESULTS_TABLE, markdown(self.table()))
        for name, picture_HW3 in self.pictures().items():
            Image.fromarray(picture_HW3.numpy()).save(output / f"{name}.png")

    def pictures(self) -> dict[str, Tensor]:
        """Heat maps where two keys vary, else dots with intervals; accuracy over AvgDist where masks differ."""
        metrics = self.metrics()
        accuracies = [metric for metric in metrics if metric.measured]
        if len(self.trials) < 2 or not accuracies:
            return {}
        seeds = self.study.seeds
        over = f"mean and 95% interval over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
        title = f"{self.study.name} ({over})"
        keys = list(short_names(tuple(self.study.grid)).values())
        scales = {metric.title: metric.scale for metric in metrics}
        if len(keys) == 2:
            pictures = self._heat_maps(accuracies, title, keys)
        else:
            names = [trial.name for trial in self.trials]
            columns = {metric.title: [metric.values.get(name) for name in names] for metric in accuracies}
            pictures = {"points": draw_points(title, names, columns, scales)}
        distances = next((metric.values for metric in metrics if metric.title == AVG_DIST), {})
        if len({round(each.mean, 3) for each in distances.values()}) >= LEAST:
            dots = {metric.title: self._dots(metric, distances, keys) for metric in accuracies}
            pictures["over_avg_dist"] = draw_over(title, AVG_DIST, dots, keys[0] if len(keys) == 2 else "", scales)
        return pictures

    def _heat_maps(self, metrics: Sequence[Metric], title: str, keys: Sequence[str]) -> dict[str, Tensor]:
        """A picture for each start: rows are values of the first key, columns values of the second."""
        pictures = {}
        for start in self.study.starts:
            points = {tuple(trial.point.values()): trial.name for trial in self.trials if trial.start == start}
            rows, columns = (
                [value for value in values if any(point[axis] == value for point in points if point)]
                for axis, values in enumerate(self.study.grid.values())
            )
            maps = {
                metric.title: [[metric.values.get(points.get((row, column), "")) for column in columns] for row in rows]
                for metric in metrics
                if any(name in metric.values for point, name in points.items() if point)
            }
            if maps:
                name = "heat_map" if len(self.study.starts) == 1 else f"heat_map_{slug(start)}"
                scales = {metric.title: metric.scale for metric in metrics}
                pictures[name] = draw_heat_maps(f"{title}: {start}", maps, keys[0], rows, keys[1], columns, scales)
        return pictures

    def _dots(self, metric: Metric, over: dict[str, Estimate], keys: Sequence[str]) -> list[Dot]:
        """A metric over another one; where two keys vary, the second one tells the series apart."""
        dots = []
        for trial in self.trials:
            if trial.name not in metric.values or trial.name not in over:
                continue
            series, label = "", trial.name
            if len(keys) == 2:
                label, other = trial.point.values()
                series = f"{keys[1]} {other}"
            dots.append(Dot(over[trial.name].mean, metric.values[trial.name], series, label))
        return dots


def _metric_title(title: str, metric: LabelMetric) -> str:
    """`linear probe, %` for top-1, the name of another metric, and the unit."""
    name = metric.title if metric.key != VAL_TOP1 or not title else ""
    return ", ".join(part for part in (title, name, metric.unit) if part)


def _scale(metric: LabelMetric, means: dict[str, Estimate]) -> Scale:
    least = 0.0 if min(each.mean for each in means.values()) >= 0 else -inf
    return PERCENT if metric.unit == "%" else Scale(least, metric.most, digits=3)


def markdown(table: list[list[str]]) -> str:
    """A table as Markdown."""
    heading, *rows = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]
    return "\n".join([heading, f"|{'---|' * len(table[0])}", *rows]) + "\n"
