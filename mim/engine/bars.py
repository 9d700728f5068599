"""Bars: the progress of a run, in a terminal or under the cell of a notebook."""

import time
from html import escape
from typing import Any, Protocol

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

REDRAW_S = 0.25  # seconds between two drawings of a notebook's bar, at least


class Bar(Protocol):
    """Shows how far a run has come."""

    def advance(self, step: int) -> None:
        """Takes the number of steps that are done."""

    def note(self, text: str) -> None:
        """Takes a short text that stands beside the bar."""

    def close(self) -> None:
        """Draws it for the last time, or takes it away."""


class TerminalBar:
    """A bar below the log, which goes away at the end. start: steps that are done already."""

    def __init__(self, steps: int, start: int):
        times = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        columns = (TextColumn("training"), BarColumn(), *times, TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, console=get_console(), transient=True)
        self._task = self._progress.add_task("", total=steps, completed=start, note="")
        self._progress.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)

    def close(self) -> None:
        self._progress.stop()


class NotebookBar:
    """A bar under the cell that runs. It stays, as far as the run came.

    It is drawn in place by the thread that trains, as plain HTML: it needs no widgets, and a saved notebook has it.
    start: steps that are done already.
    """

    def __init__(self, steps: int, start: int):
        from IPython.display import display  # a notebook has it

        self._steps, self._step, self._first, self._note = steps, start, start, ""
        self._begin = self._drawn = time.monotonic()
        self._handle: Any = display(self, display_id=True)

    def advance(self, step: int) -> None:
        self._step = step
        if time.monotonic() - self._drawn >= REDRAW_S:
            self._draw()

    def note(self, text: str) -> None:
        self._note = text

    def close(self) -> None:
        self._draw()

    def __repr__(self) -> str:
        elapsed = time.monotonic() - self._begin
        times = [_clock(elapsed)]
        if self._first < self._step < self._steps:
            times.append(f"{_clock(elapsed * (self._steps - self._step) / (self._step - self._first))} left")
        parts = (f"training: step {self._step:,} of {self._steps:,}", ", ".join(times), self._note)
        return " \N{MIDDLE DOT} ".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        share = self._step / self._steps
        style = "width:16em;vertical-align:middle"
        return f'<progress value="{share:.4f}" max="1" style="{style}"></progress> {escape(repr(self))}'

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._handle is not None:  # outside of a kernel there is none
            self._handle.update(self)


def new_bar(steps: int, start: int) -> Bar | None:
    """The bar that suits where the log goes; None where that is a file. start: steps that are done already."""
    console = get_console()
    if console.is_jupyter:
        return NotebookBar(steps, start)
    return TerminalBar(steps, start) if console.is_terminal else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
