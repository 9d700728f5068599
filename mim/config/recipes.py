"""The recipes that ship beside this package, by name: `mae/vit_base` is configs/mae/vit_base.yaml."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ONE_OF_OURS = CONFIGS / "mae" / "vit_base.yaml"  # an installed package may have somebody else's configs beside it


def recipe_names() -> list[str]:
    """The names of all recipes; none where they are not at hand, as beside a package installed from a wheel."""
    if not ONE_OF_OURS.is_file():
        return []
    paths = (path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.glob("**/*.yaml"))
    return sorted(path.as_posix() for path in paths if path.parts[0] != "studies")


def recipe_file(name: str) -> Path:
    """The file of a recipe of that name."""
    return CONFIGS / f"{name}.yaml"
