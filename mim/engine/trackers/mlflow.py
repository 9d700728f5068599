"""MLflow: a run of an experiment on a tracking server, in a database or in a folder."""

import logging
import math
import os
import time
from collections.abc import Mapping

import numpy as np

from mim.engine.trackers.artifacts import Artifact, artifact_files
from mim.engine.trackers.base import RunProgress, TrackedRun, Tracker, as_markdown
from mim.io.sections import flatten

LOG = logging.getLogger("mim")

PARAMETERS, PARAMETER, NOTE = 100, 6000, 5000  # most parameters of a call, characters of one, and of a note
RETRIES = 3  # of a request; MLflow's 7 would hold training up for minutes where the server is gone


class MLflow(Tracker, name="mlflow"):
    """A run of MLflow: each key of the config as a parameter, pictures as images by step, the plan as its note.

    A run that is resumed goes on in the same run. Each log line is one request, which training waits for.

    Args:
        uri: address of the server, database or folder, such as `http://127.0.0.1:5000` or `sqlite:///mlflow.db`; empty
            for MLFLOW_TRACKING_URI of the environment, else MLflow's default.
        experiment: the experiment, which is made where there is none.
        artifacts: files of the run folder that go there at the end of each process. The checkpoint is the best one, or
            else the last one.
    """

    package = "mlflow"

    def __init__(self, *, uri: str = "", experiment: str = "mim", artifacts: tuple[Artifact, ...] = ()):
        self.uri, self.experiment, self.artifacts = uri, experiment, artifacts

    def start(self, run: TrackedRun) -> str:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(RETRIES))
        import mlflow

        self._client, self._folder = mlflow.MlflowClient(self.uri or None), run.folder
        if run.tracked and self._exists(run.tracked):
            self._id = run.tracked
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._new(run)
        LOG.info("mlflow: run %s of experiment %s at %s", self._id, self.experiment, self._client.tracking_uri)
        return self._id

    def plan(self, lines: Mapping[str, str], images_seen: int) -> None:
        self._client.set_tag(self._id, "mlflow.note.content", as_markdown(lines)[:NOTE])

    def metrics(self, metrics: Mapping[str, float], progress: RunProgress) -> None:
        import mlflow

        now = int(1000 * time.time())
        values = {"epoch": progress.epoch, "seconds": progress.seconds, **metrics}
        entries = [
            mlflow.entities.Metric(name, value, now, progress.images_seen)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self._id, metrics=entries, synchronous=True)

    def picture(self, name: str, image_HWC: np.ndarray, progress: RunProgress) -> None:
        self._client.log_image(self._id, image_HWC, key=name, step=progress.images_seen, synchronous=True)

    def close(self, completed: bool) -> None:
        for artifact, file in artifact_files(self._folder, self.artifacts).items():
            self._client.log_artifact(self._id, str(file), artifact_path=artifact)
        self._client.set_terminated(self._id, "FINISHED" if completed else "FAILED")

    def _exists(self, tracked: str) -> bool:
        import mlflow

        try:
            return self._client.get_run(tracked).info.lifecycle_stage == "active"
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _new(self, run: TrackedRun) -> str:
        """The id of a run that is made here, with the config as its parameters."""
        import mlflow

        experiment = self._client.get_experiment_by_name(self.experiment)
        of = experiment.experiment_id if experiment else self._client.create_experiment(self.experiment)
        tracked = self._client.create_run(of, run_name=run.name, tags={"mim.run": run.folder.run}).info.run_id
        parameters = [mlflow.entities.Param(key, str(value)[:PARAMETER]) for key, value in flatten(run.config).items()]
        for first in range(0, len(parameters), PARAMETERS):
            self._client.log_batch(tracked, params=parameters[first : first + PARAMETERS], synchronous=True)
        return tracked
