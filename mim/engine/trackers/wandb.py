"""WandB: a run in Weights & Biases, on its server or in a folder."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mim.engine.trackers.artifacts import Artifact, artifact_files
from mim.engine.trackers.base import RunProgress, TrackedRun, Tracker, as_markdown

LOG = logging.getLogger("mim")

START_S, END_S = 60, 120  # most seconds that training waits for the server at the start and at the end


class WandB(Tracker, name="wandb"):
    """A run of Weights & Biases: `wandb login` first, or mode offline and later `wandb sync` with the folder.

    Its files are in the folder wandb of the run. A run that is resumed goes on in the same run of the server; offline
    it has a folder for each process, with one id.

    Args:
        project: the project, which is made where there is none.
        entity: user or team that has the project; empty for the default of the login.
        group: of runs that belong together, such as seeds; empty for none.
        tags: words by which runs are found.
        mode: `online`, `offline` (files alone), or `auto`: WANDB_MODE of the environment, else online.
        artifacts: files of the run folder that go there at the end of each process. The checkpoint is the best one, or
            else the last one.
    """

    package = "wandb"

    def __init__(
        self,
        *,
        project: str = "mim",
        entity: str = "",
        group: str = "",
        tags: tuple[str, ...] = (),
        mode: Literal["auto", "online", "offline"] = "auto",
        artifacts: tuple[Artifact, ...] = (),
    ):
        self.project, self.entity, self.group, self.tags, self.mode = project, entity, group, tags, mode
        self.artifacts = artifacts

    def start(self, run: TrackedRun) -> str:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            login_timeout=START_S,
            init_timeout=START_S,
            finish_timeout=END_S,
            finish_timeout_raises=True,
        )
        self._image: Any = wandb.Image
        self._folder = run.folder
        self._run = wandb.init(
            project=self.project,
            entity=self.entity or None,
            group=self.group or None,
            name=run.name,
            tags=self.tags,
            config=dict(run.config),
            dir=str(run.folder.path),
            id=run.tracked or None,
            resume="allow" if run.tracked else None,
            allow_val_change=True,
            mode=None if self.mode == "auto" else self.mode,
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("images_seen")
        self._run.define_metric("*", step_metric="images_seen")
        LOG.info("wandb: %s", self._run.url or self._run.dir)
        return self._run.id

    def plan(self, lines: Mapping[str, str], images_seen: int) -> None:
        self._run.notes = as_markdown(lines)

    def metrics(self, metrics: Mapping[str, float], progress: RunProgress) -> None:
        position = {"images_seen": progress.images_seen, "epoch": progress.epoch, "seconds": progress.seconds}
        self._run.log({**position, **metrics})

    def picture(self, name: str, image_HWC: np.ndarray, progress: RunProgress) -> None:
        self._run.log({"images_seen": progress.images_seen, name: self._image(image_HWC)})

    def close(self, completed: bool) -> None:
        for artifact, file in artifact_files(self._folder, self.artifacts).items():
            kind = "model" if artifact == "checkpoint" else artifact
            self._run.log_artifact(file, name=f"{artifact}-{self._run.id}", type=kind)
        self._run.finish(exit_code=0 if completed else 1)
