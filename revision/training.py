"""Both training stages on `transformers.Trainer`: what trains, checks before and after, and the curve.

1. `build_arguments` turns the open `trainer` mapping into `TrainingArguments`, before any model or data is loaded.
2. `train` freezes all but the named parts, puts each into its precision, runs the Trainer, and then asserts that what
   should move has moved and nothing else has.
3. `conclude` cleans up, after the main process has saved the model.
"""

from __future__ import annotations

import difflib
import gc
import inspect
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.table import Table
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from revision.curve import CurveCallback
from revision.dataset import Collator, ConversationDataset
from revision.model import RevisionForConditionalGeneration, RevisionProcessor
from revision.progress import say

PARTS = {"projector": "projector", "llm": "language_model"}  # names in configs -> modules of the model

# What a stage decides itself: its collator needs every field, its own bar and log replace the Trainer's, a loss that is
# no number is shown as it is, and the finished model is saved whole by the command.
_OURS: dict[str, Any] = {
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "non_padding",
}
_DEFAULTS: dict[str, Any] = {"save_strategy": "no", "logging_steps": 10}
_IDENTITY = "identity.json"


def build_arguments(
    mapping: Mapping[str, Any], *, output: Path, seed: int, tracker: str = "none", run_name: str | None = None
) -> TrainingArguments:
    """`TrainingArguments` from a config mapping.

    Args:
        mapping: names and values of TrainingArguments; without a GPU `use_cpu` is set, since otherwise several
            processes would silently count as one.
        output: folder of the stage; checkpoints and the tracker's files go below it.
        seed: of data order, dropout and everything else.
        tracker: "none", "wandb" or "tensorboard".
        run_name: name of the run in the tracker.

    Raises:
        ValueError: a name that TrainingArguments does not have, one that the stage sets itself, or a refused value.
    """
    known = set(inspect.signature(TrainingArguments.__init__).parameters) - {"self"}
    fixed = {"output_dir", "seed", "report_to", "run_name", *_OURS}
    for name in mapping:
        if name in fixed:
            raise ValueError(f"trainer.{name}={mapping[name]!r} is set by the stage itself; leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known - fixed, 1)
            hint = f"; did you mean trainer.{near[0]}?" if near else ""
            raise ValueError(f"trainer.{name} is no argument of transformers.TrainingArguments{hint}")
    has_device = torch.accelerator.is_available()
    values = {"use_cpu": not has_device, "dataloader_pin_memory": has_device, **_DEFAULTS, **mapping, **_OURS}
    try:
        arguments = TrainingArguments(
            output_dir=str(output / "checkpoints"),
            seed=seed,
            report_to=[] if tracker == "none" else [tracker],
            run_name=run_name,
            **values,
        )
    except (ValueError, TypeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"trainer: transformers.TrainingArguments refuses its values: {reason}") from error
    # The trackers of transformers take these from the environment alone.
    os.environ.update(TENSORBOARD_LOGGING_DIR=str(output / "tensorboard"), WANDB_DIR=str(output))
    os.environ.setdefault("WANDB_PROJECT", "revision")
    return arguments


def train(
    *,
    model: RevisionForConditionalGeneration,
    processor: RevisionProcessor,
    dataset: ConversationDataset,
    parts: Sequence[str],
    arguments: TrainingArguments,
    output: Path,
    processes: int = 1,
    identity: str = "",
) -> dict[str, float]:
    """Trains the named parts in place, from the last checkpoint where there is one.

    Args:
        model: the multimodal LLM.
        processor: its processor; its tokenizer names the padding token.
        dataset: of the stage.
        parts: "projector", "llm" or both.
        arguments: from `build_arguments`.
        output: folder of the stage, the one that the arguments were built for; `log.jsonl` goes there.
        processes: how many the caller expects.
        identity: stands for all settings that the result depends on; a checkpoint of another one is refused.

    Returns:
        `steps`, the last logged `loss`, mean `samples_per_second` and `tokens_per_second`.

    Raises:
        ValueError: an unknown part, another number of processes than expected, checkpoints of other settings, a loss
            that is no number, or a part that should have moved and did not.
    """
    if arguments.world_size != processes:
        raise ValueError(
            f"engine.processes={processes}, but {arguments.world_size} are running; start as many with torchrun or "
            "accelerate launch (on a CPU: torchrun), or set engine.processes"
        )
    checkpoints = Path(str(arguments.output_dir))
    resume = _checkpoint(checkpoints, identity, main=arguments.process_index == 0)
    select_parts(model, parts, bf16=arguments.bf16)
    _tune(model, parts, arguments)
    before = checksums(model)
    curve = CurveCallback(output / "log.jsonl", visible=arguments.process_index == 0)
    trainer = _StageTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        callbacks=[curve],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Start(trainer, parts))
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        curve.close()
    if resume is None or trainer.state.global_step > _step_of(resume):
        _require_moved(before, checksums(model), parts, steps=trainer.state.global_step)
    return curve.summary()


