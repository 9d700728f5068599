"""Walk: short runs and commands on a stand-in for a GPU, on which all host code runs and nothing is computed.

  $MIM_FAKE_GPU python tests/gpu_stand_in/walk.py FOLDER [NAME ...]

Each NAME is a path or a kind of paths, by default all; those of one call are walked in one process. A line each:
`walked NAME: ...`, or `failed NAME: error` with its traceback.
"""

import sys
from pathlib import Path

import commands
import compiling
import counts
import loaders
import ranks
import runs
import values
from walking import Paths, walk_all

KINDS: dict[str, Paths] = {
    "loaders": loaders.PATHS,
    "runs": runs.PATHS,
    "commands": commands.PATHS,
    "ranks": ranks.PATHS,
    "compiled": compiling.PATHS,
    "counts": counts.PATHS,
}


def main(folder: str, *names: str) -> int:
    """Exit codes: 0 all walked; 1 some failed."""
    values.prepare()
    runs.write_images(Path(folder))
    return walk_all(paths_of(names), Path(folder))


def paths_of(names: tuple[str, ...]) -> Paths:
    """The paths of these names or kinds. Raises KeyError where there is none."""
    paths = {name: path for kind in KINDS.values() for name, path in kind.items()}
    every = [path for name in names or tuple(KINDS) for path in KINDS.get(name, [name])]
    return {name: paths[name] for name in every}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
