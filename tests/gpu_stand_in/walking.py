"""Walking: paths one after the other, so that the failure of one hides no other."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

Paths = Mapping[str, Callable[[Path], str]]


def walk_all(paths: Paths, here: Path) -> int:
    """Prints a line each, with the traceback of a failure. Exit codes: 0 all walked; 1 some failed."""
    failures = 0
    for name, path in paths.items():
        began = time.monotonic()
        try:
            print(f"walked {name}: {path(here)}, {time.monotonic() - began:.0f} s", flush=True)
        except Exception as error:
            failures += 1
            text = str(error).strip().splitlines()
            print(f"failed {name}: {type(error).__name__}: {text[0] if text else ''}", flush=True)
            traceback.print_exc(file=sys.stdout)
    return int(failures > 0)
