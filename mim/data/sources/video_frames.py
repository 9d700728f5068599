"""VideoFrames: the times at which a video shows its frames, listed once; and the frame of a time, found by seeking.

The list is kept in a cache folder ($XDG_CACHE_HOME/mim-toolkit or ~/.cache/mim-toolkit). A video that has changed is
listed again. Times are whole numbers in the unit of the stream. Only the first video stream of a file is read.
Shapes: F frames in the order in which they are shown, K frames that need no other (key frames).
"""

import hashlib
import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mim.data.decoding.broken import BrokenImage
from mim.data.decoding.names import printable_name
from mim.data.sources.base import DAMAGED_INDEX, cache_folder
from mim.io.files import write_atomically

LOG = logging.getLogger("mim")

VERSION = 1  # of the files in the cache
LOCAL = {"protocol_whitelist": "file"}  # a file may name others, elsewhere
REMUX = "give it times by copying it into another container: ffmpeg -i OLD -c copy NEW.mp4"


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrames:
    """When a video shows its frames, and where reading may begin."""

    shown_F: np.ndarray  # int64: the time of each frame, rising
    key_shown_K: np.ndarray  # int64: that of each key frame, rising
    key_stored_K: np.ndarray  # int64: the time by which it is found in the file

    def start(self, time: int) -> int:
        """The time by which the key frame is found that is shown last before that time, or at it."""
        row = int(np.searchsorted(self.key_shown_K, time, side="right")) - 1
        return int(self.key_stored_K[max(row, 0)])


def open_video(path: Path) -> Any:
    """The video, opened for reading. Raises OSError, or another error of PyAV, where it cannot be."""
    import av

    return av.open(str(path), container_options=LOCAL)


def list_frames(path: Path) -> VideoFrames:
    """The frames of a video, from the cache where they are there already; nothing is decoded.

    Raises OSError, an error of PyAV, or BrokenImage where it is damaged or its frames have no times.
    """
    status = path.stat()
    key = [VERSION, str(path), status.st_size, status.st_mtime_ns]
    folder = cache_folder("videos")
    file = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return VideoFrames(**{field.name: arrays[field.name] for field in fields(VideoFrames)})
    except DAMAGED_INDEX:
        pass  # not there, or damaged
    LOG.info("listing the frames of %s", printable_name(path))
    frames = _listed(path)
    columns: dict[str, Any] = {field.name: getattr(frames, field.name) for field in fields(frames)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: np.savez(stream, **columns))
    except OSError as error:  # the list only saves time
        LOG.warning("the frames of %s are not kept: %s", printable_name(path), error)
    return frames


def _listed(path: Path) -> VideoFrames:
    with open_video(path) as container:
        stream = _stream(container)
        rows = [
            (packet.pts, packet.pts if packet.dts is None else packet.dts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard  # those are decoded, and not shown
        ]
        expected = stream.frames
    if any(time is None for time, *_ in rows) or len({time for time, *_ in rows}) < len(rows):
        raise BrokenImage(f"its frames have no times, by which each is found: {REMUX}")
    keys = sorted((time, stored) for time, stored, is_key in rows if is_key)
    if not keys:
        raise BrokenImage("a video without a frame")
    if expected > len(rows):  # also where some are not shown
        LOG.warning("%s: %d of %d frames are in the file", printable_name(path), len(rows), expected)
    return VideoFrames(
        np.array(sorted(time for time, *_ in rows if time >= keys[0][0]), np.int64),
        np.array([time for time, _ in keys], np.int64),
        np.array([stored for _, stored in keys], np.int64),
    )


def read_frame(path: Path, start: int, time: int) -> Any:
    """The frame of a video that is shown at a time, as PyAV gives it.

    Args:
        path: of the video.
        start: the time of the key frame before it, as `VideoFrames.start` gives it.
        time: at which it is shown.

    Raises OSError, an error of PyAV, or BrokenImage where it is not there.
    """
    for seeks in (True, False):  # a container may seek too far; then all is decoded
        with open_video(path) as container:
            stream = _stream(container)
            stream.codec_context.thread_count = 1
            if seeks:
                container.seek(start, stream=stream, backward=True, any_frame=False)
            for frame in container.decode(stream):
                if frame.pts == time and not frame.is_corrupt:
                    return frame
                if frame.pts is not None and frame.pts >= time:
                    break
    raise BrokenImage(f"its frame at {time} is damaged, or no longer there")


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise BrokenImage("a file without a video")
    return container.streams.video[0]
