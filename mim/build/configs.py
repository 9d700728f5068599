"""The complete config of a file, and the checks that need two sections at once, or torch."""

from pathlib import Path

from mim import config
from mim.build.data import training_crop
from mim.build.models import build_without_memory, probe_settings
from mim.build.tasks import batch_augment
from mim.config import Config, Overrides
from mim.config.inherit import FindFacts
from mim.config.load import named
from mim.config.recipes import find_file
from mim.engine.optim import Optimizer
from mim.engine.schedule import ScheduledRun
from mim.init_weights import find_facts


def load_config(path: str | Path, overrides: Overrides = (), find_facts: FindFacts = find_facts) -> Config:
    """The complete config of a file and overrides, frozen: `load_config("a.yaml", {"TRAIN.epochs": 2})`.

    Args:
        path: a YAML file, or the name of a shipped recipe, such as `mae/vit_base`.
        overrides: values by key, as a dict, as pairs, or as `KEY VALUE` words of a command line.
        find_facts: finds what is known of the model of INIT.checkpoint, from which keys that are not set are taken.

    Raises ConfigError for an unknown or repeated key, a value of the wrong type or range, parts that do not fit each
    other, a RECIPE that does not exist, and values with which the weights of INIT.checkpoint compute something else.
    """
    path = find_file(path)
    cfg = config.load_config(path, overrides, find_facts)
    try:
        check(cfg)
    except ValueError as error:
        raise named(
            error, path, overrides, lambda: check(config.parse_config(path.read_text(encoding="utf-8")))
        ) from error
    return cfg


def check(cfg: Config) -> None:
    """Checks that need two sections at once, or torch. Raises ValueError, naming the key and the way out."""
    optimizer = cfg.OPTIMIZER.build()
    _check_optimizer(cfg, optimizer)
    cfg.SCHEDULE.build(ScheduledRun(optimizer.base_lr, 1.0, cfg.TRAIN.epochs, 1))
    build_without_memory(cfg)
    if cfg.TASK != "pretrain" and cfg.INIT.parts == "model":
        raise ValueError(
            f"INIT.parts is model, and TASK {cfg.TASK} has no head of a pretraining: leave it out, and the encoder "
            "alone is taken. To go on with a run of this task, extend it with --extend"
        )
    if cfg.TASK != "pretrain" and cfg.DATA.masks > 1:
        raise ValueError(f"DATA.masks is {cfg.DATA.masks}, and TASK {cfg.TASK} hides nothing: leave it out")
    if cfg.TASK == "finetune":
        batch_augment(cfg, classes=1)
    training_crop(cfg)
    if cfg.TASK == "probe" and cfg.TRAIN.clip and len(probe_settings(cfg)) > 1:
        raise ValueError(
            f"TRAIN.clip is {cfg.TRAIN.clip:g}: it would couple the settings of PROBE, which train side by side; set "
            "TRAIN.clip 0"
        )
    if cfg.TASK == "finetune" and len(cfg.parts("READOUT")) > 1:
        raise ValueError(
            f"READOUT is a list of {len(cfg.parts('READOUT'))}: fine-tuning has one readout; TASK probe trains several "
            "on a frozen encoder"
        )


def _check_optimizer(cfg: Config, optimizer: Optimizer) -> None:
    if optimizer.averages and cfg.TRAIN.ema:
        raise ValueError(
            f"TRAIN.ema is {cfg.TRAIN.ema:g}, and OPTIMIZER.name {optimizer.name} evaluates an average of its own: set "
            "TRAIN.ema 0"
        )
    strategy = cfg.DISTRIBUTED.strategy
    if strategy != "ddp" and not optimizer.sharded:
        raise ValueError(
            f"DISTRIBUTED.strategy is {strategy}, and the steps of OPTIMIZER.name {optimizer.name} are not known to be "
            "right where each device has a shard of each weight: set DISTRIBUTED.strategy ddp, or OPTIMIZER.name adamw"
        )
