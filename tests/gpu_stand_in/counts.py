"""Counts: the kernels that one step launches, by name, eager and compiled."""

import contextlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from guard import driver, library
from runs import MAE, Keys, walk

MOST = 10  # names in a line
PLAIN: Keys = {"HEAD.depth": 1, "DATA.batch_size": 240}  # no accumulation


def step_of(compile_it: bool, here: Path) -> str:
    """Trains; the kernels that the last guarded step launched outside of Triton, and those of Triton."""
    outside, inside = here / "outside.txt", here / "inside.txt"
    torch.compiler.reset()
    text = walk(MAE, {**PLAIN, "TRAIN.compile": compile_it}, here / "counts", here, partial(_trace, outside, inside))
    names = Counter(_plain(line) for line in _demangle(outside))
    triton = len(inside.read_text(encoding="utf-8").splitlines())
    rows = "".join(f"\n  {count:4} {name}" for name, count in names.most_common(MOST))
    return f"{text}; {sum(names.values())} launches outside of Triton, {triton} inside{rows}\n "


@contextlib.contextmanager
def _trace(outside: Path, inside: Path) -> Iterator[None]:
    """Inside, each launch writes its name; a later step begins the files again."""
    runtime, triton = library(), driver()
    runtime.fake_trace(bytes(outside))
    triton.fake_cu_trace(bytes(inside))
    try:
        yield
    finally:
        runtime.fake_trace(None)
        triton.fake_cu_trace(None)


def _demangle(file: Path) -> list[str]:
    """The names in a file, as C++ writes them."""
    text = file.read_text(encoding="utf-8")
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout.splitlines()


def _plain(name: str) -> str:
    """The name of a kernel and what it computes: its functors, without their types."""
    functors = re.findall(r"\w*(?:[Ff]unctor|_kernel\w*|Ops?)\b", name)
    return " ".join(dict.fromkeys(functors))[:90] or name[:90]


PATHS = {"eager step": partial(step_of, False), "compiled step": partial(step_of, True)}
