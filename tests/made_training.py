"""A training run on parts made in code; `python made_training.py LLM OUTPUT BATCH ACCUMULATION` is one rank of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revision import building, training
from revision.dataset import ConversationDataset, Sample
from revision.records import Message

DIM, TOKENS, STEPS = 16, 3, 6


class MadeRows:
    """Unit vectors drawn by row number, in place of stores."""

    def set_epoch(self, epoch: int) -> None:
        """Nothing is sampled here."""

    def __getitem__(self, row: int) -> torch.Tensor:
        vector = torch.from_numpy(np.random.default_rng(row).normal(size=DIM)).float()
        return torch.nn.functional.normalize(vector, dim=0)


def made_samples(text_only: bool = False) -> list[Sample]:
    """Answers of many lengths, so that token-true normalisation shows; every third without picture if asked."""
    samples = []
    for number in range(64):
        blind = text_only and number % 3 == 0
        ask = Message("user", "Hello." if blind else "<image>")
        answer = Message("assistant", "a red square " * (1 + number % 5) + str(number))
        samples.append(Sample(str(number), (ask, answer), None if blind else number))
    return samples


def run(
    llm: str, output: Path, *, batch: int = 8, accumulation: int = 1, parts: tuple[str, ...] = ("projector",),
    processes: int = 1, text_only: bool = False, **trainer: Any,
) -> Any:  # fmt: skip
    """Train for a few steps in float32; returns the model."""
    output.mkdir(parents=True, exist_ok=True)
    mapping = {
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": STEPS,
        "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True, **trainer,
    }  # fmt: skip
    arguments = training.build_arguments(mapping, output=output, seed=0)
    model, processor = building.build_model(
        llm, chat_template=None, dtype=torch.float32, seed=0, embed_dim=DIM, num_visual_tokens=TOKENS,
        visual_tokens="slots",
    )  # fmt: skip
    dataset = ConversationDataset(made_samples(text_only), MadeRows(), processor, max_length=99)  # type: ignore[arg-type]
    training.train(
        model=model, tokenizer=processor.tokenizer, dataset=dataset, parts=parts, arguments=arguments, output=output,
        processes=processes,
    )  # fmt: skip
    return model


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), batch=int(sys.argv[3]), accumulation=int(sys.argv[4]), processes=2)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
