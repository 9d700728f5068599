"""Page: the scores of the solar cells, as tables, curves and pictures in one file.

    python examples/solar/page.py runs/solar

reads `scores.json` of frozen.py and the pictures beside it, and writes `table.md` and `page.html`, one file that needs
no network.
"""

import argparse
import io
import json
from base64 import b64encode
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from mim.ops.intervals import Estimate, estimate

COUNTS = ("10", "50", "200", "all")  # labels
METRICS = {
    "auroc": "AUROC",
    "auroc_within": "AUROC within modules",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
}
KINDS = {"fine-tuned": "fine-tuned", "frozen": "logistic regression on frozen features"}
CURVES = ("auroc", "auroc_within")
BASELINES = ("HOG", "raw pixels")  # rows of the frozen features that need no network
BEYOND = 8  # percent that a panel shows beyond the means; wider intervals are cut
COLOURS = {
    "MAE": "#1f6fb4",
    "SimMIM": "#d9721a",
    "MAE on gradients": "#2a9355",
    "scratch": "#777777",
    "HOG": "#a23b8f",
    "raw pixels": "#c4a000",
}
PICTURES = {  # by file beside the scores
    "cracks.png": "Eight held-out cells with defects: what MAE sees, what it predicts, and the original.",
    "attention/attention.png": "What each head of the fine-tuned encoder's class token attends to, all labels.",
    "attention/components.png": "The three strongest directions of the patch features, fine-tuned, as colours.",
}
TEMPLATE = Path(__file__).with_name("page.html.jinja")
Scores = dict[str, dict[str, list[dict[str, float]]]]  # by name of the row, then by number of labels: one a seed
Rows = list[tuple[str, list[str]]]  # name, then the text of each count


def estimates(scores: Scores, metric: str) -> dict[str, dict[str, Estimate]]:
    """Means over seeds in percent, by name of the row, then by number of labels; without what no run has."""
    means: dict[str, dict[str, Estimate]] = {}
    for name, by_count in scores.items():
        for count, seeds in by_count.items():
            if values := [100 * each[metric] for each in seeds if metric in each]:
                means.setdefault(name, {})[count] = estimate(values)
    return means


def rows_of(means: dict[str, dict[str, Estimate]]) -> Rows:
    """The texts of a table."""
    rows: Rows = []
    for name, by_count in means.items():
        cells = []
        for count in COUNTS:
            value = by_count.get(count)
            half = "" if value is None or value.half is None else f" ± {value.half:.1f}"
            cells.append("–" if value is None else f"{value.mean:.1f}{half}")
        rows.append((name, cells))
    return rows


def markdown(heading: str, rows: Rows) -> list[str]:
    """A table for README and docs."""
    return [
        f"| {heading} | {' | '.join(f'{count} labels' for count in COUNTS)} |",
        f"|{'---|' * (len(COUNTS) + 1)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows),
        "",
    ]


def curves(scores: dict[str, Scores]) -> str:
    """AUROC by number of labels as SVG: a row of panels a kind of training, a column a metric."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(len(KINDS), len(CURVES), sharex=True, sharey="col")
    for panels, (kind, words) in zip(axes, KINDS.items(), strict=True):
        for panel, metric in zip(panels, CURVES, strict=True):
            without_network = {name: scores["frozen"][name] for name in BASELINES if name in scores["frozen"]}
            curves_by_name = estimates({**scores[kind], **without_network}, metric)
            for index, (name, by_count) in enumerate(curves_by_name.items()):
                places = [COUNTS.index(count) + 0.05 * (index - len(curves_by_name) / 2) for count in by_count]
                panel.errorbar(
                    places,
                    [each.mean for each in by_count.values()],
                    [each.half or 0 for each in by_count.values()],
                    label=name,
                    color=COLOURS.get(name),
                    linestyle="--" if name in BASELINES else "-",
                    marker="o",
                    markersize=4,
                    elinewidth=1,
                )
            means = [each.mean for by_count in curves_by_name.values() for each in by_count.values()]
            panel.set_ylim(min(means) - BEYOND, max(means) + BEYOND)
            panel.set_title(words, fontsize="medium")
            panel.set_ylabel(f"{METRICS[metric]}, %")
            panel.set_xticks(range(len(COUNTS)), COUNTS)
            panel.grid(axis="y", alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("labels")
    axes[0][0].legend(fontsize="small")
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]


def main() -> None:
    """Writes the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of frozen.py")
    folder = parser.parse_args().folder
    scores: dict[str, Scores] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    tables, lines = [], []
    for metric, words in METRICS.items():
        for kind in KINDS:
            heading, rows = f"{words}, %: {KINDS[kind]}", rows_of(estimates(scores[kind], metric))
            tables.append((heading, COUNTS, rows))
            lines += markdown(heading, rows)
    (folder / "table.md").write_text("\n".join(lines), encoding="utf-8")
    pictures = [
        (b64encode((folder / name).read_bytes()).decode(), caption)
        for name, caption in PICTURES.items()
        if (folder / name).is_file()
    ]
    seeds = max((len(each) for by_count in scores["fine-tuned"].values() for each in by_count.values()), default=0)
    page = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=False).render(
        curves=curves(scores), tables=tables, pictures=pictures, seeds=", ".join(map(str, range(seeds)))
    )
    (folder / "page.html").write_text(page, encoding="utf-8")
    print("\n".join(lines))
    print(f"page: {folder / 'page.html'}")


if __name__ == "__main__":
    main()
