"""Studies: what the place of a run in the folder of a study tells of it.

A study lays its runs out as OUTPUT/pretraining/START-seed0 and OUTPUT/PROTOCOL/START-seed0, and OUTPUT/results.json has
the names that these folders stand for, in the study's order.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim.lab.comparison.formatting import natural
from mim.lab.layout import seedless, slug
from mim.metric_keys import VAL_TOP1

PRETRAINING = "pretraining"  # beside a folder for each protocol
RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where a run stands in a study. protocol: the folder's name; the others as the study names them."""

    root: Path
    protocol: str
    protocol_name: str
    start_name: str
    order: tuple[int, int]  # of the start and of the protocol, among those of the study


class Studies:
    """The studies that run folders belong to; each study's names are read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[dict[str, str], dict[str, str]]] = {}

    def place(self, folder: Path) -> StepContext | None:
        """Where a run folder stands; None where it is of no study."""
        root, start, protocol = folder.parent.parent, seedless(folder.name), folder.parent.name
        if start == folder.name or not ((root / PRETRAINING).is_dir() or (root / RESULTS).is_file()):
            return None
        if root not in self._known:
            self._known[root] = _names(root / RESULTS)
        starts, protocols = self._known[root]
        order = (_rank(start, starts), _rank(protocol, protocols))
        return StepContext(root, protocol, protocols.get(protocol, protocol), starts.get(start, start), order)

    def sort_key(self, folder: Path) -> tuple[Any, ...]:
        """Sorts folders below one root: a study's in its order, pretraining first; others by the numbers in names."""
        place = self.place(folder)
        if place is None:
            return (natural(str(folder.parent)), 1, (0, 0), natural(folder.name))
        after = int(place.protocol != PRETRAINING)
        return (natural(str(place.root)), after, place.order[::-1], natural(folder.name))


def _rank(name: str, names: dict[str, str]) -> int:
    return list(names).index(name) if name in names else len(names)


def _names(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Names of starts and of protocols by their folders, in their order; empty where the file does not tell."""
    try:
        trials = json.loads(path.read_text(encoding="utf-8"))["trials"]
        protocols = [name for trial in trials.values() for name in trial[VAL_TOP1]]
        return {slug(name): name for name in trials}, {slug(name): name for name in protocols}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}
