"""The weights that a run starts from: INIT.checkpoint."""

from pathlib import Path

from mim.config import Config
from mim.engine import checkpoint
from mim.interop.files import is_pretrained_folder
from mim.interop.initialise import initialise_encoder
from mim.tasks.classify import Classify
from mim.tasks.pretrain import Pretrain


def initialise(cfg: Config, task: Pretrain | Classify) -> list[str]:
    """Loads INIT.checkpoint, if it is set, and returns a report in lines."""
    file = init_file(cfg)
    return initialise_encoder(task.model.encoder, file).lines() if file is not None else []


def init_file(cfg: Config) -> Path | None:
    """The file of weights that INIT.checkpoint names; None where it is empty. Raises ValueError where there is none."""
    if not cfg.INIT.checkpoint:
        return None
    try:
        return weights_file(Path(cfg.INIT.checkpoint))
    except ValueError as error:
        raise ValueError(f"INIT.checkpoint {error}") from error


def weights_file(path: Path) -> Path:
    """The file of weights at a path: of a run folder its best checkpoint, or its last; else the path itself.

    Raises ValueError where there is none.
    """
    return path if is_pretrained_folder(path) else checkpoint.find(path)
