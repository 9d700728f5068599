"""Header: packed.json, which says what a packed folder holds."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import torch

FORMAT, VERSION = "mim-packed", 1
HEADER = "packed.json"
DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The size of a split: its images, the bytes of `<split>.images`, and whether the images have labels."""

    images: int
    bytes: int
    labelled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """packed.json."""

    store: Literal["pixels", "jpeg"]
    dtype: str  # of pixels
    channels: int
    pictures: bool  # whether reading gives 8-bit pictures; else arrays
    short_side: int  # largest shorter side in pixels; 0 for sizes as they were
    root: str  # the folder to which names are relative; empty where they are not names of files
    classes: tuple[str, ...]  # the name of each label
    splits: dict[str, Contents]  # the splits that hold images
    left_out: int  # number of images that could not be read
    size: tuple[int, int] | None = None  # height and width of all images; None for several sizes, and in old headers
    channels_from: tuple[int | str, ...] = ()  # DATA.channels_from, by which the channels were chosen; none for all

    def text(self) -> str:
        """The content of packed.json."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, folder: Path) -> "Header":
        """The header of a packed folder. Raises ValueError where there is none, or it is damaged or too new."""
        file = folder / HEADER
        if not file.is_file():
            missing = "holds no packed.json" if folder.is_dir() else "does not exist"
            raise ValueError(f"DATA.path {folder} {missing}: python tools/pack.py SOURCE OUT makes a packed data set")
        try:
            return cls.parsed(file.read_text(encoding="utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is damaged, or no packed data set of this toolkit: pack it again") from error

    @classmethod
    def parsed(cls, text: str, file: str) -> "Header":
        """The header in a packed.json. Raises ValueError, which names the file, where it is damaged or too new."""
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise KeyError("format")
            version = int(content.pop("version"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged, or no packed data set of this toolkit: pack it again") from error
        if version > VERSION:
            raise ValueError(
                f"{file} is of version {version} and this toolkit reads up to {VERSION}: update it, or pack again"
            )
        try:
            content["splits"] = {split: Contents(**contents) for split, contents in content["splits"].items()}
            if content.setdefault("size", None) is not None:
                height, width = content["size"]
                content["size"] = int(height), int(width)
            content["classes"] = tuple(content["classes"])
            content["channels_from"] = tuple(content.get("channels_from", ()))
            DTYPES[content["dtype"]]
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{file} is damaged: pack it again") from error
