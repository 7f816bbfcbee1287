"""One training stage, from the parts that train to the last check."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from revision.costs import peak_flops, work_of
from revision.costs.watch import Watch
from revision.data.collators import Collator, PackedCollator
from revision.data.dataset import ConversationDataset
from revision.data.packing import PackedDataset
from revision.interrupts import Interrupted, SignalWatch
from revision.model import RevisionForConditionalGeneration, RevisionProcessor
from revision.progress import say
from revision.training import ranks, states
from revision.training.checkpoints import Checkpoints, step_in
from revision.training.curve import CurveCallback
from revision.training.engines import DDP, refine_precision, require_processes
from revision.training.groups import Rates, is_set, require_trained
from revision.training.guard import Guard
from revision.training.kernels import use_fused_loss
from revision.training.packed import SeparationCheck, prepare_packing
from revision.training.parts import ADAPTER, checksums, part_of, require_moved, select_parts
from revision.training.prefix import shared_prefix
from revision.training.regression import begin_by_regression
from revision.training.sharding import whole_weights
from revision.training.trainer import StageTrainer, StartCheck

Save = Callable[[dict[str, torch.Tensor] | None, dict[str, float]], None]


def train(
    *,
    model: RevisionForConditionalGeneration,
    processor: RevisionProcessor,
    dataset: ConversationDataset | PackedDataset,
    parts: Sequence[str],
    rates: Rates | None = None,
    arguments: TrainingArguments,
    output: Path,
    engine: str = DDP,
    processes: int = 1,
    peak_tflops: float | None = None,
    identity: Mapping[str, Any] | None = None,
    regress: int | None = None,
    minutes: float | None = None,
    guard: Guard = Guard(),  # noqa: B008  (frozen)
    begin: Callable[[], object] = lambda: None,
    save: Save | None = None,
) -> dict[str, float]:
    """Trains the named parts in place, from the last checkpoint where there is one.

    Args:
        model: the multimodal LLM, with its adapter attached where one trains.
        processor: its processor; its tokenizer names the padding token.
        dataset: of the stage; packed, its items are whole batches, whatever the arguments say of their size.
        parts: "projector", "llm", "adapter", or regular expressions over parameter names.
        rates: `learning_rate` and `weight_decay` of each part; None, or None in them: what the arguments say.
        arguments: from `build_arguments`.
        output: folder of the stage, the one that the arguments were built for; `log.jsonl` goes there.
        engine: the one that the arguments were built for, of `engines.ENGINES`.
        processes: how many the caller expects.
        peak_tflops: of one device, in 10^12 FLOP/s, for the share of it that is reached; None: of a known GPU.
        identity: what the result depends on, by name: settings, and fingerprints of what is read. Checkpoints of
            another one are refused. The weights at the start are added here.
        regress: begin by a regression of the projector with so many steps after its closed form, where there is no
            checkpoint to go on from; None: begin with the projector as it is.
        minutes: between checkpoints, where `trainer.save_strategy` does not say when; None: at signals only.
        guard: what becomes of a step whose loss is no number.
        begin: called when nothing stands in the way of training any more, before anything of an earlier one changes.
        save: called by the main process once training has ended well, with the whole weights by name, or None where
            `model` holds them, and with what is returned: an engine that keeps pieces is gone after this function.

    Returns:
        `steps`, `bad_steps`, the last logged `loss`, and mean rates as in `Watch.overall`.

    Raises:
        ValueError: an unknown part, a rate for one that does not train, another engine or number of processes than
            expected, several GPUs for one process, checkpoints of other settings, a record that cannot be learned
            from, a loss that is no number, a full disk, or a part that should have moved and did not.
        Interrupted: a signal asked to leave, and a checkpoint has been saved.
    """
    require_processes(arguments, engine, processes)
    guard.require_possible(arguments)
    chosen = select_parts(model, parts, bf16=arguments.bf16, masters=bool(arguments.deepspeed))
    trained = [name for names in chosen.values() for name in names]
    rates = rates or {}
    require_trained(rates, trained)
    _require_own_optimizer(rates, arguments)
    _tune(trained, arguments)
    checkpoints = _checkpoints(arguments)
    start = checksums(model)
    resume = _newest(checkpoints, {**(identity or {}), "weights at the start": _digest(start)})
    if resume is None and regress is not None:
        _regress(model, dataset, regress, arguments)
    collator = _collator(model, processor, dataset, arguments)
    use_fused_loss(model, arguments.device)
    peak = peak_flops(arguments.device, half=arguments.bf16 or arguments.fp16, tflops=peak_tflops)
    failures: list[str] = []
    meter = Watch(work_of(model), device=arguments.device, peak=peak)
    curve = CurveCallback(output / "log.jsonl", watch=meter, visible=arguments.process_index == 0, fail=failures.append)
    timed = minutes if arguments.save_strategy == "no" else None
    with SignalWatch() as watch:
        trainer = StageTrainer(
            rates=rates, checkpoints=checkpoints, meter=meter, failures=failures, watch=watch, guard=guard,
            minutes=timed, log=output, prefix=shared_prefix(model, dataset, arguments),
            model=model, args=arguments, train_dataset=dataset, data_collator=collator, callbacks=[curve],
        )  # fmt: skip
        refine_precision(trainer, engine)
        check = _add_checks(trainer, engine, collator)
        begin()
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        finally:
            curve.close()
    _leave_if_asked(trainer)
    ranks.agree(next(iter(failures), None))
    resumed = {} if resume is None else {"start": start}
    require_moved(check.before, checksums(model), chosen, steps=trainer.state.global_step, **resumed)
    weights = whole_weights(model, keep=arguments.process_index == 0, dtypes=_as_saved(model, arguments))
    summary = {**curve.summary(), "bad_steps": trainer.sync.bad_steps}
    if save is not None:
        _save_once(partial(save, weights, summary), arguments)
    return summary


def _as_saved(model: RevisionForConditionalGeneration, arguments: TrainingArguments) -> dict[str, torch.dtype]:
    """The LLM of mixed precision is saved in bfloat16: whole in float32 it may be more than the host can hold."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if not arguments.bf16 or any(part_of(name) == ADAPTER for name in names):  # which is merged in float32 first
        return {}
    return {name: torch.bfloat16 for name in names if part_of(name) == "llm"}


