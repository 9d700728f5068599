"""Checkpoints: one file of plain values, written whole, the last few kept."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mim.ops.checks import at_least
from mim.ops.files import write_text, write_whole
from mim.ops.weights import DERIVED, OWN, read_weights


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """CHECKPOINT. every_epochs, every_minutes: how often, 0 for never; keep: how many files.

    The end of a run always writes one.
    """

    every_epochs: int = 1
    every_minutes: float = 0.0
    keep: int = 2

    def __post_init__(self) -> None:
        at_least("CHECKPOINT", 0, every_epochs=self.every_epochs, every_minutes=self.every_minutes)
        at_least("CHECKPOINT", 1, keep=self.keep)


def save(folder: Path, step: int, content: dict, keep: int) -> Path:
    """Writes step-<n>.pt, points `last` at it, and removes all but the newest `keep`.

    The file is written aside, synced and renamed, and so is `last` (a text file with the name), so that a crash at
    any moment leaves the previous checkpoint whole.
    """
    path = folder / f"step-{step}.pt"
    write(path, content)
    write_text(folder / "last", path.name + "\n")
    # later steps first: they are of a course that was given up when the run was resumed from before them
    for old in sorted(folder.glob("step-*.pt"), key=lambda file: (_step_of(file) <= step, _step_of(file)))[:-keep]:
        old.unlink()
    return path


def write(path: Path, content: dict) -> None:
    """One checkpoint file, whole or not at all."""
    write_whole(path, lambda file: torch.save({"format": OWN, **content}, file))


def last(folder: Path) -> Path | None:
    """The checkpoint that `last` names, or None where there is none."""
    pointer = folder / "last"
    return folder / pointer.read_text().strip() if pointer.exists() else None


def find(path: Path) -> Path:
    """The checkpoint that a path means: a file itself; of a run folder the best one, or the last where none is best.

    Raises ValueError where there is none.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a checkpoint, or a run folder with one")
    if path.is_file():
        return path
    best = path / "checkpoints" / "best.pt"
    found = best if best.is_file() else last(path / "checkpoints")
    if found is None:
        raise ValueError(f"{path} is no run folder with a checkpoint")
    return found


def load(path: Path) -> dict:
    """A checkpoint's content, on the CPU. Raises ValueError where the file is missing or not one of ours."""
    content = read_weights(path, "checkpoint")
    if not isinstance(content, dict) or content.get("format") != OWN:
        raise ValueError(f"{path} is not a checkpoint of this toolkit: it lacks the mark {OWN!r}")
    return content


def run_of(path: Path) -> str | None:
    """The id of the run that wrote a file of weights; None where the file does not tell. Tensors are not read."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # files of others, and folders: PyTorch raises a dozen unrelated types
        return None
    return content.get("run") if isinstance(content, dict) and content.get("format") == OWN else None


def evaluated(content: Mapping, prefix: str = "") -> dict[str, Tensor]:
    """The weights that evaluations use, the moving average where the run kept one: of the part of the model whose names
    start with `prefix`, which is taken off.
    """
    key, before = ("ema", "module." + prefix) if content["ema"] else ("model", prefix)
    return {name.removeprefix(before): held for name, held in content[key].items() if name.startswith(before)}


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """All weights, none missing, none left over. Raises ValueError that names what differs, and changes nothing."""
    differing = differences(model, state)
    if differing:
        shown = "\n".join(f"  {line}" for line in differing[:8])
        more = f"\n  and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise ValueError(
            f"checkpoint {source} holds another model ({len(differing)} differences):\n{shown}{more}\n"
            "Use the config it was trained with, or take only its encoder with INIT.checkpoint"
        )
    model.load_state_dict(state, strict=False)


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from fitting a model, one line a name; what a model derives anew does not."""
    own = {name: weight for name, weight in model.state_dict().items() if not name.endswith(DERIVED)}
    state = {name: weight for name, weight in state.items() if not name.endswith(DERIVED)}
    found = [f"missing: {name}" for name in own if name not in state]
    found += [f"unexpected: {name}" for name in state if name not in own]
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            found.append(f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model")
    return found


def _step_of(path: Path) -> int:
    found = re.fullmatch(r"step-(\d+)\.pt", path.name)
    return int(found[1]) if found else -1
