"""Errors that end a command, and the exit code of each."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with."""

    DONE = 0
    PARTLY = 1  # some runs of a study failed; an image of a packed set is damaged
    TO_MEND = 2  # a mistake that the user can correct: ValueError
    STOPPED = 3  # the command could not go on: RunStopped, DataLost, OSError
    RANK_LOST = 4  # another rank was lost: RanksLost
    INTERRUPTED = 75  # a run saved a checkpoint and ended on request: RunInterrupted (sysexits.h: try again later)
    CTRL_C = 130  # ended by Ctrl-C, nothing was saved (128 + SIGINT)
    BROKEN_PIPE = 141  # the reader of the output ended (128 + SIGPIPE)


class ConfigError(ValueError):
    """A config that cannot be used; the text names the key, its value and what is allowed."""


class DataLost(RuntimeError):
    """The images can no longer be read; the text says which, since when, and what to do."""


class RunStopped(RuntimeError):
    """A run ends early, on every rank at the same step and for the same reason, which is its text."""


class RunInterrupted(RunStopped):
    """A run ends on request, with a checkpoint from which the same command continues it."""


class RanksLost(RuntimeError):
    """This rank cannot go on without others that are gone, hang or ended with an error; the text names them."""


_CODES: dict[type[BaseException], ExitCode] = {  # a subclass before its base
    RunInterrupted: ExitCode.INTERRUPTED,
    RunStopped: ExitCode.STOPPED,
    DataLost: ExitCode.STOPPED,
    RanksLost: ExitCode.RANK_LOST,
    ValueError: ExitCode.TO_MEND,
    OSError: ExitCode.STOPPED,
    KeyboardInterrupt: ExitCode.CTRL_C,
}
EXPECTED = tuple(_CODES)  # errors that a command reports in one line; any other one is a fault of ours


def exit_code(error: BaseException) -> ExitCode:
    """The exit code for one of EXPECTED."""
    return next(code for cls, code in _CODES.items() if isinstance(error, cls))


def message(error: BaseException) -> str:
    """The line that tells the user about an error; for an error of the system the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(names)}: {error.strerror or error}"
    return str(error) or type(error).__name__
