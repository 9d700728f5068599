"""The digits run that these tests interrupt, what its folder tells, and that it ended as if nobody had."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from processes import PARTS, TINY, arguments, last_state, same, summary, timeless_rows
from processes import RECIPE as DIGITS
from warm import Process, Warm

# drop path, EMA and accumulation are on: each would show a generator or a state that is not restored
KEYS = TINY | {
    **{"TRAIN.epochs": 6, "TRAIN.batch": 64, "DATA.batch_size": 32, "TRAIN.ema": 0.9},
    **{"ENCODER.drop_path": 0.2, "EVALUATE.every_epochs": 2, "EVALUATE.samples": 32, "CHECKPOINT.keep": 3},
}
STEPS, EPOCH = 132, 22
OFTEN = {"CHECKPOINT.every_minutes": 1e-6}  # a checkpoint at every step
ASYNCHRONOUS = {"CHECKPOINT.asynchronous": True}


def launch(warm: Warm, output: Path, keys: Mapping[str, object], *flags: str) -> Process:
    """Starts a run, or goes on with it."""
    return warm.start([*flags, *arguments(output, dict(keys), DIGITS)], output.parent / f"{output.name}.log")


def finished(warm: Warm, output: Path, keys: Mapping[str, object], ranks: int = 1) -> Path:
    """Starts a run, or goes on with it, and waits for its end."""
    code, text = warm.run(ranks, output, dict(keys), DIGITS)
    assert code == 0, text
    return output


def launch_two(warm: Warm, output: Path, keys: Mapping[str, object]) -> list[Process]:
    """Starts a run, or goes on with it, on two ranks without torchrun, which would end one for the other."""
    return warm.ranks(2, arguments(output, dict(keys), DIGITS), output.parent / f"{output.name}.log")


def logged(output: Path) -> int:
    """The last step that metrics.jsonl tells of; 0 before any. A last line may be half written."""
    metrics = output / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    steps = [json.loads(line)["step"] for line in lines[:-1]]
    with contextlib.suppress(IndexError, ValueError):
        steps.append(json.loads(lines[-1])["step"])
    return steps[-1] if steps else 0


def named(output: Path) -> int:
    """The step of the checkpoint that a run goes on from; 0 where there is none.

    A run that is killed between its first checkpoint and `last` has only the checkpoint, which is taken then.
    """
    folder = output / "checkpoints"
    name = (folder / "last").read_text().strip() if (folder / "last").exists() else ""
    steps = [int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.pt")]
    return int(name.removeprefix("step-").removesuffix(".pt")) if name else max(steps, default=0)


def halves(output: Path) -> list[Path]:
    """Files that were being written."""
    return sorted(output.rglob("*.partial"))


def as_undisturbed(output: Path, undisturbed: Path) -> None:
    """Asserts that a run ended where the undisturbed one did: weights, moving average, optimizer, meter, metrics and
    figures, to the bit; and that it left nothing half written.
    """
    theirs, ours = last_state(undisturbed), last_state(output)
    for part in (*PARTS, "results"):
        same(ours[part], theirs[part], part)
    assert timeless_rows(output) == timeless_rows(undisturbed)
    figures = []
    for folder in (output, undisturbed):
        clock = ("seconds", "images_per_s", "peak_memory")
        figures.append({name: value for name, value in summary(folder).items() if not name.startswith(clock)})
    assert figures[0] == figures[1]
    assert not halves(output)
