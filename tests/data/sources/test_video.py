"""Video: each frame that is read by seeking is the one that decoding the whole video gives, to the bit."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import TINY, call, losses
from small_data import logged, photograph

from mim.data.decoding.images import BrokenImage
from mim.data.loading.dataset import ImageDataset
from mim.data.loading.loader import batches
from mim.data.settings import DataSettings
from mim.data.sources.video import Video
from mim.data.transforms import AugmentSettings, RandomCropFlip

av = pytest.importorskip("av")

HEIGHT, WIDTH, GROUP = 48, 64, 12
KINDS = {  # codec, options of it, and frames between two others that need both
    "a.mp4": ("libx264", {"x264-params": "open-gop=1"}, 3),
    "b.mkv": ("libx264", {}, 2),
    "c.avi": ("mpeg4", {}, 2),
    "d.webm": ("libvpx-vp9", {"cpu-used": "8"}, 0),
    "e.mpg": ("mpeg2video", {}, 2),
    "f.m2ts": ("libx264", {}, 2),
    "g.mov": ("mjpeg", {}, 0),
    "h.mkv": ("ffv1", {}, 0),
}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(path: Path, count: int = 40, pixels: str = "yuv420p", kind: str = "") -> Path:
    """A photograph that moves by 3 pixels a frame."""
    codec, options, between = KINDS[kind or path.name]
    picture = np.asarray(photograph(HEIGHT, WIDTH))
    path.parent.mkdir(exist_ok=True, parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = GROUP, between
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, 1).copy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path, form: str = "rgb24") -> list[np.ndarray]:
    """All frames, one after the other."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format=form) for frame in container.decode(video=0)]


def source(path: object, split: str = "train", channels: int = 3, **keys: object) -> Video:
    return Video(split, DataSettings(path=str(path), channels=channels), **{"val_share": 0, "every": 1, **keys})


@pytest.mark.parametrize("name", KINDS)
def test_video_frames_are_those_of_decoding_it_all(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, pixels="yuvj420p" if name == "g.mov" else "yuv420p")
    expected = decoded(path)
    assert len({frame.tobytes() for frame in expected}) == 40
    images = source(path)
    assert len(images) == 40
    for number in np.random.default_rng(0).permutation(40).tolist():
        assert np.array_equal(np.asarray(images.read(number)), expected[number]), number
    third = source(path, every=3)
    assert len(third) == 14
    assert third.describe(13) == f"{path} frame 39"
    assert np.array_equal(np.asarray(third.read(9)), expected[27])


def test_video_reading_begins_at_the_key_frame_before(tmp_path: Path) -> None:
    path = write(tmp_path / "b.mkv", 120)
    expected, images, content = decoded(path), source(path), bytearray(path.read_bytes())
    start = int(len(content) * 0.1)
    content[start : 4 * start] = bytes(3 * start)
    path.write_bytes(content)
    for number in (100, 119, 90):
        assert np.array_equal(np.asarray(images.read(number)), expected[number])
    with pytest.raises(BrokenImage):
        images.read(30)


def test_video_of_ten_bits_and_grey_levels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", 5, "yuv420p10le", "b.mkv")
    image = source(path).read(3)
    assert image.dtype == torch.uint16
    assert np.array_equal(image.numpy(), np.moveaxis(decoded(path, "rgb48le")[3], -1, 0))
    assert image.float().max() > 255
    with pytest.raises(BrokenImage, match=r"a frame of 3 channels .* DATA\.channels is 1"):
        source(path, channels=1).read(0)
    grey = write(tmp_path / "h.mkv", 5, "gray")
    image = source(grey, channels=1).read(2)
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), decoded(grey, "gray")[2])
    assert np.array_equal(np.asarray(source(grey).read(2))[..., 1], np.asarray(image))
    colours = write(tmp_path / "c.avi", 5)
    said = source(colours, channels=1)
    with logged() as lines:
        assert said.read(0).mode == "L"
    assert "its colours become one grey level" in lines[-1]
    settings = DataSettings(path=str(colours), channels=2, channels_from=(2, 0))
    image = Video("train", settings, every=1, val_share=0).read(1)
    assert np.array_equal(image.numpy(), np.moveaxis(decoded(colours)[1], -1, 0)[[2, 0]])


