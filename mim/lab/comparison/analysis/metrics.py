"""Metrics: the columns of a comparison, the value of each run in them, and means with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mim.lab.comparison.result import Column
from mim.lab.comparison.runs.groups import Group
from mim.lab.comparison.runs.protocols import Protocol, Seeds
from mim.lab.label_metrics import MAIN, PERCENT, LabelMetric, metrics_in
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS, VAL_TOP1, at_start
from mim.ops.intervals import Estimate, estimate

Values = dict[Seeds, float]  # by the seed of the pretraining, and of the run that was evaluated
TRAINING_FLOPS = "training_flops"  # of the whole run
AT_START = at_start(KNN_TOP1)  # of random weights


@dataclass(frozen=True, slots=True)
class ColumnValues:
    """A column, and the values of every entry in its unit."""

    column: Column
    values: dict[str, Values]
    tested: bool = False  # whether pairs of entries are worth a test


def pretraining_metrics(groups: Sequence[Group], unlike_losses: str, unlike_machines: str) -> list[ColumnValues]:
    """What pretraining reached and cost. `unlike_...`: why losses or speeds do not compare; empty where they do."""
    cpu = any(run.environment.get("cuda") is None for group in groups for run in group.runs)
    memory = "on a CPU, of the whole process" if cpu else ""
    cost = [
        Column("images_per_s", "speed", "images/s", "cost", "higher"),
        Column("peak_memory_bytes", "peak memory", "B", "cost", "lower", memory),
        Column("seconds", "time", "s", "cost", "lower"),
    ]
    columns = [
        Column(KNN_TOP1, "kNN", "%", "accuracy", "higher"),
        Column(AT_START, "kNN, random weights", "%", "accuracy", "neither"),
        _checked(Column(VAL_LOSS, "held-out loss", "", "loss", "lower"), unlike_losses),
        Column(VAL_BASELINE, "loss of the mean", "", "loss", "neither", "val/loss of predicting the mean"),
        Column("parameters", "parameters", "", "cost", "neither", "encoder and head"),
        Column("flops_per_image", "operations an image", "FLOP", "cost", "lower", "forward and backward", exact=True),
        Column(TRAINING_FLOPS, "operations in all", "FLOP", "cost", "lower", exact=True),
        *(_checked(column, unlike_machines) for column in cost),
    ]
    return [metric for metric in (_of_runs(groups, column) for column in columns) if metric.values]


def transfer_metrics(protocols: Sequence[Protocol]) -> list[ColumnValues]:
    """Held-out metrics after the last epoch: a column for each protocol and main metric, then further metrics."""
    values = [_by_metric(protocol) for protocol in protocols]
    only_top1 = {metric.key for each in values for metric in each if metric in MAIN} <= {VAL_TOP1}
    columns = []
    for number, (protocol, by_metric) in enumerate(zip(protocols, values, strict=True), 1):
        name = protocol.title
        key = f"transfer/{number}"
        for metric, of_metric in by_metric.items():
            title = f"{name}, {metric.title}"
            if metric in MAIN:
                title, note = name if only_top1 else title, protocol.note()
                column = Column(key, title, metric.unit, "accuracy", metric.better, note, most=metric.most)
                key = f"transfer/{number}/{metric.key}"  # of another one, where labels are of several kinds
            else:
                key_of_more = f"more/{number}/{metric.key}"
                column = Column(key_of_more, title, metric.unit, "more", metric.better, most=metric.most, group=name)
            columns.append(ColumnValues(column, of_metric, tested=metric in MAIN))
    return columns


def _by_metric(protocol: Protocol) -> dict[LabelMetric, dict[str, Values]]:
    """The metrics of a protocol in their order, and of each the values of every entry in its unit."""
    values: dict[LabelMetric, dict[str, Values]] = {}
    for name, transfer in protocol.members():
        for metric in metrics_in(transfer.run.summary):
            of_entry = values.setdefault(metric, {}).setdefault(name, {})
            of_entry[transfer.seeds] = metric.in_unit(transfer.run.summary[metric.key])
    return values


def by_seed(values: Values) -> dict[int, float]:
    """A value for each pretraining, the mean over its transfers; of a single pretraining, a value for each transfer."""
    origins = sorted({origin for origin, _ in values})
    if len(origins) == 1:
        return {seed: value for (_, seed), value in sorted(values.items())}
    return {origin: fmean(value for (other, _), value in values.items() if other == origin) for origin in origins}


def estimate_of(values: Values) -> Estimate:
    """Mean and interval over pretrainings; of a single one, over its transfers."""
    return estimate(list(by_seed(values).values()))


def _checked(column: Column, unlike: str) -> Column:
    note = f"{column.note}{'; ' * bool(column.note)}does not compare between entries: {unlike}"
    return replace(column, better="neither", note=note) if unlike else column


def _of_runs(groups: Sequence[Group], column: Column) -> ColumnValues:
    values: dict[str, Values] = {}
    for group in groups:
        for run in group.runs:
            summary = run.summary
            if {"flops_per_image", "images_seen"} <= summary.keys():
                summary = {**summary, TRAINING_FLOPS: summary["flops_per_image"] * summary["images_seen"]}
            if column.key in summary:
                value = summary[column.key] * (PERCENT if column.unit == "%" else 1)
                values.setdefault(group.name, {})[run.seed, run.seed] = value
    tested = column.key in (KNN_TOP1, VAL_LOSS) and column.better != "neither"
    return ColumnValues(column, values, tested)
