"""What a study found: figures of every trial over its seeds, as tables, files and pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mim.build import image_spec
from mim.config import Config
from mim.evaluation.avg_dist import masker_avg_dist
from mim.io.files import write_json, write_text
from mim.lab.layout import slug
from mim.lab.study.file import Study, Trial, short_names
from mim.lab.study.pictures import Dot, Panel, draw_heat_map, draw_over, draw_points
from mim.maskers import Masker
from mim.metric_keys import KNN_TOP1, VAL_LOSS, VAL_TOP1
from mim.ops.intervals import Estimate, estimate

LEAST = 3  # points that make a picture over AvgDist worth drawing


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of trials, by their names. measured: over seeds, and not known from the config alone."""

    title: str
    values: dict[str, Estimate]
    measured: bool = True

    def text(self, trial: str) -> str:
        """The figure in words; a dash where there is none."""
        found = self.values.get(trial)
        if found is None:
            return "–"
        return f"{found.mean:.1f}" + (f" ± {found.half:.1f}" if self.measured and found.half is not None else "")


@dataclass
class Results:
    """The summaries of a study's runs, by trial, protocol (empty: pretraining) and seed, and the runs that failed."""

    study: Study
    configs: dict[str, Config]
    summaries: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, trial: str, protocol: str, seed: int, summary: dict[str, Any]) -> None:
        """Takes the summary of a run that has ended."""
        self.summaries[trial, protocol, seed] = summary

    @property
    def ended(self) -> int:
        """Runs that have ended, well or not."""
        return len(self.summaries) + len(self.failed)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Those of which at least one run has ended well."""
        known = {trial for trial, _, _ in self.summaries}
        return tuple(trial for trial in self.study.trials if trial.name in known)

    def values(self, trial: str, protocol: str, figure: str) -> dict[int, float]:
        """A figure of a trial's runs under a protocol, by seed."""
        found = {seed: self.summaries.get((trial, protocol, seed), {}).get(figure) for seed in self.study.seeds}
        return {seed: value for seed, value in found.items() if isinstance(value, (int, float))}

    def metrics(self) -> list[Metric]:
        """Accuracies in percent under each protocol and by nearest neighbours; where masks differ, what they hide."""
        figures = [(protocol, protocol, VAL_TOP1) for protocol in self.study.protocols]
        figures += [("top-1", "", VAL_TOP1), ("kNN", "", KNN_TOP1)]
        found = []
        for title, protocol, figure in figures:
            by_trial = {trial.name: self.values(trial.name, protocol, figure) for trial in self.trials}
            known = {name: estimate([100 * v for v in values.values()]) for name, values in by_trial.items() if values}
            if known:
                found.append(Metric(f"{title}, %", known))
        return [*found, *self._masks()]

    def _masks(self) -> list[Metric]:
        """Hidden share and AvgDist, where trials differ in their masks."""
        shares, distances = {}, {}
        for trial in self.trials:
            cfg = self.configs[trial.name]
            if cfg.TASK != "pretrain":
                continue
            image = image_spec(cfg)
            masker: Masker = cfg.MASKER.build(image)
            shares[trial.name] = Estimate(100 * masker.ratio, None, 1)
            distances[trial.name] = masker_avg_dist(masker, image)
        if len({(shares[name].mean, distances[name].mean) for name in shares}) < 2:
            return []
        return [Metric("hidden, %", shares, measured=False), Metric("AvgDist, px", distances, measured=False)]

    def table(self) -> list[list[str]]:
        """Rows of cells, headings first; the longer of trials and figures goes down."""
        metrics, names = self.metrics(), [trial.name for trial in self.trials]
        rows = [["", *(metric.title for metric in metrics)]]
        rows += [[name, *(metric.text(name) for metric in metrics)] for name in names]
        return rows if len(names) >= len(metrics) else [list(column) for column in zip(*rows, strict=True)]

    def write(self, output: Path) -> None:
        """results.json, results.md and a PNG a picture in `output`."""
        trials = {
            trial.name: {
                "start": trial.start,
                "set": trial.point,
                "pretraining": {
                    name: self.values(trial.name, "", name)
                    for name in (KNN_TOP1, VAL_TOP1, VAL_LOSS, "epochs", "images_seen", "images_per_s", "seconds")
                },
                VAL_TOP1: {p: self.values(trial.name, p, VAL_TOP1) for p in self.study.protocols},
            }
            for trial in self.trials
        }
        metrics = {metric.title: {name: e.mean for name, e in metric.values.items()} for metric in self.metrics()}
        content = {"seeds": list(self.study.seeds), "trials": trials, "means": metrics, "failed": self.failed}
        write_json(output / "results.json", content)
        write_text(output / "results.md", markdown(self.table()))
        for name, picture_HWC in self.pictures().items():
            Image.fromarray(picture_HWC.numpy()).save(output / f"{name}.png")

    def pictures(self) -> dict[str, Any]:
        """Heat maps where two keys vary, dots with intervals elsewhere; accuracy over AvgDist where masks differ."""
        metrics = self.metrics()
        accuracies = [metric for metric in metrics if metric.measured]
        if len(self.trials) < 2 or not accuracies:
            return {}
        found = {}
        if len(self.study.grid) == 2:
            for start in self.study.starts:
                panels = [panel for metric in accuracies if (panel := self._map(metric, start))]
                if panels:
                    name = "heat_map" if len(self.study.starts) == 1 else f"heat_map_{slug(start)}"
                    found[name] = draw_heat_map(f"{self._title}: {start}", panels, *self._varied)
        else:
            names = [trial.name for trial in self.trials]
            panels = [
                Panel(metric.title, [[metric.values.get(name)] for name in names], names) for metric in accuracies
            ]
            found["points"] = draw_points(self._title, panels)
        distances = next((metric.values for metric in metrics if metric.title.startswith("AvgDist")), {})
        if len({round(found.mean, 3) for found in distances.values()}) >= LEAST:
            over = {each.title: self._dots(each, distances) for each in accuracies}
            labels = self._varied[0] if len(self.study.grid) == 2 else ""
            found["over_avg_dist"] = draw_over(self._title, "AvgDist, px", over, labels)
        return found

    @property
    def _varied(self) -> list[str]:
        """The keys of the grid, in short."""
        return list(short_names(tuple(self.study.grid)).values())

    @property
    def _title(self) -> str:
        seeds = len(self.study.seeds)
        over = f"mean and 95% interval over {seeds} seeds" if seeds > 1 else f"seed {self.study.seeds[0]}"
        return f"{self.study.name} ({over})"

    def _dots(self, metric: Metric, over: dict[str, Estimate]) -> list[Dot]:
        """A metric over another figure; where two keys vary, the second one tells the series apart."""
        dots = []
        for trial in self.trials:
            if trial.name not in metric.values or trial.name not in over:
                continue
            series, label = "", trial.name
            if len(self.study.grid) == 2:
                label, other = trial.point.values()
                series = f"{self._varied[1]} {other}"
            dots.append(Dot(over[trial.name].mean, metric.values[trial.name], series, label))
        return dots

    def _map(self, metric: Metric, start: str) -> Panel | None:
        """A metric over the two keys of the grid: a row a value of the first, a column one of the second."""
        (down, rows), (across, columns) = self.study.grid.items()
        known = {
            (trial.point[down], trial.point[across]): metric.values[trial.name]
            for trial in self.trials
            if trial.start == start and trial.name in metric.values
        }
        rows = tuple(row for row in rows if any(place[0] == row for place in known))
        columns = tuple(column for column in columns if any(place[1] == column for place in known))
        cells = [[known.get((row, column)) for column in columns] for row in rows]
        return Panel(metric.title, cells, rows, columns) if known else None


def markdown(table: list[list[str]]) -> str:
    """A table as Markdown."""
    head, *rows = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]
    return "\n".join([head, f"|{'---|' * len(table[0])}", *rows]) + "\n"
