"""Unlike transfers: why entries under one protocol, or two, may not compare: other readouts, labels or splits."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

from mim.lab.comparison.formatting import ABSENT, by_value, join_names, quoted, settings_text, value_text
from mim.lab.comparison.runs.protocols import NAME_OF_READOUT, Protocol, Seeds
from mim.lab.comparison.runs.recipes import differing_keys, recipe_of
from mim.lab.comparison.runs.run import Run
from mim.metric_keys import VAL_SAMPLES

COUNT = "their number"  # of held-out images
HELD_OUT = ("DATA.name", "DATA.path", "EVALUATE.samples", "EVALUATE.crop_pct")
OPENINGS = (  # how a warning goes on after the protocol, and the keys that it is about
    ("readouts differ", ("READOUT.",)),
    ("criteria differ", ("CRITERION.",)),
    ("settings to choose among differ", ("PROBE.",)),
    ("labels or splits differ", ("LABELS.",)),
    ("held-out images are not the same", (*HELD_OUT, COUNT)),
)
BETWEEN = ("READOUT.", "CRITERION.", "PROBE.", "LABELS.", *HELD_OUT)
MOST = 3  # settings that a sentence names
Values = dict[str, dict[Seeds, str]]  # by name of the entry, then by seeds; absent where a run does not say it


def transfer_warnings(protocols: Sequence[Protocol]) -> list[str]:
    """In sentences with names and values."""
    of_each = [text for each in protocols for text in (*_differences(each), *_classes(each), *_flattering(each))]
    return [*of_each, *_without_shared_entry(protocols)]


def _differences(protocol: Protocol) -> list[str]:
    """Settings and numbers of images in which entries under one protocol differ."""
    keys = differing_keys([recipe_of(transfer.run) for _, transfer in protocol.members()])
    values = {key: _values(protocol, partial(_setting, key)) for key in keys}
    values[COUNT] = _values(protocol, _held_out)
    unlike = {key: each for key, each in values.items() if _differ(each)}
    sentences = []
    for opening, about in OPENINGS:
        texts = [f"{key} is {by_value(_joined(each), ', ')}" for key, each in unlike.items() if key.startswith(about)]
        more = [f"{len(texts) - MOST} more settings"] if len(texts) > MOST else []
        if texts:
            sentences.append(f"{protocol.title}: {opening}: {'; '.join([*texts[:MOST], *more])}.")
    return sentences


def _classes(protocol: Protocol) -> list[str]:
    """Classes, or columns of numbers, that the held-out labels of only some entries have."""
    if not _differ(_values(protocol, lambda run: repr(sorted(run.names)) if run.names else "")):
        return []
    names: dict[str, dict[str, None]] = {}
    for name, transfer in protocol.members():
        if transfer.run.names:
            names.setdefault(name, {}).update(dict.fromkeys(transfer.run.names))
    shared = set.intersection(*map(set, names.values()))
    only = {entry: join_names(name for name in each if name not in shared) for entry, each in names.items()}
    texts = by_value({entry: text or "none" for entry, text in only.items()})
    return [f"{protocol.title}: held-out labels have classes or columns that not all have: {texts}."]


def _flattering(protocol: Protocol) -> list[str]:
    """Entries that chose among settings by what they report."""
    names = dict.fromkeys(name for name, transfer in protocol.members() if _chose_on_held_out(transfer.run))
    if not names:
        return []
    return [
        f"{protocol.title}: of {join_names(names)} the best of several settings was chosen on the held-out images, "
        "so the score is a little too high: PROBE.choose_share above 0 chooses on training images."
    ]


def _chose_on_held_out(run: Run) -> bool:
    if run.task != "probe" or run.settings.get("PROBE.choose_share"):
        return False
    readouts = sum(bool(NAME_OF_READOUT.fullmatch(key)) for key in run.settings)
    rates, decays = (len(run.settings.get(f"PROBE.{name}") or (1,)) for name in ("rates", "weight_decays"))
    return readouts * rates * decays > 1


def _without_shared_entry(protocols: Sequence[Protocol]) -> list[str]:
    """Two protocols of one task that no entry went through both of, though they differ in what must be equal."""
    sentences = []
    for first, second in combinations(protocols, 2):
        keys = [key for key in differing_keys([first.settings, second.settings]) if key.startswith(BETWEEN)]
        if first.task != second.task or first.transfers.keys() & second.transfers.keys() or not keys:
            continue
        of_each = (settings_text(each.settings, keys, MOST) for each in (first, second))
        sentences.append(
            f"No entry has both {quoted(first.title)} and {quoted(second.title)}, which do not compare: "
            f"{' against '.join(of_each)}."
        )
    return sentences


def _values(protocol: Protocol, text: Callable[[Run], str]) -> Values:
    """A text of each transfer; without those that are empty."""
    values: Values = {}
    for name, transfer in protocol.members():
        if each := text(transfer.run):
            values.setdefault(name, {})[transfer.seeds] = each
    return values


def _setting(key: str, run: Run) -> str:
    return value_text(recipe_of(run).get(key, ABSENT))


def _held_out(run: Run) -> str:
    count = run.summary.get(VAL_SAMPLES)
    return "" if count is None else f"{count:,.0f}"


def _differ(values: Values) -> bool:
    """Whether two entries differ for seeds that both have, or have no value in common: a split may follow the seed."""
    for one, other in combinations(values.values(), 2):
        if any(one[seeds] != other[seeds] for seeds in one.keys() & other.keys()):
            return True
        if not set(one.values()) & set(other.values()):
            return True
    return False


def _joined(values: Values) -> dict[str, str]:
    """The values of each entry in one text; the only one stands as it is."""
    texts = {name: list(dict.fromkeys(by_seeds.values())) for name, by_seeds in values.items()}
    return {name: each[0] if len(each) == 1 else join_names(each) for name, each in texts.items()}
