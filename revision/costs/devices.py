"""What GPUs can do: peak arithmetic and memory."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One kind of GPU.

    Attributes:
        title: as its maker calls it.
        tflops: dense bfloat16 matrix products with float32 sums, 10^12 FLOP a second, without sparsity.
        memory_gib: what the driver leaves to programs, rounded down.
        pattern: regular expression that finds it in what `torch.cuda.get_device_name` says.
    """

    title: str
    tflops: float
    memory_gib: float
    pattern: str


# Peaks from the makers' data sheets, half of what they state with sparsity: NVIDIA H100 (2023), H200 (2024), A100
# (2021), L40S (2023), DGX B200 (2024), "Ada GPU architecture" (2022, for the 4090); AMD Instinct MI300X (2023).
DEVICES = {
    "h100": Device("H100 SXM", 989.4, 79, r"H100.*HBM3|H100 SXM"),
    "h100-pcie": Device("H100 PCIe", 756.0, 79, r"H100 PCIe"),
    "h200": Device("H200 SXM", 989.4, 139, r"H200"),
    "a100-40": Device("A100 40 GB", 312.0, 39, r"A100.*40GB"),
    "a100-80": Device("A100 80 GB", 312.0, 79, r"A100.*80GB"),
    "l40s": Device("L40S", 362.0, 44, r"L40S"),
    "rtx4090": Device("GeForce RTX 4090", 165.2, 23, r"RTX 4090(?! D| Laptop)"),
    "b200": Device("B200", 2250.0, 178, r"(?<!G)B200"),
    "mi300x": Device("Instinct MI300X", 1307.4, 191, r"MI300X"),
}


def device_named(name: str) -> Device:
    """A device by its key in `DEVICES`.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in DEVICES:
        near = difflib.get_close_matches(name.lower(), DEVICES, 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(f"plan.gpu = {name}: must be one of {', '.join(DEVICES)}{hint}.")
    return DEVICES[name]


def peak_flops(device: torch.device, *, half: bool, tflops: float | None = None) -> float | None:
    """Peak FLOP a second of a device, or None where it is not known.

    Args:
        device: where training runs.
        half: training computes in bfloat16 or float16; the table holds no other peaks.
        tflops: known better by the caller, in 10^12 a second.
    """
    if tflops is not None:
        return tflops * 1e12
    if device.type != "cuda" or not half:
        return None
    name = torch.cuda.get_device_name(device)
    if " MIG " in name:  # a slice of a GPU, whose peak is not in the name
        return None
    return next((known.tflops * 1e12 for known in DEVICES.values() if re.search(known.pattern, name)), None)
