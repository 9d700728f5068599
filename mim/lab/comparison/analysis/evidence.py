"""Evidence: sentences on what the numbers cannot bear: few seeds, no better than random weights, not separated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from mim.lab.comparison.analysis.metrics import AT_START, ColumnValues, Values, by_seed
from mim.lab.comparison.analysis.separation import LEVEL, is_separated, paired_over_seeds
from mim.lab.comparison.formatting import MOST, join_names, quoted
from mim.lab.comparison.result import PairedTest
from mim.lab.comparison.runs.groups import Group
from mim.lab.comparison.runs.protocols import Protocol
from mim.lab.comparison.runs.recipes import differing_keys, recipe_of
from mim.metric_keys import KNN_TOP1

PROBE = "probe"


@dataclass(slots=True)
class _Baseline:
    """How entries compare with random weights in one column: texts of those that are not better."""

    digits: int = 1  # after the point
    no_better: list[str] = field(default_factory=list)
    not_separated: list[str] = field(default_factory=list)

    def add(self, name: str, values: Values, random: Values) -> None:
        """Adds an entry unless it is better. Seeds that both have are compared, or the means where there are none."""
        shared = values.keys() & random.keys()
        ours, theirs = (
            fmean(by_seed({seeds: each[seeds] for seeds in shared} if shared else each).values())
            for each in (values, random)
        )
        test = paired_over_seeds(values, random)
        text = f"{quoted(name)} {ours:.{self.digits}f} beside {theirs:.{self.digits}f}"
        if ours <= theirs:
            self.no_better.append(text)
        elif test is not None and not is_separated(test[1]):
            self.not_separated.append(text)

    def sentences(self, title: str) -> list[str]:
        """What to say; empty where every entry is better."""
        texts = (("no better than", self.no_better), ("not separated from", self.not_separated))
        return [f"{title} is {verb} that of random weights: {_listed(names)}." for verb, names in texts if names]


def evidence_of(
    groups: Sequence[Group],
    protocols: Sequence[Protocol],
    columns: Sequence[ColumnValues],
    tests: Sequence[PairedTest],
) -> tuple[str, ...]:
    """What the numbers cannot bear, in sentences with names and values. columns: of the protocols, too."""
    by_key = {column.column.key: column for column in columns}
    return (*_few_seeds(groups), *_against_random(groups, protocols, by_key), *_not_separated(tests, by_key))


def _few_seeds(groups: Sequence[Group]) -> list[str]:
    sentences = []
    for count, number, meaning in (
        (1, "One seed", "no interval, and a difference may be chance"),
        (2, "Two seeds", "half an interval is six times the distance of the two, and a difference may be chance"),
    ):
        names = [group.name for group in groups if len(group.seeds) == count]
        if names and len(groups) > 1:
            entries = "each entry" if len(names) == len(groups) else join_names(names)
            sentences.append(f"{number} of {entries}: {meaning}.")
    return sentences


def _against_random(
    groups: Sequence[Group], protocols: Sequence[Protocol], columns: Mapping[str, ColumnValues]
) -> list[str]:
    """Which entries are no better than random weights, and which have none beside them."""
    sentences = _knn_at_start(columns)
    for number, protocol in enumerate(protocols, 1):
        column = columns.get(f"transfer/{number}")
        if column is None:
            continue
        members = [group for group in groups if group.name in column.values]
        title, without = _sentence_start(column.column.title), []
        baseline = _Baseline(1 if column.column.unit == "%" else 3)
        for group in members:
            same = [other for other in members if other.is_random and _one_encoder(protocol, group, other)]
            if not group.is_random and same:
                baseline.add(group.name, column.values[group.name], column.values[same[0].name])
            elif not group.is_random:
                without.append(group.name)
        sentences += baseline.sentences(title)
        if without and protocol.task == PROBE:
            entries = "" if len(without) == len(members) else f" for {join_names(without)}"
            sentences.append(
                f"{title} has no row of random weights{entries}, which would say what pretraining added: "
                "the same probe with an empty INIT.checkpoint gives one."
            )
    return sentences


def _knn_at_start(columns: Mapping[str, ColumnValues]) -> list[str]:
    if KNN_TOP1 not in columns:
        return []
    start = columns[AT_START].values if AT_START in columns else {}
    baseline, without = _Baseline(), []
    for name, values in columns[KNN_TOP1].values.items():
        if name in start:
            baseline.add(name, values, start[name])
        else:
            without.append(name)
    unknown = f"kNN of random weights is unknown in {join_names(without)}: EVALUATE.at_start true measures it."
    return [*baseline.sentences("kNN"), *([unknown] if without else [])]


def _one_encoder(protocol: Protocol, one: Group, other: Group) -> bool:
    """Whether two entries have one encoder under a protocol; its drop path is a matter of training."""
    encoders = []
    for group in (one, other):
        recipe = recipe_of(next(iter(protocol.transfers[group.name].values())).run)
        encoders.append({key: value for key, value in recipe.items() if key.startswith("ENCODER.")})
    return not set(differing_keys(encoders)) - {"ENCODER.drop_path"}


def _not_separated(tests: Sequence[PairedTest], columns: Mapping[str, ColumnValues]) -> list[str]:
    sentences = []
    for key in dict.fromkeys(test.column for test in tests):
        title = _sentence_start(columns[key].column.title)
        of_column = [test for test in tests if test.column == key]
        rest = [test for test in of_column if not is_separated(test.result)]
        if len(rest) == len(of_column) > 1:
            sentences.append(
                f"{title} separates no two entries: p is at least {LEVEL} in all {len(rest)} paired tests."
            )
        elif rest:
            pairs = _listed([f"{quoted(test.first)} and {quoted(test.second)}" for test in rest])
            sentences.append(f"{title} does not separate {pairs}: p is at least {LEVEL}.")
    return sentences


def _listed(texts: Sequence[str]) -> str:
    more = [f"{len(texts) - MOST} more"] if len(texts) > MOST else []
    return "; ".join([*texts[:MOST], *more])


def _sentence_start(title: str) -> str:
    """A title with a capital; kNN stays as it is."""
    return title[:1].upper() + title[1:] if title[:2].islower() else title
