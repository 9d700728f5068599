"""Reading a file of weights without running what is in it."""

from pathlib import Path
from typing import Any

import torch


def read_weights(path: Path, called: str) -> Any:
    """What a PyTorch file holds, on the CPU: tensors and plain values only, never code.

    Raises ValueError, naming the file as `called`, where it is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"{called} {path} does not exist")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises a dozen unrelated types on files that are no checkpoint
        raise ValueError(f"{called} {path} cannot be read: {error}") from error
