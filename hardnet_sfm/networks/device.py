"""Where tensors live and in which precision they are multiplied fastest."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from hardnet_sfm.errors import UsageError


def resolve_device(device: str) -> str:
    """ "auto" to "cuda" where there is one, else "cpu"; anything else as it is.

    Raises:
        UsageError: CUDA was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device", "Use --device cpu, or a CUDA build of torch.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def fast_type(device: str) -> torch.dtype:
    """The type with the fastest matrix product on a device: half precision where the hardware has it."""
    if device == "cuda":
        return torch.float16
    # Without the CPU's own bfloat16 instructions torch emulates them, slower than float32.
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


def in_type(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Within it layers are computed in the type; what needs float32, as norms and softmax, stays in it."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
