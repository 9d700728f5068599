"""First contact: the most valuable tests and measurements on a new GPU, inside a budget of time.

  python benchmarks/first_contact.py first|second|both [--tiny] [--output DIR] [--data PATH] [--wheels DIR]

Each step is a process with its own time limit. A step that fails or is stopped at its limit is recorded with the end of
its output, and the next one begins. A step for which too little time is left is skipped and named. Three files are
written as results come: steps.jsonl, a line a step; summary.md, from all lines in it; log.txt, all output.
This file needs Python's own library alone, so that it can say what is missing on a bare machine.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from first_contact_packages import install_wheels, missing_packages, packages_line
from first_contact_steps import BUDGETS, Choice, Step, steps_of
from first_contact_summary import summary

ROOT = Path(__file__).resolve().parents[1]
TAIL = 6000  # characters of output in the record of a step
GRACE_S = 3.0  # between the request to end and the kill
PASSED, FAILED, STOPPED, SKIPPED = "passed", "failed", "stopped at its limit", "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What came of one step."""

    name: str
    call: str  # "first" or "second"
    state: str  # PASSED, FAILED, STOPPED or SKIPPED
    seconds: float = 0.0
    limit_s: float = 0.0
    reason: str = ""  # why it was skipped or failed
    command: str = ""
    figures: dict[str, Any] = field(default_factory=dict)  # what the step wrote
    tail: str = ""  # the end of its output
    date: str = ""
    tiny: bool = False


class Contact:
    """One call: its budget, its folders, and what it has recorded.

    Args:
        choice: what the steps are made for.
        output: the folder of results.
        budget_s: seconds for all of this call, from `start` on.
        limit_s: seconds for each step; 0 for the limit of each.
        start: of the clock, as time.monotonic gives it.
    """

    def __init__(self, choice: Choice, output: Path, budget_s: float, limit_s: float, start: float):
        self.choice, self.output, self.limit_s = choice, output, limit_s
        self.deadline = start + budget_s
        self.absent = missing_packages()
        output.mkdir(parents=True, exist_ok=True)

    @property
    def left_s(self) -> float:
        """Seconds that are left of the budget."""
        return self.deadline - time.monotonic()

    def run(self, steps: Sequence[Step]) -> bool:
        """Runs the steps in order. Returns whether none failed."""
        passed = True
        for step in steps:
            record = self.skip(step) or self.take(step)
            self.write(record)
            print(f"{record.state:<8} {record.seconds:5.0f} s  {record.name}  {record.reason}".rstrip(), flush=True)
            passed &= record.state != FAILED
        return passed

    def skip(self, step: Step) -> Record | None:
        """The record of a step that cannot run; None where it can."""
        reason = step.reason
        if absent := sorted(set(step.packages) & set(self.absent)):
            reason = f"missing packages: {', '.join(absent)}"
        elif not reason and self.left_s < step.least_s:
            reason = f"{max(self.left_s, 0):.0f} s are left, and it needs {step.least_s:.0f} s"
        return self._record(step, SKIPPED, reason=reason) if reason else None

    def take(self, step: Step) -> Record:
        """Runs a step and returns its record."""
        limit_s = min(self.limit_s or step.limit_s * self.choice.patience, self.left_s)
        places = {"{figures}": str(self.choice.scratch / "figures.json"), "{seconds}": f"{limit_s - 8:.0f}"}
        figures = Path(places["{figures}"])
        figures.unlink(missing_ok=True)
        words = [places.get(word, word) for word in step.command]
        log = self.output / "log.txt"
        with log.open("ab") as stream:
            stream.write(f"\n===== {step.name}: {' '.join(words)}\n".encode())
            stream.flush()
            begin, offset = time.monotonic(), stream.tell()
            code = _bounded(words, {**self.choice.environment, **step.environment}, limit_s, stream)
        seconds, tail = time.monotonic() - begin, _tail(log, offset)
        state = STOPPED if code is None else FAILED if code else PASSED
        return self._record(
            step, state, seconds=round(seconds, 1), limit_s=round(limit_s, 1), command=" ".join(words), tail=tail,
            figures=_figures(figures), reason=f"exit code {code}" if code else "",
        )  # fmt: skip

    def write(self, record: Record) -> None:
        """Adds a record to steps.jsonl and writes summary.md again."""
        lines = self.output / "steps.jsonl"
        with lines.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(record)) + "\n")
        records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        partial = self.output / "summary.partial"
        partial.write_text(summary(records), encoding="utf-8")
        partial.replace(self.output / "summary.md")

    def _record(self, step: Step, state: str, **values: Any) -> Record:
        date = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        return Record(name=step.name, call=step.call, state=state, date=date, tiny=self.choice.tiny, **values)


