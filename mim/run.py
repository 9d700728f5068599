"""One run, from a config to summary.json: the processes, the folder, the data, the task and the trainer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mim import build, init_weights
from mim.config import Config, Overrides, change_config, parse_config
from mim.engine import checkpoint
from mim.engine.callbacks import Callback, Callbacks, check_callbacks
from mim.engine.distributed.world import World, join_world
from mim.engine.log import buffered_lines, log_to_console, log_to_file
from mim.engine.precision import resolve_precision
from mim.engine.run_folder import RunFolder
from mim.engine.trainer import Trainer
from mim.errors import RunInterrupted
from mim.io.files import write_text
from mim.results import RunResult
from mim.resume import (
    FolderRecord,
    check_classes,
    check_teachers,
    extension_of,
    resumed_config,
    start_of_extension,
)
from mim.tasks.pretrain import Pretrain
from mim.tasks.supervised import Supervised

LOG = logging.getLogger("mim")
TaskClass = type[Pretrain] | type[Supervised]


def train(
    config: str | Path | Config,
    overrides: Overrides = (),
    output: str | Path | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    task: TaskClass | None = None,
    extend: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Trains a config in a run folder and returns the content of its summary.json, see RunResult.

    A folder that holds a checkpoint of this config is resumed; where its run is finished, nothing is trained. The
    commands let idle threads of OpenMP soon sleep (GOMP_SPINCOUNT=10000); from Python this is up to you, before torch
    is imported. In a notebook, interrupting the kernel ends the run between two steps with a checkpoint.

    Args:
        config: a YAML file, the name of a shipped recipe (`mae/vit_base`), or what `load_config` returned.
        overrides: keys to change: `{"TRAIN.epochs": 2}`, pairs, or KEY VALUE words.
        output: the run folder; default: runs/NAME, where NAME is that of the file.
        resume: a checkpoint to continue from, instead of the last one of the folder.
        quiet: whether the log goes to log.txt alone, and not to the console.
        task: a subclass of the class of TASK (Pretrain, Finetune or Probe) that takes its place.
        extend: epochs in all to which the finished run of the folder is prolonged, from its last checkpoint with its
            optimizer; from there on the learning rate is that of a run of so many epochs.
        callbacks: objects that are told of log lines and evaluations, see Callback.

    Raises ValueError for what the user can mend, RunInterrupted where the run was asked to end and wrote a checkpoint,
    RunStopped, DataLost or OSError where it cannot go on, RanksLost where another rank is gone, and what a callback
    raised.
    """
    check_callbacks(callbacks)
    if isinstance(config, str | Path):
        output = Path("runs") / Path(config).stem if output is None else output
        config = build.load_config(config, overrides, init_weights.find_facts_in(Path(output), resume))
    elif output is not None:
        config = change_config(config, overrides, init_weights.find_facts_in(Path(output), resume))
        build.check(config)
    if output is None:
        raise ValueError("output is missing: name the run folder of a config that is not a file")
    if extend is not None and resume is not None:
        raise ValueError("--extend goes on from the last checkpoint of the run folder: leave --resume CHECKPOINT out")
    path = Path(resume) if resume is not None else None
    listeners = Callbacks(callbacks)
    try:
        summary = _run(config, Path(output), path, quiet, task, extend, listeners)
    except RunInterrupted:
        listeners.settle()
        raise
    listeners.settle()
    return RunResult(summary, Path(output))


def _run(
    cfg: Config,
    output: Path,
    resume: Path | None,
    quiet: bool,
    own: TaskClass | None,
    extend: int | None,
    callbacks: Callbacks,
) -> Mapping[str, Any]:
    with join_world(cfg.DISTRIBUTED) as world:
        log_to_console(world.main and not quiet)
        folder = RunFolder(output)
        with world.main_first():
            training, held_out = build.build_data(cfg)
        estimated = cfg.DATA.mean == "estimate"
        with buffered_lines() as before:
            cfg = build.with_statistics(cfg, training)
            path, content = _checkpoint_to_resume(folder, resume, world)
            cfg = _with_precision(cfg, content, world)
            if path is not None and content is not None:
                record = world.from_main(lambda: FolderRecord.of(folder))
                check_classes(cfg, content, path, training)
                cfg = resumed_config(cfg, content, path, record, extend)
                path, content = _start_of_extension(cfg, content, path, record, world)
            elif extend is not None:
                raise ValueError(
                    f"--extend: {output} holds no last checkpoint to prolong its run from{_way_out_of_best(folder)}"
                )
        _prepare(folder, cfg, world, content, path)
        with log_to_file(folder.log, world.main, before):
            task = _as_subclass(build.build_task(cfg, training, held_out), own)
            chosen = build.chosen_labels(task)
            if chosen is not None and world.main:
                write_text(folder.labelled, chosen)
            _check_or_initialise(cfg, task, content, path)
            numbers = [" ".join(f"{value:.4f}" for value in values) for values in (cfg.DATA.mean, cfg.DATA.std)]
            lines = {"mean and std": f"{numbers[0]} and {numbers[1]}, estimated"} if estimated else {}
            trainer = Trainer(task, build.engine_settings(cfg), world, folder, callbacks)
            if path is not None and content is not None:
                trainer.resume(content, path)
                if trainer.finished and folder.summary.exists():
                    LOG.info("finished before: %s", folder.summary)
                    return RunResult.read(output)
                if world.main:
                    folder.set_summary_aside(cfg.TRAIN.epochs)
            return trainer.run(lines)


