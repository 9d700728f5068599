"""Tracker: the family of parts that show a run while it trains, in files or in the service of others. No torch here."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from mim.engine.run_folder import RunFolder
from mim.registry import Component


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run has come. seconds: of all its processes so far, evaluations included."""

    step: int
    epoch: float
    images_seen: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker knows of the run that it follows."""

    folder: RunFolder
    config: Mapping[str, Any]  # the complete config: its sections, each a mapping of keys or a list of them
    start: RunProgress  # where this process begins; what was tracked after it is void
    tracked: str  # id of the tracked run that goes on; empty for a new one

    @property
    def name(self) -> str:
        """That of the run folder."""
        return self.folder.path.resolve().name


def as_markdown(lines: Mapping[str, str]) -> str:
    """Texts by name as a table in Markdown."""
    return "| | |\n|---|---|" + "".join(f"\n| {name} | {text} |" for name, text in lines.items())


class Tracker(Component, ABC, section="LOG.trackers"):
    """Shows a run while it trains. A new tracker is a subclass with `start`, `metrics` and `close`.

    Its methods are called on the main rank alone, never within a step. What they raise turns the tracker off: the log
    has one warning, and the run goes on. Images seen are the x-axis of every curve.

    Attributes: package, which it imports, is installed as the extra `mim-toolkit[package]`; empty where it needs none.
    """

    package: ClassVar[str] = ""

    def check(self) -> None:
        """Raises ValueError where its package is not installed."""
        if self.package and find_spec(self.package) is None:
            raise ValueError(
                f"LOG.trackers {self.name} needs the package {self.package}: pip install "
                f"'mim-toolkit[{self.package}]', or leave it out"
            )

    @abstractmethod
    def start(self, run: TrackedRun) -> str:
        """Begins a tracked run, or goes on with `run.tracked`. Returns its id; empty where none is needed to go on."""

    def plan(self, lines: Mapping[str, str], images_seen: int) -> None:
        """Takes what the run is about to do: texts by name."""

    @abstractmethod
    def metrics(self, metrics: Mapping[str, float], progress: RunProgress) -> None:
        """Takes the metrics of a log line or of an evaluation, by key. They may be NaN."""

    def picture(self, name: str, image_HWC: np.ndarray, progress: RunProgress) -> None:
        """Takes a picture of an evaluation, (H, W, 3) uint8."""

    @abstractmethod
    def close(self, completed: bool) -> None:
        """Ends the tracked run. completed: whether every step is done; else an error or a signal ended the process."""
