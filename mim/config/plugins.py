"""Plugins: parts of other packages, which register while their module is imported."""

import importlib
import traceback
from collections.abc import Callable
from typing import Any

from mim.errors import ConfigError
from mim.io.formatting import short_repr

GROUP = "mim.plugins"  # the entry points of installed packages that name modules with parts
REASON = 500  # characters of what a plugin's error says


def import_named(module: str) -> None:
    """Imports a module that PLUGINS names. Raises ConfigError where it cannot be imported."""
    try:
        _run(lambda: importlib.import_module(module))
    except ConfigError as error:
        raise ConfigError(
            f"PLUGINS names {short_repr(module)}, which cannot be imported ({error}): install it, or put its "
            "folder on PYTHONPATH, or mend it"
        ) from error


def import_installed() -> str:
    """Imports the plugins of all installed packages. Returns what failed, as the end of an error message."""
    from importlib import metadata  # takes longer to import than a config to read

    problems = ""
    for plugin in metadata.entry_points(group=GROUP):
        try:
            _run(plugin.load)
        except ConfigError as error:
            problems += f". The installed plugin {short_repr(plugin.value)} cannot be imported ({error})"
    return problems


def _run(load: Callable[[], Any]) -> None:
    """Raises ConfigError with the reason, whatever the code of a plugin does; Ctrl-C passes."""
    try:
        load()
    except (Exception, SystemExit) as error:
        known = isinstance(error, ImportError | TypeError | ValueError)  # the last two: a relative or an empty name
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = str(error) if known else f"{type(error).__name__}: {error}, {where.filename} line {where.lineno}"
        raise ConfigError(reason[:REASON]) from error
