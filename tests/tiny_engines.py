"""Training runs on engines, as a program that a launcher starts on several processes; tiny parts, on a CPU.

    torchrun --nproc_per_node 2 tests/tiny_engines.py RUNS.json

The file lists runs, done one after another by the same processes, since imports take longer than training does. Each
leaves its log, its model, and `facts.json`: what the process of rank 0 saw of the model before and after.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny_training import DIM, SAMPLES, K, Rows, pack
from transformers import Trainer

from revision import building, training
from revision.data.dataset import ConversationDataset
from revision.data.samples import Sample
from revision.model import loss_revision
from revision.records import Message
from revision.training import sharding
from revision.training.adapters import Adapter
from revision.training.guard import Guard, Policy

SHAPE: dict[str, Any] = {"embed_dim": DIM, "num_visual_tokens": K, "visual_tokens": "slots"}
TRAINER: dict[str, Any] = {
    "learning_rate": 1e-2, "max_steps": 4, "logging_steps": 1, "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential", "per_device_train_batch_size": 2,
}  # fmt: skip


def make_dataset(processor: Any) -> ConversationDataset:
    """In order, in batches of two: one of two processes has pictures in a step and the other has none, by turns."""
    samples = []
    for row in range(SAMPLES):
        pictured = (row // 2 + row // 4) % 2 == 1
        question = Message("user", "<image> what?" if pictured else "what?")
        answer = Message("assistant", "a red square " * (1 + row % 4) + str(row))
        samples.append(Sample(f"s-{row}", [question, answer], row if pictured else None))
    return ConversationDataset(samples, Rows(), processor, max_length=200)


def run(
    output: Path,
    *,
    llm: str,
    engine: str = "ddp",
    parts: list[str],
    processes: int = 1,
    options: dict[str, Any] | None = None,
    init: str | None = None,
    rates: dict[str, dict[str, float]] | None = None,
    rank: int | None = None,
    pack_tokens: int | None = None,
    regress: int | None = None,
    guard: Policy = "stop",
    spoiled: int | None = None,
    most_logits: int = loss_revision.MOST_LOGITS,
    **trainer: Any,
) -> Any:
    """Trains and saves; returns the arguments, for `training.conclude`.

    init: folder of a model to start from.
    rank: of LoRA matrices on the LLM.
    pack_tokens: of a row, where the samples are packed.
    regress: begin with a projector that is solved for, and so many steps of its own.
    guard: policy for bad steps.
    most_logits: above it the loss is computed in chunks.
    spoiled: step in which the loss of the last process is no number, and so are the gradients of all.
    """
    loss_revision.MOST_LOGITS = most_logits
    output.mkdir(parents=True, exist_ok=True)
    arguments = training.build_arguments(
        {**TRAINER, **trainer}, output=output, seed=0, engine=engine, engine_options=options or {}
    )
    if init is None:
        model, processor = building.build_model(llm, chat_template=None, dtype=torch.float32, seed=0, **SHAPE)
    else:
        model, processor = building.read_model(Path(init), dtype=torch.float32)
    adapter = None
    if rank is not None:
        adapter = Adapter(
            model, method="lora", rank=rank, alpha=8.0, dropout=0.0, targets=["all-linear"], arguments=arguments
        )
    parameters = list(model.parameters())
    facts = {
        "output_std": model.config.output_std,
        "rows": model.config.text_config.vocab_size,
        "size": sum(map(sharding.size, parameters)),
        "held": sum(one.numel() for one in parameters),
        "sums": sorted(sharding.bit_sums(parameters)),
    }

    def save(weights: dict[str, torch.Tensor] | None, summary: dict[str, float]) -> None:
        dtype = torch.bfloat16 if arguments.bf16 else None
        gathered = weights is not None
        if adapter is not None:
            weights = adapter.merge(weights)
        building.save_model(model, processor, output / "model", alignment=None, dtype=dtype, weights=weights)
        (output / "facts.json").write_text(json.dumps({**facts, "gathered": gathered}))

    samples = make_dataset(processor)
    dataset = samples if pack_tokens is None else pack(samples, pack_tokens, arguments.world_size)
    with spoiling(spoiled):
        training.train(
            model=model, processor=processor, dataset=dataset, parts=parts, rates=rates,
            arguments=arguments, output=output, engine=engine, processes=processes, save=save,
            regress=regress, guard=Guard(guard),
        )  # fmt: skip
    return arguments


@contextmanager
def spoiling(step: int | None) -> Iterator[None]:
    """The last process multiplies its losses of one step by what is no number, before it goes backwards."""
    original = Trainer.compute_loss

    def compute_loss(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        loss: Any = original(self, *args, **kwargs)
        last = self.args.process_index == self.args.world_size - 1
        return loss * torch.nan if last and self.state.global_step == step else loss

    Trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.compute_loss = original  # type: ignore[method-assign]


def do_without_a_compiler() -> None:
    """DeepSpeed on a CPU compiles an operation for inference at its first start, which takes a minute."""
    import deepspeed.ops

    vars(deepspeed.ops)["__compatible_ops__"] = {}


def take_the_cpu_for_an_accelerator() -> None:
    """accelerate knows FSDP2 on accelerators only, and transformers bfloat16."""
    import transformers.training_args
    from accelerate.state import DistributedType, PartialState

    vars(transformers.training_args)["is_torch_bf16_gpu_available"] = lambda: True

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

    setattr(PartialState, "_prepare_backend", lambda *_, **__: ("gloo", DistributedType.MULTI_GPU))  # noqa: B010


def prepare(engine: str) -> dict[str, Any]:
    """Has an engine run on a CPU, in this process; the settings of the Trainer that it takes besides."""
    if engine.startswith("zero"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        do_without_a_compiler()
    if engine == "fsdp2":
        take_the_cpu_for_an_accelerator()
        return {"use_cpu": False}
    return {}


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name, settings in json.loads(Path(sys.argv[1]).read_text()).items():
        settings |= prepare(settings["engine"])
        done = run(Path(sys.argv[1]).parent / name, processes=int(os.environ["WORLD_SIZE"]), **settings)
        for variable in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
            os.environ.pop(variable, None)  # accelerate sets them for itself as well, and leaves them
    training.conclude(done)
