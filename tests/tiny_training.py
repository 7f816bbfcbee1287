"""A training run on tiny parts, as a function and as a program that a launcher starts on several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from transformers import AutoTokenizer

from revision import training
from revision.data.conversation import build_processor
from revision.data.dataset import ConversationDataset
from revision.data.packing import PackedDataset
from revision.data.rows import Rows as StoredRows
from revision.data.samples import Sample
from revision.model import RevisionForConditionalGeneration
from revision.records import Message
from revision.training.adapters import Adapter
from revision.training.guard import Guard

DIM, K, SAMPLES = 16, 3, 32
WEIGHTS = "weights.safetensors"  # of the trained model, in its folder


class Rows(StoredRows):
    """Unit rows out of memory, others in each epoch, as noise makes them."""

    def __init__(self) -> None:
        rows = np.random.default_rng(0).normal(size=(SAMPLES, DIM)).astype(np.float32)
        self._rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        self._turn = 0

    def set_epoch(self, epoch: int) -> None:
        """Each row takes the next one's place."""
        self._turn = epoch

    def many(self, rows: Sequence[int]) -> torch.Tensor:
        """Those asked for."""
        return self._rows[(torch.tensor(rows) + self._turn) % SAMPLES]


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
        "table_multiple": 64,
        "seed": 0,
        **changes,
    }
    return RevisionForConditionalGeneration.from_language_model(str(llm), **arguments)[0]


def run(
    llm: Path,
    output: Path,
    *,
    parts: list[str],
    rates: Any = None,
    processes: int = 1,
    engine: str = "ddp",
    options: dict[str, Any] | None = None,
    peak_tflops: float | None = None,
    identity: dict[str, Any] | None = None,
    minutes: float | None = None,
    guard: Guard = Guard(),  # noqa: B008
    model: Any = None,
    dataset: ConversationDataset | None = None,
    pack_tokens: int | None = None,
    rank: int | None = None,
    regress: int | None = None,
    **trainer: Any,
) -> tuple[RevisionForConditionalGeneration, dict[str, float]]:
    """Trains and returns the model and the summary; packed into rows where their tokens are given.

    rank: of LoRA matrices on the LLM, with dropout.
    """
    settings = {"learning_rate": 1e-2, "max_steps": 4, "logging_steps": 1, "lr_scheduler_type": "constant", **trainer}
    arguments = training.build_arguments(settings, output=output, seed=0, engine=engine, engine_options=options or {})
    output.mkdir(parents=True, exist_ok=True)
    dataset = make_dataset(llm) if dataset is None else dataset
    learned = dataset if pack_tokens is None else pack(dataset, pack_tokens, arguments.world_size)
    model = make_model(llm) if model is None else model
    if rank is not None:
        Adapter(
            model, method="lora", rank=rank, alpha=8.0, dropout=0.1, targets=["all-linear"], arguments=arguments
        )  # fmt: skip

    def save(whole: dict[str, torch.Tensor] | None, summary: dict[str, float]) -> None:
        safetensors.torch.save_file(
            {name: one for name, one in (whole or weights(model)).items() if name in names}, output / WEIGHTS
        )

    names = {name for name, _ in model.named_parameters()}
    summary = training.train(
        model=model,
        processor=dataset.processor,
        dataset=learned,
        parts=parts,
        rates=rates,
        arguments=arguments,
        output=output,
        engine=engine,
        processes=processes,
        identity=identity,
        regress=regress,
        peak_tflops=peak_tflops,
        minutes=minutes,
        guard=guard,
        save=save,
    )
    training.conclude(arguments)
    return model, summary


def pack(dataset: ConversationDataset, tokens: int, processes: int = 1) -> PackedDataset:
    """Rows of so many tokens, which the processes share."""
    dataset.keep(np.array([len(dataset[place]["input_ids"]) for place in range(len(dataset))], dtype=np.int32))
    return PackedDataset(dataset, tokens=tokens, processes=processes)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters, tied ones once."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


if __name__ == "__main__":
    rows: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    if len(sys.argv) > 3:
        rows = {"pack_tokens": int(sys.argv[3]), "gradient_accumulation_steps": int(sys.argv[4])}
    run(Path(sys.argv[1]), Path(sys.argv[2]), parts=["projector", "llm"], processes=2, **rows)
