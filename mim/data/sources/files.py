"""Files: images that a command names, as files, folders and lists, without labels."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mim.data.decoding.images import decode, decode_reduced
from mim.data.decoding.names import printable_name
from mim.data.settings import DataSettings
from mim.data.sources.base import NeedOf, Source, Stored, none_reachable
from mim.data.sources.listing import list_images

LIST = ".txt"  # the ending of a list file


class Files(Source):
    """Each image once, in the order of the names; those of a folder, in it and below, in a fixed order.

    Args:
        named: files with an image, folders, or list files as DATA.name folder reads them.
        settings: of the images.

    Raises ValueError where a name does not exist, or a folder or list has no images.
    """

    chooses_channels = True

    def __init__(self, named: Sequence[Path], settings: DataSettings):
        super().__init__("val", settings)
        self.paths = list(dict.fromkeys(path for each in named for path in images_of(each)))
        self._was_reachable = not self._reason()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Stored:
        return decode(Path(self.paths[index]), self.settings.channels, self.say, self.settings.selection)

    def read_reduced(self, index: int, need_of: NeedOf) -> tuple[Stored, tuple[int, int]]:
        return decode_reduced(
            Path(self.paths[index]), self.settings.channels, need_of, self.say, self.settings.selection
        )

    def describe(self, index: int) -> str:
        return printable_name(self.paths[index])

    def missing(self) -> str:
        """Looks at some images, evenly spread."""
        return self._reason() if self._was_reachable else ""

    def _reason(self) -> str:
        probed, reason = none_reachable([Path(path) for path in self.paths])
        return reason and f"none of {len(probed)} images tried is there ({reason})"


def images_of(name: Path) -> Iterator[str]:
    """The images of a file, a folder or a list, named as the caller named it."""
    if not name.exists():
        raise ValueError(f"{printable_name(name)} does not exist: name images, folders of them, or a {LIST} list")
    if name.is_file() and name.suffix.lower() != LIST:
        yield str(name)
        return
    root = name.absolute()
    for path in list_images(name, "IMAGES", "none").paths():
        yield os.path.join(name, path.relative_to(root)) if name.is_dir() else str(path)
