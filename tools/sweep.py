"""Sweep: the command mim-sweep, from a clone."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # this clone, where nothing is installed

from mim_toolkit import run

if __name__ == "__main__":
    sys.exit(run("sweep"))
