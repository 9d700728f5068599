"""Lmdb: encoded images by key, in an LMDB file. Shapes: N images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mim.data.decoding.images import BrokenImage
from mim.data.decoding.names import encoded, printable_name
from mim.data.settings import DataSettings
from mim.data.sources.base import Split, unreachable
from mim.data.sources.encoded import EncodedSource
from mim.data.sources.held_out import by_share, check_share, hashes
from mim.data.sources.lmdb_files import DATA, LmdbFile
from mim.data.sources.names import Names
from mim.data.sources.once import once
from mim.registry import one_of

OTHERS = b"__"  # how keys begin that count or list the others, such as __len__
PICKLED = b"\x80"  # how what Python pickles begins


class Lmdb(EncodedSource, name="lmdb"):
    """Images of an LMDB file: a value is an encoded image, as a file of it would be. DATA.path is the file, or the
    folder of its `data.mdb`. Images have the order of their keys.

    Values are never unpickled, because that runs code that the file names: a pickled image counts as broken.

    Args:
        prefix: how the keys of images begin, such as `image-`; empty for all keys but those that begin with `__`.
        label_list: a text file with a key, a tab and the class of that image in each line; empty for no labels.
        val_path: a file of held-out images, as DATA.path.
        val_share: share of the images that is held out where val_path is empty, from 0 to below 1. A hash of the key
            decides.

    Raises ValueError where the file is missing or damaged, the package lmdb is, there are no such keys, or an image has
    no label.
    """

    def __init__(
        self,
        split: Split,
        settings: DataSettings,
        *,
        prefix: str = "",
        label_list: str = "",
        val_path: str = "",
        val_share: float = 0.05,
    ):
        super().__init__(split, settings)
        check_share(val_share)
        self._key, value = ("DATA.val_path", val_path) if split == "val" and val_path else ("DATA.path", settings.path)
        if not value or not Path(value).exists():
            missing = f"{printable_name(value)} does not exist" if value else "is empty"
            raise ValueError(f"{self._key} {missing}: name an LMDB file, or the folder of its {DATA}")
        self.file = LmdbFile.at(Path(value))
        self._keys = once((self.name, self.file.path, prefix), lambda: self._list(prefix))
        self._rows = np.arange(len(self._keys))
        if not val_path:
            keys = (self._keys.content(row, row + 1) for row in range(len(self._keys)))
            self._rows = by_share(hashes(keys), val_share, split)
            self.held_out_share = val_share
        if label_list:
            self.labels, self.classes = _labels(Path(label_list), [self._keys[int(row)] for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def describe(self, index: int) -> str:
        return printable_name(f"{self.file.path} key {self._keys[int(self._rows[index])]}")

    def label_origin(self) -> str:
        return "the labels of DATA.label_list"

    def missing(self) -> str:
        reason = unreachable(self.file.path)
        return reason and f"{self._key} {printable_name(self.file.path)}: {reason}"

    def _content(self, index: int) -> bytes:
        row = int(self._rows[index])
        value = self.file.value(self._keys.content(row, row + 1))
        if value.startswith(PICKLED):
            raise BrokenImage("a pickled value, which is not read, since that runs code: store the bytes of the image")
        return value

    def _list(self, prefix: str) -> Names:
        """The keys of images. Raises ValueError where there are none, or the file cannot be read."""
        path, begin = printable_name(self.file.path), encoded(prefix)
        try:
            everything = list(self.file.keys())
        except ImportError as error:
            raise ValueError(
                f"DATA.name lmdb needs the package lmdb: pip install 'mim-toolkit[{self.name}]'"
            ) from error
        except Exception as error:  # those of lmdb have no type in common with others
            raise ValueError(f"{self._key} {path} cannot be opened: {type(error).__name__}: {error}") from error
        keys = [key for key in everything if (key.startswith(begin) if prefix else not key.startswith(OTHERS))]
        if not keys:
            examples = ", ".join(printable_name(key.decode("utf-8", "surrogateescape")) for key in everything[:3])
            raise ValueError(
                f"{self._key} {path} has no image: none of its {len(everything):,} keys begins with DATA.prefix "
                f"{prefix!r}{f'; they are {examples} and so on' if examples else ''}"
            )
        return Names.of_bytes(b"".join(keys), map(len, keys))


def _labels(path: Path, keys: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each key, (N,) int64, and the names of all classes of the file, sorted."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"DATA.label_list {printable_name(path)} cannot be read as text in UTF-8: {error}") from error
    class_of: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, tab, label = line.rpartition("\t")
        if line.strip() and not (tab and key and label):
            raise ValueError(f"DATA.label_list {printable_name(path)}: line {number} has no key, tab and class")
        if tab:
            class_of[key] = label
    unknown = next((key for key in keys if key not in class_of), None)
    if unknown is not None:
        raise ValueError(f"DATA.label_list {printable_name(path)} has no key {unknown!r}: {one_of(unknown, class_of)}")
    classes = tuple(sorted(set(class_of.values())))
    number_of = {name: number for number, name in enumerate(classes)}
    return np.array([number_of[class_of[key]] for key in keys], np.int64), classes
