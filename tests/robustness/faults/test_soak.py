"""Thousands of steps, with evaluations, checkpoints, pictures and TensorBoard, in flat memory, files and threads."""

import os
import time
from pathlib import Path
from statistics import mean

import pytest
from interrupted import launch
from processes import TINY

pytestmark = pytest.mark.slow
EPOCHS = 99 if os.environ.get("MIM_EXHAUSTIVE") else 60
KEYS = TINY | {
    **{"TRAIN.epochs": EPOCHS, "TRAIN.batch": 32, "DATA.batch_size": 32, "DATA.workers": 1},
    **{"LOG.tensorboard": True, "LOG.every_steps": 10},
    **{"EVALUATE.every_epochs": 5, "EVALUATE.reconstructions": 4, "EVALUATE.samples": 32, "CHECKPOINT.every_epochs": 2},
}
STEPS = 44 * EPOCHS
FROM = 1350  # steps; before, memory grows by 4 MiB at each of the first six evaluations, and then no more
COLUMNS = ("memory", "shared", "files", "threads", "children", "segments")


def _sample(pid: int) -> tuple[float, ...] | None:
    """Resident memory, and how much of it is shared memory, in MiB; open files; threads; children; shared segments."""
    folder = Path("/proc") / str(pid)
    try:
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        children = (folder / "task" / str(pid) / "children").read_text().split()
        files = len(os.listdir(folder / "fd"))
    except (OSError, ValueError):
        return None
    if "RssAnon" not in fields:
        return None
    memory, shmem = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssShmem"))
    segments = sum(name.startswith("torch_") for name in os.listdir("/dev/shm"))
    return memory, shmem, files, int(fields["Threads"]), len(children), segments


def _steps(output: Path) -> int:
    """Steps done, from the last whole line of metrics.jsonl."""
    try:
        lines = (output / "metrics.jsonl").read_bytes()[-2000:].split(b"\n")
    except OSError:
        return 0
    return int(lines[-2].split(b'"step": ')[1].split(b",")[0]) if len(lines) > 2 else 0


def _watched(process, output: Path) -> list[tuple[float, ...]]:
    samples = []
    while process.code is None:
        sample = _sample(process.pid)
        if sample is not None and not (output / "summary.json").exists():  # then it only ends
            samples.append((_steps(output), *sample))
        time.sleep(0.05)
    assert process.code == 0, process.text
    return samples


def test_soak_of_thousands_of_steps_holds_memory_files_and_threads(tmp_path, warm, tell):
    output = tmp_path / "run"
    samples = _watched(launch(warm, output, KEYS), output)
    edges = [FROM + (STEPS - FROM) * part // 6 for part in range(7)]
    windows = [
        [sample[1:] for sample in samples if low <= sample[0] < high]
        for low, high in zip(edges, [*edges[1:-1], STEPS - 1], strict=False)
    ]
    assert all(len(window) >= 10 for window in windows), [len(window) for window in windows]
    columns = [list(zip(*window, strict=True)) for window in windows]
    tell("   steps       " + "".join(f"{name:>10}" for name in COLUMNS) + "   (memory: highest, in MiB; others: means)")
    for low, high, window in zip(edges, edges[1:], columns, strict=False):
        row = [max(column) if name == "memory" else mean(column) for name, column in zip(COLUMNS, window, strict=True)]
        tell(f"  {low:>5} to {high:<5}" + "".join(f"{value:>10.2f}" for value in row))
    growth = max(columns[-1][0]) / max(columns[0][0]) - 1
    tell(f"  memory: {100 * growth:+.2f} % from the first of these windows to the last, over {STEPS - FROM:,} steps")
    for index, name in enumerate(COLUMNS):
        values = [value for window in columns for value in window[index]]
        tell(f"  {name}: {min(values):g} to {max(values):g}")
    assert max(max(window[0]) for window in columns) / max(columns[0][0]) < 1.01
    for index in (2, 3, 4):  # files, threads, children: what stays while nothing is written and no loader is replaced
        lows = [min(window[index]) for window in columns]
        assert len(set(lows)) == 1, (COLUMNS[index], lows)
        highs = [max(window[index]) for window in columns]
        assert highs[-1] <= max(highs[:3]) + 2 * (index == 2), (COLUMNS[index], highs)
