"""Tracking: drives the trackers of a run. One that fails is turned off with one warning, and the run goes on."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from mim.engine.run_folder import RunFolder
from mim.engine.trackers.base import TrackedRun, Tracker
from mim.io.files import write_json

LOG = logging.getLogger("mim")

REASON = 300  # most characters of an error in a warning
FAILURES = (Exception, SystemExit)  # what a tracker may raise and the run goes on


class Tracking:
    """The trackers of a run that still work, in the order of the config.

    The id that each gives its tracked run is in trackers.json of the run folder, so that a resumed run goes on in it. A
    new run in an old folder begins new tracked runs.
    """

    def __init__(self, trackers: Sequence[Tracker], run: TrackedRun):
        self.active, known = list(trackers), _known_ids(run.folder)
        self.each(lambda tracker: self._start(tracker, replace(run, tracked=known.get(tracker.name, ""))))

    def each(self, call: Callable[[Tracker], object]) -> None:
        """Calls each of them; one that raises is closed and left out from here on."""
        for tracker in tuple(self.active):
            try:
                call(tracker)
            except FAILURES as error:
                self.active.remove(tracker)
                with suppress(*FAILURES):  # the first reason is the one that is of use
                    tracker.close(completed=False)
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
                LOG.warning("LOG.trackers %s failed and is off; the run goes on (%s)", tracker.name, reason)

    def close(self, completed: bool) -> None:
        """Ends all of them. completed: as Tracker.close takes it."""
        self.each(lambda tracker: tracker.close(completed))

    def _start(self, tracker: Tracker, run: TrackedRun) -> None:
        tracked = tracker.start(run)
        if tracked and tracked != run.tracked:
            ids = {**_known_ids(run.folder), tracker.name: tracked}
            write_json(run.folder.trackers, {"run": run.folder.run, "tracked": ids})


def _known_ids(folder: RunFolder) -> dict[str, str]:
    """The ids of the tracked runs of this very run, by tracker; none where the file is missing, damaged or old."""
    try:
        content = json.loads(folder.trackers.read_text(encoding="utf-8"))
        ids = content["tracked"] if content["run"] == folder.run else {}
        return {str(name): str(tracked) for name, tracked in ids.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