def conclude(arguments: TrainingArguments) -> None:
    """To be called when the model is saved: removes the checkpoints and ends the process group.

    Checkpoints hold optimizer states, which the Trainer pickles and nobody needs after the last step. Without an
    orderly end of the group, gloo aborts at random when one process ends before another.
    """
    if arguments.process_index == 0:
        shutil.rmtree(str(arguments.output_dir), ignore_errors=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    gc.collect()


def select_parts(model: RevisionForConditionalGeneration, parts: Sequence[str], *, bf16: bool) -> None:
    """Freezes all but the named parts. What trains is float32; a frozen LLM is bfloat16 under mixed precision.

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
        module.to(torch.bfloat16 if frozen_llm and bf16 else torch.float32)


def checksums(model: nn.Module) -> dict[str, list[int]]:
    """For each part, one integer a parameter: the sum of its bit patterns. Tied parameters count once."""
    integers = {2: torch.int16, 4: torch.int32}
    return {
        part: [
            int(parameter.detach().view(integers[parameter.element_size()]).sum(dtype=torch.int64))
            for parameter in model.get_submodule(name).parameters()
        ]
        for part, name in PARTS.items()
    }


def _tune(model: RevisionForConditionalGeneration, parts: Sequence[str], arguments: TrainingArguments) -> None:
    """Two things that cost time and change nothing else."""
    if arguments.device.type == "cpu":
        # On short sequences torch's fused attention takes five times as long there, above all backwards in bfloat16.
        model.set_attn_implementation("eager")
    if arguments.bf16 and "llm" not in parts and not arguments.deepspeed and not arguments.fsdp:
        arguments.mixed_precision = "no"  # both parts compute in their own types: autocast would only look for casts


def _checkpoint(folder: Path, identity: str, *, main: bool) -> str | None:
    """The last checkpoint in a folder, made by the same settings."""
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    mark = folder / _IDENTITY
    if last is None:
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(json.dumps(identity))
        return None
    if not mark.is_file() or json.loads(mark.read_text()) != identity:
        raise ValueError(
            f"{folder} holds checkpoints of a run with other settings; restore those to resume it, or delete the "
            "folder to start anew"
        )
    if main:
        say(f"resuming from {last}")
    return last


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rsplit("-", 1)[1])


def _require_moved(
    before: Mapping[str, list[int]], after: Mapping[str, list[int]], parts: Sequence[str], *, steps: int
) -> None:
    for part in PARTS:
        moved = before[part] != after[part]
        assert part in parts or not moved, f"{part} is frozen, but has moved"
        if part in parts and not moved:
            raise ValueError(
                f"{part} trains, but has not moved in {steps} step(s): the learning rate was 0 throughout; raise "
                "trainer.learning_rate, or lower trainer.warmup_steps, whose first step is at 0"
            )


class _LengthGroups(LengthGroupedSampler):
    """Samples of like length together, in an order that depends on (seed, epoch) alone.

    So every process draws the same one, and a resumed run goes on in it.
    """

    def __init__(self, batch_size: int, lengths: list[int], *, seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.generator.manual_seed(1_000_003 * self._seed + epoch)


class _StageTrainer(Trainer):
    """The Trainer, with samples grouped by length at no cost, and a stop at the first loss that is no number."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _LengthGroups(batch, dataset.lengths(), seed=self.args.seed)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss is {loss.item()} after step {self.state.global_step}; lower trainer.learning_rate, train in "
                "float32, or look at the records"
            )
        return loss


class _Start(TrainerCallback):
    """Says, once everything is wrapped and before the first step, what trains and on what; and checks it."""

    def __init__(self, trainer: Any, parts: Sequence[str]) -> None:
        self._trainer, self._parts = trainer, parts

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Raises AssertionError where the engine is another than asked for: losses could not tell."""
        engine = type(self._trainer.model_wrapped).__name__
        if args.deepspeed:
            assert engine == "DeepSpeedEngine", f"DeepSpeed was asked for, but the engine is {engine}"
        elif args.world_size > 1 and not args.fsdp:
            assert engine == "DistributedDataParallel", f"{args.world_size} processes, but the engine is {engine}"
        samples = len(self._trainer.train_dataset)
        share = math.ceil(samples / (args.train_batch_size * args.world_size))
        assert args.dataloader_drop_last or len(train_dataloader) == share, "the data is not shared among processes"
        if args.process_index != 0:
            return
        get_console().print(self._table())
        say(
            f"{samples:,} samples on {args.world_size} process(es) ({args.device}, {engine}): an epoch is "
            f"{len(train_dataloader):,} batches of {args.train_batch_size} each, training {state.max_steps:,} steps of "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} samples"
        )

    def _table(self) -> Table:
        table = Table("part", "", "parameters", "type", title="What trains")
        for part, name in PARTS.items():
            parameters = list(self._trainer.model.get_submodule(name).parameters())
            count, dtype = sum(parameter.numel() for parameter in parameters), parameters[0].dtype
            state = "trains" if part in self._parts else "frozen"
            table.add_row(part, state, f"{count:,}", str(dtype).removeprefix("torch."))
        return table
