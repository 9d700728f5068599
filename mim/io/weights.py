"""Files of weights, read without running code from them."""

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

# Buffers that a model computes when it is built; only some releases of timm store them.
DERIVED_BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")
CHECKPOINT_FORMAT = "mim-toolkit checkpoint 1"  # marks a checkpoint of this toolkit
CLASSES = "classes"  # the key of a checkpoint that holds the names of classes, or of columns of numbers, since 0.2.0
LABEL_KIND = "label_kind"  # key of a checkpoint: LabelSpec.kind of what it predicts; class where it is missing
TEACHERS = "teachers"  # key of a checkpoint: SHA-256 of the files of fixed networks that a target uses, by path
ZIP = b"PK\x03\x04"  # the first bytes of what PyTorch writes since 1.6
FOLDER = 0x10  # an attribute of a zip record; PyTorch does not read such a record
LINEAR_LAYER, NORM = re.compile(r"(module\.)?heads\.(\d+)\."), re.compile(r"(module\.)?norm\.")  # before 0.2.0
# Classes that old training scripts stored with the weights, and how they are read. No other class of a pickle is.
SAFE_CLASSES: list[Any] = [
    argparse.Namespace,
    (collections.OrderedDict, "yacs.config.CfgNode"),  # PyTorch refuses to read CfgNode itself
    *((pathlib.PurePosixPath, f"pathlib.{path}") for path in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *((pathlib.PurePosixPath, f"pathlib._local.{path}") for path in ("PosixPath", "WindowsPath", "PurePosixPath")),
]


def read_weights(path: Path, role: str, lazy: bool = False) -> Any:
    """The content of a PyTorch file, on the CPU: tensors and plain values.

    lazy: tensors are read when they are used, and their checksums are not compared.

    Raises ValueError, calling the file by its `role`, where it is missing or damaged, or holds anything else.
    """
    _check_file(path, role)
    try:
        is_archive = _check_archive(path, checksums=not lazy)
    except (_Refused, OSError) as error:
        raise ValueError(f"{role} {path} cannot be read: {_reason(path, error)}") from error
    except Exception as error:  # zipfile raises many unrelated types on a damaged archive
        raise ValueError(f"{role} {path} cannot be read: it is incomplete or damaged ({error})") from error
    with torch.serialization.safe_globals(SAFE_CLASSES):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy and is_archive)
        except Exception as error:  # PyTorch raises many unrelated types on files that are not a checkpoint
            raise ValueError(f"{role} {path} cannot be read: {_reason(path, error)}") from error


def read_safetensors(path: Path, role: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights of a .safetensors file, on the CPU, and the metadata in its header.

    Raises ValueError, calling the file by its `role`, where it is missing or damaged.
    """
    _check_file(path, role)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # from safetensors, or from PyTorch for an unknown type or shape
        raise ValueError(f"{role} {path} cannot be read: {error}") from error


def stored_classes(names: Any, count: int) -> tuple[str, ...]:
    """The names of a classifier's classes as a file holds them; empty where they are not `count` texts."""
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list and len(names) == count else ()


def check_weights(weights: Mapping[str, torch.Tensor], size: int) -> None:
    """Raises ValueError, naming the weight, for one that is not dense or has more bytes than its file.

    `size`: bytes of the file, or of all files of a folder.
    """
    total = 0  # a tensor that repeats its numbers, as after `expand`, costs nothing until a copy fills the memory
    for name, weight in weights.items():
        if layout := _unusual_layout(weight):
            raise ValueError(
                f"{printable(name)} is {layout}: weights must be dense tensors, with their values in the file"
            )
        nbytes = weight.numel() * weight.element_size()
        total += nbytes
        if nbytes > max(size, REPEATED) or total > max(SHARED * size, REPEATED):
            raise ValueError(
                f"{printable(name)} has {'x'.join(map(str, weight.shape)) or 'one'} numbers, {total:,} bytes with "
                f"those before it, and the file has {size:,}: it repeats its values"
            )


def _unusual_layout(weight: torch.Tensor) -> str:
    """How a tensor differs from a dense one on the CPU; empty where it does not."""
    if weight.is_nested or weight.layout != torch.strided:
        return "a nested tensor" if weight.is_nested else f"a sparse tensor ({weight.layout})"
    if weight.is_quantized:
        return "a quantised tensor"
    if weight.device.type != "cpu":
        return f"a tensor without values (on the device {weight.device})"
    return ""


def rename_classifier(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict, or values by name of a parameter, with today's names of a classifier's weights.

    Before 0.2.0 one norm stood ahead of all linear layers: `norm.weight` is now `readouts.0.norm.weight`, and
    `heads.0.weight` is `readouts.0.linear.weight`.
    """
    names = [name for name in state if isinstance(name, str)]  # not the numbers that 0.1.0 gave parameters
    numbers = sorted({match[2] for name in names if (match := LINEAR_LAYER.match(name))})
    if not numbers:
        return dict(state)
    renamed: dict[str, Any] = {}
    for name, value in state.items():
        if match := LINEAR_LAYER.match(name):
            renamed[f"{match[1] or ''}readouts.{match[2]}.linear.{name[match.end() :]}"] = value
        elif match := NORM.match(name):
            renamed |= {f"{match[1] or ''}readouts.{number}.norm.{name[match.end() :]}": value for number in numbers}
        else:
            renamed[name] = value
    return renamed


def depth_of(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """The number of numbered modules under a prefix in a state dict."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _check_file(path: Path, role: str) -> None:
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, a link to itself
        raise ValueError(f"{role} {printable(str(path))} cannot be read: {error.strerror}") from error
    if not is_file:
        raise ValueError(f"{role} {printable(str(path))} does not exist")


def _check_archive(path: Path, checksums: bool) -> bool:
    """Whether a file is a zip archive, which PyTorch writes since 1.6.

    Raises _Refused for one with a wrong checksum, which PyTorch does not compare, or a compressed one.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return False
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            compressed = next((record for record in records if record.compress_type != zipfile.ZIP_STORED), None)
            if compressed is not None:
                raise _Refused(f"its record {printable(compressed.filename)} is compressed, which PyTorch never does")
            unpacked, size = sum(record.file_size for record in records), path.stat().st_size
            if unpacked > size:
                raise _Refused(f"its records have {unpacked:,} bytes, and the file has {size:,}: it is damaged")
            damaged = next((record.filename for record in records if record.external_attr & FOLDER), None)
            damaged = damaged or (archive.testzip() if checksums else None)
    if damaged:
        raise _Refused(
            f"it is damaged: the checksum of {printable(damaged)} does not match its content. Copy it again; if "
            "PyTorch wrote it without checksums (set_crc32_options), load and save it with PyTorch once"
        )
    return True


class _Refused(ValueError):
    """An archive that is not read; its text is the reason."""


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read; PyTorch's own message advises to run the code in it."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, pickle.UnpicklingError):
        return str(error).partition("\n")[0] or "it is empty"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it cannot read PyTorch's old format, whose reader names the first class that it met
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not names:
            return "it is damaged, or not a PyTorch file"
    if not names:
        return "it is damaged, or holds more than tensors and plain values"
    return (
        f"besides tensors it holds {', '.join(sorted(names))}, which could run code. It was refused and nothing "
        "was run; where you trust its source, save only its weights in a new file"
    )
