"""Loaders: two workers that are forked before and after CUDA began."""

from functools import partial
from pathlib import Path

import torch
from runs import MAE, pairs, walk

from mim import build
from mim.data.loading.loader import batches, in_order

WORKERS = 2


def fork_before(here: Path) -> str:
    """Batches of workers that are older than CUDA, on the device. Raises RuntimeError where CUDA began already."""
    if torch.cuda.is_initialized():
        raise RuntimeError("CUDA began already: walk this path first")
    cfg = build.load_config(MAE, pairs({}, here))
    data = build.build_task(cfg, *build.build_data(cfg)).train_data
    loaded = batches(data, in_order(range(480), 60), WORKERS, pin_memory=True)
    torch.cuda.init()
    rows = sum(len(batch.to(torch.device("cuda")).images_BCHW) for batch in loaded)
    return f"{rows} images"


def fork_after(evaluate: bool, here: Path) -> str:
    """A run, which forks workers for its steps and, where they are evaluated, for each evaluation."""
    keys = {"DATA.workers": WORKERS, "EVALUATE.at_start": evaluate, "EVALUATE.every_epochs": int(evaluate)}
    return walk(MAE, keys, here / "workers", here)


PATHS = {
    "workers before CUDA": fork_before,
    "workers after CUDA": partial(fork_after, False),
    "workers of evaluations": partial(fork_after, True),
}
