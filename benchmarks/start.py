"""Start: seconds from the start of a process to its first training step, for a small folder and a large one.

  python benchmarks/start.py [--images 1300000] [--folders 1000] [--rounds 3] [--workers 2] [--at DIR]

The images are hard links to a small JPEG file in each folder, in a temporary folder that is removed at the end. A start
trains MAE with a ViT of one block on 8 images of 32 px, and ends after its first step; a listing builds the data set
alone. Both are processes of their own. Seconds count from before their start, so Python's imports count; memory is the
highest resident size of the process (VmHWM), without its workers. First: without an index of the folder. Second: the
same again, after it. The names of the files are in the page cache in both, as they have just been written. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from PIL import Image

SMALL = 1_000  # images of the small folder, in 10 folders
KINDS = ("listing", "first step")
TIMES = ("first", "second")
KEYS = {
    "DATA.image_size": [32, 32],
    "DATA.batch_size": 8,
    "TRAIN.batch": 8,
    "TRAIN.precision": "fp32",
    "ENCODER.width": 32,
    "ENCODER.depth": 1,
    "ENCODER.heads": 2,
    "HEAD.width": 32,
    "HEAD.depth": 1,
    "HEAD.heads": 2,
    "EVALUATE.at_start": False,
    "EVALUATE.knn": 0,
    "LOG.every_steps": 1,
}


def write(target: Path, images: int, folders: int) -> None:
    """Class folders with as many images each; the first ones have one more where it does not divide."""
    for number in range(folders):
        folder = target / f"n{number:08d}"
        folder.mkdir(parents=True)
        first = folder / f"{folder.name}_0.JPEG"
        Image.new("RGB", (48, 40), (number % 256, 90, 30)).save(first)
        for index in range(1, images // folders + (number < images % folders)):
            os.link(first, folder / f"{folder.name}_{index}.JPEG")


def child(kind: str, folder: Path, began: float, workers: int) -> None:
    """Prints its seconds and memory, and ends."""
    import mim

    def end() -> None:
        status = Path("/proc/self/status").read_text()
        peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        print(json.dumps({"seconds": time.time() - began, "mib": peak_kib / 1024}), flush=True)

    class First(mim.Callback):
        """Ends the run after its first step, with nothing written."""

        def on_step(self, *_: object) -> None:
            end()
            raise mim.RunInterrupted("the first step is done")

    keys = {**KEYS, "DATA.path": str(folder), "DATA.workers": workers}
    if kind == "listing":
        from mim import build

        build.build_data(mim.load_config("mae/vit_base", keys))
        end()
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as output:
        mim.train("mae/vit_base", keys, output, quiet=True, callbacks=[First()])


def run(kind: str, folder: Path, workers: int) -> dict[str, float]:
    """Seconds and MiB of a process."""
    words = ["--child", kind, "--at", str(folder), "--workers", str(workers), "--began", str(time.time())]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder.parent / "cache")}
    process = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    if not process.stdout:
        raise RuntimeError(process.stderr)
    return json.loads(process.stdout)


@contextmanager
def image_folder(images: int, folders: int, at: Path | None) -> Iterator[Path]:
    """A folder with the images, for as long as it is used."""
    with tempfile.TemporaryDirectory(dir=at) as name:
        folder = Path(name) / "images"
        began = time.monotonic()
        write(folder, images, folders)
        print(f"{images:,} names written in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        yield folder


def measure(folder: Path, rounds: int, workers: int) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Seconds and MiB of each round, by kind and time."""
    from mim.data.sources.tree_index import index_files  # not above: a child imports what it needs, and no more

    results: dict[tuple[str, str], list[dict[str, float]]] = {(kind, each): [] for kind in KINDS for each in TIMES}
    for _ in range(rounds):
        for kind in KINDS:
            for file in index_files(folder):
                file.unlink(missing_ok=True)
            for each in TIMES:
                results[kind, each].append(run(kind, folder, workers))
                print(f"{kind}, {each} time: {results[kind, each][-1]}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 1_300_000), ("folders", 1_000), ("rounds", 3), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--at", type=Path, help="where the images are written")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        child(words.child, words.at, words.began, words.workers)
        return
    from targets import spread

    medians: dict[tuple[int, str, str], float] = {}
    print("| images | | time | seconds | MiB |\n|---|---|---|---|---|")
    for images, folders in ((SMALL, 10), (words.images, words.folders)):
        with image_folder(images, folders, words.at) as folder:
            for (kind, each), rounds in measure(folder, words.rounds, words.workers).items():
                seconds, mib = ([row[key] for row in rounds] for key in ("seconds", "mib"))
                medians[images, kind, each] = median(seconds)
                cells = f"{images:,} | {kind} | {each} | {spread(seconds, '.1f')} | {spread(mib, '.0f')}"
                print(f"| {cells} |", flush=True)
    for each in TIMES:
        more = medians[words.images, "first step", each] - medians[SMALL, "first step", each]
        print(f"{each} time, the first step of {words.images:,} images: {more:+.1f} s")


if __name__ == "__main__":
    main()
