"""Both training stages on `transformers.Trainer`: what trains, checks before and after, and the curve.

1. `build_arguments` turns the open `trainer` mapping into `TrainingArguments`, before any model or data is loaded.
2. `select_parts` freezes everything but the named parts and sets the precision of each.
3. `train` runs the Trainer, then asserts that what should move has moved and nothing else has.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from revision.curve import CurveCallback
from revision.dataset import Collator, ConversationDataset
from revision.progress import say

log = logging.getLogger(__name__)

PARTS = {"projector": "projector.", "llm": "language_model."}

# What a stage decides itself, whatever the mapping says: its own collator needs every column, its own bar replaces
# the Trainer's, and the final model is saved as one Hugging Face folder by the command.
_OURS = {"remove_unused_columns": False, "disable_tqdm": True, "logging_nan_inf_filter": False}
_DEFAULTS = {"save_strategy": "no", "include_num_input_tokens_seen": "non_padding", "logging_steps": 10, "dataloader_pin_memory": False}


def build_arguments(
    mapping: Mapping[str, Any], *, output: Path, seed: int, tracker: str = "none", run_name: str | None = None
) -> TrainingArguments:
    """`TrainingArguments` from a config mapping.

    Args:
        mapping: names and values of TrainingArguments; on a machine without a GPU `use_cpu` is set.
        output: folder of the stage; checkpoints and curves go below it.
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
            raise ValueError(f"trainer.{name} is set by the stage itself; leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"trainer.{name} is no field of transformers.TrainingArguments{hint}")
    values = {**_DEFAULTS, **mapping, **_OURS}
    values.setdefault("use_cpu", not torch.cuda.is_available())
    values.setdefault("data_seed", seed)
    try:
        return TrainingArguments(
            output_dir=str(output / "checkpoints"),
            seed=seed,
            report_to=[] if tracker == "none" else [tracker],
            run_name=run_name,
            **values,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"trainer: transformers.TrainingArguments refuses these values: {error}") from error


def select_parts(model: nn.Module, parts: Sequence[str], *, bf16: bool) -> dict[str, int]:
    """Freeze all but the named parts; trained parts in float32, frozen ones in bfloat16 under mixed precision.

    A frozen part in its compute type spares the casts that autocast would repeat at every step.

    Returns:
        Parameters of each part.

    Raises:
        ValueError: no part, or one that does not exist.
    """
    if not parts:
        raise ValueError(f"train=[] leaves nothing to learn; name one or more of {list(PARTS)}")
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"train={list(parts)}: {part!r} is no part of the model; choose from {list(PARTS)}")
    counts = dict.fromkeys(PARTS, 0)
    for part, prefix in PARTS.items():
        trains = part in parts
        module = model.get_submodule(prefix.rstrip("."))
        module.requires_grad_(trains)
        keeps = part == "projector" or trains or not bf16
        module.to(torch.float32 if keeps else torch.bfloat16)
        counts[part] = sum(parameter.numel() for parameter in module.parameters())
    return counts


def show_parts(model: nn.Module, counts: Mapping[str, int], parts: Sequence[str]) -> None:
    """A table of what trains and what is frozen."""
    table = Table("part", "", "parameters", "type", title="What trains")
    for part, count in counts.items():
        first = next(model.get_submodule(PARTS[part].rstrip(".")).parameters())
        table.add_row(part, "trains" if part in parts else "frozen", f"{count:,}", str(first.dtype).removeprefix("torch."))
    get_console().print(table)


def fingerprints(model: nn.Module) -> dict[str, str]:
    """sha256 of each part's parameters, tied ones once."""
    found = {}
    for part, prefix in PARTS.items():
        digest = hashlib.sha256()
        for name, parameter in model.named_parameters():
            if name.startswith(prefix):
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        found[part] = digest.hexdigest()
    return found


def train(
    *,
    model: PreTrainedModel,
    tokenizer: Any,
    dataset: ConversationDataset,
    parts: Sequence[str],
    arguments: TrainingArguments,
    output: Path,
    processes: int = 1,
) -> dict[str, float]:
    """Train the named parts in place.

    Args:
        model: a `RevisionForConditionalGeneration`.
        tokenizer: names the padding token.
        dataset: of the stage.
        parts: "projector", "llm" or both.
        arguments: from `build_arguments`.
        output: folder of the stage; `log.jsonl` goes there.
        processes: how many were asked for.

    Returns:
        The last logged values and the mean rates: loss, samples_per_second, tokens_per_second, steps.

    Raises:
        ValueError: another number of processes than asked for, or a loss that is no number.
    """
    if arguments.world_size != processes:
        raise ValueError(
            f"engine.processes={processes}, but the trainer runs on {arguments.world_size}; start it with torchrun or "
            "accelerate launch (and without ACCELERATE_USE_CPU), or set engine.processes"
        )
    counts = select_parts(model, parts, bf16=arguments.bf16)
    main = arguments.process_index == 0
    if main:
        show_parts(model, counts, parts)
    before = fingerprints(model)
    curve = CurveCallback(output / "log.jsonl", dataset, visible=main)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(tokenizer.pad_token_id),
        callbacks=[curve],
    )
    resume = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    if resume is not None and main:
        say(f"resuming from {resume}")
    trainer.train(resume_from_checkpoint=resume)
    if main:
        say(
            f"ran on {arguments.world_size} process(es) as {type(trainer.model_wrapped).__name__}, "
            f"{len(dataset):,} samples, {trainer.state.global_step:,} steps"
        )
    _check_moved(before, fingerprints(model), parts)
    return curve.summary()


def _check_moved(before: Mapping[str, str], after: Mapping[str, str], parts: Sequence[str]) -> None:
    for part in PARTS:
        moved = before[part] != after[part]
        assert moved == (part in parts), f"{part} {'moved' if moved else 'did not move'}, contrary to train={list(parts)}"


