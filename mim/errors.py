"""Errors: what ends a command, with a text that is the whole message for the user."""


class ConfigError(ValueError):
    """A config that cannot be used; the text names the key, its value and what is allowed."""


class DataLost(RuntimeError):
    """The images can no longer be read; its text is the whole message for the user."""


class RunStopped(RuntimeError):
    """A run ends early, on every rank at the same step and for the same reason, which is its text."""


class RunInterrupted(RunStopped):
    """A run ends because it was asked to, with a checkpoint from which it goes on."""


class RanksLost(RuntimeError):
    """This rank cannot go on without others that are gone, hang or ended with an error; its text names them."""
