"""Benchmarks: speed and memory, measured in turns with what they are compared with."""

from mim.benchmark.data import LoadingOutcome, benchmark_loading
from mim.benchmark.files import figures, write
from mim.benchmark.run import AGAINST, ROUNDS, Asked, Outcome, benchmark
from mim.benchmark.terminal import show

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
