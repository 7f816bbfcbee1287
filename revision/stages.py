"""What both training stages do around what they learn: their arguments at the start, training and saving at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config, Packing, StageConfig, Unfit

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from revision.alignment import Alignment
    from revision.dataset import ConversationDataset, Rows, Samples
    from revision.model import RevisionForConditionalGeneration, RevisionProcessor
    from revision.packing import PackedDataset


def arguments_of(config: Config, command: str) -> TrainingArguments:
    """The training arguments of `pretrain` or `instruct`.

    Raises:
        ValueError: a name or a value that transformers does not know.
    """
    from revision import rundir, training

    return training.build_arguments(
        {**config.trainer, **_stage(config, command).trainer},
        output=rundir.folder(config, command),
        seed=config.seed,
        tracker=config.tracker.value,
        run_name=f"{config.name}/{command}",
        engine=config.engine.kind.value,
        engine_options=config.engine.options,
    )


def train_and_save(
    config: Config,
    command: str,
    *,
    arguments: TrainingArguments,
    model: RevisionForConditionalGeneration,
    processor: RevisionProcessor,
    rows: Rows,
    samples: Samples,
    alignment: Mapping[str, Any] | None,
    aligned_by: Alignment | None,
) -> None:
    """Trains the parts that the stage names and leaves one Hugging Face folder, `<run>/<command>/model`.

    alignment: lineage of the embeddings that the projector learned from.
    aligned_by: what moved them; None: nothing did.

    Raises:
        ValueError: nothing to train on, a record that cannot be learned from, or checkpoints of other settings or data.
        Interrupted: a signal asked to leave, and a checkpoint has been saved.
    """
    import torch

    from revision import building, rundir, training
    from revision.contents import contents
    from revision.training.guard import Guard

    stage = _stage(config, command)
    dataset = _dataset(config, command, arguments, processor, rows, samples)
    output = rundir.folder(config, command)

    def save(weights: dict[str, torch.Tensor] | None) -> None:
        dtype = torch.bfloat16 if arguments.bf16 else None
        building.save_model(
            model, processor, output / "model",
            alignment=alignment, aligned_by=aligned_by, dtype=dtype, weights=weights,
        )  # fmt: skip

    summary = training.train(
        model=model,
        processor=processor,
        dataset=dataset,
        parts=stage.train,
        arguments=arguments,
        output=output,
        engine=config.engine.kind.value,
        processes=config.engine.processes,
        peak_tflops=config.engine.peak_tflops,
        identity={**rundir.settings(config, command), **contents(rows, samples, processor)},
        minutes=config.checkpoint.minutes,
        guard=Guard(config.guard.policy.value, config.guard.spike, config.guard.window, config.guard.limit),
        begin=lambda: rundir.start(config, command),  # what is refused before costs no finished run
        save=save,
    )
    rundir.finish(config, command, **summary)
    training.conclude(arguments)


def _dataset(
    config: Config,
    command: str,
    arguments: TrainingArguments,
    processor: RevisionProcessor,
    rows: Rows,
    samples: Samples,
) -> ConversationDataset | PackedDataset:
    """What the stage learns, packed or not. Samples are counted only where something depends on their lengths."""
    from revision import rundir
    from revision.dataset import ConversationDataset
    from revision.lengths import settle_lengths
    from revision.packing import PackedDataset

    stage = _stage(config, command)
    dataset = ConversationDataset(
        samples, rows, processor,
        max_length=stage.max_length, limit=stage.limit, seed=config.seed, cut_turns=stage.unfit is Unfit.cut_turns,
    )  # fmt: skip
    packed = stage.packing is Packing.packed
    if packed or stage.unfit is not Unfit.error:
        with arguments.main_process_first(local=False, desc="counting tokens"):  # the others read its file
            settle_lengths(
                dataset,
                Path(config.runs) / ".lengths",
                drop=stage.unfit is not Unfit.error,
                reject_budget=stage.reject_budget,
                listing=rundir.folder(config, command) / "unfit.jsonl",
                main=rundir.is_main_process(),
            )
    if not packed:
        return dataset
    return PackedDataset(
        dataset, tokens=stage.pack_tokens,
        batch=arguments.per_device_train_batch_size, seed=config.seed, processes=arguments.world_size,
    )  # fmt: skip


def _stage(config: Config, command: str) -> StageConfig:
    return {"pretrain": config.pretrain, "instruct": config.instruct}[command]
