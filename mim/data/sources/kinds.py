"""Kinds: what files a folder holds, counted by their endings."""

import re
from collections import Counter

from mim.data.decoding.images import EXTENSIONS
from mim.data.sources.names import Names

ENDING = re.compile(r"\.(?!\d+$)\w{1,10}", re.ASCII)  # numbers are no endings: such as of DICOM series
WITHOUT = "no ending"
MOST_NAMED = 8


def kind_of(name: str) -> str:
    """The ending of a file in lower case, or that it has none."""
    ending = name[name.rfind(".") :].lower()
    return ending if ENDING.fullmatch(ending) else WITHOUT


def written(kinds: Counter[str]) -> str:
    """The counts as in `.jpg 12,.xml 9`."""
    return ",".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))


def contents_text(folders: Names) -> str:
    """As in `1,204 .jpg, 12 .png; 14 files of other kinds left out (9 .xml, 5 .txt)`, the most frequent first.

    folders: what each folder holds, as `written` gives it.
    """
    counts: Counter[str] = Counter()
    for row in range(len(folders)):
        for part in folders[row].split(","):
            kind, _, count = part.rpartition(" ")
            if kind and count.isdecimal():
                counts[kind] += int(count)
    images = Counter({kind: count for kind, count in counts.items() if kind in EXTENSIONS})
    others = counts - images
    if not others:
        return _listed(images)
    files = f"{others.total():,} file{'s' if others.total() > 1 else ''} of other kinds left out"
    return f"{_listed(images)}; {files} ({_listed(others)})"


def _listed(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    parts = [f"{count:,} {kind}" for kind, count in ordered[:MOST_NAMED]]
    rest = ordered[MOST_NAMED:]
    return ", ".join([*parts, *([f"{sum(count for _, count in rest):,} of {len(rest)} more kinds"] if rest else [])])
