"""Kernels that need a GPU, against what runs anywhere: Liger's loss, and flash and flex attention over packed rows."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training
import torch
from conftest import build_tiny_llm

from revision.data.collators import Collator, PackedCollator
from revision.data.conversation import IGNORED
from revision.model.loss_revision import linear_cross_entropy
from revision.training.kernels import use_fused_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
@pytest.mark.parametrize("table_trains", [False, True])
def test_ligers_loss_is_ours(tiny_model: Any, table_trains: bool) -> None:
    assert use_fused_loss(tiny_model, CUDA)
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(64, 5000, bias=False).to(CUDA).requires_grad_(table_trains)
    targets = torch.randint(5000, (700,), generator=generator).to(CUDA)
    found = []
    for fused in (False, True):
        hidden = torch.randn(700, 64, generator=torch.Generator().manual_seed(1)).to(CUDA).requires_grad_()
        head.zero_grad()
        loss = (
            tiny_model.fused_loss(head, hidden, targets)
            if fused
            else linear_cross_entropy(hidden, head.weight, targets, chunk=128)
        )
        (loss / 700).backward()
        found.append([loss.detach(), hidden.grad, head.weight.grad])
    for ours, theirs in zip(*found, strict=True):
        if ours is None:
            assert theirs is None, "a frozen table has no gradient"
        else:
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5)


def why_not(attention: str) -> str | None:
    """What an attention lacks here; None: nothing."""
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        return "needs flash-attn"
    if attention == "flex_attention" and importlib.util.find_spec("triton") is None:
        return "flex attention is compiled, which needs triton"
    if attention == "flex_attention" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "flex attention is compiled, and triton needs a compiler of C for it"
    return None


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "flex_attention"])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(tmp_path: Path, attention: str) -> None:
    if reason := why_not(attention):
        pytest.skip(reason)
    tiny_llm = build_tiny_llm(tmp_path / "llm", head_dim=16)  # flex attention has kernels from 16 on
    dtype = torch.bfloat16 if attention == "flash_attention_2" else torch.float32
    dataset = tiny_training.make_dataset(tiny_llm)
    examples = [dataset[place] for place in range(8)]
    labels = sum(int((example["labels"] != IGNORED).sum()) for example in examples)
    model: Any = tiny_training.make_model(tiny_llm)
    model.to(CUDA).train()
    model.language_model.to(dtype)
    found = []
    for name, batch in (
        ("eager", Collator(3)(examples)),
        (attention, PackedCollator(boundaries=attention.startswith("flash"))([examples])),
    ):
        model.set_attn_implementation(name)
        model.zero_grad()
        moved = {key: one.to(CUDA) if isinstance(one, torch.Tensor) else one for key, one in batch.items()}
        loss = model(**moved, num_items_in_batch=labels).loss
        loss.backward()
        found.append((loss.item(), model.projector.layers[0].weight.grad.float().cpu().numpy()))
    # Flex attention has exponentials of base 2, and sums block by block.
    precision = {"sdpa": 1e-5, "flex_attention": 1e-4, "flash_attention_2": 2e-2}[attention]
    assert found[1][0] == pytest.approx(found[0][0], rel=precision)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=precision, atol=precision * np.abs(found[0][1]).max())
