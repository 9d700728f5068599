"""Targets: what each adds to a training step of MAE with a ViT-S/16, in turns with pixels.

  python benchmarks/targets.py [NAMES] [--rounds 6] [--batch 8] [--threads 1]

A step is mask, encoder, head, target, loss, backward pass, fused AdamW and the target's own update, in fp32 on random
images of 224 px. A round runs each side twice, in an order that changes. Memory is the highest of a process of its own
that takes three steps, less that with pixels. The last two lines compare the teacher's forward pass with timm's own
`forward_features` of the same file, and a mask of eight on one follower with one mask on it.

Shapes: B batch, C channels, H W pixels.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mim import build, load_config
from mim.ops.attention import choose_attention

VIT = "vit_small_patch16_224"
CPU = torch.device("cpu")
MAE = {
    "ENCODER.width": 384,
    "ENCODER.depth": 12,
    "ENCODER.heads": 6,
    "DATA.mean": [0.5, 0.5, 0.5],
    "DATA.std": [0.5, 0.5, 0.5],
    "TARGET": [{"name": "pixels", "normalize": "patch"}],
}
FOLLOWER = {"name": "follower", "layers": 8, "layer_norm": "instance"}
TARGETS: dict[str, dict[str, object]] = {
    "pixels": {},
    "lowpass": {"TARGET": [{"name": "lowpass", "normalize": "patch"}]},
    "hog": {"TARGET": [{"name": "hog"}]},
    "fourier": {"TARGET": [{"name": "pixels", "normalize": "patch"}, {"name": "fourier", "weight": 0.5}]},
    "teacher": {"TARGET": [{"name": "teacher", "model": VIT, "checkpoint": "FILE"}]},
    "follower": {"TARGET": [FOLLOWER]},
    "clusters": {"TARGET": [{"name": "clusters", "clusters": 4096}], "LOSS.name": "cross_entropy"},
    "follower_8_masks": {"TARGET": [FOLLOWER], "DATA.masks": 8},
}


class Side:
    """The model of MAE with a target, and its optimizer."""

    def __init__(self, name: str, file: Path):
        keys = {**MAE, **TARGETS[name]}
        for target in keys["TARGET"]:  # type: ignore[attr-defined]
            if "checkpoint" in target:
                keys["TARGET"] = [{**target, "checkpoint": str(file)}]
        cfg = load_config("mae/vit_base", keys)
        self.masks, self.model = cfg.DATA.masks, build.build_model(cfg).train()
        choose_attention(self.model, CPU)
        self.generator = torch.Generator().manual_seed(0)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step(self, img_BCHW: Tensor) -> float:
        """Seconds of one step."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        mask = self.model.masker.sample(len(img_BCHW) * self.masks, self.generator, CPU)
        self.model(img_BCHW, mask).loss.backward()
        self.optimizer.step()
        self.model.target.after_step(self.model.encoder, 0.5)
        return time.perf_counter() - begin


def compare(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the first side less those of the second in each round, and their ratio."""
    first(), second()
    differences, ratios = [], []
    for number in range(rounds):
        order = (first, second, second, first) if number % 2 else (second, first, first, second)
        times = [(side, side()) for side in order]
        ours, theirs = (sum(s for side, s in times if side is each) / 2 for each in (first, second))
        differences.append(ours - theirs)
        ratios.append(ours / theirs)
    return differences, ratios


def spread(values: list[float], form: str) -> str:
    """The median, and the range over rounds."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def peak_mib(name: str, batch: int, file: Path) -> float:
    """The highest resident memory of a process that takes three steps, in MiB."""
    command = [sys.executable, __file__, "--memory-of", name, "--batch", str(batch), "--file", str(file)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Compares each target with pixels, then the teacher with timm, and eight masks with one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    img_BCHW = torch.randn(args.batch, 3, 224, 224)
    if args.memory_of:
        side = Side(args.memory_of, args.file)
        for _ in range(3):
            side.step(img_BCHW)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "teacher.safetensors"
        network = timm.create_model(VIT, num_classes=0).eval()
        save_file(network.state_dict(), file)
        compare_targets(args.names or list(TARGETS), args.rounds, img_BCHW, file)
        compare_teacher(network, args.rounds, img_BCHW, file)
        compare_masks(args.rounds, img_BCHW, file)


def compare_targets(names: list[str], rounds: int, img_BCHW: Tensor, file: Path) -> None:
    """Prints a line for each target."""
    # before this process is large itself: a child begins with the highest memory of its parent
    memory = {name: peak_mib(name, len(img_BCHW), file) for name in dict.fromkeys(["pixels", *names])}
    pixels = Side("pixels", file)
    for name in names:
        if name != "pixels":
            side = Side(name, file)
            differences, ratios = compare(lambda s=side: s.step(img_BCHW), lambda: pixels.step(img_BCHW), rounds)
            more = memory[name] - memory["pixels"]
            added = spread([1000 * each for each in differences], ".0f")
            print(f"{name:<17} + {added} ms a step, {spread(ratios, '.2f')} of pixels, {more:+.0f} MiB", flush=True)


@torch.no_grad()
def compare_teacher(network: nn.Module, rounds: int, img_BCHW: Tensor, file: Path) -> None:
    """Prints the time of the teacher's target as a share of timm's forward pass."""
    teacher = Side("teacher", file).model.target

    def seconds(run: Callable[[Tensor], object]) -> float:
        begin = time.perf_counter()
        run(img_BCHW)
        return time.perf_counter() - begin

    ratios = compare(lambda: seconds(teacher), lambda: seconds(network.forward_features), rounds)[1]  # type: ignore[arg-type]
    print(f"teacher, of timm's forward pass: {spread(ratios, '.2f')}", flush=True)


def compare_masks(rounds: int, img_BCHW: Tensor, file: Path) -> None:
    """Prints the time of one mask of eight as a share of a step with one mask."""
    eight, one = Side("follower_8_masks", file), Side("follower", file)
    ratios = compare(lambda: eight.step(img_BCHW) / 8, lambda: one.step(img_BCHW), rounds)[1]
    print(f"follower, a mask of eight, of a step with one: {spread(ratios, '.2f')}", flush=True)


if __name__ == "__main__":
    main()
