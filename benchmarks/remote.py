"""Remote: images a second from an HTTP server with latency: ours, webdataset and litdata, in turns.

  pip install litdata webdataset 'mim-toolkit[remote]'
  python benchmarks/remote.py [--images 600] [--shards 12] [--latency-ms 20] [--workers 2] [--rounds 5]

The server is a process on this machine (tests/support/range_server.py). All sides read the same JPEG files of 256 px,
from the same shards (ours, webdataset) or from chunks of as many images (litdata, whose HTTP downloader is this file's:
it has none), with as many loader processes, and decode them with the same function. A time goes from the construction
of the data set to the last image of an epoch. Cold: no index and no copy is there. Warm: the same again, after it. Ours
draws one permutation of all images, litdata shuffles chunks and their images, webdataset shards and a buffer of 200.
"""

import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from range_server import serving

from mim.data.decoding.images import decode
from mim.data.loading.loader import Results
from mim.data.settings import DataSettings
from mim.data.sources.webdataset import WebDataset

BATCH = 32


def jpeg(number: int, side: int) -> bytes:
    """A smooth random picture with noise; about 25 kB."""
    generator, file = np.random.default_rng(number), io.BytesIO()
    levels = generator.integers(0, 256, (12, 12, 3), np.uint8)
    rough = Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)
    noise = generator.normal(0, 6, (side, side, 3))
    Image.fromarray(np.clip(np.asarray(rough) + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_shards(folder: Path, contents: Sequence[bytes], shards: int) -> None:
    """JPEG files as tar shards, each with a label of 0."""
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(shard * len(contents) // shards, (shard + 1) * len(contents) // shards):
                for ending, data in (("jpg", contents[number]), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_chunks(folder: Path, contents: Sequence[bytes], chunks: int) -> None:
    """The same files as chunks of litdata."""
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_size=max(1, len(contents) // chunks))
    for number, content in enumerate(contents):
        writer[number] = content
    writer.done()
    writer.merge()


def decoded(content: bytes) -> torch.Tensor:
    """One pixel of an image that was decoded whole: little that has to go from process to process."""
    return torch.from_numpy(np.asarray(decode(content, 3))[:1, :1].copy())


def ours(url: str, cache: Path, shards: int, workers: int) -> Iterator[int]:
    """The number of images of each batch."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    settings = DataSettings(path=f"{url}/{{000..{shards - 1:03d}}}.tar")
    source = WebDataset("train", settings, val_share=0)

    def make(keys: list[tuple[int, int]]) -> int:
        source.prefetch([index for _, index in keys])
        return len([np.asarray(source.read(index)) for _, index in keys])

    order = torch.randperm(len(source)).split(BATCH)
    results = Results(make, [[(0, int(index)) for index in part] for part in order], workers, source, False)
    yield from results


def webdataset(url: str, cache: Path, shards: int, workers: int) -> Iterator[int]:
    """The number of images of each batch."""
    import webdataset as package

    urls = [f"{url}/{shard:03d}.tar" for shard in range(shards)]
    (cache / "webdataset").mkdir(exist_ok=True)
    shuffled = package.WebDataset(urls, shardshuffle=len(urls), cache_dir=str(cache / "webdataset")).shuffle(200)
    images = shuffled.map(lambda sample: decoded(sample["jpg"]))
    yield from map(len, DataLoader(images, batch_size=BATCH, num_workers=workers))


def litdata(url: str, cache: Path, shards: int, workers: int) -> Iterator[int]:
    """The number of images of each batch."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.downloader import Downloader, register_downloader
    from litdata.streaming.resolver import Dir

    class Http(Downloader):
        """Whole chunks."""

        def download_file(self, remote_filepath: str, local_filepath: str, *_: object) -> None:
            if not os.path.exists(local_filepath):
                partial = f"{local_filepath}.{os.getpid()}"
                urllib.request.urlretrieve(remote_filepath, partial)  # noqa: S310 - our own server
                os.replace(partial, local_filepath)

    class Images(StreamingDataset):
        """Decoded."""

        def __getitem__(self, index: object) -> torch.Tensor:
            return decoded(bytes(super().__getitem__(index)))

    register_downloader("http", Http, overwrite=True)
    (cache / "litdata").mkdir(exist_ok=True)
    images = Images(Dir(path=str(cache / "litdata"), url=f"{url}/litdata"), shuffle=True)
    yield from map(len, StreamingDataLoader(images, batch_size=BATCH, num_workers=workers))


SIDES: dict[str, Callable[..., Iterator[int]]] = {"ours": ours, "webdataset": webdataset, "litdata": litdata}


def rate(side: str, url: str, cache: Path, words: argparse.Namespace) -> float:
    """Images a second of an epoch."""
    began = time.perf_counter()
    count = sum(SIDES[side](url, cache, words.shards, words.workers))
    seconds = time.perf_counter() - began
    assert count == words.images, f"{side} gave {count} images of {words.images}"
    return count / seconds


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 600), ("shards", 12), ("side", 256), ("workers", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--latency-ms", type=float, default=20)
    words = parser.parse_args()
    rates: dict[tuple[str, str], list[float]] = {(side, state): [] for side in SIDES for state in ("cold", "warm")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "store").mkdir()
        contents = [jpeg(number, words.side) for number in range(words.images)]
        write_shards(folder / "store", contents, words.shards)
        write_chunks(folder / "store" / "litdata", contents, words.shards)
        with serving(folder / "store", "--latency-ms", str(words.latency_ms)) as url:
            for number in range(words.rounds):
                for side in [*SIDES][number % len(SIDES) :] + [*SIDES][: number % len(SIDES)]:
                    cache = folder / f"cache-{side}"
                    shutil.rmtree(cache, ignore_errors=True)
                    cache.mkdir()
                    for state in ("cold", "warm"):
                        rates[side, state].append(rate(side, url, cache, words))
                        print(f"{side}, {state}: {rates[side, state][-1]:.1f} images/s", file=sys.stderr, flush=True)
    print(f"{words.images} images in {words.shards} shards, {words.latency_ms:g} ms, {words.workers} workers")
    print("| | images/s, cold | ours / this | images/s, warm | ours / this |\n|---|---|---|---|---|")
    for side in SIDES:
        cells = []
        for state in ("cold", "warm"):
            ratios = [one / other for one, other in zip(rates["ours", state], rates[side, state], strict=True)]
            cells += [f"{median(rates[side, state]):.0f}", "" if side == "ours" else spread(ratios)]
        print(f"| {side} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
