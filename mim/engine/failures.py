"""What goes wrong without ending a run, and when it ends it: broken files, and steps that are not finite."""

import logging
import math
import sys
from logging.handlers import BufferingHandler

from mim import metric_keys as keys
from mim.engine.distributed.world import World
from mim.engine.run_folder import RunFolder
from mim.engine.step_status import StepStatus
from mim.errors import RunStopped
from mim.io.files import write_json

LOG = logging.getLogger("mim")


class BrokenFiles:
    """Counts files that cannot be read, names each once in the log, and ends the run above a share of the data set.

    share is DATA.max_broken, of the `samples` images of the data set.
    """

    def __init__(self, samples: int, share: float):
        self.samples, self.share = samples, share
        self.allowed = max(1, math.floor(share * samples))  # a single broken file never ends a run
        self.reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self.outages = BufferingHandler(sys.maxsize)  # collects a rank's warnings of lost storage; see Prefetcher
        self.outages.addFilter(lambda record: hasattr(record, "outage"))

    def add(self, broken: tuple[tuple[str, str], ...]) -> None:
        """Takes the broken files of a batch, each with the reason."""
        self._new.update((name, reason) for name, reason in broken if name not in self.reasons)

    def metrics(self) -> dict[str, int]:
        """Their number, where there are some."""
        return {keys.BROKEN_FILES: len(self.reasons)} if self.reasons else {}

    def settle(self, world: World) -> None:
        """Adds up the files of all ranks. Raises RunStopped, on all ranks, where there are too many."""
        messages = [record.getMessage() for record in self.outages.buffer]
        for rank, (reasons, outages) in enumerate(world.gather_objects((self._new, messages))):
            for name, reason in reasons.items():
                if name not in self.reasons:
                    self.reasons[name] = reason
                    LOG.warning("cannot read %s (%s); another image replaces it", name, reason)
            for outage in outages:
                LOG.warning("rank %d: %s", rank, outage)
        self._new = {}
        self.outages.flush()
        if len(self.reasons) > self.allowed:
            name, reason = next(iter(self.reasons.items()))
            raise RunStopped(
                f"{len(self.reasons)} of {self.samples} files cannot be read, more than the share DATA.max_broken "
                f"{self.share:g} allows ({self.allowed}); the first is {name} ({reason}). log.txt names them all"
            )


class Skipped:
    """Counts steps that changed nothing because they were not finite, saves what is known of each, and ends the run
    at the first above `allowed`.
    """

    def __init__(self, allowed: int, folder: RunFolder, world: World):
        self.allowed, self.folder, self.world = allowed, folder, world
        self.count = 0

    def add(self, health: StepStatus, scale: float, files: list[str]) -> None:
        """Takes such a step. scale: of the loss; files: of this rank's batch.

        Raises RunStopped, on all ranks, where it is one too many; the message names the remedies.
        """
        self.count += 1
        name = f"nonfinite-step-{health.step}"
        write_json(
            self.folder.path / f"{name}-rank-{self.world.rank}.json",
            {
                "step": health.step,
                "loss": repr(health.loss),
                "gradient_norm": repr(health.norm),
                "learning_rate": health.rate,
                "loss_scale": scale,
                "files": files,
            },
        )
        what = "loss" if not math.isfinite(health.loss) else "gradient norm"
        cause = (
            f"the {what} is not finite at step {health.step} (loss {health.loss:g}, gradient norm {health.norm:g}, "
            f"learning rate {health.rate:.3g}, loss scale {scale:g}). "
        )
        if self.count <= self.allowed:
            LOG.warning(
                "%sIt changed no weight: skipped, %d of TRAIN.max_skipped %d. Saved: %s-rank-*.json",
                *(cause, self.count, self.allowed, name),
            )
            return
        raise RunStopped(
            f"{cause}Saved: {name}-rank-*.json with the files of the batch, and checkpoints/{name}.pt with the run's "
            "state, which that step left unchanged. Remedies: lower OPTIMIZER.base_lr or set TRAIN.clip 1.0; use "
            "TRAIN.precision bf16 or fp32 instead of fp16; look for images of extreme values in that batch; skip such "
            f"steps by TRAIN.max_skipped, which is {self.allowed}"
        )
