"""Checkpoints: one file of plain values, written whole, the last few kept; the damaged told from the whole."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from mim.io.files import remove_abandoned, write_atomically, write_text
from mim.io.weights import CHECKPOINT_FORMAT, DERIVED_BUFFERS, read_weights

LOG = logging.getLogger("mim")

FIELDS: dict[str, type | tuple[type, ...]] = {  # what a run goes on from
    **{"step": int, "batch": int, "seconds": (int, float), "config": str},
    **dict.fromkeys(("model", "ema", "optimizer", "scaler", "meter", "results"), dict),
}
LAST = "last"  # the file with the name of the newest checkpoint


def save(folder: Path, step: int, content: dict, keep: int) -> Path:
    """Writes step-<n>.pt, points `last` at it, and removes all but the newest `keep`, and what killed processes left.

    The file is written aside, synced and renamed, and so is `last` (a text file with the name), before any other is
    removed: a crash or a full disk at any moment leaves the previous checkpoint whole. Raises OSError where there is
    no space.
    """
    remove_abandoned(folder)
    path = folder / f"step-{step}.pt"
    write(path, content)
    write_text(folder / LAST, path.name + "\n")
    # later steps first: they are of a course that was given up when the run was resumed from before them
    for old in sorted(_steps(folder), key=lambda file: (_step_of(file) <= step, _step_of(file)))[:-keep]:
        old.unlink()
    return path


def write(path: Path, content: dict) -> None:
    """One checkpoint file, whole or not at all."""
    write_atomically(path, lambda file: torch.save({"format": CHECKPOINT_FORMAT, **content}, file))


def last(folder: Path) -> Path | None:
    """The checkpoint that `last` names, whole or not; the newest by number where `last` or that file is gone or
    unreadable; None where there is none.
    """
    named, _ = _named(folder)
    if named is not None and named.is_file():
        return named
    return next(iter(_steps(folder)), named)


def newest_whole(folder: Path) -> tuple[Path, dict] | None:
    """The checkpoint to go on from, and its content: the one that `last` names, or, where that is damaged, the newest
    whole one of the steps before it, or else of those after it. What is damaged is told as a warning and left alone.

    None where the folder holds no checkpoint. Raises ValueError, which names each file and what ails it, where it holds
    checkpoints and none is whole.
    """
    named, reason = _named(folder)
    found = [] if named is None else [named]
    found += sorted((file for file in _steps(folder) if file != named), key=lambda file: _after(file, named))
    damaged = [] if named is not None or not reason else [f"{folder / LAST} {reason}"]
    for path in found:
        try:
            content = load(path)
        except ValueError as error:
            damaged.append(str(error))
            continue
        for line in damaged:
            LOG.warning("%s; %s is taken instead", line, path.name)
        return path, content
    if not damaged:
        return None
    listed = "".join(f"\n  {line}" for line in damaged)
    raise ValueError(
        f"{folder} holds no checkpoint that is whole:{listed}\nNothing was changed. Bring one back from a copy, name "
        "another checkpoint with --resume, or start anew under another --output"
    )


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
    """A checkpoint's content, on the CPU. Raises ValueError where the file is missing, damaged or not one of ours."""
    content = read_weights(path, "checkpoint")
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this toolkit: it lacks the mark {CHECKPOINT_FORMAT!r}")
    return content


def check(content: dict, path: Path) -> None:
    """Raises ValueError where a run cannot go on from a checkpoint's content: a field lacks, or is of another type."""
    wrong = [name for name, kind in FIELDS.items() if not isinstance(content.get(name), kind)]
    if wrong or content["step"] < 0:
        raise ValueError(
            f"checkpoint {path} lacks {', '.join(wrong or ['step'])}, or holds another kind of value there: no run of "
            "this toolkit wrote it so"
        )


def run_of(path: Path) -> str | None:
    """The id of the run that wrote a file of weights; None where the file does not tell. Tensors are not read."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # files of others, and folders: PyTorch raises a dozen unrelated types
        return None
    return content.get("run") if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT else None


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
    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True, strict=False))


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state dict from fitting a model, one line a name; what a model derives anew does not."""
    own = {name: weight for name, weight in model.state_dict().items() if not name.endswith(DERIVED_BUFFERS)}
    state = {name: weight for name, weight in state.items() if not name.endswith(DERIVED_BUFFERS)}
    found = [f"missing: {name}" for name in own if name not in state]
    found += [f"unexpected: {name}" for name in state if name not in own]
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            found.append(f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model")
    return found


def _steps(folder: Path) -> list[Path]:
    """The checkpoints that are there, the newest first."""
    return sorted((file for file in folder.glob("step-*.pt") if _step_of(file) >= 0), key=_step_of, reverse=True)


def _named(folder: Path) -> tuple[Path | None, str]:
    """The checkpoint that `last` names, which may be gone; or None and what ails `last`, which is nothing where there
    is no checkpoint either.
    """
    try:
        text = (folder / LAST).read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return None, "is missing" if _steps(folder) else ""
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    path = folder / text
    if path.parent == folder and _step_of(path) >= 0:
        return path, ""
    return None, f"names no checkpoint: {text[:60]!r}" if text else "is empty"


def _after(path: Path, named: Path | None) -> tuple[bool, int]:
    """Orders checkpoints by what is lost with each: those of the steps before `named` come first, the newest first."""
    return named is not None and _step_of(path) > _step_of(named), -_step_of(path)


def _step_of(path: Path) -> int:
    found = re.fullmatch(r"step-(\d+)\.pt", path.name)
    return int(found[1]) if found else -1
