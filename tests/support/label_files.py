"""Images with a table of labels, or with masks, as files; and the two splits that LABELS makes of them."""

from pathlib import Path

import numpy as np
from PIL import Image
from small_data import photograph, write_digits

from mim.data.labels.join import join_labels
from mim.data.labels.settings import LabelSettings
from mim.data.settings import DataSettings
from mim.data.sources.base import Source
from mim.data.sources.folder import Folder

NAMES = ("sky", "leaf", "petal")


def write_table(folder: Path, header: str, rows: list[str], name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    """A text file of these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return folder / name


def sources(folder: Path, val_share: float = 0.25, channels: int = 1, **keys: object) -> tuple[Source, Source]:
    """Both splits of a folder of images."""
    settings = DataSettings(path=str(folder), channels=channels)
    train, held_out = (Folder(split, settings, val_share=val_share, **keys) for split in ("train", "val"))
    return train, held_out


def join(folder: Path, val_share: float = 0.25, channels: int = 1, **keys: object) -> tuple[Source, Source]:
    """Both splits of a folder of images, with the labels of these keys of LABELS."""
    keys = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    return join_labels(*sources(folder, val_share, channels), LabelSettings(**keys))


def labels_by_name(*splits: Source) -> dict[str, object]:
    """The label of each image, by the name of its file without the ending: a class as text, or numbers."""
    labels: dict[str, object] = {}
    for source in splits:
        for index in range(len(source)):
            label = source.labels[index]
            is_class = source.label_spec.kind == "class"
            labels[Path(source.describe(index)).stem] = source.label_spec.names[label] if is_class else label.tolist()
    return labels


def write_images(folder: Path, count: int = 8) -> list[Path]:
    """Digits digit-000.png, digit-001.png, ..."""
    return write_digits(folder, count)


def write_photographs(folder: Path, count: int = 4, size: tuple[int, int] = (24, 32)) -> list[Path]:
    """RGB pictures photo-0.png, photo-1.png, ... of that height and width."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photo-{number}.png" for number in range(count)]
    for path in paths:
        photograph(*size).save(path)
    return paths


def classes_of(seed: int, size: tuple[int, int] = (24, 32), classes: int = 3) -> np.ndarray:
    """A map of classes in blocks of 8 x 8 pixels, (H, W) uint8."""
    blocks = np.random.default_rng(seed).integers(classes, size=(size[0] // 8, size[1] // 8))
    return np.kron(blocks, np.ones((8, 8))).astype(np.uint8)


def write_mask(path: Path, numbers_HW: np.ndarray) -> Path:
    """A PNG of numbers, or of colours (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers_HW).save(path)
    return path
