"""Studies: what the position of a run folder in the folder of a study says about the run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim.lab.comparison.formatting import natural_key
from mim.lab.layout import PRETRAINING, RESULTS, seedless, slug
from mim.metric_keys import VAL_TOP1

Names = dict[str, str]  # by folder, in the order of the study


@dataclass(frozen=True, slots=True)
class StudyPosition:
    """Where a run stands in a study."""

    root: Path
    protocol: str
    protocol_name: str
    start_name: str  # name of what the run started from
    order: tuple[int, int]  # of the start and of the protocol in the study


class Studies:
    """The studies that run folders belong to. The names in each are read once."""

    def __init__(self) -> None:
        self._names: dict[Path, tuple[Names, Names]] = {}

    def position(self, folder: Path) -> StudyPosition | None:
        root, start, protocol = folder.parent.parent, seedless(folder.name), folder.parent.name
        if start == folder.name or not ((root / PRETRAINING).is_dir() or (root / RESULTS).is_file()):
            return None
        if root not in self._names:
            self._names[root] = _read_names(root / RESULTS)
        starts, protocols = self._names[root]
        order = (_rank(start, starts), _rank(protocol, protocols))
        return StudyPosition(root, protocol, protocols.get(protocol, protocol), starts.get(start, start), order)

    def sort_key(self, folder: Path) -> tuple[Any, ...]:
        """Sorts folders: those of a study in its order, pretraining first; others by the numbers in their names."""
        position = self.position(folder)
        if position is None:
            return (natural_key(str(folder.parent)), 1, (0, 0), natural_key(folder.name))
        after = int(position.protocol != PRETRAINING)
        return (natural_key(str(position.root)), after, position.order[::-1], natural_key(folder.name))


def _rank(folder: str, names: Names) -> int:
    return list(names).index(folder) if folder in names else len(names)


def _read_names(path: Path) -> tuple[Names, Names]:
    """Names of starts and of protocols; empty where results.json does not hold them."""
    try:
        trials = json.loads(path.read_text(encoding="utf-8"))["trials"]
        protocols = [name for trial in trials.values() for name in trial[VAL_TOP1]]
        return {slug(name): name for name in trials}, {slug(name): name for name in protocols}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}