def test_videos_are_held_out_as_a_whole(tmp_path: Path) -> None:
    first = write(tmp_path / "all" / "0" / "c.avi", 21)
    for number in range(1, 30):
        other = tmp_path / "all" / str(number) / "c.avi"
        other.parent.mkdir()
        other.write_bytes(first.read_bytes())
    (tmp_path / "all" / "notes.txt").write_text("no video")
    train, val = (source(tmp_path / "all", split, val_share=0.2, every=10) for split in ("train", "val"))
    names = [{images.describe(index).split(" ")[0] for index in range(len(images))} for images in (train, val)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 30
    assert len(train) + len(val) == 30 * 3
    assert len(np.unique(val.groups)) == len(names[1]) > 0
    assert len(source(tmp_path / "all", "val", val_path=str(first), every=10)) == 3


def test_video_frames_are_listed_once(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "b.mkv", 20)
    assert len(source(path)) == 20
    (file,) = (cache / "mim-toolkit" / "videos").iterdir()
    written = file.stat().st_mtime_ns
    assert len(source(path, every=5)) == 4
    assert file.stat().st_mtime_ns == written
    write(path, 30)
    assert len(source(path)) == 30
    file.write_bytes(b"damaged")
    assert len(source(path)) == 30


def test_damaged_videos_are_broken_images(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "b.mkv", 20)
    whole = write(folder / "a.mp4", 20).read_bytes()
    (folder / "a.mp4").write_bytes(whole[: len(whole) // 2])  # its list of frames was at its end
    (folder / "c.avi").write_bytes(b"junk" * 300)
    images = source(folder)
    assert len(images) == 1 + 20 + 1
    for index in (0, 21):
        with pytest.raises(BrokenImage, match="Invalid data"):
            images.read(index)
    assert isinstance(images.read(7), Image.Image)
    folder.rename(tmp_path / "away")
    with pytest.raises(BrokenImage) as caught:
        images.read(7)
    assert images.missing() == f"DATA.path {folder}: No such file or directory"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno


def test_video_that_breaks_off_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "b.mkv", 40)
    expected, content = decoded(path), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    images = source(path)
    assert 5 < len(images) < 40
    for index in range(len(images)):
        try:
            image = np.asarray(images.read(index))
        except BrokenImage:
            assert index > len(images) - 5
        else:
            assert np.array_equal(image, expected[index]) or index > len(images) - 3


def test_video_without_times_is_broken_and_says_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.mpg"
    write(tmp_path / "raw.h264", 10, kind="b.mkv").rename(path)
    images = source(path)
    assert len(images) == 1
    with pytest.raises(BrokenImage, match=r"its frames have no times, .*: ffmpeg -i OLD -c copy"):
        images.read(0)


def test_video_names_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for path, text in (("", "DATA.path is empty"), (tmp_path / "x", "does not exist"), (tmp_path, "holds no video")):
        with pytest.raises(ValueError, match=text):
            source(path)
    with pytest.raises(ValueError, match=r"DATA\.every is 0"):
        source(tmp_path, every=0)


def test_video_without_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'mim-toolkit\[video\]'"):
        source(tmp_path)


def test_video_copies_and_workers_read_the_same(tmp_path: Path) -> None:
    images = source(write(tmp_path / "b.mkv", 20))
    assert pickle.loads(pickle.dumps(images)).read(5) == images.read(5)
    crops = ImageDataset(images, RandomCropFlip(AugmentSettings(), (16, 16)), 0)
    order = [[(0, 3), (0, 11)], [(1, 5), (1, 0)], [(2, 1), (2, 7)]]
    alone, helped = (list(batches(crops, order, workers, False)) for workers in (0, 2))
    assert all(torch.equal(*(batch.images_BCHW for batch in pair)) for pair in zip(alone, helped, strict=True))


@pytest.mark.slow
def test_video_pretrains_with_workers(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "videos" / str(number) / "b.mkv", 24)
    curves = []
    for workers in (0, 2):
        keys = {"DATA.name": "video", "DATA.path": tmp_path / "videos", "DATA.batch_size": 8, "TRAIN.batch": 8}
        keys |= {"DATA.workers": workers, "DATA.every": 2, "DATA.val_share": 0}
        code, text = call(tmp_path / f"run{workers}", {**TINY, **keys})
        assert code == 0, text
        curves.append(losses(tmp_path / f"run{workers}"))
    assert curves[0] == curves[1]
    assert curves[0]
