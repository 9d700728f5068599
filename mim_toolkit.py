"""Start of every command: console scripts, `python -m mim` and tools/*.py call this module.

It is outside the package `mim` because openmim has a package of that name, too. Where one of the two hides or
overwrites the other, the first line of the error says so.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def run(command: str, arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code. arguments: the words after its name; default: those of this process."""
    problem = _foreign_package()
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from mim import cli  # nothing here imports torch before a command needs it
    from mim.commands import COMMANDS

    if command not in COMMANDS:
        return cli.list_commands(COMMANDS, command)
    cli.let_threads_sleep()
    return importlib.import_module(f"mim.commands.{command}").main(arguments)


def script() -> int:
    """A console script: mim-train runs the command `train`."""
    return run(Path(sys.argv[0]).stem.removeprefix("mim-"))


def main() -> int:
    """`python -m mim COMMAND ...`; without a command it lists them."""
    command, *arguments = sys.argv[1:] or ["--help"]
    return run(command, arguments)


def _foreign_package() -> str:
    """Why `mim` is not the package of this toolkit; empty where it is."""
    try:
        import mim
    except ImportError as error:
        return f"the package mim cannot be imported ({error}): install this toolkit, as with `pip install -e .`"
    if getattr(mim, "DISTRIBUTION", None) == "mim-toolkit":
        return ""
    where = getattr(mim, "__file__", None) or next(iter(getattr(mim, "__path__", [])), "unknown")
    return (
        f"another package named mim, such as openmim, is imported in place of this toolkit: {where}. Install "
        "mim-toolkit into an environment of its own, or remove the other one from this environment and from PYTHONPATH"
    )
