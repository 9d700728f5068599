"""Files of weights: read without running what is in them."""

import argparse
import collections
import pathlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

# Buffers that every model makes anew; some releases of timm keep them in files, and others do not.
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")
OWN = "mim-toolkit checkpoint 1"  # marks a checkpoint of this toolkit
# What old training scripts left beside the weights, and what it is read as. Nothing else of a pickle is made.
PLAIN: list[Any] = [
    argparse.Namespace,
    (collections.OrderedDict, "yacs.config.CfgNode"),  # its own class is refused by PyTorch's reader
    *((pathlib.PurePosixPath, f"pathlib.{kind}") for kind in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *((pathlib.PurePosixPath, f"pathlib._local.{kind}") for kind in ("PosixPath", "WindowsPath", "PurePosixPath")),
]


def read_weights(path: Path, called: str) -> Any:
    """What a PyTorch file holds, on the CPU: tensors and plain values only, never code.

    Raises ValueError, naming the file as `called`, where it is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"{called} {path} does not exist")
    with torch.serialization.safe_globals(PLAIN):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch raises a dozen unrelated types on files that are no checkpoint
            raise ValueError(f"{called} {path} cannot be read: {_reason(path, error)}") from error


def read_safetensors(path: Path, called: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights of a .safetensors file, on the CPU, and the texts in its header.

    Raises ValueError, naming the file as `called`, where it is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{called} {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{called} {path} cannot be read: {error}") from error


def depth_of(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbered modules stand below a prefix in the names of a state dict."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _reason(path: Path, error: Exception) -> str:
    """Names what else a pickle would make; PyTorch's own text advises to read the file with its code."""
    if not isinstance(error, pickle.UnpicklingError):
        return str(error) or "it is empty"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it cannot look into PyTorch's old format, where the reader names what it met first
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not names:
            return "it is damaged, or no PyTorch file"
    if not names:
        return "it is damaged, or holds more than tensors and plain values"
    return (
        f"beside tensors it holds {', '.join(sorted(names))}, which could run code. It was refused and nothing "
        "was run; where you trust its source, save its weights alone in a new file"
    )
