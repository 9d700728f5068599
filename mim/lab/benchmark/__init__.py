"""Benchmarks: speed and memory, measured in turns with what they are compared with."""

from mim.lab.benchmark.data import LoadingOutcome, benchmark_loading
from mim.lab.benchmark.files import figures, write
from mim.lab.benchmark.run import AGAINST, ROUNDS, Asked, Outcome, benchmark
from mim.lab.benchmark.terminal import show

__all__ = [
    "AGAINST",
    "ROUNDS",
    "Asked",
    "LoadingOutcome",
    "Outcome",
    "benchmark",
    "benchmark_loading",
    "figures",
    "show",
    "write",
]
