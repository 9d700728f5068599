"""Files of weights: read without running what is in them."""

import argparse
import collections
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mim.io.formatting import printable
from mim.io.limits import REPEATED, SHARED

# Buffers that every model makes anew; some releases of timm keep them in files, and others do not.
DERIVED_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")
CHECKPOINT_FORMAT = "mim-toolkit checkpoint 1"  # marks a checkpoint of this toolkit
ZIP = b"PK\x03\x04"  # opens what PyTorch writes since 1.6
FOLDER = 0x10  # an attribute in the directory of a zip archive: PyTorch reads nothing where it stands
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
    _check_file(path, called)
    try:
        _check_archive(path)
    except (_Refused, OSError) as error:
        raise ValueError(f"{called} {path} cannot be read: {_reason(path, error)}") from error
    except Exception as error:  # zipfile raises half a dozen unrelated types on a damaged directory
        raise ValueError(f"{called} {path} cannot be read: it is cut short or damaged ({error})") from error
    with torch.serialization.safe_globals(PLAIN):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch raises a dozen unrelated types on files that are no checkpoint
            raise ValueError(f"{called} {path} cannot be read: {_reason(path, error)}") from error


def read_safetensors(path: Path, called: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights of a .safetensors file, on the CPU, and the texts in its header.

    Raises ValueError, naming the file as `called`, where it is missing or damaged.
    """
    _check_file(path, called)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # the library's own, and whatever PyTorch says of a type or a shape it does not know
        raise ValueError(f"{called} {path} cannot be read: {error}") from error


def check_weights(weights: Mapping[str, torch.Tensor], size: int) -> None:
    """Raises ValueError, naming the weight, for one that is not dense, or that claims more numbers than its file holds.

    size: of the file, or of all files of a folder, in bytes. A tensor may repeat one number without an end, as one that
    was made by `expand`: it costs nothing to read, and all memory to copy.
    """
    total = 0
    for name, weight in weights.items():
        kind = _other_than_dense(weight)
        if kind:
            raise ValueError(
                f"{printable(name)} is {kind}: weights must be dense tensors, with their numbers in the file"
            )
        claimed = weight.numel() * weight.element_size()
        total += claimed
        if claimed > max(size, REPEATED) or total > max(SHARED * size, REPEATED):
            raise ValueError(
                f"{printable(name)} claims {'x'.join(map(str, weight.shape)) or 'one'} numbers, {total:,} bytes with those "
                f"before it, and the file has {size:,}: it repeats what it holds"
            )


def _other_than_dense(weight: torch.Tensor) -> str:
    """What a tensor is that is not plain; empty where it is."""
    if weight.is_nested or weight.layout != torch.strided:
        return "a nested tensor" if weight.is_nested else f"a sparse tensor ({weight.layout})"
    if weight.is_quantized:
        return "a quantised tensor"
    if weight.device.type != "cpu":
        return f"a tensor without numbers (of the device {weight.device})"
    return ""


def depth_of(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbered modules stand below a prefix in the names of a state dict."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _check_file(path: Path, called: str) -> None:
    try:
        found = path.is_file()
    except OSError as error:  # a name too long, a link to itself
        raise ValueError(f"{called} {printable(str(path))} cannot be read: {error.strerror}") from error
    if not found:
        raise ValueError(f"{called} {printable(str(path))} does not exist")


def _check_archive(path: Path) -> None:
    """Raises ValueError where a zip archive is not as torch.save wrote it, by the checksums in it, or would unpack to
    more than it is. PyTorch compresses nothing, and compares no checksum when it reads.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            compressed = next((record for record in records if record.compress_type != zipfile.ZIP_STORED), None)
            if compressed is not None:
                raise _Refused(
                    f"its record {printable(compressed.filename)} is compressed, which PyTorch never does: a bomb"
                )
            unpacked, size = sum(record.file_size for record in records), path.stat().st_size
            if unpacked > size:
                raise _Refused(f"its records claim {unpacked:,} bytes, and it has {size:,}: a bomb, or damaged")
            torn = next((record.filename for record in records if record.external_attr & FOLDER), archive.testzip())
    if torn:
        raise _Refused(
            f"it is damaged: the checksum of {printable(torn)} is not that of its content. Copy it again; if PyTorch wrote "
            "it without checksums (set_crc32_options), load and save it with PyTorch once"
        )


class _Refused(ValueError):
    """An archive that is read no further; its text is the reason."""


def _reason(path: Path, error: Exception) -> str:
    """Names what else a pickle would make; PyTorch's own text advises to read the file with its code."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, pickle.UnpicklingError):
        return str(error).partition("\n")[0] or "it is empty"
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
