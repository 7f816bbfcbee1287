"""Two processes, of which the second meets a loss that is no number: what both say is written down."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tiny_training
import torch
from transformers import Trainer


def main(llm: Path, output: Path) -> None:
    """Trains until the loss of the second micro-batch of step 1 is spoilt on rank 1."""
    rank, original = int(os.environ["RANK"]), Trainer.training_step
    calls = 0

    def training_step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = original(self, *args, **kwargs)
        return loss * torch.nan if rank == 1 and calls == 4 else loss

    Trainer.training_step = training_step  # type: ignore[method-assign]
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    try:
        tiny_training.run(llm, output, parts=["projector", "llm"], processes=2, **settings)
    except ValueError as error:
        (output / f"said-{rank}.txt").write_text(str(error))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