def _check_or_initialise(cfg: Config, task: Pretrain | Supervised, content: dict | None, path: Path | None) -> None:
    """Loads the weights that a new run starts from; checks that a run that is resumed has the same teachers."""
    if content is None:
        for line in init_weights.initialise(cfg, task):
            LOG.info(line)
    elif isinstance(task, Pretrain) and path is not None:
        check_teachers(task.teachers, content, path)


def _as_subclass(task: Pretrain | Supervised, own: TaskClass | None) -> Pretrain | Supervised:
    if own is None:
        return task
    if not issubclass(own, type(task)):
        raise ValueError(f"task is {own.__name__}: for TASK {task.name} it must be a subclass of {type(task).__name__}")
    return own(**{field.name: getattr(task, field.name) for field in fields(task)})


def _checkpoint_to_resume(folder: RunFolder, resume: Path | None, world: World) -> tuple[Path | None, dict | None]:
    """The path and content of the checkpoint `resume`, or of the newest intact one of the folder, if any.

    The main rank chooses. Raises ValueError, on every rank, where all are damaged.
    """
    contents: dict[Path, dict] = {}  # of the chosen one, on the rank that read it

    def choose() -> Path | None:
        chosen = (resume, checkpoint.load(resume)) if resume else checkpoint.newest_intact(folder.checkpoints)
        contents.update([chosen] if chosen else [])
        return chosen[0] if chosen else None

    path = world.from_main(choose)
    if path is None:
        return None, None
    content = contents[path] if path in contents else checkpoint.load(path)
    checkpoint.check(content, path)
    return path, content


def _start_of_extension(
    cfg: Config, content: dict, path: Path, record: FolderRecord, world: World
) -> tuple[Path, dict]:
    """The path and content of the checkpoint from which the run goes on, where `path` is the newest one."""
    start = world.from_main(lambda: start_of_extension(cfg, content, path, record))
    return (path, content) if start == path else (start, checkpoint.load(start))


def _way_out_of_best(folder: RunFolder) -> str:
    """How a run goes on whose last checkpoints were deleted; empty where its best one is gone, too."""
    if not folder.best.exists():
        return ""
    last = folder.checkpoints / f"step-{checkpoint.load(folder.best)['step']}.pt"
    return f": first copy {folder.best} to {last}, with which the same command goes on"


def _with_precision(cfg: Config, content: dict | None, world: World) -> Config:
    """The config with TRAIN.precision `auto` resolved: by the main rank, or as the run that is resumed began."""
    if cfg.TRAIN.precision != "auto":
        return cfg
    if content is not None:
        began = parse_config(content["config"]).TRAIN.precision
    else:
        began = world.from_main(lambda: resolve_precision("auto", world.device))
    return cfg.replace({"TRAIN.precision": began})


def _origin(cfg: Config) -> dict | None:
    """What a run starts from, for its environment.json; None for random weights."""
    file = init_weights.init_file(cfg)
    return {"checkpoint": cfg.INIT.checkpoint, **checkpoint.origin_of(file)} if file is not None else None


def _prepare(folder: RunFolder, cfg: Config, world: World, content: dict | None, path: Path | None) -> None:
    """Makes the folder and writes what is known before the first step.

    content: the checkpoint of `path`, from which the run goes on.
    """
    origin = _origin(cfg) if content is None else None
    extension = extension_of(cfg, content) if content is not None else None
    world.barrier()
    if world.main:
        folder.create(cfg.to_yaml(), keep_metrics=content is not None)
        folder.write_environment(world.device, world.size, content is not None, origin, extension)
        epochs, steps = FolderRecord.of(folder).finished
        if extension and path is not None and path.parent == folder.checkpoints and extension["step"] < steps:
            checkpoint.set_end_aside(folder, path, epochs, steps)
    world.barrier()
