"""Loaders: images a second of one core: ours and others, on the same photographs, in turns.

  pip install webdataset litdata spdl          # spdl also needs the libraries of FFmpeg
  python benchmarks/loaders.py PHOTOS [--sides NAMES] [--rounds 5] [--seconds 2]
  python benchmarks/loaders.py PHOTOS --formats png webp tiff

PHOTOS holds class folders of JPEG files, or train/ with them. All sides run in this process, bound to one core, on one
thread: a turn goes from a new iterator to its last batch of 64, and takes about --seconds. Seconds are CPU time of the
process, all of its threads together, so that other work on the machine counts little; the files are in the page cache.

Each side draws the augmentation of MAE at 224 px. Ours and spdl end with uint8, which the device normalises; `ours,
normalised` and all others with normalised floats. torchvision, webdataset and litdata decode with Pillow and run MAE's
own transform; spdl decodes, crops and resizes with FFmpeg. webdataset and litdata read the same files in 8 shards or
chunks. With --formats, the photographs are written anew by Pillow, at its defaults, and ours is compared with
torchvision.

ffcv is no side: its package is built from source, for which pip brings neither OpenCV nor libturbojpeg.
"""

import argparse
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from remote import write_chunks, write_shards
from targets import spread
from torchvision.transforms import RandomResizedCrop

from mim import load_config
from mim.data.loading.loader import batches
from mim.data.preprocess import Preprocess
from mim.lab.benchmark.contenders import training_images
from mim.lab.benchmark.loading import (
    BATCH,
    IMAGENET,
    our_batches,
    our_order,
    published_batches,
    published_images,
    published_transform,
)
from mim.lab.dryrun.task import dry_task

SIZE = (224, 224)
CHUNKS = 8
COPIES = 5  # of each photograph in shards and chunks: an epoch of some of them begins slowly
Side = Callable[[int], Iterator[int]]  # from a number of batches to the number of images in each


def ours(folder: Path, repeats: int = 1, normalised: bool = False) -> Side:
    """The training images of MAE's recipe."""
    keys = {"DATA.path": str(folder), "DATA.labels": "none", "DATA.repeats": repeats, "DATA.batch_size": BATCH}
    images = training_images(dry_task(load_config("mae/vit_base", keys)), "loaders.py")
    if not normalised:
        return lambda count: islice(our_batches(images), count)
    preprocess = Preprocess(IMAGENET["mean"], IMAGENET["std"])
    return lambda count: (
        len(preprocess(batch.images_BCHW)) for batch in islice(batches(images, our_order(images), workers=0), count)
    )


def torchvision(folder: Path) -> Side:
    """ImageFolder and DataLoader."""
    images = published_images(folder, SIZE)
    return lambda count: islice(published_batches(images), count)


def webdataset(folder: Path, shards: Path) -> Side:
    """Shards in random order, and a buffer of 200 images."""
    import webdataset as package

    write_shards(shards, contents(folder), CHUNKS)
    transform, urls = published_transform(SIZE), sorted(map(str, shards.glob("*.tar")))

    def images_of(count: int) -> Iterator[int]:
        images = package.WebDataset(urls, shardshuffle=len(urls)).repeat().shuffle(200)
        images = images.map(lambda sample: transform(open_image(sample["jpg"])))
        loader = torch.utils.data.DataLoader(images, batch_size=BATCH)
        return (len(batch) for batch in islice(loader, count))

    return images_of


def litdata(folder: Path, chunks: Path) -> Side:
    """Shuffled chunks."""
    from litdata import StreamingDataLoader, StreamingDataset

    write_chunks(chunks, contents(folder), CHUNKS)
    transform = published_transform(SIZE)

    class Images(StreamingDataset):
        """Decoded."""

        def __getitem__(self, index: object) -> torch.Tensor:
            return transform(open_image(bytes(super().__getitem__(index))))

    def images_of(count: int) -> Iterator[int]:
        loader = StreamingDataLoader(Images(str(chunks), shuffle=True), batch_size=BATCH, num_workers=0)
        return (len(batch) for batch in islice((batch for _ in repeat(0) for batch in loader), count))

    return images_of


def spdl(folder: Path) -> Side:
    """A pipeline of one thread."""
    import spdl.io as package
    from spdl.pipeline import PipelineBuilder

    files = [str(path) for path in photographs(folder)]
    package.demux_image(files[0])  # a pipeline would only log that libraries are missing

    def decode(file: str) -> object:
        packets = package.demux_image(file)
        image_HW = torch.empty(packets.height, packets.width, device="meta")
        top, left, height, width = RandomResizedCrop.get_params(image_HW, [0.2, 1.0], [3 / 4, 4 / 3])
        steps = f"crop={width}:{height}:{left}:{top}:exact=1,scale={SIZE[1]}:{SIZE[0]}:flags=bicubic"
        steps += ",hflip" if torch.rand(()) < 0.5 else ""
        graph = package.get_video_filter_desc(filter_desc=steps, pix_fmt="rgb24")
        return package.decode_packets(packets, filter_desc=graph)

    def images_of(count: int) -> Iterator[int]:
        order = (files[index] for _ in repeat(0) for index in torch.randperm(len(files)).tolist())
        builder: Any = PipelineBuilder().add_source(islice(order, count * BATCH)).pipe(decode).aggregate(BATCH)
        builder = builder.pipe(lambda frames: package.to_torch(package.convert_frames(frames))).add_sink(1)
        pipeline = builder.build(num_threads=1)
        with pipeline.auto_stop():
            yield from map(len, pipeline.get_iterator())

    return images_of


