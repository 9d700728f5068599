"""Metrics: the columns of a comparison, the value of each run in them, means with intervals, and paired tests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from mim.lab.comparison.result import Column, PairedTest
from mim.lab.comparison.runs.groups import Group
from mim.lab.comparison.runs.protocols import Protocol, Seeds
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS, VAL_TOP1, at_start
from mim.ops.intervals import Estimate, estimate, paired

Values = dict[Seeds, float]  # by the seed of the pretraining, and of the run that was evaluated
PERCENT = 100.0
TRAINING_FLOPS = "training_flops"  # of the whole run
AT_START = at_start(KNN_TOP1)  # of random weights
ALL_PAIRS = 6  # entries; of more, each is tested against the first only


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
        Column("flops_per_image", "operations an image", "FLOP", "cost", "lower", "forward and backward"),
        Column(TRAINING_FLOPS, "operations in all", "FLOP", "cost", "lower"),
        *(_checked(column, unlike_machines) for column in cost),
    ]
    return [metric for metric in (_of_runs(groups, column) for column in columns) if metric.values]


def transfer_metrics(protocols: Sequence[Protocol]) -> list[ColumnValues]:
    """Held-out accuracy after the last epoch, a column for each protocol."""
    columns = []
    for number, protocol in enumerate(protocols, 1):
        values: dict[str, Values] = {}
        for name, transfer in protocol.members():
            if VAL_TOP1 in transfer.run.summary:
                values.setdefault(name, {})[transfer.seeds] = PERCENT * transfer.run.summary[VAL_TOP1]
        column = Column(f"transfer/{number}", protocol.title, "%", "accuracy", "higher", protocol.note())
        columns.append(ColumnValues(column, values, tested=True))
    return [column for column in columns if column.values]


def by_seed(values: Values) -> dict[int, float]:
    """A value for each pretraining, the mean over its transfers; of a single pretraining, a value for each transfer."""
    origins = sorted({origin for origin, _ in values})
    if len(origins) == 1:
        return {seed: value for (_, seed), value in sorted(values.items())}
    return {origin: fmean(value for (other, _), value in values.items() if other == origin) for origin in origins}


def estimate_of(values: Values) -> Estimate:
    """Mean and interval over pretrainings; of a single one, over its transfers."""
    return estimate(list(by_seed(values).values()))


def paired_tests(columns: Sequence[ColumnValues], names: Sequence[str]) -> tuple[PairedTest, ...]:
    """A test of every pair of entries that share two seeds or more (of pretraining and transfer), in tested columns."""
    pairs = list(combinations(names, 2)) if len(names) <= ALL_PAIRS else [(names[0], other) for other in names[1:]]
    tests = []
    for column in columns:
        for first, second in pairs if column.tested else ():
            one, other = (column.values.get(name, {}) for name in (first, second))
            shared = one.keys() & other.keys()
            if not shared:
                continue
            ours, theirs = (by_seed({seeds: values[seeds] for seeds in shared}) for values in (one, other))
            if len(ours) >= 2:
                result = paired(list(ours.values()), list(theirs.values()))
                tests.append(PairedTest(column.column.key, first, second, tuple(ours), result))
    return tuple(tests)


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
