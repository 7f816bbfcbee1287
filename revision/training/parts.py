"""The parts of the model: which train, in which precision, and whether they moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from rich.table import Table
from torch import nn

from revision.model import RevisionForConditionalGeneration
from revision.training import sharding

PARTS = {"projector": "projector", "llm": "language_model"}  # names in configs -> modules of the model


def select_parts(
    model: RevisionForConditionalGeneration, parts: Sequence[str], *, bf16: bool, masters: bool = False
) -> None:
    """Freezes all but the named parts. What trains is float32; a frozen LLM is bfloat16 under mixed precision.

    Args:
        masters: the engine keeps float32 copies of what trains, so that under mixed precision all is bfloat16.

    Raises:
        ValueError: no part, or one that does not exist.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        wrong = f"train={list(parts)} names no part" if not parts else f"train={list(parts)}: {unknown[0]!r} is no part"
        raise ValueError(f"{wrong} of the model; choose one or more of {', '.join(PARTS)}")
    for part, name in PARTS.items():
        module = model.get_submodule(name)
        module.requires_grad_(part in parts)
        frozen_llm = part == "llm" and part not in parts
        dtype = torch.bfloat16 if bf16 and (frozen_llm or masters) else torch.float32
        for parameter in module.parameters():  # not module.to, which rounds the angles of rotary embeddings as well
            if not sharding.is_partitioned(parameter):  # ZeRO-3 has made those in the type of its engine
                parameter.data = parameter.data.to(dtype)


def checksums(model: nn.Module) -> dict[str, list[int]]:
    """For each part, one integer a parameter: the sum of its bit patterns. Tied parameters count once.

    Where processes hold pieces of the parameters, every one must call this.
    """
    return {part: sharding.bit_sums(list(model.get_submodule(name).parameters())) for part, name in PARTS.items()}


def require_moved(
    before: Mapping[str, list[int]], after: Mapping[str, list[int]], parts: Sequence[str], *, steps: int
) -> None:
    """Compares checksums from before and after training.

    Raises:
        ValueError: a part that trains has not moved.
        AssertionError: a frozen part has.
    """
    for part in PARTS:
        moved = before[part] != after[part]
        assert part in parts or not moved, f"{part} is frozen, but has moved"
        if part in parts and not moved:
            raise ValueError(
                f"{part} trains, but has not moved in {steps} step(s): the learning rate was 0 throughout; raise "
                "trainer.learning_rate, or lower trainer.warmup_steps, whose first step is at 0"
            )


def parts_table(model: nn.Module, parts: Sequence[str]) -> Table:
    """What trains and what is frozen, with counts and types."""
    table = Table("part", "", "parameters", "type", title="What trains")
    for part, name in PARTS.items():
        parameters = list(model.get_submodule(name).parameters())
        count, dtype = sum(map(sharding.size, parameters)), parameters[0].dtype
        table.add_row(part, "trains" if part in parts else "frozen", f"{count:,}", str(dtype).removeprefix("torch."))
    return table