def conclude(arguments: TrainingArguments) -> None:
    """To be called when the model is saved: removes the checkpoints and ends the process group."""
    if arguments.process_index == 0:
        folder = Path(str(arguments.output_dir))
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        if folder.exists():
            os.replace(folder, gone)  # a kill must not leave half of them under their own name
        shutil.rmtree(gone, ignore_errors=True)
    ranks.part()
    gc.collect()


def _newest(checkpoints: Checkpoints, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint to go on from; None: the run begins."""
    found = checkpoints.open(identity)
    if found is not None and step_in(found) == 0 and states.processes_of(found) != ranks.world():
        return None  # nothing has been learned in it, and DeepSpeed's shards without an optimizer stay as they are
    if found is not None and ranks.rank() == 0:
        say(f"resuming from {found}")
    return found


def _add_checks(trainer: StageTrainer, engine: str, collator: Collator | PackedCollator) -> StartCheck:
    """Has the trainer look at its first step, and leave lines of numbers to the curve; gives the look at the start."""
    trainer.remove_callback(PrinterCallback)
    check = StartCheck(trainer, engine)
    trainer.add_callback(check)
    if isinstance(collator, PackedCollator):
        trainer.add_callback(SeparationCheck(trainer, collator))
    return check


def _save_once(save: Callable[[], None], arguments: TrainingArguments) -> None:
    """The main process saves; a full disk there is an error in all of them."""
    try:
        if arguments.process_index == 0:
            save()
    except ValueError as error:
        ranks.agree(str(error))
    ranks.agree(None)


def _leave_if_asked(trainer: StageTrainer) -> None:
    """Raises Interrupted where training was left at a signal; one process speaks for all."""
    if trainer.sync.left is None:
        return
    at, of = trainer.state.global_step, trainer.state.max_steps
    saved = trainer.checkpoints.folder / f"checkpoint-{at}"
    ranks.part()
    left = trainer.sync.left
    sentence = f"{left.name}: saved after step {at:,} of {of:,} in {saved}; the same command goes on from there"
    raise Interrupted(left, sentence if trainer.args.process_index == 0 else "")


def _regress(
    model: RevisionForConditionalGeneration,
    dataset: ConversationDataset | PackedDataset,
    steps: int,
    arguments: TrainingArguments,
) -> None:
    """Every process computes the same; one says how well it went."""
    plain = dataset.dataset if isinstance(dataset, PackedDataset) else dataset
    begun = begin_by_regression(model, plain, steps=steps, seed=arguments.seed)
    if arguments.process_index == 0:
        say(f"the projector begins by a regression, which explains {begun.explained:.0%} of what it goes for")
        if begun.named is not None:
            say(f"{steps:,} steps on, {begun.named:.0%} of its visual tokens are nearest to a word of their own text")


def _collator(
    model: RevisionForConditionalGeneration,
    processor: RevisionProcessor,
    dataset: ConversationDataset | PackedDataset,
    arguments: TrainingArguments,
) -> Collator | PackedCollator:
    """How samples become a batch, and the attention that it needs, set on the model."""
    if isinstance(dataset, PackedDataset):
        return prepare_packing(model, arguments)
    _attend_on_cpu(model, arguments)
    return Collator(processor.tokenizer.pad_token_id)


def _checkpoints(arguments: TrainingArguments) -> Checkpoints:
    in_steps = arguments.save_strategy == "steps" and arguments.save_steps >= 1
    return Checkpoints(
        Path(str(arguments.output_dir)),
        keep=arguments.save_total_limit or 1,
        every=int(arguments.save_steps) if in_steps else None,
    )


def _digest(sums: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _require_own_optimizer(rates: Rates, arguments: TrainingArguments) -> None:
    """DeepSpeed's own optimizer would be built of one group, and rates of parts be lost without a word."""
    deepspeed: Any = arguments.deepspeed_plugin
    if is_set(rates) and deepspeed is not None and "optimizer" in deepspeed.deepspeed_config:
        raise ValueError(
            "engine.options has an optimizer of its own, which knows no rates of parts; take `optimizer` out of it, so "
            "that trainer.optim holds, or leave out the fields under parts"
        )


def _tune(trained: Sequence[str], arguments: TrainingArguments) -> None:
    """Looking for casts costs time and changes nothing, where all parts compute in their own types."""
    alone = all(part_of(name) == "projector" for name in trained)
    if arguments.bf16 and alone and not arguments.deepspeed and not arguments.fsdp:
        arguments.mixed_precision = "no"


def _attend_on_cpu(model: RevisionForConditionalGeneration, arguments: TrainingArguments) -> None:
    """On short padded sequences torch's fused attention takes five times as long there, above all backwards."""
    if arguments.device.type == "cpu":
        model.set_attn_implementation("eager")
