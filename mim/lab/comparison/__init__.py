"""Comparison of runs: `compare` reads run folders, `write` makes the page and the CSV files, `show` prints tables.

from mim.lab.comparison import compare, write
write(compare(["runs/mae", "runs/simmim"]), Path("runs/comparison"))
"""

from mim.lab.comparison.assembly import compare, write
from mim.lab.comparison.views.terminal import show

__all__ = ["compare", "show", "write"]
