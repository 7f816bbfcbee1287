"""Liger's fused linear cross-entropy in place of ours, where it is installed and there is a GPU for it."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from revision.model import RevisionForConditionalGeneration


def use_fused_loss(model: RevisionForConditionalGeneration, device: torch.device) -> bool:
    """Lets the model compute its loss by Liger's kernel, and says whether it does.

    The kernel does what `revision.model.loss_revision` does, in one pass on the GPU. It is a GPU library only.
    """
    if device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    kernel = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def fused_loss(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Hidden [n, H] and targets [n] to their summed cross-entropy."""
        total: torch.Tensor = kernel(head.weight, hidden, targets, head.bias)
        return total.float()

    model.fused_loss = fused_loss
    return True
