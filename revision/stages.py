"""What both training stages do around what they learn: their arguments at the start, training and saving at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from revision.schema import Config, StageConfig

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from revision.dataset import Rows, Samples
    from revision.model import RevisionForConditionalGeneration, RevisionProcessor


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
) -> None:
    """Trains the parts that the stage names and leaves one Hugging Face folder, `<run>/<command>/model`.

    alignment: lineage of the embeddings that the projector learned from.

    Raises:
        ValueError: nothing to train on, or a record that cannot be learned from.
    """
    import torch

    from revision import building, rundir, training
    from revision.dataset import ConversationDataset

    stage = _stage(config, command)
    dataset = ConversationDataset(
        samples, rows, processor, max_length=stage.max_length, limit=stage.limit, seed=config.seed
    )
    output = rundir.start(config, command)
    summary = training.train(
        model=model,
        processor=processor,
        dataset=dataset,
        parts=stage.train,
        arguments=arguments,
        output=output,
        processes=config.engine.processes,
        identity=rundir.fingerprint(config, command),
        peak_tflops=config.engine.peak_tflops,
    )
    if rundir.is_main_process():
        dtype = torch.bfloat16 if arguments.bf16 else None
        building.save_model(model, processor, output / "model", alignment=alignment, dtype=dtype)
    rundir.finish(config, command, **summary)
    training.conclude(arguments)


def _stage(config: Config, command: str) -> StageConfig:
    return {"pretrain": config.pretrain, "instruct": config.instruct}[command]