def open_image(content: bytes) -> Image.Image:
    """As torchvision's ImageFolder decodes a file."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def photographs(folder: Path) -> list[Path]:
    """All files in class folders."""
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def contents(folder: Path) -> list[bytes]:
    """What shards and chunks hold."""
    return [path.read_bytes() for path in photographs(folder)] * COPIES


def rewrite(folder: Path, target: Path, ending: str) -> Path:
    """The photographs in another format, in class folders."""
    for path in photographs(folder):
        file = target / path.parent.name / f"{path.stem}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.save(file)
    return target


def rate(side: Side, count: int) -> float:
    """Images a second of CPU time."""
    began = time.process_time()
    images = sum(side(count))
    return images / (time.process_time() - began)


def measure(sides: dict[str, Side], rounds: int, seconds: float) -> dict[str, list[float]]:
    """The images a second of each round, after one that is not counted. Each round begins with another side."""
    counts: dict[str, int] = {}
    for name, side in sides.items():
        size = next(side(1))
        counts[name] = math.ceil(rate(side, 2) * seconds / size)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in [*sides][number % len(sides) :] + [*sides][: number % len(sides)]:
            rates[name].append(rate(sides[name], counts[name]))
            print(f"{name}: {rates[name][-1]:.0f} images/s", file=sys.stderr, flush=True)
    return rates


def table(rates: dict[str, list[float]]) -> str:
    """A row for each side. Ratios are those of the rounds."""
    own = [name for name in rates if name.startswith("ours")]
    lines = ["| | images/s | " + " | ".join(f"{name} / this" for name in own) + " |", "|---|---|" + "---|" * len(own)]
    for name, values in rates.items():
        ratios = [[one / other for one, other in zip(rates[each], values, strict=True)] for each in own]
        cells = ["" if name in own else spread(each, ".2f") for each in ratios]
        lines.append(f"| {name} | {spread(values, '.0f')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare_loaders(folder: Path, names: list[str], words: argparse.Namespace, scratch: Path) -> None:
    """Prints a table of all sides that are installed."""
    makers: dict[str, Callable[[], Side]] = {
        "ours": lambda: ours(folder),
        "ours, repeats 4": lambda: ours(folder, repeats=4),
        "ours, normalised": lambda: ours(folder, normalised=True),
        "torchvision": lambda: torchvision(folder),
        "webdataset": lambda: webdataset(folder, scratch),
        "litdata": lambda: litdata(folder, scratch / "chunks"),
        "spdl": lambda: spdl(folder),
    }
    sides: dict[str, Side] = {}
    for name, make in makers.items():
        if name.partition(",")[0] in names:
            try:
                side = make()
                next(side(1))
            except (ImportError, RuntimeError) as error:  # the latter where libraries of FFmpeg are missing
                print(f"not measured: {name}: {error}")
            else:
                sides[name] = side
    installed = ", ".join(f"{name} {version(name)}" for name in ("torch", *sides) if not name.startswith("ours"))
    print(f"{len(photographs(folder)):,} photographs; {installed}; Pillow {version('pillow')}")
    print(table(measure(sides, words.rounds, words.seconds)))


def compare_formats(folder: Path, words: argparse.Namespace, scratch: Path) -> None:
    """Prints a table for each format."""
    for ending in words.formats:
        target = rewrite(folder, scratch / ending, ending)
        sides = {"ours": ours(target), "torchvision": torchvision(target)}
        print(f"\n{ending}\n\n{table(measure(sides, words.rounds, words.seconds))}", flush=True)


def main() -> None:
    """Binds itself to one core and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["ours", "torchvision", "webdataset", "litdata", "spdl"]
    parser.add_argument("photographs", type=Path, metavar="PHOTOS")
    parser.add_argument("--sides", nargs="+", choices=names, default=names)
    parser.add_argument("--formats", nargs="+", metavar="ENDING", default=[], help="instead of other loaders")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="CPU time of a turn")
    words = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    folder = words.photographs
    folder = folder / "train" if (folder / "train").is_dir() else folder
    with tempfile.TemporaryDirectory() as scratch:
        if words.formats:
            compare_formats(folder, words, Path(scratch))
        else:
            compare_loaders(folder, words.sides, words, Path(scratch))


if __name__ == "__main__":
    main()
