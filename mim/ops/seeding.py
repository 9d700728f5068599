"""Everything random is a pure function of its position in a run: a seed derived from SEED and the position's numbers.

Shapes: B samples, N positions.
"""

import math
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """A seed in [0, 2**63) for one purpose at one position, as in `derive_seed(seed, "mask", step)`."""
    # numpy's SeedSequence gives unrelated streams to neighbouring positions
    entropy = [seed, zlib.crc32(purpose.encode()), len(position), *position]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(device: torch.device, seed: int, purpose: str, *position: int) -> torch.Generator:
    """A generator on `device`, seeded for one purpose at one position. CPU and GPU draw different numbers."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *position))


def scores(draw_B: Tensor, count: int) -> Tensor:
    """Pseudo-random numbers in [0, 2**32), (B, count) int64, for choices in code that cannot draw.

    Each is a function of the sample's `draw_B`, int64 in [0, 2**31), and of its position. No two of a sample are equal.
    """
    # 32-bit shifts and multiplications in 64 bits never overflow, so every device and compiled graph gives the same
    mixed_BN = draw_B[:, None] ^ torch.arange(count, device=draw_B.device)
    for _ in range(2):
        mixed_BN = (((mixed_BN >> 16) ^ mixed_BN) * 0x45D9F3B) & 0xFFFFFFFF
    return (mixed_BN >> 16) ^ mixed_BN


def normals(draw_B: Tensor, count: int) -> Tensor:
    """Pseudo-random numbers with a normal distribution of variance 1, (B, count) float32, from `scores`."""
    # 23 bits and a half: neither end of the interval from -1 to 1 occurs, whose inverse would be infinite
    uniform_BN = ((scores(draw_B, count) >> 9).float() + 0.5) / 2**22 - 1
    return math.sqrt(2) * uniform_BN.erfinv()


@contextmanager
def host_seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators of Python, numpy and PyTorch's CPU start from `seed`. They continue afterwards.

    For libraries that draw from them (timm's mixing, erasing and RandAugment, torchvision's jitter).
    """
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
