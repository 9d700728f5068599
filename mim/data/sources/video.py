"""Video: every nth frame of videos, each an image. Shapes: V videos, N images, C channels, H W pixels."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.names import encoded, printable_name
from mim.data.decoding.pictures import to_mode
from mim.data.decoding.selection import pick
from mim.data.settings import DataSettings
from mim.data.sources.base import Source, Split, Stored, unreachable
from mim.data.sources.held_out import by_share, check_share, hashes
from mim.data.sources.once import once
from mim.data.sources.video_frames import VideoFrames, list_frames, read_frame
from mim.io.checks import at_least

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv")
# pictures of 8 and of 16 bits by the number of their samples
FORMATS = {1: ("gray", "gray16le"), 3: ("rgb24", "rgb48le"), 4: ("rgba", "rgba64le")}


class Video(Source, name="video"):
    """Frames of videos, by the package PyAV. DATA.path is a folder, and videos are those in it and below; or one video.

    Frames are as they are stored: a rotation that a player would apply has no effect. Those of more than 8 bits are
    read as 16 bits. Frames of a video are a group, which splits keep together. A video that cannot be read counts as
    one broken image. The times of frames are listed once, and kept in the cache folder.

    Args:
        every: every nth frame of a video is an image, from its first; 1 takes all.
        val_path: held-out videos, as DATA.path.
        val_share: share of the videos that is held out where val_path is empty, from 0 to below 1. A hash of the path
            below DATA.path decides.

    Raises ValueError where there are no videos, or the package PyAV is missing.
    """

    chooses_channels = True

    def __init__(
        self, split: Split, settings: DataSettings, *, every: int = 10, val_path: str = "", val_share: float = 0.05
    ):
        super().__init__(split, settings)
        check_share(val_share)
        at_least("DATA", 1, every=every)
        self._key, value = ("DATA.val_path", val_path) if split == "val" and val_path else ("DATA.path", settings.path)
        self.root = Path(value).absolute()
        self.paths, frames_V = once((self.name, value), lambda: _videos(value, self._key))
        video_V = np.arange(len(self.paths))
        if not val_path:
            names = [os.path.relpath(path, self.root) for path in self.paths]
            video_V = by_share(hashes(map(encoded, names)), val_share, split)
            self.held_out_share = val_share
        rows = [
            (video, number, *_times(frames_V[video], number))
            for video in video_V.tolist()
            for number in range(0, _count(frames_V[video]), every)
        ]
        self._row_N4 = np.array(rows, np.int64).reshape(-1, 4)  # video, number of the frame, start and time in it
        self.groups = self._row_N4[:, 0].copy()

    def __len__(self) -> int:
        return len(self._row_N4)

    def read(self, index: int) -> Stored:
        video, _, start, time = self._row_N4[index].tolist()
        path, settings, notes = self.paths[video], self.settings, list[str]()
        try:
            os.stat(path)  # tells lost storage from damage
            if start == time == -1:
                list_frames(path)  # says what is wrong with it
            stored = _pixels(read_frame(path, start, time))
            if settings.selection.numbers:
                return pick(stored, settings.selection.numbers)
            stored = _fit(stored, settings.channels, notes)
        except BrokenImage:
            raise
        except Exception as error:  # those of PyAV have no type in common
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise BrokenImage(printable_name(f"{type(error).__name__}: {reason}")) from error
        self.say(notes, path)
        return stored

    def describe(self, index: int) -> str:
        video, number = self._row_N4[index, :2].tolist()
        return f"{printable_name(self.paths[video])} frame {number}"

    def missing(self) -> str:
        reason = unreachable(self.root)
        return reason and f"{self._key} {printable_name(self.root)}: {reason}"


def _videos(value: str, key: str) -> tuple[list[Path], list[VideoFrames | None]]:
    """The videos that the value of a key names, sorted, and the frames of each; None for one that cannot be read."""
    root = Path(value).absolute()
    if not value or not root.exists():
        missing = f"{printable_name(value)} does not exist" if value else "is empty"
        raise ValueError(f"{key} {missing}: name a folder of videos, or one of them")
    try:
        import av  # noqa: F401 - said here, and not for each video
    except ImportError as error:
        raise ValueError("DATA.name video needs the package PyAV: pip install 'mim-toolkit[video]'") from error
    files = [root] if root.is_file() else sorted(root.rglob("*"))
    paths = [path for path in files if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    if not paths:
        raise ValueError(f"{key} {printable_name(value)} holds no video: looked for {' '.join(ENDINGS)}")
    return paths, [_frames(path) for path in paths]


def _frames(path: Path) -> VideoFrames | None:
    try:
        return list_frames(path)
    except Exception:  # it is broken where it is read, and counted there
        return None


def _count(frames: VideoFrames | None) -> int:
    return 1 if frames is None else len(frames.shown_F)


def _times(frames: VideoFrames | None, number: int) -> tuple[int, int]:
    """Where reading begins for a frame, and when it is shown; -1 where the video cannot be read."""
    if frames is None:
        return -1, -1
    time = int(frames.shown_F[number])
    return frames.start(time), time


def _pixels(frame: Any) -> Stored:
    """A picture of 8 bits, or a tensor (C, H, W) of uint16 for more bits."""
    samples = frame.format.components
    kind = 1 if frame.format.name.startswith("gray") else 4 if len(samples) == 4 else 3
    deep = max(sample.bits for sample in samples) > 8
    pixels = frame.to_ndarray(format=FORMATS[kind][deep])
    if not deep:
        return Image.fromarray(pixels)
    pixels_HWC = pixels if pixels.ndim == 3 else pixels[..., None]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels_HWC, -1, 0)))


def _fit(stored: Stored, channels: int, notes: list[str]) -> Stored:
    """The frame with DATA.channels: a grey one is repeated for 3."""
    if isinstance(stored, Image.Image):
        return to_mode(stored, channels, notes)
    if len(stored) == channels:
        return stored
    if len(stored) == 1 and channels == 3:
        return stored.repeat(3, 1, 1)
    raise BrokenImage(
        f"a frame of {len(stored)} channels of more than 8 bits, and DATA.channels is {channels}: set it to that"
    )
