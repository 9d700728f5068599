"""Compiled runs: from the third step on nothing is compiled again, and no step waits for the device."""

from functools import partial
from pathlib import Path

import torch
from runs import MAE, SIMMIM, Keys, folder, walk
from torch._dynamo.utils import counters

COMPILED: Keys = {"TRAIN.compile": True, "HEAD.depth": 1}
RUNS: dict[str, tuple[str, Keys]] = {
    "compiled mae": (MAE, COMPILED),
    "compiled simmim": (SIMMIM, {"TRAIN.compile": True, "ENCODER.drop_path": 0.1}),
    "compiled deterministic": (MAE, {**COMPILED, "TRAIN.deterministic": True}),
}


def run_of(name: str, here: Path) -> str:
    """Walks a run of RUNS. Raises RuntimeError where the model is more than one graph."""
    torch.compiler.reset()
    counters.clear()
    text = walk(*RUNS[name], folder(name, here), here, lambda: torch.compiler.set_stance("fail_on_recompile"))
    if counters["graph_break"]:
        raise RuntimeError(f"graph breaks: {dict(counters['graph_break'])}")
    return f"{text}, {counters['stats']['unique_graphs']} graphs"


PATHS = {name: partial(run_of, name) for name in RUNS}
