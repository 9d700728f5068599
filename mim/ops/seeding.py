"""Everything random is a pure function of its place: one seed from the seed of the run and the place's numbers.

Shapes: B samples, N places.
"""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, *place: int) -> int:
    """A seed in [0, 2**63) for one purpose at one place, e.g. `derive_seed(seed, "mask", step)`.

    Uses numpy's SeedSequence, so neighbouring places give unrelated streams.
    """
    entropy = [seed, zlib.crc32(purpose.encode()), len(place), *place]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(device: torch.device, seed: int, purpose: str, *place: int) -> torch.Generator:
    """A generator on `device`, seeded for one purpose at one place. CPU and GPU draw different numbers."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *place))


def scores(draw_B: Tensor, count: int) -> Tensor:
    """A pseudo-random number in [0, 2**32) for each place, (B, count) int64, no two of a sample alike: a function of
    the sample's `draw_B`, int64 in [0, 2**31), and of the place alone, for choices where nothing can be drawn.

    A 32-bit mixing of shifts and multiplications, in 64 bits that never overflow, and so the same on every device and
    in a compiled graph.
    """
    mixed_BN = draw_B[:, None] ^ torch.arange(count, device=draw_B.device)
    for _ in range(2):
        mixed_BN = (((mixed_BN >> 16) ^ mixed_BN) * 0x45D9F3B) & 0xFFFFFFFF
    return (mixed_BN >> 16) ^ mixed_BN


@contextmanager
def host_seeded(seed: int) -> Iterator[None]:
    """Inside, Python's, numpy's and PyTorch's global generators of the host start from `seed`; after it they go on.

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
