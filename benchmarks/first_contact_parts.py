"""Steps of first_contact.py that are no command of their own: the machine, CIFAR-10, and the loader.

python benchmarks/first_contact_parts.py environment|cifar10|loader --scratch DIR [--figures FILE] [--tiny] ...
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from first_contact_cifar10 import train_cifar10

ROOT = Path(__file__).resolve().parents[1]
PICTURES, TINY_PICTURES = 1024, 16  # made for the loader, where none are given
KINDS = 16  # different ones among them
TINY_LOADER = {"DATA.image_size": "[32, 32]", "ENCODER.patch": "8", "ENCODER.width": "16", "ENCODER.depth": "1"}
TINY_LOADER |= {"ENCODER.heads": "2", "MASKER.cell": "8", "HEAD.width": "16", "HEAD.depth": "1", "HEAD.heads": "2"}


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """The machine, its versions, and how fast its matrix products and its memory are."""
    import torch

    from mim.engine.distributed.world import device_of
    from mim.engine.precision import DTYPES
    from mim.engine.settings import DistributedSettings
    from mim.lab.benchmark.ceiling import Ceiling
    from mim.lab.benchmark.machine import Machine

    device = device_of(DistributedSettings())
    figures: dict[str, Any] = {"machine": Machine.here(device).describe(), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures["memory_gib"] = round(properties.total_memory / 2**30, 1)
        figures["capability"] = f"{properties.major}.{properties.minor}"
        figures["cudnn"], figures["nccl"] = torch.backends.cudnn.version(), list(torch.cuda.nccl.version())
    print(figures, flush=True)
    for name in () if args.tiny else ("bf16", "fp16", "fp32"):
        ceiling = Ceiling(DTYPES[name], device)
        ceiling.measure()
        figures[f"{name}_tflops"] = round(ceiling.best.flops / 1e12, 1)
    figures["copy_gb_per_s"] = round(_copy_rate(device, 2**20 if args.tiny else 2**30), 1)
    print(figures, flush=True)
    return figures


def _copy_rate(device: Any, size: int) -> float:
    """GB/s of a copy of this many bytes within the memory of the device, read and written."""
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * size / min(seconds) / 1e9


def loader(args: argparse.Namespace) -> dict[str, Any]:
    """The loader alone, against torchvision, and a training step on real images: how long does it wait for them?"""
    args.scratch.mkdir(parents=True, exist_ok=True)
    photos = args.photos or pictures(args.scratch / "photos", args.tiny)
    workers, batch = (1, 4) if args.tiny else (max((os.cpu_count() or 2) - 1, 1), 256)
    keys = {"DATA.path": photos, "DATA.val_share": 0.1, "DATA.workers": workers, "DATA.batch_size": batch}
    keys |= TINY_LOADER if args.tiny else {}
    few = ["--rounds", "1", "--steps", "2"] if args.tiny else ["--rounds", "2"]
    figures: dict[str, Any] = {"workers": workers}
    for name, flags in {"alone": ["--data"], "training": ["--real", "--no-compile"]}.items():
        result = args.scratch / f"{name}.json"
        words = ["--config", "configs/mae/vit_base.yaml", *flags, *few, "--no-write", "--json", result]
        pairs = [str(word) for pair in keys.items() for word in pair]
        subprocess.run([sys.executable, "tools/benchmark.py", *words, *pairs], cwd=ROOT, check=True)
        figures[name] = json.loads(result.read_text(encoding="utf-8"))
        write(args.figures, figures)
    ours = figures["training"]["batches"][0]["contenders"]["ours"]
    figures["waiting"] = ours["phases_s"]["batch"] / ours["step_s"]
    return figures


def pictures(folder: Path, tiny: bool) -> Path:
    """A folder of JPEG pictures of about the size of ImageNet's, in two class folders."""
    from PIL import Image, ImageFilter

    size = (48, 40) if tiny else (500, 375)
    for kind in range(KINDS):
        bands = [Image.effect_noise((size[0] // 4, size[1] // 4), 20 + 5 * kind).resize(size) for _ in range(3)]
        picture = Image.merge("RGB", bands).filter(ImageFilter.GaussianBlur(1))
        for number in range(kind, TINY_PICTURES if tiny else PICTURES, KINDS):
            path = folder / f"class{kind % 2}" / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=90)
    return folder


def cifar10(args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on CIFAR-10 after the seconds that there are."""
    return train_cifar10(args.data, args.scratch, args.seconds, args.tiny, lambda figures: write(args.figures, figures))


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Figures as JSON."""
    if path is not None:
        path.write_text(json.dumps(figures), encoding="utf-8")


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["environment", "cifar10", "loader"])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--photos", type=Path)
    args = parser.parse_args()
    write(args.figures, {"environment": environment, "cifar10": cifar10, "loader": loader}[args.part](args))


if __name__ == "__main__":
    main()
