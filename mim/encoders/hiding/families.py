"""Families: classes of timm that only some of its versions have."""

import importlib
from typing import Any


def classes(module: str, *names: str) -> tuple[type[Any], ...]:
    """Classes of a module of timm.models; none where this version of timm has no such module."""
    try:
        models = importlib.import_module(f"timm.models.{module}")
    except ImportError:
        return ()
    return tuple(getattr(models, name) for name in names)
