"""What a training stage does with what it starts from: the data set, training, and the folder that comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.fields import stage_of
from revision.schema import Config, Packing, ProjectorStart, StageConfig, Unfit
from revision.stages.starting import ADAPTER, model_folder, say

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from revision.alignment import Alignment
    from revision.data.dataset import ConversationDataset
    from revision.data.packing import PackedDataset
    from revision.data.rows import Rows
    from revision.data.samples import Samples
    from revision.model import RevisionForConditionalGeneration, RevisionProcessor
    from revision.training.adapters import Adapter

UNFIT = "unfit.jsonl"  # samples that were left out or cut


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
    """Trains what the stage names and leaves one Hugging Face folder, `<run>/<command>/model`, adapters merged.

    alignment: lineage of the embeddings that the projector learned from.
    aligned_by: what moved them; None: nothing did.

    Raises:
        ValueError: nothing to train on, a record that cannot be learned from, or checkpoints of other settings or data.
        Interrupted: a signal asked to leave, and a checkpoint has been saved.
    """
    from revision import training
    from revision.data.contents import contents
    from revision.runs import rundir
    from revision.training.guard import Guard

    stage, output = stage_of(config, command), rundir.folder(config, command)
    precision = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    dataset = _dataset(config, command, arguments, processor, rows, samples)
    counts = _counts(dataset)
    say(_read(counts, rows))
    adapter = _adapter(config, stage, model, arguments)
    facts = {**counts, "precision": precision}
    save = _Saving(config, command, model, processor, adapter, alignment, aligned_by, facts)

    def begin() -> None:
        """Takes the finish mark away, which what is refused before does not cost."""
        rundir.start(config, command)
        if stage.unfit is Unfit.error and rundir.is_main_process():
            (output / UNFIT).unlink(missing_ok=True)  # of an earlier run, which left samples out

    with training.alone(output):
        summary = training.train(
            model=model,
            processor=processor,
            dataset=dataset,
            parts=stage.train,
            rates=asdict(stage.parts),
            arguments=arguments,
            output=output,
            engine=config.engine.kind.value,
            processes=config.engine.processes,
            peak_tflops=config.engine.peak_tflops,
            identity={**rundir.identity(config, command), **contents(rows, samples, processor), "precision": precision},
            regress=stage.start_steps if stage.start is ProjectorStart.regression else None,
            minutes=config.checkpoint.minutes,
            guard=Guard(config.guard.policy.value, config.guard.spike, config.guard.window, config.guard.limit),
            begin=begin,
            save=save,
        )
        rundir.finish(config, command, **facts, **summary)
        training.conclude(arguments)


@dataclass
class _Saving:
    """Merges the adapter, if there is one, and writes the model's folder; called once, when training has ended.

    facts: of the run, for the model's history; `alignment`, `aligned_by` as in `train_and_save`.
    """

    config: Config
    command: str
    model: RevisionForConditionalGeneration
    processor: RevisionProcessor
    adapter: Adapter | None
    alignment: Mapping[str, Any] | None
    aligned_by: Alignment | None
    facts: Mapping[str, Any]

    def __call__(self, weights: dict[str, torch.Tensor] | None, summary: Mapping[str, float]) -> None:
        """weights: the whole model's, where the engine holds it in pieces; None: the model has them."""
        import torch

        from revision import building
        from revision.runs import rundir

        output = rundir.folder(self.config, self.command)
        shutil.rmtree(output / ADAPTER, ignore_errors=True)  # one of an earlier run fits no more
        if self.adapter is not None:
            if self.config.adapter.keep:
                stage = stage_of(self.config, self.command)
                base = str(model_folder(self.config, str(stage.init), self.command))
                self.adapter.save(output / ADAPTER, base=base, projector="projector" in stage.train, weights=weights)
            weights = self.adapter.merge(weights)
        building.save_model(
            self.model, self.processor, output / "model",
            alignment=self.alignment, aligned_by=self.aligned_by,
            dtype=torch.bfloat16 if self.facts["precision"] == "bfloat16" else None, weights=weights,
            history=_history(self.config, self.command, output, {**self.facts, **summary}),
        )  # fmt: skip


