"""ArrayFile: an array in an HDF5, Zarr or NumPy file, opened in each process where it is first read.

HDF5 keeps the state of a file in the memory of a process, and Zarr reads on threads of its own. So nothing open is
handed to another process: a dataloader worker opens the file again.
Shapes: N rows.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.names import printable_name
from mim.io.formatting import printable
from mim.registry import one_of

SEPARATOR = "::"  # between the path of a file and the name of an array in it
HDF5_BEGIN, HDF5_OFFSETS = b"\x89HDF\r\n\x1a\n", (0, 512, 1024, 2048)  # behind a block of the user's
NPY_BEGIN, NPZ_BEGIN = b"\x93NUMPY", b"PK"
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")  # the metadata of format 3, and of an array and a group of format 2
MOST_LISTED = 8
Open = Callable[[Path, str], Any]


class ArrayFile:
    """One array of a file. Its rows are read one by one, so that they need not fit into memory; those of .npz must.

    Attributes: path; key, the name of the array in the file, empty where the file is the array; shape; dtype; chunk,
    the shape of what is decoded at once, or None.

    Args:
        path: of the file, or of the folder of a Zarr store.
        key: the name of the array in it; empty for the only one.
        config_key: names the path in messages.

    Raises ValueError where there is no such file or array, a package is missing, or the file cannot be opened.
    """

    def __init__(self, path: Path, key: str, config_key: str):
        self.path, self._named = path.absolute(), f"{config_key} {printable_name(path)}"
        self.format = _format_of(path, self._named)
        self.key, array = self._find(key.strip("/"))
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.chunk: tuple[int, ...] | None = getattr(array, "chunks", None)
        self._marker = self.path
        if self.format == "zarr":
            folder = self.path / self.key
            self._marker = next((folder / file for file in ZARR_FILES if (folder / file).is_file()), folder)
        self._size = 0 if self.format == "zarr" else os.stat(self._marker).st_size
        self._opened: tuple[int, Any] | None = os.getpid(), array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self.shape[0]

    def row(self, index: int) -> np.ndarray:
        """A copy of one row. Raises BrokenImage where it cannot be read."""
        try:
            size = os.stat(self._marker).st_size  # Zarr gives zeros for a chunk that is not there, as on a lost mount
            if size < self._size:  # HDF5 gives zeros for what is missing, and a mapped file would end this process
                raise BrokenImage(f"the file has become shorter: {size:,} of {self._size:,} bytes")
            array = self._array()
            return np.array(array[index])
        except BrokenImage:
            raise
        except Exception as error:
            self._opened = None  # storage that comes back is opened again
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BrokenImage(printable_name(f"{type(error).__name__}: {reason}")) from error

    def whole(self) -> np.ndarray:
        """A copy of all rows. Raises BrokenImage where they cannot be read."""
        try:
            return np.array(self._array()[:])
        except Exception as error:
            raise BrokenImage(printable_name(f"{type(error).__name__}: {error}")) from error

    def name(self) -> str:
        """The path, and the name of the array in the file."""
        return printable_name(f"{self.path}{SEPARATOR}{self.key}" if self.key else self.path)

    def _array(self) -> Any:
        """The array, opened by this process; NumPy's are the same in all."""
        pid = os.getpid()
        if self._opened is None or (self._opened[0] != pid and self.format in ("hdf5", "zarr")):
            array = OPEN[self.format](self.path, self.key)
            if (tuple(array.shape), array.dtype) != (self.shape, self.dtype):
                raise BrokenImage(f"the array is now {array.dtype} {array.shape}, and was {self.dtype} {self.shape}")
            self._opened = pid, array
        return self._opened[1]

    def _find(self, key: str) -> tuple[str, Any]:
        """The name of the array, and the array."""
        if self.format in ("hdf5", "npz") and not key:
            return self._only()
        try:
            array = self._named_errors(lambda: OPEN[self.format](self.path, key))
        except KeyError:
            array = None
        if hasattr(array, "dtype"):
            return key, array
        if array is not None and not key:
            return self._only()
        what = "has no array" if array is None else "has a group, and no array,"
        names = self._named_errors(lambda: list(LIST[self.format](self.path)))
        raise ValueError(f"{self._named} {what} {printable(key)!r}: {one_of(key, names)}")

    def _only(self) -> tuple[str, Any]:
        """The name of the only array whose rows may be images, and that array."""
        arrays = self._named_errors(lambda: dict(LIST[self.format](self.path)))
        several = {name: array for name, array in arrays.items() if array.ndim in (3, 4)}
        if len(several) == 1:
            (name,) = several
            return name, self._named_errors(lambda: OPEN[self.format](self.path, name))
        listed = [f"{printable(name)} {tuple(arrays[name].shape)}" for name in [*(several or arrays)][:MOST_LISTED]]
        count = "no array" if not several else f"{len(several)} arrays"
        raise ValueError(
            f"{self._named} holds {count} of 3 or 4 axes ({', '.join(listed) or 'it is empty'}): name the array of the "
            f"images, as in {self.path.name}{SEPARATOR}NAME"
        )

    def _named_errors(self, read: Callable[[], Any]) -> Any:
        """What `read` gives. Raises ValueError, which names the file, for all of its errors but KeyError."""
        try:
            return read()
        except KeyError:
            raise
        except ImportError as error:
            raise ValueError(
                f"{self._named} is read by the package {error.name}: pip install 'mim-toolkit[{self.format}]'"
            ) from error
        except Exception as error:  # packages raise a dozen unrelated types on damaged files
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"{self._named} cannot be opened: {kind}{printable(str(error))}") from error


