"""Comparison of runs: `compare` reads run folders, `write` makes the page and the CSV files, `show` prints tables.

from mim.comparison import compare, write
write(compare(["runs/mae", "runs/simmim"]), Path("runs/comparison"))
"""

from mim.comparison.assembly import compare, write
from mim.comparison.terminal import show

__all__ = ["compare", "show", "write"]
