"""Benchmarks: speed and memory of training steps, measured in rounds together with what they are compared with."""

from mim.lab.benchmark.accuracy import AccuracyResult, AccuracySettings, run_to_accuracy
from mim.lab.benchmark.files import to_json, write
from mim.lab.benchmark.loading import LoadingResult, benchmark_loading
from mim.lab.benchmark.run import AGAINST, ROUNDS, BenchmarkResult, BenchmarkSettings, run_benchmark
from mim.lab.benchmark.tables import show

__all__ = [
    "AGAINST",
    "ROUNDS",
    "AccuracyResult",
    "AccuracySettings",
    "BenchmarkResult",
    "BenchmarkSettings",
    "LoadingResult",
    "benchmark_loading",
    "run_benchmark",
    "run_to_accuracy",
    "show",
    "to_json",
    "write",
]
