"""Attention: the ways to compute it, in turns, at the shapes of the recipes.

  python benchmarks/attention.py [--device cpu|cuda] [--batch 128] [--rounds 9] [--precision bf16]

Times forward and backward pass together, of queries, keys, values and the learned bias where a model has one. A way
that the device, the shape or this PyTorch does not offer says why. mim.ops.attention chooses: explicit, sdpa.

Shapes: S sequences, H heads, N tokens, D width of a head.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from mim.engine.modes import kept_memory

REASON = 32  # letters of it that are shown


@dataclass(frozen=True, slots=True)
class Shape:
    """sequences: of an image, windows in Swin; biased: whether relative positions add a learned bias."""

    name: str
    sequences: int
    heads: int
    tokens: int
    width: int
    biased: bool


SHAPES = (
    Shape("MAE ViT-B, encoder", 1, 12, 50, 64, biased=False),
    Shape("MAE ViT-B, decoder", 1, 16, 197, 32, biased=False),
    Shape("SimMIM ViT-B", 1, 12, 197, 64, biased=True),
    Shape("SimMIM Swin-B, stage 1", 64, 4, 36, 32, biased=True),
    Shape("SimMIM Swin-B, stage 3", 4, 16, 36, 32, biased=True),
)


def explicit(q_SHND: Tensor, k_SHND: Tensor, v_SHND: Tensor, bias_HNN: Tensor | None) -> Tensor:
    """Two matrix products around a softmax, as timm without fused kernels."""
    scores_SHNN = (q_SHND * q_SHND.shape[-1] ** -0.5) @ k_SHND.transpose(-2, -1)
    if bias_HNN is not None:
        scores_SHNN = scores_SHNN + bias_HNN
    return scores_SHNN.softmax(dim=-1) @ v_SHND


def sdpa(backend: SDPBackend | None) -> Callable[..., Tensor]:
    """PyTorch's scaled_dot_product_attention, with one of its kernels or with its own choice."""

    def attend(q_SHND: Tensor, k_SHND: Tensor, v_SHND: Tensor, bias_HNN: Tensor | None) -> Tensor:
        bias_1HNN = None if bias_HNN is None else bias_HNN[None]
        with nullcontext() if backend is None else sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q_SHND, k_SHND, v_SHND, attn_mask=bias_1HNN)

    return attend


def flex(q_SHND: Tensor, k_SHND: Tensor, v_SHND: Tensor, bias_HNN: Tensor | None) -> Tensor:
    """A kernel that torch.compile writes, with the bias inside."""
    if q_SHND.device.type == "cpu":
        raise RuntimeError("no backward pass on a CPU")

    def add_bias(score: Tensor, s: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert bias_HNN is not None
        return score + bias_HNN[head, query, key]

    return COMPILED_FLEX(q_SHND, k_SHND, v_SHND, score_mod=None if bias_HNN is None else add_bias)


COMPILED_FLEX = torch.compile(flex_attention)
WAYS: dict[str, Callable[..., Tensor]] = {
    "explicit": explicit,
    "explicit, compiled": torch.compile(explicit),
    "sdpa": sdpa(None),
    "sdpa, flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa, memory-efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa, cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
    "flex": flex,
}


class Pass:
    """Forward and backward pass of one way at one shape."""

    def __init__(self, way: Callable[..., Tensor], shape: Shape, batch: int, dtype: torch.dtype, device: torch.device):
        generator = torch.Generator(device).manual_seed(0)
        sequences = batch * shape.sequences

        def draw(*sides: int) -> Tensor:
            return torch.randn(sides, generator=generator, device=device).to(dtype)

        tokens_SN3HD = draw(sequences, shape.tokens, 3, shape.heads, shape.width)  # as a model's layer gives them
        self.inputs = [part.detach().requires_grad_() for part in tokens_SN3HD.permute(2, 0, 3, 1, 4)]
        bias_HNN = draw(shape.heads, shape.tokens, shape.tokens).requires_grad_() if shape.biased else None
        self.inputs += [] if bias_HNN is None else [bias_HNN]
        self.way, self.bias_HNN = way, bias_HNN
        self.gradient_SHND = draw(sequences, shape.heads, shape.tokens, shape.width)
        self.device = device

    def seconds(self) -> float:
        """What one takes."""
        self._wait()
        start = time.perf_counter()
        found = self.way(*self.inputs[:3], self.bias_HNN)
        torch.autograd.grad(found, self.inputs, self.gradient_SHND)
        self._wait()
        return time.perf_counter() - start

    def error(self) -> float:
        """The largest difference from the same in float32, as a share of its largest value."""
        with torch.no_grad():
            found = self.way(*self.inputs[:3], self.bias_HNN).float()
        exact = explicit(*(part.detach().float() for part in self.inputs[:3]), _float(self.bias_HNN))
        return float((found - exact).abs().max() / exact.abs().max())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _float(bias_HNN: Tensor | None) -> Tensor | None:
    return None if bias_HNN is None else bias_HNN.detach().float()


def compare(
    shape: Shape, batch: int, rounds: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[tuple[str, ...]], dict[str, list[str]]]:
    """A row a way: its name, ms, the ratio to explicit with its spread, the error. And ways by why they failed."""
    passes: dict[str, Pass] = {}
    refused: dict[str, list[str]] = {}
    for name, way in WAYS.items():
        made = Pass(way, shape, batch, dtype, device)
        try:
            with warnings.catch_warnings(action="ignore"):  # each kernel that is refused says so at length
                made.seconds()
                made.seconds()
        except RuntimeError as error:
            refused.setdefault(str(error).splitlines()[0].rstrip(".")[:REASON], []).append(name)
        else:
            passes[name] = made
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, made in passes.items():
            times[name].append(made.seconds())
    rows = []
    for name, own in times.items():
        ratios = [base / other for base, other in zip(times["explicit"], own, strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((name, f"{1000 * median(own):.3g}", spread, f"{passes[name].error():.1e}"))
    return rows, refused


def main() -> None:
    """Prints a table a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images; default: 16 on a CPU, else 128")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=["bf16", "fp16", "fp32"], default="bf16")
    args = parser.parse_args()
    device = torch.device(args.device)
    batch = args.batch or (16 if device.type == "cpu" else 128)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[args.precision]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console = Console()
    console.print(
        f"{where}, PyTorch {torch.__version__}, batch {batch}, {args.precision}, medians of {args.rounds} rounds"
    )
    for shape in SHAPES:
        sides = f"{batch * shape.sequences:,} x {shape.heads} heads x {shape.tokens} tokens x {shape.width}"
        console.print(f"\n[bold]{shape.name}[/]: {sides}{', biased' * shape.biased}", highlight=False)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for head in ("", "ms", "times as fast as explicit", "error"):
            table.add_column(head, justify="right" if head else "left")
        with kept_memory(device):  # as in training
            rows, refused = compare(shape, batch, args.rounds, dtype, device)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for reason, names in refused.items():
            console.print(f"  not here: {'; '.join(names)}: {reason}", highlight=False)


if __name__ == "__main__":
    main()
