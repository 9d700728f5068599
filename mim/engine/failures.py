"""What goes wrong without ending a run, and what ends it: broken files, and steps that are not finite."""

import logging
import math

from mim.engine import checkpoint
from mim.engine.distributed import RunStopped, World
from mim.engine.run_folder import RunFolder
from mim.engine.watch import Health
from mim.ops.files import write_json

LOG = logging.getLogger("mim")


class BrokenFiles:
    """Counts files that cannot be read, names each once in the log, and ends the run above a share of the data set."""

    def __init__(self, samples: int, share: float):
        self.samples, self.share = samples, share
        self.allowed = max(1, math.floor(share * samples))  # a single broken file never ends a run
        self.reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def add(self, broken: tuple[tuple[str, str], ...]) -> None:
        """Takes what a batch found."""
        self._new.update((name, reason) for name, reason in broken if name not in self.reasons)

    def settle(self, world: World) -> None:
        """Shares what every rank found. Raises RunStopped, on all ranks, where there are too many."""
        for found in world.gather_objects(self._new):
            for name, reason in found.items():
                if name not in self.reasons:
                    self.reasons[name] = reason
                    LOG.warning("cannot read %s (%s); another image stands in", name, reason)
        self._new = {}
        if len(self.reasons) > self.allowed:
            name, reason = next(iter(self.reasons.items()))
            raise RunStopped(
                f"{len(self.reasons)} of {self.samples} files cannot be read, more than the share DATA.max_broken "
                f"{self.share:g} allows ({self.allowed}); the first is {name} ({reason}). log.txt names them all"
            )


def report_unhealthy(
    health: Health, folder: RunFolder, world: World, content: dict, files: list[str], suspects: list[str]
) -> RunStopped:
    """Saves what is known of a step that is not finite, and gives the error that ends the run on every rank.

    Each rank writes its own file names. The main rank also writes the state of the run: the step itself changed no
    weight; on a GPU, where it is noticed later, steps that were finite may have followed it.
    """
    name = f"nonfinite-step-{health.step}"
    write_json(
        folder.path / f"{name}-rank-{world.rank}.json",
        {
            "step": health.step,
            "loss": repr(health.loss),
            "gradient_norm": repr(health.norm),
            "learning_rate": health.rate,
            "loss_scale": content["scaler"].get("scale", 1.0),
            "files_with_non_finite_pixels": suspects,
            "files": files,
        },
    )
    if world.main:
        checkpoint.write(folder.checkpoints / f"{name}.pt", content)
    what = "loss" if not math.isfinite(health.loss) else "gradient norm"
    guilty = f" An image with non-finite pixels: {suspects[0]}." if suspects else ""
    return RunStopped(
        f"the {what} is not finite at step {health.step} (loss {health.loss:g}, gradient norm {health.norm:g}, "
        f"learning rate {health.rate:.3g}).{guilty} Saved: {name}-rank-*.json with the files of the batch, and "
        f"checkpoints/{name}.pt with the run's state, which that step left unchanged. Remedies: remove images with "
        "non-finite pixels; lower OPTIMIZER.base_lr or set TRAIN.clip 1.0; use TRAIN.precision bf16 or fp32 instead of "
        "fp16"
    )
