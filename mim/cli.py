"""Command line: how every command parses its arguments, reports an error and ends. Nothing here imports torch."""

import argparse
import os
import select
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from mim.config import load_config
from mim.errors import EXPECTED, ConfigError, ExitCode, exit_code, message

_ENDINGS: tuple[type[BaseException], ...] = (SystemExit, *EXPECTED)
WAITING = {"GOMP_SPINCOUNT": "10000"}  # idle threads of OpenMP soon sleep; measured by benchmarks/omp_wait.py
WAITING_KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # with one of these the user has chosen
FILE_ENDINGS = (".html", ".htm", ".pdf", ".csv", ".md", ".json", ".png", ".jpg", ".npz", ".pt", ".pth", ".safetensors")
EXIT_CODES = """exit codes:
  0    done
  2    a mistake that you can correct: in a key, a value, a file or a flag
  3    the command cannot go on: unreadable images, a full disk, a NaN loss
  4    another process (rank) of the run ended or does not answer
  75   ended by SIGTERM, SIGUSR1 or Ctrl-C and saved; the same command continues
  130  Ctrl-C before training began, or a second Ctrl-C: nothing was saved
  141  the program that reads the output ended, such as `head`"""


class _HelpFormatter(argparse.HelpFormatter):
    """Folds paragraphs to the width of the terminal, but for lists and examples, whose lines are indented."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(part if "\n  " in f"\n{part}" else textwrap.fill(part, width) for part in parts)


class Parser(argparse.ArgumentParser):
    """A parser of one command, with the words that all commands share.

    Args:
        command: its name, as in mim_toolkit.COMMANDS.
        text: what it does.
        examples: words that follow its name in an example.
        ending: what else stands at the end of its help.
    """

    def __init__(self, command: str, text: str, examples: Sequence[str], ending: str = ""):
        program = shlex.join(command_words(command))
        lines = ["examples:", *(f"  {program} {example}".rstrip() for example in examples)]
        super().__init__(
            prog=program,
            description=text,
            epilog="\n".join(lines) + (f"\n\n{ending}" if ending else ""),
            formatter_class=_HelpFormatter,
        )

    def add_config(self) -> argparse.Action:
        """Adds --config and KEY VALUE, and returns the former."""
        self.add_pairs("keys of the config, such as TRAIN.epochs 2")
        return self.add_argument(
            "--config", required=True, metavar="FILE", help="a YAML file, or a shipped recipe: mae/vit_base"
        )

    def add_pairs(self, text: str) -> None:
        """Adds KEY VALUE, as args.overrides."""
        self.add_argument("overrides", nargs="*", metavar="KEY VALUE", help=text)

    def add_channels(self) -> None:
        """Adds --channels, which `channels` reads."""
        self.add_argument(
            "--channels", default="", metavar="C,C,C", help="of other than RGB images: three, one, or pca"
        )

    def add_json(self) -> None:
        """Adds --json."""
        self.add_argument("--json", type=Path, metavar="FILE", help="also write all metrics to this file")

    def error(self, message: str) -> NoReturn:
        """Raises ValueError, which `run` reports as every other error."""
        raise ValueError(f"{message} ({self.prog} --help lists all arguments)")


def run(
    parser: Parser,
    command: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None,
    stopped: str = "stopped",
) -> int:
    """Parses arguments, runs a command and returns its exit code, with one line on stderr for an error.

    stopped: the line for Ctrl-C. With --traceback the error is raised.
    """
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    typed = words(arguments)
    try:
        args = parser.parse_intermixed_args(typed)
        _log()
        code = command(args) or ExitCode.DONE
        sys.stdout.flush()
    except _ENDINGS as error:
        if _reader_left() and isinstance(error, SystemExit | BrokenPipeError):
            return ExitCode.BROKEN_PIPE
        if "--traceback" in typed or isinstance(error, SystemExit):
            raise
        print(_line(error, stopped), file=sys.stderr)
        return exit_code(error)
    return code


def channels(text: str) -> tuple[int, ...] | Literal["pca"]:
    """The value of --channels. Raises ValueError where it is none."""
    if text == "pca":
        return "pca"
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise ValueError(f"--channels is {text!r}: it must be numbers from 0, such as 0,3,5, or pca") from error


def check_config(config: str, overrides: Sequence[str]) -> None:
    """Reads a config before torch is imported, so that a mistake in it is reported at once. Raises ConfigError."""
    _log(False)  # warnings come when it is read again
    try:
        load_config(config, overrides)
    except ConfigError as error:  # INIT.checkpoint may bring the encoder that has such a key: it is read with torch
        if "INIT.checkpoint" not in overrides or not str(error).startswith("unknown key ENCODER."):
            raise
    _log()


def _log(to_terminal: bool = True) -> None:
    from mim.engine.log import log_to_console  # --help needs no rich

    log_to_console(to_terminal and int(os.environ.get("RANK", 0)) == 0)


def _line(error: BaseException, stopped: str) -> str:
    code = exit_code(error)
    if code == ExitCode.CTRL_C:
        return stopped
    return message(error) if code == ExitCode.INTERRUPTED else f"error: {message(error)}"


def _reader_left() -> bool:
    """Whether the process behind a pipe, such as `head`, closed it. What is printed from then on goes nowhere.

    False also where the system cannot say, as Windows.
    """
    make_poll = getattr(select, "poll", None)
    if make_poll is None:
        return False
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file, as in a notebook
        return False
    poll = make_poll()
    poll.register(number, 0)
    left = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return left


def let_threads_sleep() -> None:
    """Idle threads of OpenMP sleep instead of spinning, unless the user chose; must run before torch is imported."""
    if not any(key in os.environ for key in WAITING_KEYS):
        os.environ.update(WAITING)


def words(arguments: Sequence[str] | None) -> list[str]:
    """The words of a command line; None stands for those of this process."""
    return list(sys.argv[1:] if arguments is None else arguments)


def command_words(command: str) -> list[str]:
    """The words that start a command in the way in which this process was started."""
    program = Path(sys.argv[0])
    if program.name.startswith("mim-"):
        return [f"mim-{command}"]
    return ["python", "-m", "mim", command] if program.parent.name == "mim" else ["python", f"tools/{command}.py"]


def split_at_key(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of a flag, and the KEY VALUE pairs behind them: keys begin with a capital."""
    index = next((index for index, word in enumerate(words) if word[:1].isupper()), len(words))
    return list(words[:index]), list(words[index:])


