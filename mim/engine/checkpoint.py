"""Checkpoints: one file of plain values each. The last few are kept, and a damaged one is never resumed."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from mim.engine.run_folder import RunFolder
from mim.io.files import remove_abandoned, write_atomically, write_text
from mim.io.weights import CHECKPOINT_FORMAT, DERIVED_BUFFERS, read_weights, rename_classifier

LOG = logging.getLogger("mim")

FIELDS: dict[str, type | tuple[type, ...]] = {  # what a run needs to continue
    **{"step": int, "batch": int, "seconds": (int, float), "config": str},
    **dict.fromkeys(("model", "ema", "optimizer", "scaler", "meter", "results"), dict),
}
LAST = "last"  # a text file with the name of the newest checkpoint


def save(folder: Path, step: int, content: dict, keep: int, until: int | None = None) -> Path:
    """Writes step-<n>.pt, points `last` at it, and removes all but the newest `keep`, and what killed processes left.

    until: the newest one of the steps up to that stays, too.

    Both files are written under other names, synced and renamed, before any other file is removed. So a crash or a full
    disk at any moment leaves the previous checkpoint as it was. Raises OSError where there is no space.
    """
    remove_abandoned(folder)
    path = folder / f"step-{step}.pt"
    write(path, content)
    write_text(folder / LAST, path.name + "\n")
    # later steps go first: they were given up when the run was resumed from an earlier step
    stable = [] if until is None else up_to(folder, min(until, step))[:1]
    for old in sorted(_steps(folder), key=lambda file: (_step_of(file) <= step, _step_of(file)))[:-keep]:
        if old not in stable:
            old.unlink()
    return path


def up_to(folder: Path, step: int) -> list[Path]:
    """The checkpoints of the steps up to `step`, the newest first, damaged or not."""
    return [file for file in _steps(folder) if _step_of(file) <= step]


def set_end_aside(folder: RunFolder, stable: Path, epochs: int, steps: int) -> None:
    """Keeps the end of a finished run which goes on from an earlier checkpoint, `stable`, and points `last` at that.

    Its last checkpoint becomes epoch-<n>.pt, its metrics are copied to metrics-epoch-<n>.jsonl. May be done again after
    it was interrupted.
    """
    write_text(folder.checkpoints / LAST, stable.name + "\n")
    end = folder.checkpoints / f"step-{steps}.pt"
    if end.exists():
        end.replace(folder.checkpoints / f"epoch-{epochs}.pt")
    metrics = folder.path / f"metrics-epoch-{epochs}.jsonl"
    if folder.metrics.exists() and not metrics.exists():
        write_atomically(metrics, lambda file: file.write(folder.metrics.read_bytes()))


def write(path: Path, content: dict) -> None:
    """Writes one checkpoint file, completely or not at all."""
    write_atomically(path, lambda file: torch.save({"format": CHECKPOINT_FORMAT, **content}, file))


def last(folder: Path) -> Path | None:
    """The checkpoint that `last` names, damaged or not. Where `last` or that file cannot be read, the newest by number.

    None where there is no checkpoint.
    """
    named, _ = _named(folder)
    if named is not None and named.is_file():
        return named
    return next(iter(_steps(folder)), named)


def newest_intact(folder: Path) -> tuple[Path, dict] | None:
    """The checkpoint to resume from, and its content; None where the folder holds no checkpoint.

    It is the one that `last` names. Where that is damaged, it is the newest intact one of the steps before it, or else
    of the steps after it. Each damaged file is named in a warning and stays as it is. Raises ValueError, which names
    each file and its damage, where all are damaged.
    """
    named, reason = _named(folder)
    candidates = [] if named is None else [named]
    candidates += sorted((file for file in _steps(folder) if file != named), key=lambda file: _loss_key(file, named))
    damaged = [] if named is not None or not reason else [f"{folder / LAST} {reason}"]
    for path in candidates:
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
    lines = "".join(f"\n  {line}" for line in damaged)
    raise ValueError(
        f"{folder} holds no checkpoint that is intact:{lines}\nNothing was changed. Restore one from a copy, name "
        "another checkpoint with --resume, or start again with another --output"
    )


def find(path: Path) -> Path:
    """The checkpoint that a path means: the file, or of a run folder the best one, or else the last one.

    Raises ValueError where there is none.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a checkpoint, or a run folder with one")
    if path.is_file():
        return path
    folder = RunFolder(path)
    checkpoint = folder.best if folder.best.is_file() else last(folder.checkpoints)
    if checkpoint is None:
        raise ValueError(f"{path} is not a run folder with a checkpoint")
    return checkpoint


