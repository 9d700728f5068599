"""One run, from a config to summary.json: the processes, the folder, the data, the task and the trainer."""

import json
import logging
from pathlib import Path

from yacs.config import CfgNode

from mim import build, config, schema
from mim.engine import checkpoint
from mim.engine.distributed import World, join_world
from mim.engine.run_folder import RunFolder
from mim.engine.telemetry import log_to_console, log_to_file
from mim.engine.trainer import Trainer
from mim.ops.files import write_text

LOG = logging.getLogger("mim")

FREE = (  # keys, and sections with a dot, that a resumed run may change: where images lie, what it costs, what it tells
    *("RECIPE", "DATA.path", "DATA.workers", "DATA.batch_size", "DATA.max_broken", "TRAIN.compile"),
    *("TRAIN.activation_checkpointing", "EVALUATE.", "CHECKPOINT.", "LOG.", "DISTRIBUTED."),
)


def train(cfg: CfgNode, output: Path, resume: Path | None = None, quiet: bool = False) -> dict:
    """Runs a config in a folder and gives what summary.json holds.

    A folder that already holds a checkpoint of this config is resumed, and left alone where the run is finished;
    `resume` names a checkpoint to take instead; `quiet` keeps the log out of the console, and in log.txt alone.
    Raises ValueError for what the user can mend, RunStopped where training had to end.
    """
    with join_world(schema.settings(cfg, "DISTRIBUTED")) as world:
        log_to_console(world.main and not quiet)
        folder = RunFolder(output)
        with world.main_first():
            training, held_out = build.build_data(cfg)
        cfg = build.with_statistics(cfg, training)
        path = resume or checkpoint.last(folder.checkpoints)
        content = checkpoint.load(path) if path is not None else None
        if path is not None and content is not None:
            _check_resumable(cfg, content["config"], path)
        origin = _origin(cfg) if content is None else None
        _prepare(folder, cfg, world, fresh=content is None, origin=origin)
        with log_to_file(folder.log, world.main):
            task = build.build_task(cfg, training, held_out)
            chosen = build.chosen_labels(task)
            if chosen is not None and world.main:
                write_text(folder.labelled, chosen)
            if content is None:
                for line in build.initialise(cfg, task):
                    LOG.info(line)
            trainer = Trainer(task, build.engine_settings(cfg), world, folder)
            if path is not None and content is not None:
                trainer.resume(content, path)
                if trainer.finished and folder.summary.exists():
                    LOG.info("finished before: %s", folder.summary)
                    return json.loads(folder.summary.read_text())
            return trainer.run()


def _check_resumable(cfg: CfgNode, theirs: str, path: Path) -> None:
    """Raises ValueError where a checkpoint was made under other settings than those that may change."""
    changed = [line for line in config.differing(cfg, config.parse_config(theirs)) if not line.startswith(FREE)]
    if changed:
        raise ValueError(
            f"{path} belongs to another run, which this config cannot resume:\n  "
            + "\n  ".join(changed)
            + "\nName another --output, or go back to the settings of that run"
        )


def _origin(cfg: CfgNode) -> dict | None:
    """What a run starts from, for its environment.json; None for random weights."""
    file = build.init_file(cfg)
    return {"checkpoint": cfg.INIT.checkpoint, "run": checkpoint.run_of(file)} if file is not None else None


def _prepare(folder: RunFolder, cfg: CfgNode, world: World, fresh: bool, origin: dict | None) -> None:
    """Makes the folder and writes what is known before the first step."""
    world.barrier()
    if world.main:
        folder.create()
        if fresh:
            folder.cut_metrics(-1)
        write_text(folder.config, config.dump(cfg))
        folder.write_environment(world.device, world.size, fresh, origin)
    world.barrier()
