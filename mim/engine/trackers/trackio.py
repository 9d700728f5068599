"""Trackio: a run in Trackio, in a local database or on a Space of Hugging Face."""

import io
import logging
import math
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from mim.engine.trackers.artifacts import Artifact, artifact_files
from mim.engine.trackers.base import RunProgress, TrackedRun, Tracker
from mim.io.sections import flatten

LOG = logging.getLogger("mim")


class Trackio(Tracker, name="trackio"):
    """A run of Trackio, which `trackio show` draws. The database is in TRACKIO_DIR of the environment, or in a cache.

    Trackio knows a run by its name, so this is the name of the run folder and the first letters of the run's id. A run
    that is resumed goes on under the same name.

    Args:
        project: the project, which is made where there is none.
        space: a Space of Hugging Face that has the database, such as `user/plates`; empty for a local one.
        artifacts: files of the run folder that go there at the end of each process. The checkpoint is the best one, or
            else the last one.
    """

    package = "trackio"

    def __init__(self, *, project: str = "mim", space: str = "", artifacts: tuple[Artifact, ...] = ()):
        self.project, self.space, self.artifacts = project, space, artifacts

    def start(self, run: TrackedRun) -> str:
        import trackio

        self._trackio: Any = trackio
        self._folder = run.folder
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                self.project,
                name=run.tracked or f"{run.name}-{run.folder.run[:8]}",
                config=flatten(run.config),
                resume="allow",
                space_id=self.space or None,
                embed=False,
            )
        LOG.info("trackio: run %s of project %s", self._run.name, self.project)
        return self._run.name

    def metrics(self, metrics: Mapping[str, float], progress: RunProgress) -> None:
        values = {"epoch": progress.epoch, "seconds": progress.seconds, **metrics}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._run.log(finite, step=progress.images_seen)

    def picture(self, name: str, image_HWC: np.ndarray, progress: RunProgress) -> None:
        self._run.log({name: self._trackio.Image(image_HWC)}, step=progress.images_seen)

    def close(self, completed: bool) -> None:
        with redirect_stdout(io.StringIO()):
            for artifact, file in artifact_files(self._folder, self.artifacts).items():
                kind = "model" if artifact == "checkpoint" else artifact
                self._run.log_artifact(file, name=f"{artifact}-{self._run.name}", type=kind)
            self._trackio.finish()  # of the run that began last; run.finish() would come again at the end of Python
