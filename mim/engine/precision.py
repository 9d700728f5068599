"""Precision: the number type of the matrix products, how `auto` chooses it, and why."""

from typing import Literal, get_args

import torch

from mim.engine.cpu import cpu_flags

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "sve_bf16", "svebf16", "bf16")  # x86, then Arm; the fastest of each first


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """A value of TRAIN.precision with `auto` resolved: bf16 where the device has bf16 products, else fp32."""
    if precision in get_args(Precision):
        return precision  # type: ignore[return-value]
    return "bf16" if bf16_unit(device) else "fp32"


def describe_precision(precision: str, device: torch.device) -> str:
    """The precision and its reason, for the start of a run."""
    unit, kind = bf16_unit(device), "GPU" if device.type == "cuda" else "CPU"
    if precision == "fp16":
        return "fp16, with loss scaling"
    if unit:
        reason = f"this {kind} has bf16 products ({unit})"
        return f"bf16: {reason}" if precision == "bf16" else f"fp32, although {reason}"
    if precision == "bf16":
        return f"bf16, which this {kind} only emulates: TRAIN.precision fp32 is faster here"
    return f"fp32: this {kind} has no bf16 products"


def product_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of the matrix products."""
    return DTYPES[resolve_precision(precision, device)]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which matrix products are computed in this precision."""
    dtype = product_dtype(precision, device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def bf16_unit(device: torch.device) -> str:
    """What computes bf16 products: the name of the GPU, or a flag of the CPU; empty where they are emulated.

    torch.ops.mkldnn._is_mkldnn_bf16_supported cannot tell: it is also true where they are emulated.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name(device) if native else ""
    if not torch.backends.mkldnn.is_available():  # oneDNN has the kernels
        return ""
    flags = cpu_flags()
    return next((flag for flag in BF16_FLAGS if flag in flags), "")
