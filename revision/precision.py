"""Which devices have bfloat16 arithmetic, and what to compute in where they have not.

torch multiplies bfloat16 everywhere, but without instructions for it one number at a time: SmolLM2-135M on a CPU that
ends at AVX2 learns some fifty times as slowly as in float32 (docs/results.md).
"""

from __future__ import annotations

from typing import Any

import torch

AUTO = "auto"  # as a value of `bf16`: where the device has it
# Of `torch.cpu.get_capabilities`, on x86 and on ARM; what is absent there is not supported.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; False for kinds of accelerators that are not known here."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _INSTRUCTIONS)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def computing_dtype(saved: torch.dtype, device: torch.device) -> torch.dtype:
    """The type to compute in with weights of the type `saved`: float32 for a bfloat16 that the device has not.

    That loses nothing: every bfloat16 is a float32.
    """
    return torch.float32 if saved == torch.bfloat16 and not has_bfloat16(device) else saved


def settle(asked: Any, device: torch.device) -> bool:
    """`bf16` of a trainer's mapping, as written there, to what it means on a device.

    Raises:
        ValueError: it is none of true, false and auto.
    """
    if asked == AUTO:
        return has_bfloat16(device)
    if not isinstance(asked, bool | None):  # a word would count as true, `no` as well
        raise ValueError(f"trainer.bf16 = {asked}: must be true, false or auto")
    return bool(asked)


def remark(asked: Any, device: torch.device) -> str | None:
    """What whoever wrote `bf16` should know about it on this device, if anything."""
    if not asked or has_bfloat16(device):
        return None
    lacks = f"this {device.type.upper()} has no bfloat16 arithmetic"
    if asked == AUTO:
        return f"bf16=auto: {lacks}, so training is in float32"
    return f"bf16={asked}: {lacks}, and imitates it many times slower than float32; set bf16 to auto or false"
