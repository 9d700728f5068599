"""Resuming and extending: which config the run of a folder goes on with."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim.config import Config, differing, parse_config
from mim.data.sources.base import Source
from mim.data.sources.classes import class_names
from mim.engine import checkpoint
from mim.engine.run_folder import RunFolder
from mim.engine.schedule import ScheduledRun
from mim.io.formatting import list_names
from mim.io.weights import CLASSES, TEACHERS

LOG = logging.getLogger("mim")

FREE = (  # keys, and sections with a dot, that a resumed run may change: paths, costs and output
    *("RECIPE", "INIT.take", "INIT.keep", "DATA.path", "DATA.workers", "DATA.batch_size", "DATA.max_broken"),
    *("DATA.retry_s", "DATA.index", "DATA.cache", "LABELS.file", "LABELS.masks", "TRAIN.compile"),
    *("TRAIN.activation_checkpointing", "TRAIN.max_skipped", "EVALUATE.", "CHECKPOINT.", "LOG.", "DISTRIBUTED."),
)
FILE_OF_TEACHER = re.compile(r"TARGET(\.\d+)?\.checkpoint:")  # it may move; check_teachers compares what is in it
Lengths = tuple[int, ...]  # as TrainSettings.lengths


@dataclass(frozen=True, slots=True)
class FolderRecord:
    """What the files of a run folder say about the length of its run."""

    lengths: Lengths = ()  # of config.yaml; empty where it cannot be read
    finished: tuple[int, int] = (0, 0)  # epochs and steps of summary.json; 0 where there is none

    @classmethod
    def of(cls, folder: RunFolder) -> "FolderRecord":
        """The record; of a file that is missing or damaged there is none."""
        try:
            lengths = parse_config(folder.config.read_text(encoding="utf-8")).TRAIN.lengths
        except (OSError, ValueError):
            lengths = ()
        try:
            summary = json.loads(folder.summary.read_text(encoding="utf-8"))
            return cls(lengths, (int(summary["epochs"]), int(summary["steps"])))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(lengths)


def resumed_config(
    cfg: Config, content: Mapping[str, Any], path: Path, record: FolderRecord, extend: int | None
) -> Config:
    """The config with the length of the run that the checkpoint `content` of `path` belongs to, and of its extension.

    A run that was extended goes on under the command that started it, too.

    Args:
        cfg: of the command.
        content: the checkpoint.
        record: of the run folder. A run that was killed before its first checkpoint after an extension is as long as
            its config.yaml says.
        extend: the epochs that a finished run is prolonged to; None where it is only resumed.

    Raises ValueError where other settings differ than those that may, and where the run cannot be extended.
    """
    theirs = parse_config(content["config"])
    lengths = theirs.TRAIN.lengths
    if record.lengths[: len(lengths)] == lengths:
        lengths = record.lengths
    if _names(cfg.TRAIN.lengths, lengths) or cfg.TRAIN.lengths == (extend,):
        if lengths[-1] != cfg.TRAIN.epochs and extend is None:
            LOG.info("TRAIN.epochs is %d: this run was extended to %d epochs", cfg.TRAIN.epochs, lengths[-1])
        cfg = _with_lengths(cfg, lengths)
    _check_same(cfg, _with_lengths(theirs, lengths), path, finished=record.finished == (lengths[-1], content["step"]))
    if extend is None or (extend == lengths[-1] and len(lengths) > 1):
        return cfg
    _check_extension(extend, lengths[-1], content["step"], record, path)
    return _with_lengths(cfg, (*lengths, extend))


def start_of_extension(cfg: Config, content: Mapping[str, Any], path: Path, record: FolderRecord) -> Path:
    """The checkpoint from which a run goes on: `path`, or ahead of the decay at the end of a finished run (wsd).

    Args:
        cfg: what resumed_config returned.
        content: the checkpoint of `path`.
        record: of the run folder.

    Raises ValueError where the run is extended, and no checkpoint from before its decay is left.
    """
    theirs, (epochs, steps) = parse_config(content["config"]), record.finished
    if cfg.TRAIN.lengths == theirs.TRAIN.lengths or content["step"] != steps or not steps:
        return path
    until = theirs.SCHEDULE.build(ScheduledRun(1.0, 1.0, epochs, steps // epochs)).stable_until
    if until is None or until >= steps:
        return path
    for candidate in checkpoint.up_to(path.parent, until):
        try:
            checkpoint.check(checkpoint.load(candidate), candidate)
        except ValueError as error:
            LOG.warning("%s", error)
            continue
        return candidate
    raise ValueError(
        f"--extend: SCHEDULE.name {theirs.SCHEDULE.name} lets the rate fall from step {until:,} on, and {path.parent} "
        f"holds no intact checkpoint of step {until:,} or before, from which a longer run could go on. Put a copy "
        f"of one there, or begin a run of {cfg.TRAIN.epochs} epochs with another --output"
    )


def extension_of(cfg: Config, content: Mapping[str, Any]) -> dict[str, int] | None:
    """The extension that begins at a checkpoint, for environment.json; None where none does."""
    before = parse_config(content["config"]).TRAIN.lengths
    if cfg.TRAIN.lengths == before:
        return None
    return {"from_epochs": before[-1], "to_epochs": cfg.TRAIN.epochs, "step": content["step"]}


def _names(command: Lengths, lengths: Lengths) -> bool:
    """Whether the lengths of a command are those of a run, as it is or as it was before it was extended."""
    return command == lengths[: len(command)] or command == lengths[-1:]


def _with_lengths(cfg: Config, lengths: Lengths) -> Config:
    if cfg.TRAIN.lengths == lengths:
        return cfg
    *earlier, epochs = lengths
    return cfg.replace({"TRAIN.extended_at": earlier, "TRAIN.epochs": epochs})


def _check_same(cfg: Config, theirs: Config, path: Path, finished: bool) -> None:
    """Raises ValueError where a checkpoint was made under other settings than those that may change."""
    changed = [line for line in differing(cfg, theirs) if not line.startswith(FREE) and not FILE_OF_TEACHER.match(line)]
    if not changed:
        return
    way_out = "Name another --output, or go back to the settings of that run"
    if cfg.TRAIN.epochs > theirs.TRAIN.epochs:
        once = "" if finished else ", once it is finished"
        way_out += f". To prolong that run{once}, add --extend {cfg.TRAIN.epochs}"
    raise ValueError(
        f"{path} belongs to another run, which this config cannot resume:\n  " + "\n  ".join(changed) + f"\n{way_out}"
    )


def _check_extension(extend: int, epochs: int, step: int, record: FolderRecord, path: Path) -> None:
    """Raises ValueError where a run of some epochs that stands at a step cannot be extended."""
    if extend <= epochs:
        raise ValueError(
            f"--extend is {extend}: the run of {path} has {epochs} epochs already, so name more than {epochs} (the "
            "epochs in all)"
        )
    if record.finished != (epochs, step):
        raise ValueError(
            f"--extend prolongs a finished run, and that of {path} stands at step {step:,} on its way to epoch "
            f"{epochs}: finish it first, by the same command without --extend, then --extend {extend}"
        )


def check_classes(cfg: Config, content: Mapping[str, Any], path: Path, training: Source) -> None:
    """Raises ValueError where the classes of the training images are others than a checkpoint was trained on.

    A checkpoint of 0.1.0 holds no names, and is not compared.
    """
    theirs = content.get(CLASSES)
    if cfg.TASK == "pretrain" or not isinstance(theirs, list):
        return
    ours = class_names(training)
    if tuple(theirs) != ours:
        order = "in another order: " if sorted(theirs) == sorted(ours) else ""
        raise ValueError(
            f"{path} was trained on {len(theirs):,} classes, {list_names(theirs)}, and {training.label_origin()} now "
            f"name {order}{list_names(ours)}: go back to the data of that run, or name another --output"
        )


def check_teachers(ours: Mapping[str, str], content: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError where the frozen networks of a run are other files than a checkpoint was trained with.

    ours: the checksum of each file, by its path, in the order of the targets.
    """
    theirs = content.get(TEACHERS)
    if not isinstance(theirs, dict) or [*dict.fromkeys(theirs.values())] == [*dict.fromkeys(ours.values())]:
        return
    before, now = (", ".join(f"{file} (SHA-256 {sum_[:12]})" for file, sum_ in each.items()) for each in (theirs, ours))
    raise ValueError(
        f"{path} was trained with the teacher {before or 'none'}, and TARGET.checkpoint is now {now or 'none'}, with "
        "other content: name the same file, or another --output"
    )