def _bounded(words: Sequence[str], environment: dict[str, str], limit_s: float, stream: Any) -> int | None:
    """The exit code of a process; None where it was stopped at the limit, with all processes that it started."""
    process = subprocess.Popen(  # in a session of its own, so that all of it can be ended
        words, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(timeout=max(limit_s, 0.1))
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(log: Path, offset: int) -> str:
    """The end of what stands in a file from this byte on."""
    with log.open("rb") as stream:
        stream.seek(max(offset, stream.seek(0, os.SEEK_END) - TAIL))
        return stream.read().decode("utf-8", errors="replace").strip()


def _figures(path: Path) -> dict[str, Any]:
    """What a step wrote; empty where it wrote nothing that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; the environment gives defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    variables = os.environ
    output = Path(variables.get("OUT") or "runs/first_contact")
    parser.add_argument("call", choices=[*BUDGETS, "both"], help="which steps; each has its budget of seconds")
    parser.add_argument("--tiny", action="store_true", default=variables.get("TINY") == "1", help="at a tiny size")
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help="default: OUT, else %(default)s")
    parser.add_argument(
        "--data", type=Path, default=variables.get("DATA"), metavar="PATH", help="CIFAR-10; default: DATA"
    )
    parser.add_argument(
        "--photos", type=Path, default=variables.get("PHOTOS"), metavar="DIR", help="JPEG files in class folders"
    )
    parser.add_argument("--wheels", type=Path, default=variables.get("WHEELS"), metavar="DIR", help="default: WHEELS")
    parser.add_argument("--steps", nargs="+", default=[], metavar="NAME", help="these alone, in their own order")
    parser.add_argument("--budget", type=float, default=0.0, metavar="S", help="seconds; default: 480, 300")
    parser.add_argument("--limit", type=float, default=0.0, metavar="S", help="seconds of each step; default: its own")
    parser.add_argument("--list", action="store_true", help="print the steps and their limits, and run nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no step failed; 1: one did; 2: nothing could run."""
    start, args = time.monotonic(), parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="first_contact_") as scratch:
        site = Path(scratch) / "site"
        error = install_wheels(args.wheels, site) if args.wheels else ""
        line, ready = packages_line()
        print(line, flush=True)
        if error or not (ready or args.list):
            print(error, flush=True) if error else None
            return 2
        choice = Choice.of(args, Path(scratch), site)
        try:
            steps = steps_of(choice, args.call, args.steps)
        except ValueError as unknown:
            print(unknown)
            return 2
        if args.list:
            print("\n".join(f"{step.call:<7} {step.limit_s:4.0f} s  {step.name}" for step in steps))
            return 0
        budget_s = args.budget or choice.patience * sum(
            seconds for call, seconds in BUDGETS.items() if args.call in (call, "both")
        )
        passed = Contact(choice, args.output, budget_s, args.limit, start).run(steps)
        print(f"Written: {args.output / 'summary.md'}, {args.output / 'steps.jsonl'}, {args.output / 'log.txt'}")
        return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
