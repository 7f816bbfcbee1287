"""An adapter added to weights that are held by name, where no process has them in a model.

peft merges inside layers, which needs all weights of a layer in one place. Under ZeRO-3 they are whole only as the main
process has gathered them, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


def merged(model: nn.Module, weights: Mapping[str, torch.Tensor], adapter: str) -> dict[str, torch.Tensor]:
    """Weights of the plain model out of those of one with LoRA or DoRA layers.

    Each layer is computed in float32 and rounded once, to the type that it had: W + s B A; for DoRA, which learns the
    lengths of rows, its rows at these lengths.

    Args:
        model: with its adapter attached; only its structure is looked at.
        weights: whole, by name.
        adapter: its name in peft.
    """
    found = dict(weights)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            _merge(found, name, layer, adapter)
    return {name.replace(".base_layer.", "."): one for name, one in found.items()}


def _merge(weights: dict[str, torch.Tensor], name: str, layer: Any, adapter: str) -> None:
    """Takes the matrices of one layer out of `weights` and adds their product to what lies below."""
    lowering, raising = (weights.pop(f"{name}.lora_{side}.{adapter}.weight").float() for side in "AB")
    below = f"{name}.base_layer.weight"
    flipped = bool(layer.fan_in_fan_out)  # transformers' Conv1D keeps [in, out]
    base = weights[below].float()
    rows = (base.T if flipped else base) + layer.scaling[adapter] * (raising @ lowering)
    lengths = weights.pop(f"{name}.lora_magnitude_vector.{adapter}.weight", None)
    if lengths is not None:
        rows = rows * (lengths.float() / torch.linalg.vector_norm(rows, dim=1))[:, None]
    weights[below] = (rows.T if flipped else rows).to(weights[below].dtype).contiguous()
