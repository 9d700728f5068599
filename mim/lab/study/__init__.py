"""Studies: many runs from one file, and the metrics of all of them."""

from mim.lab.study.file import Recipe, Study, Trial, read_study
from mim.lab.study.results import Results
from mim.lab.study.runner import run_study

__all__ = ["Recipe", "Results", "Study", "Trial", "read_study", "run_study"]
