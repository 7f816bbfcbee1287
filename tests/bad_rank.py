"""Two processes, of which one fails, in its own way: what both say is written down."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tiny_training
import torch
from transformers import Trainer

from revision.data.dataset import ConversationDataset
from revision.training import curve

RANK = int(os.environ.get("RANK", "0"))


def spoil_the_loss() -> None:
    """That of the second micro-batch of step 1 is no number on rank 1."""
    original = Trainer.training_step
    calls = 0

    def training_step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = original(self, *args, **kwargs)
        return loss * torch.nan if RANK == 1 and calls == 4 else loss

    Trainer.training_step = training_step  # type: ignore[method-assign]


def spoil_a_record() -> None:
    """The fourth sample that rank 1 reads."""
    original = ConversationDataset.__getitem__
    calls = 0

    def get(self: ConversationDataset, index: int) -> Any:
        nonlocal calls
        calls += 1
        if RANK == 1 and calls == 4:
            raise ValueError("this record cannot be learned from; mend it")
        return original(self, index)

    ConversationDataset.__getitem__ = get  # type: ignore[method-assign]


def fill_the_disk() -> None:
    """Only rank 0 writes the log."""

    def append(path: Path, row: Any) -> None:
        raise OSError("No space left on device")

    curve.append = append


def main(llm: Path, output: Path, what: str = "loss") -> None:
    """Trains until one process fails."""
    {"loss": spoil_the_loss, "record": spoil_a_record, "log": fill_the_disk}[what]()
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    try:
        tiny_training.run(llm, output, parts=["projector", "llm"], processes=2, **settings)
    except ValueError as error:
        (output / f"said-{RANK}.txt").write_text(str(error))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
