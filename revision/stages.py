"""What both training stages do around what they learn: their arguments at the start, training and saving at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import MODEL_STEPS, Config, Packing, ProjectorStart, StageConfig, Unfit

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from revision.alignment import Alignment
    from revision.data.dataset import ConversationDataset, Samples
    from revision.data.packing import PackedDataset
    from revision.data.rows import Rows
    from revision.embeddings import EmbeddingStore
    from revision.model import RevisionForConditionalGeneration, RevisionProcessor
    from revision.training.adapters import Adapter

_LINES = 1  # version of what is kept: higher where the same records make other samples
UNFIT = "unfit.jsonl"  # samples that were left out or cut
ADAPTER = "adapter"  # in `train`, and the folder of an adapter that is kept


def arguments_of(config: Config, command: str) -> TrainingArguments:
    """The training arguments of `pretrain` or `instruct`.

    Raises:
        ValueError: a name or a value that transformers does not know.
    """
    from revision import precision, training
    from revision.runs import rundir

    mapping = {**config.trainer, **_stage(config, command).trainer}
    arguments = training.build_arguments(
        mapping,
        output=rundir.folder(config, command),
        seed=config.seed,
        tracker=config.tracker.value,
        run_name=f"{config.name}/{command}",
        engine=config.engine.kind.value,
        engine_options=config.engine.options,
    )
    if remark := precision.remark(mapping.get("bf16"), arguments.device):
        _say(remark)
    return arguments


def model_folder(config: Config, model: str, wanted_by: str) -> Path:
    """Where a model lies that is named by a stage of this run or by its folder.

    Raises:
        ValueError: the stage has not finished with the settings asked for now.
    """
    from revision.runs import rundir

    return rundir.require(config, model, wanted_by) / "model" if model in MODEL_STEPS else Path(model)


def alignment_of(config: Config, command: str, texts: EmbeddingStore) -> Alignment:
    """The alignment of the run, by which a stage moves the rows of text stores.

    texts: the store of `data.texts` as it is now.

    Raises:
        ValueError: `align` has not finished with the settings asked for now, or was fitted on another text store.
    """
    from revision.alignment import load_alignment
    from revision.runs import rundir

    folder = rundir.require(config, "align", wanted_by=command)
    alignment = load_alignment(folder)
    if alignment.statistics.text_fingerprint != texts.fingerprint():
        raise ValueError(
            f"the alignment in {folder} was fitted on another text store than {texts.path} is now; run "
            "`revision align` again"
        )
    return alignment


def lineage_of(alignment: Alignment) -> dict[str, Any]:
    """What a model keeps of the alignment it learned from: method, settings but the seed, and fingerprints of the fit.

    The map itself is not among it: fitted once more on other hardware it differs in the last bits.
    """
    known = alignment.statistics
    return {
        "method": alignment.method,
        "parameters": {name: value for name, value in alignment.parameters().items() if name != "seed"},
        "text": known.text_fingerprint,
        "image": known.image_fingerprint,
    }


def model_of(
    config: Config, command: str, dim: int, arguments: TrainingArguments
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """The model that the stage starts from, of an earlier stage or from a folder, or a fresh projector.

    Its loss is made sure to be that of the LLM's own logits, where the weights are there to ask.

    dim: of the embeddings.

    Raises:
        ValueError: it cannot be read, or is of another shape than the configuration asks for.
    """
    import torch

    from revision import building
    from revision.assembly import model_shape, template_file
    from revision.training.agreement import require_own_logits

    stage, llm = _stage(config, command), config.model.llm
    frozen = {"projector", ADAPTER}.issuperset(stage.train)  # then half the memory will do
    dtype = torch.bfloat16 if arguments.bf16 and frozen else torch.float32
    shape = model_shape(config, dim)
    if stage.init is None:
        _say(f"starting from a fresh projector in front of {llm}")
        model, processor = building.build_model(
            llm, chat_template=template_file(config), dtype=dtype, seed=config.seed, **shape
        )
    else:
        folder = model_folder(config, stage.init, command)
        _say(f"starting from {folder}")
        model, processor = building.read_model(folder, dtype=dtype)
        building.require_shape(model, folder, shape)
        if not building.require_llm(model, folder, llm):
            _say(f"{llm} cannot be read here, so its shape was not compared with that of the LLM in {folder}")
    if not require_own_logits(model):
        _say("ZeRO-3 holds the weights in pieces, so the loss was not compared with the LLM's own logits")
    return model, processor


def kept_at(config: Config, *content: object) -> Path:
    """Where what is read anew at each start is kept as lines that all processes map.

    content: all that the lines depend on, as JSON takes it; the file is named after it.
    """
    name = hashlib.sha256(json.dumps([_LINES, *content], sort_keys=True).encode()).hexdigest()[:32]
    return Path(config.runs) / ".samples" / name


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
    import torch

    from revision import building, training
    from revision.data.contents import contents
    from revision.runs import rundir
    from revision.training.guard import Guard

    stage = _stage(config, command)
    precision = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    dataset = _dataset(config, command, arguments, processor, rows, samples)
    counts = _counts(dataset)
    _say(_read(counts, rows))
    adapter = _adapter(config, stage, model, arguments)
    output = rundir.folder(config, command)

    def save(weights: dict[str, torch.Tensor] | None, summary: dict[str, float]) -> None:
        """Merges the adapter, if there is one, and writes the folder."""
        shutil.rmtree(output / ADAPTER, ignore_errors=True)  # one of an earlier run fits no more
        if adapter is not None:
            if config.adapter.keep:
                base, learned = str(model_folder(config, str(stage.init), command)), "projector" in stage.train
                adapter.save(output / ADAPTER, base=base, projector=learned, weights=weights)
            weights = adapter.merge(weights)
        building.save_model(
            model, processor, output / "model",
            alignment=alignment, aligned_by=aligned_by,
            dtype=torch.bfloat16 if arguments.bf16 else None, weights=weights,
            history=_history(config, command, output, {**counts, **summary, "precision": precision}),
        )  # fmt: skip

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
        rundir.finish(config, command, **counts, **summary, precision=precision)
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
    from revision.data.dataset import ConversationDataset
    from revision.data.lengths import settle_lengths
    from revision.data.packing import PackedDataset
    from revision.runs import rundir

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


def _say(line: str) -> None:
    """Once, whatever the number of processes."""
    from revision.progress import say
    from revision.runs import rundir

    if rundir.is_main_process():
        say(line)


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

    stage = _stage(config, command)
    before = [] if stage.init is None else building.read_history(model_folder(config, stage.init, command))
    this = model_card.stage_entry(
        name=f"{config.name}/{command}",
        settings=rundir.settings(config, command),
        facts=facts,
        provenance=json.loads((output / rundir.PROVENANCE).read_text()),
    )
    return [*before, this]


def _stage(config: Config, command: str) -> StageConfig:
    return {"pretrain": config.pretrain, "instruct": config.instruct}[command]
