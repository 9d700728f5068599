"""Gpu: figures of well-known GPUs from their makers' data sheets, for plans on machines that have none.

TFLOP/s are dense, without structured sparsity, and of products that are summed in fp32; where a data sheet gives only
the sparse figure, half of it. `link_gb_s` is one direction of all links of a device together.
"""

from dataclasses import dataclass

from mim.engine.precision import Precision
from mim.registry import one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as its maker describes it."""

    title: str
    bf16: float | None  # TFLOP/s of bf16 products; None where it has no unit for them
    fp16: float  # TFLOP/s of fp16 products
    fp32: float  # TFLOP/s of fp32 products, without TF32
    memory_gb: int  # as makers count, in units of 2**30 bytes
    memory_gb_s: float  # GB/s of its memory
    link_gb_s: float  # GB/s from one device to others of its node, in one direction
    link: str
    source: str

    def peak_tflops(self, precision: Precision) -> float | None:
        """TFLOP/s of products in a precision; None where it has no unit for them."""
        return {"bf16": self.bf16, "fp16": self.fp16, "fp32": self.fp32}[precision]

    @property
    def auto_precision(self) -> Precision:
        """What TRAIN.precision auto becomes on it."""
        return "bf16" if self.bf16 is not None else "fp32"


GPUS: dict[str, Gpu] = {
    "t4": Gpu(
        title="NVIDIA T4", bf16=None, fp16=65, fp32=8.1, memory_gb=16, memory_gb_s=320,
        link_gb_s=16, link="PCIe 3.0 x16", source="NVIDIA T4 data sheet; Turing architecture white paper",
    ),
    "v100": Gpu(
        title="NVIDIA V100 SXM2 32 GB", bf16=None, fp16=125, fp32=15.7, memory_gb=32, memory_gb_s=900,
        link_gb_s=150, link="NVLink 2", source="NVIDIA V100 data sheet",
    ),
    "a100-40": Gpu(
        title="NVIDIA A100 SXM4 40 GB", bf16=312, fp16=312, fp32=19.5, memory_gb=40, memory_gb_s=1555,
        link_gb_s=300, link="NVLink 3", source="NVIDIA A100 data sheet",
    ),
    "a100-80": Gpu(
        title="NVIDIA A100 SXM4 80 GB", bf16=312, fp16=312, fp32=19.5, memory_gb=80, memory_gb_s=2039,
        link_gb_s=300, link="NVLink 3", source="NVIDIA A100 data sheet",
    ),
    "h100": Gpu(
        title="NVIDIA H100 SXM5", bf16=989, fp16=989, fp32=67, memory_gb=80, memory_gb_s=3350,
        link_gb_s=450, link="NVLink 4", source="NVIDIA H100 data sheet",
    ),
    "h200": Gpu(
        title="NVIDIA H200 SXM5", bf16=989, fp16=989, fp32=67, memory_gb=141, memory_gb_s=4800,
        link_gb_s=450, link="NVLink 4", source="NVIDIA H200 data sheet",
    ),
    "l4": Gpu(
        title="NVIDIA L4", bf16=121, fp16=121, fp32=30.3, memory_gb=24, memory_gb_s=300,
        link_gb_s=32, link="PCIe 4.0 x16", source="NVIDIA L4 data sheet",
    ),
    "l40s": Gpu(
        title="NVIDIA L40S", bf16=362, fp16=362, fp32=91.6, memory_gb=48, memory_gb_s=864,
        link_gb_s=32, link="PCIe 4.0 x16", source="NVIDIA L40S data sheet",
    ),
    "rtx3090": Gpu(
        title="NVIDIA GeForce RTX 3090", bf16=71, fp16=71, fp32=35.6, memory_gb=24, memory_gb_s=936,
        link_gb_s=32, link="PCIe 4.0 x16", source="NVIDIA Ampere GA102 white paper",
    ),
    "rtx4090": Gpu(
        title="NVIDIA GeForce RTX 4090", bf16=165.2, fp16=165.2, fp32=82.6, memory_gb=24, memory_gb_s=1008,
        link_gb_s=32, link="PCIe 4.0 x16", source="NVIDIA Ada white paper",
    ),
}  # fmt: skip
DEFAULT = "h100"  # where nothing is named


def gpu_named(name: str) -> Gpu:
    """The GPU of that name, in small or capital letters. Raises ValueError, with the names there are."""
    if name.lower() not in GPUS:
        raise ValueError(f"--gpu {name}: {one_of(name.lower(), GPUS)}. --assume gives figures of another one")
    return GPUS[name.lower()]
