"""The shipped recipes by name: `mae/vit_base` is configs/mae/vit_base.yaml, in a clone and in an installed package."""

import difflib
import os
from pathlib import Path

from mim.errors import ConfigError
from mim.io.formatting import printable

_INSTALLED, _CLONE = (Path(__file__).resolve().parents[level] / "configs" for level in (1, 2))
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _CLONE
STUDIES = "studies"  # the folder in configs/ whose files are no recipes
_ONE_OF_OURS = CONFIGS / "mae" / "vit_base.yaml"  # a package that was copied may have another configs/ beside it


def recipe_names() -> list[str]:
    """The names of all recipes; empty where the files are missing."""
    return [name for name in _shipped() if not name.startswith(f"{STUDIES}/")]


def recipe_file(name: str) -> Path:
    """The file of a recipe of that name."""
    return CONFIGS / f"{name}.yaml"


def find_file(request: str | Path) -> Path:
    """The file of a config or study: a path, or the name of a shipped one, as in `mae/vit_base`; a path comes first.

    Raises ConfigError where there is neither, with the shipped names that are close.
    """
    path = Path(request)
    if path.is_absolute() or os.path.lexists(path):  # lexists: a name that is too long is no error here
        return path
    name = (path.with_suffix("") if path.suffix == ".yaml" else path).as_posix().removeprefix("configs/")
    names = _shipped()
    if name in names:
        return recipe_file(name)
    close = difflib.get_close_matches(name, names, n=3) or [each for each in names if each.endswith(f"/{path.stem}")]
    hint = f"; shipped recipes with a similar name: {', '.join(close)}" if close else ""
    raise ConfigError(f"config {printable(str(path))} does not exist{hint}")


def _shipped() -> list[str]:
    if not _ONE_OF_OURS.is_file():
        return []
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("**/*.yaml"))
