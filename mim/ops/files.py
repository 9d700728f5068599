"""Files that are whole or not there: written aside, synced and renamed, so that a crash leaves the old one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """A file whose content `fill` writes."""
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """A UTF-8 text file."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict) -> None:
    """An indented JSON file."""
    write_text(path, json.dumps(content, indent=2) + "\n")