def check_folder(flag: str, path: Path | None) -> None:
    """Raises ValueError where the name of a folder to write has the ending of a file."""
    if path is not None and path.suffix.lower() in FILE_ENDINGS and not path.is_dir():
        raise ValueError(f"{flag} is {path}: files are written into a folder, so name one without {path.suffix}")


def whole_numbers(flag: str, words: Sequence[str], example: str) -> tuple[int, ...]:
    """The values of a flag as integers. Raises ValueError where one is not an integer."""
    try:
        return tuple(map(int, words))
    except ValueError as error:
        raise ValueError(f"{flag} is {' '.join(words)}: it must be whole numbers, such as {example}") from error


def list_commands(commands: Mapping[str, str], request: str) -> int:
    """Prints all commands; with an error where `request` does not ask for help."""
    known = request in ("-h", "--help")
    stream = sys.stdout if known else sys.stderr
    if not known:
        print(f"error: there is no command {request!r}", file=stream)
    print("python -m mim COMMAND, or mim-COMMAND; --help behind it lists its arguments", file=stream)
    for name, purpose in commands.items():
        print(f"  {name:12} {purpose}", file=stream)
    return ExitCode.DONE if known else ExitCode.TO_MEND


def cli() -> int:
    """What the console script `mim` of openmim calls, where this toolkit overwrote the package of openmim."""
    print(
        "error: `mim` is a command of openmim, and mim-toolkit overwrote its package mim in this environment: install "
        "the two into environments of their own. The commands of mim-toolkit are mim-train, mim-plan and so on",
        file=sys.stderr,
    )
    return ExitCode.TO_MEND