def split_name(value: str) -> tuple[Path, str]:
    """The path and the name of the array of `path::name`; the name is empty where there is none."""
    path, separator, key = value.rpartition(SEPARATOR)
    return (Path(path), key) if separator and not os.path.exists(value) else (Path(value), "")


def _format_of(path: Path, named: str) -> str:
    if not path.exists():
        raise ValueError(f"{named} does not exist: name an HDF5, .npy or .npz file, or the folder of a Zarr store")
    if path.is_dir():
        if any((path / file).is_file() for file in ZARR_FILES):
            return "zarr"
        raise ValueError(f"{named} is a folder and no Zarr store: it has none of {', '.join(ZARR_FILES)}")
    if not path.is_file():
        raise ValueError(f"{named} is a pipe or a device, and no file")
    with path.open("rb") as file:
        head = file.read(HDF5_OFFSETS[-1] + len(HDF5_BEGIN))
    if any(head[offset:].startswith(HDF5_BEGIN) for offset in HDF5_OFFSETS):
        return "hdf5"
    if head.startswith(NPY_BEGIN):
        return "npy"
    if head.startswith(NPZ_BEGIN):
        return "npz"
    raise ValueError(f"{named} is no HDF5, .npy or .npz file by its first bytes: it is damaged, or of another format")


def _open_hdf5(path: Path, key: str) -> Any:
    import h5py

    return h5py.File(path, "r")[key]


def _list_hdf5(path: Path) -> Mapping[str, Any]:
    import h5py

    arrays: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            arrays[name] = node

    h5py.File(path, "r").visititems(visit)
    return arrays


def _open_zarr(path: Path, key: str) -> Any:
    import zarr

    node: Any = zarr.open(path, mode="r")
    if key and not hasattr(node, "arrays"):
        raise KeyError(key)  # an array has no names in it
    if key:
        node = node[key]
    if hasattr(node, "dtype"):
        _check_codecs(node)
    return node


def _check_codecs(array: Any) -> None:
    """Raises ValueError where a codec would unpickle what is in the file, which runs code from it."""
    metadata = array.metadata.to_dict()
    codecs = [metadata.get(field) for field in ("filters", "compressor", "codecs")]
    if "pickle" in repr(codecs).lower():
        raise ValueError("it holds pickled objects, and reading those runs code that the file names")


def _list_zarr(path: Path) -> Mapping[str, Any]:
    import zarr

    arrays: dict[str, Any] = {}

    def visit(group: Any, prefix: str) -> None:
        arrays.update({prefix + name: array for name, array in group.arrays()})
        for name, inner in group.groups():
            visit(inner, f"{prefix}{name}/")

    node = zarr.open(path, mode="r")
    if hasattr(node, "arrays"):
        visit(node, "")
    return arrays


def _open_npy(path: Path, key: str) -> Any:
    if key:
        raise ValueError(f"it is one array, without a name: leave {printable(key)!r} out")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _open_npz(path: Path, key: str) -> Any:
    with _list_npz(path) as arrays:
        return arrays[key]


def _list_npz(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


OPEN: dict[str, Open] = {"hdf5": _open_hdf5, "zarr": _open_zarr, "npy": _open_npy, "npz": _open_npz}
LIST: dict[str, Callable[[Path], Any]] = {"hdf5": _list_hdf5, "zarr": _list_zarr, "npz": _list_npz}
