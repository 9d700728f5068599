"""Artifacts: files of the run folder that a tracker keeps beside the curves, by choice."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from mim.engine import checkpoint
from mim.engine.run_folder import RunFolder

Artifact = Literal["config", "metrics", "checkpoint"]


def artifact_files(folder: RunFolder, artifacts: Sequence[Artifact]) -> dict[Artifact, Path]:
    """The file of each artifact that the folder has. The checkpoint is the best one, or else the last one."""
    files: dict[Artifact, Path] = {"config": folder.config, "metrics": folder.metrics}
    with suppress(ValueError):  # there is none yet
        files["checkpoint"] = checkpoint.find(folder.path)
    return {artifact: files[artifact] for artifact in artifacts if artifact in files and files[artifact].is_file()}