def _dataset(
    config: Config,
    command: str,
    arguments: TrainingArguments,
    processor: RevisionProcessor,
    rows: Rows,
    samples: Samples,
) -> ConversationDataset | PackedDataset:
    """What the stage learns, packed or not. Samples are counted only where something depends on their lengths."""
    from revision.data.dataset import ConversationDataset
    from revision.data.lengths import settle_lengths
    from revision.data.packing import PackedDataset
    from revision.runs import rundir
    from revision.training import ranks

    stage = stage_of(config, command)
    dataset = ConversationDataset(
        samples, rows, processor,
        max_length=stage.max_length, limit=stage.limit, seed=config.seed, cut_turns=stage.unfit is Unfit.cut_turns,
    )  # fmt: skip
    if stage.unfit is Unfit.error and (missing := dataset.without_embedding()):
        raise ValueError(
            f"{len(missing):,} of {len(dataset):,} samples, the first is {missing[0]!r}, have no embedding: their "
            f"records are in rejected.jsonl of their store; leave them out by {command}.unfit=drop, or mend the "
            "records and embed them anew"
        )
    packed = stage.packing is Packing.packed
    if packed or stage.unfit is not Unfit.error:
        with ranks.main_first():  # the others read its file
            settle_lengths(
                dataset,
                Path(config.runs) / ".lengths",
                drop=stage.unfit is not Unfit.error,
                reject_budget=stage.reject_budget,
                listing=rundir.folder(config, command) / UNFIT,
                main=rundir.is_main_process(),
            )
    if not packed:
        return dataset
    return PackedDataset(
        dataset, tokens=stage.pack_tokens,
        batch=arguments.per_device_train_batch_size, seed=config.seed, processes=arguments.world_size,
    )  # fmt: skip


def _counts(dataset: ConversationDataset | PackedDataset) -> dict[str, int]:
    """Samples in all, packed or not, and those about a text, about a picture, and about neither."""
    from revision.data.packing import PackedDataset

    plain = dataset.dataset if isinstance(dataset, PackedDataset) else dataset
    kinds = plain.count_kinds()
    return {
        "samples": len(plain),
        "about_texts": kinds["text"],
        "about_pictures": kinds["image"],
        "about_neither": kinds["none"],
    }


def _read(counts: Mapping[str, int], rows: Rows) -> str:
    """What stands where pictures will stand, in one line."""
    by = "" if rows.alignment is None else f", moved by {rows.alignment.method}"
    moved = rows.alignment is not None and rows.alignment.moves_images
    told = {
        f"about texts{by}": counts["about_texts"],
        f"about pictures{by if moved else ''}": counts["about_pictures"],
        "about neither": counts["about_neither"],
    }
    return "samples: " + "; ".join(f"{count:,} {what}" for what, count in told.items() if count)


def _adapter(
    config: Config, stage: StageConfig, model: RevisionForConditionalGeneration, arguments: TrainingArguments
) -> Adapter | None:
    """The adapter that the stage trains, attached to the model."""
    if ADAPTER not in stage.train:
        return None
    from revision.training.adapters import Adapter

    settings = config.adapter
    return Adapter(
        model,
        method=settings.method.value,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        targets=settings.targets,
        arguments=arguments,
    )


def _history(config: Config, command: str, output: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How the model came about, a stage each: those of the model it started from, and this one."""
    from revision import building, model_card
    from revision.runs import rundir

    stage = stage_of(config, command)
    before = [] if stage.init is None else building.read_history(model_folder(config, stage.init, command))
    this = model_card.stage_entry(
        name=f"{config.name}/{command}",
        settings=rundir.settings(config, command),
        facts=facts,
        provenance=json.loads((output / rundir.PROVENANCE).read_text()),
    )
    return [*before, this]
