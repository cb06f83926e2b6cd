"""Chooses the device of tensors, and the precision in which it multiplies them fastest."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from hardnet_sfm.errors import UsageError


def resolve_device(device: str) -> str:
    """Resolves "auto" to "cuda" if CUDA is available, else "cpu". Other values stay unchanged.

    Raises:
        UsageError: the device is "cuda", and CUDA is not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device", "Use --device cpu, or a CUDA build of torch.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def fast_type(device: str) -> torch.dtype:
    """Returns the type with the fastest matrix product on a device: half precision if the hardware supports it."""
    if device == "cuda":
        return torch.float16
    # Without the CPU's own bfloat16 instructions torch emulates them, slower than float32.
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


def in_type(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Computes layers in the type within the block.

    Operations that need float32, such as norms and softmax, keep it.
    """
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
