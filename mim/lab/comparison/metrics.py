"""Figures: the columns of a comparison, what each run has in them, means with intervals, and paired tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from mim.lab.comparison.groups import Group
from mim.lab.comparison.protocols import Protocol, Seeds
from mim.lab.comparison.result import Column, PairedTest
from mim.lab.comparison.runs import ACCURACY, Run
from mim.metric_keys import KNN_TOP1, VAL_BASELINE, VAL_LOSS, at_start
from mim.ops.intervals import Estimate, estimate, paired

Values = dict[Seeds, float]  # by the seed of the pretraining, and of what was judged
PERCENT = 100.0
AT_START = at_start(KNN_TOP1)  # of random weights
ALL_PAIRS = 6  # entries; of more, each is tested against the first alone


@dataclass(frozen=True, slots=True)
class Figure:
    """A column, and what every entry's runs have in it, in its unit. tested: whether pairs are worth a test."""

    column: Column
    values: dict[str, Values]
    tested: bool = False


def pretraining_figures(groups: Sequence[Group], unlike_losses: str, unlike_machines: str) -> list[Figure]:
    """What pretraining itself reached and cost.

    unlike_losses, unlike_machines: why losses, and why speeds, do not compare between entries; empty where they do.
    """
    cpu = any(run.environment.get("cuda") is None for group in groups for run in group.runs)
    memory = "on a CPU, of the whole process" if cpu else ""
    loss = Column(VAL_LOSS, "held-out loss", "", "loss", "lower")
    cost = [
        Column("images_per_s", "speed", "images/s", "cost", "higher"),
        Column("peak_memory_bytes", "peak memory", "B", "cost", "lower", memory),
        Column("seconds", "time", "s", "cost", "lower"),
    ]
    if unlike_losses:
        loss = replace(loss, better="neither", note=f"does not compare between entries: {unlike_losses}")
    if unlike_machines:
        note = f"does not compare between entries: {unlike_machines}"
        cost = [
            replace(column, better="neither", note=f"{column.note}{'; ' * bool(column.note)}{note}") for column in cost
        ]
    found = [
        _figure(groups, Column(KNN_TOP1, "kNN", "%", "accuracy", "higher"), PERCENT, tested=True),
        _figure(groups, Column(AT_START, "kNN, random weights", "%", "accuracy", "neither"), PERCENT),
        _figure(groups, loss, tested=not unlike_losses),
        _figure(groups, Column(VAL_BASELINE, "loss of the mean", "", "loss", "neither", "predicted everywhere")),
        _figure(groups, Column("parameters", "parameters", "", "cost", "neither", "encoder and head")),
        _figure(
            groups, Column("flops_per_image", "operations an image", "FLOP", "cost", "lower", "forward and backward")
        ),
        _figure(groups, Column("training_flops", "operations in all", "FLOP", "cost", "lower"), of=training_flops),
        *(_figure(groups, column) for column in cost),
    ]
    return [figure for figure in found if figure.values]


def transfer_figures(protocols: Sequence[Protocol]) -> list[Figure]:
    """Held-out accuracy after the last epoch, a column a protocol."""
    found = []
    for number, protocol in enumerate(protocols, 1):
        values: dict[str, Values] = {}
        for name, transfer in protocol.members():
            if ACCURACY in transfer.run.figures:
                values.setdefault(name, {})[transfer.seeds] = PERCENT * transfer.run.figures[ACCURACY]
        note = protocol.note()
        column = Column(f"transfer/{number}", protocol.title, "%", "accuracy", "higher", note)
        found.append(Figure(column, values, tested=True))
    return [figure for figure in found if figure.values]


def training_flops(run: Run) -> float | None:
    """Operations of the whole run, None where they could not be counted."""
    flops, images = run.figures.get("flops_per_image"), run.figures.get("images_seen")
    return flops * images if flops is not None and images is not None else None


def by_seed(values: Values) -> dict[int, float]:
    """One value a pretraining, the mean over what was judged of it; of a single pretraining, one a transfer."""
    origins = sorted({origin for origin, _ in values})
    if len(origins) == 1:
        return {own: value for (_, own), value in sorted(values.items())}
    return {origin: fmean(value for (of, _), value in values.items() if of == origin) for origin in origins}


def estimate_of(values: Values) -> Estimate:
    """Mean and interval over pretrainings; of a single one, over what was judged of it."""
    return estimate(list(by_seed(values).values()))


def paired_tests(figures: Sequence[Figure], names: Sequence[str]) -> tuple[PairedTest, ...]:
    """A test of every pair of entries that share two seeds or more, in every column that is tested.

    A pair of values belongs together where both seeds are equal, that of the pretraining and that of the transfer.
    """
    pairs = list(combinations(names, 2)) if len(names) <= ALL_PAIRS else [(names[0], other) for other in names[1:]]
    found = []
    for figure in figures:
        for first, second in pairs if figure.tested else ():
            one, other = (figure.values.get(name, {}) for name in (first, second))
            shared = one.keys() & other.keys()
            ours, theirs = (
                by_seed({seeds: side[seeds] for seeds in shared}) if shared else {} for side in (one, other)
            )
            if len(ours) >= 2:
                result = paired(list(ours.values()), list(theirs.values()))
                found.append(PairedTest(figure.column.key, first, second, tuple(ours), result))
    return tuple(found)


def _figure(
    groups: Sequence[Group],
    column: Column,
    factor: float = 1.0,
    tested: bool = False,
    of: Callable[[Run], float | None] | None = None,
) -> Figure:
    take = of or (lambda run: run.figures.get(column.key))
    values: dict[str, Values] = {}
    for group in groups:
        found = {(run.seed, run.seed): take(run) for run in group.runs}
        kept = {seeds: factor * value for seeds, value in found.items() if value is not None}
        if kept:
            values[group.name] = kept
    return Figure(column, values, tested)
