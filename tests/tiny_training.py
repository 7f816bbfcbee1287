"""A training run on tiny parts, as a function and as a program that a launcher starts on several processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from transformers import AutoTokenizer

from revision import training
from revision.conversation import build_processor
from revision.dataset import ConversationDataset, Sample
from revision.dataset import Rows as StoredRows
from revision.model import RevisionForConditionalGeneration
from revision.records import Message

DIM, K, SAMPLES = 16, 3, 32


class Rows(StoredRows):
    """Unit rows out of memory."""

    def __init__(self) -> None:
        rows = np.random.default_rng(0).normal(size=(SAMPLES, DIM)).astype(np.float32)
        self._rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def set_epoch(self, epoch: int) -> None:
        """There is no noise."""

    def __getitem__(self, row: int) -> torch.Tensor:
        return self._rows[row]


def make_dataset(llm: Path, *, text_only_every: int = 5) -> ConversationDataset:
    """Answers of different lengths; every fifth conversation has no picture."""
    processor = build_processor(AutoTokenizer.from_pretrained(llm), num_visual_tokens=K)
    samples = []
    for row in range(SAMPLES):
        row_or_none = None if row % text_only_every == 0 else row
        question = Message("user", "what?" if row_or_none is None else "<image> what?")
        answer = Message("assistant", "a red square " * (1 + row % 4) + str(row))
        samples.append(Sample(f"s-{row}", [question, answer], row_or_none))
    return ConversationDataset(samples, Rows(), processor, max_length=200)


def make_model(llm: Path, **changes: Any) -> RevisionForConditionalGeneration:
    """The same model at each call."""
    arguments: dict[str, Any] = {
        "embed_dim": DIM,
        "num_visual_tokens": K,
        "visual_tokens": "slots",
        "seed": 0,
        **changes,
    }
    return RevisionForConditionalGeneration.from_language_model(str(llm), **arguments)[0]


def run(
    llm: Path,
    output: Path,
    *,
    parts: list[str],
    processes: int = 1,
    identity: str = "",
    peak_tflops: float | None = None,
    model: Any = None,
    **trainer: Any,
) -> tuple[RevisionForConditionalGeneration, dict[str, float]]:
    """Trains and returns the model and the summary."""
    settings = {"learning_rate": 1e-2, "max_steps": 4, "logging_steps": 1, "lr_scheduler_type": "constant", **trainer}
    arguments = training.build_arguments(settings, output=output, seed=0)
    output.mkdir(parents=True, exist_ok=True)
    dataset = make_dataset(llm)
    model = make_model(llm) if model is None else model
    summary = training.train(
        model=model,
        processor=dataset.processor,
        dataset=dataset,
        parts=parts,
        arguments=arguments,
        output=output,
        processes=processes,
        identity=identity,
        peak_tflops=peak_tflops,
    )
    if arguments.process_index == 0:
        safetensors.torch.save_file(weights(model), output / "weights.safetensors")
    training.conclude(arguments)
    return model, summary


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters, tied ones once."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


if __name__ == "__main__":
    run(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        parts=["projector", "llm"],
        processes=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
