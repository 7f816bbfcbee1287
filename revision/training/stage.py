"""One training stage, from the parts that train to the last check."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from revision.costs import peak_flops, work_of
from revision.costs.watch import Watch
from revision.curve import CurveCallback
from revision.dataset import Collator, ConversationDataset
from revision.model import RevisionForConditionalGeneration, RevisionProcessor
from revision.progress import say
from revision.training.parts import checksums, require_moved, select_parts
from revision.training.trainer import StageTrainer, StartCheck

_IDENTITY = "identity.json"


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
    peak_tflops: float | None = None,
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
        peak_tflops: of one device, in 10^12 FLOP/s, for the share of it that is reached; None: of a known GPU.

    Returns:
        `steps`, the last logged `loss`, and mean rates as in `Watch.overall`.

    Raises:
        ValueError: an unknown part, another number of processes than expected, several GPUs for one process,
            checkpoints of other settings, a loss that is no number, or a part that should have moved and did not.
    """
    if arguments.world_size != processes:
        raise ValueError(
            f"engine.processes={processes}, but {arguments.world_size} are running; start as many with torchrun or "
            "accelerate launch (on a CPU: torchrun), or set engine.processes"
        )
    if arguments.n_gpu > 1:
        raise ValueError(
            f"engine.processes={processes}, but {arguments.n_gpu} GPUs are visible, which one process would share by "
            "copying the model at every step; set engine.processes to as many, or show it one by CUDA_VISIBLE_DEVICES"
        )
    checkpoints = Path(str(arguments.output_dir))
    resume = _checkpoint(checkpoints, identity, main=arguments.process_index == 0)
    select_parts(model, parts, bf16=arguments.bf16)
    _tune(model, parts, arguments)
    before = checksums(model)
    half = arguments.bf16 or arguments.fp16
    peak = peak_flops(arguments.device, half=half, tflops=peak_tflops)
    watch = Watch(work_of(model), device=arguments.device, peak=peak)
    curve = CurveCallback(output / "log.jsonl", watch=watch, visible=arguments.process_index == 0)
    trainer = StageTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        callbacks=[curve],
        watch=watch,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StartCheck(trainer, parts))
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        curve.close()
    if resume is None or trainer.state.global_step > _step_of(resume):
        require_moved(before, checksums(model), parts, steps=trainer.state.global_step)
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