def load(path: Path) -> dict:
    """The content of a checkpoint, on the CPU. Raises ValueError where the file is missing, damaged or of others."""
    content = read_weights(path, "checkpoint")
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this toolkit: it lacks the mark {CHECKPOINT_FORMAT!r}")
    return _with_names_of_today(content)


def _with_names_of_today(content: dict) -> dict:
    """A checkpoint with its weights and the optimizer's moments under today's names."""
    for key in ("model", "ema"):
        if isinstance(content.get(key), dict):
            content[key] = rename_classifier(content[key])
    moments = content.get("optimizer")
    if isinstance(moments, dict) and isinstance(moments.get("state"), dict):
        moments["state"] = rename_classifier(moments["state"])
    return content


def check(content: dict, path: Path) -> None:
    """Raises ValueError where a run cannot continue from a checkpoint: a field is missing, or has another type."""
    wrong = [name for name, kind in FIELDS.items() if not isinstance(content.get(name), kind)]
    if wrong or content["step"] < 0:
        raise ValueError(
            f"checkpoint {path} lacks {', '.join(wrong or ['step'])}, or holds another type of value there: no run of "
            "this toolkit wrote that"
        )


def origin_of(path: Path) -> dict:
    """`run`, the id of the run that wrote a file of weights, and `step`, the optimizer steps it had taken then.

    Both are None where the file has none. Tensors are not read.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # files of others, and folders: PyTorch raises a dozen unrelated types
        content = None
    ours = content if isinstance(content, dict) and content.get("format") == CHECKPOINT_FORMAT else {}
    return {"run": ours.get("run"), "step": ours.get("step")}


def evaluated(content: Mapping, prefix: str = "") -> dict[str, Tensor]:
    """The weights that evaluations use: the moving average, where the run has one.

    Only names with `prefix` are returned, without it.
    """
    key, prefix = ("ema", "module." + prefix) if content["ema"] else ("model", prefix)
    return {name.removeprefix(prefix): value for name, value in content[key].items() if name.startswith(prefix)}


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Loads all weights. Raises ValueError, which names what differs, and loads none where one is missing or left over.

    Where the model is sharded, each rank loads its shard.
    """
    lines = differences(model, state)
    if lines:
        first = "\n".join(f"  {line}" for line in lines[:8])
        more = f"\n  and {len(lines) - 8} more" if len(lines) > 8 else ""
        count = f"{len(lines)} difference{'s' * (len(lines) > 1)}"
        raise ValueError(
            f"checkpoint {source} holds another model ({count}):\n{first}{more}\n"
            "Use the config it was trained with, or take only its encoder with INIT.checkpoint"
        )
    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True, strict=False))


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Why a state dict does not fit a model, a line for each name. Buffers that the model computes do not count."""
    expected = {name: weight for name, weight in model.state_dict().items() if not name.endswith(DERIVED_BUFFERS)}
    state = {name: weight for name, weight in state.items() if not name.endswith(DERIVED_BUFFERS)}
    lines = [f"missing: {name}" for name in expected if name not in state]
    lines += [f"unexpected: {name}" for name in state if name not in expected]
    for name, weight in expected.items():
        if name in state and weight.shape != state[name].shape:
            lines.append(f"{name}: {tuple(state[name].shape)} in the file, {tuple(weight.shape)} in the model")
    return lines


def _steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest first."""
    return sorted((file for file in folder.glob("step-*.pt") if _step_of(file) >= 0), key=_step_of, reverse=True)


def _named(folder: Path) -> tuple[Path | None, str]:
    """The checkpoint that `last` names, which may be gone; or None and what is wrong with `last`.

    Nothing is wrong where there is no checkpoint either.
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


def _loss_key(path: Path, named: Path | None) -> tuple[bool, int]:
    """Sorts checkpoints by how much training is lost with each: first the steps before `named`, the newest first."""
    return named is not None and _step_of(path) > _step_of(named), -_step_of(path)


def _step_of(path: Path) -> int:
    match = re.fullmatch(r"step-(\d+)\.pt", path.name)
    return int(match[1]) if match else -1
