"""The engine of a training run: its settings for `TrainingArguments`, and whether it is the one that runs.

An engine that was dropped on the way gives the same losses as the one asked for, only with more memory or, where the
data is not shared out, with every process doing all of the work. So nothing here is taken on trust: what a launcher
left in the environment is read before the start, and what wraps the model is looked at before the first step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from revision.progress import counted
from revision.training.sharding import is_sharded

DDP, ZERO_1, ZERO_2, ZERO_3, ZERO_3_OFFLOAD, FSDP_2 = "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"
ENGINES = (DDP, ZERO_1, ZERO_2, ZERO_3, ZERO_3_OFFLOAD, FSDP_2)
LIVE = 2_000_000_000  # numbers that ZeRO-3 may keep gathered
_STAGES = {ZERO_1: 1, ZERO_2: 2, ZERO_3: 3, ZERO_3_OFFLOAD: 3}

# "auto" takes the value of TrainingArguments.
_DEEPSPEED: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
_FSDP: dict[str, Any] = {
    "version": 2,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # one unit a layer of the LLM; the projector is in the outermost
    "reshard_after_forward": True,
    "cpu_ram_efficient_loading": False,  # it would leave random weights in the projector of all processes but one
}


def engine_arguments(engine: str, options: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
    """What `TrainingArguments` takes for an engine.

    Args:
        engine: one of `ENGINES`.
        options: goes into the engine's settings and has the last word: of DeepSpeed, or `fsdp_config`.
        on_cpu: whether the processes compute on a CPU.

    Raises:
        ValueError: no such engine, or one that does not run on a CPU.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine.kind={engine} is no engine; choose one of {', '.join(ENGINES)}")
    if engine == DDP:
        return {}
    if engine == FSDP_2:
        if on_cpu:
            raise ValueError(
                "engine.kind=fsdp2 runs on accelerators alone: on a CPU, accelerate would train whole copies of the "
                "model and say nothing; choose engine=zero3, and leave out trainer.use_cpu where it is set"
            )
        return {
            "fsdp": True,
            "fsdp_config": merge(_FSDP, options),
            # Otherwise each process would add up whole float32 gradients until the last batch of a step.
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        }
    zero: dict[str, Any] = {"stage": _STAGES[engine]}
    further: dict[str, Any] = {}
    if _STAGES[engine] == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        # Above DeepSpeed's 1e9, which the head of a 70B LLM exceeds: beside it nothing could be gathered in advance.
        zero["stage3_max_live_parameters"] = LIVE
    if engine == ZERO_3_OFFLOAD:
        host = {"device": "cpu", "pin_memory": not on_cpu}
        zero |= {"offload_optimizer": dict(host), "offload_param": dict(host)}
        # DeepSpeed's own Adam for the host is compiled at the first start; on a CPU, torch's computes there already.
        further = {"zero_force_ds_cpu_optimizer": False} if on_cpu else {}
    return {"deepspeed": merge({**_DEEPSPEED, **further, "zero_optimization": zero}, options)}


def prepare_environment(engine: str, *, bf16: bool, on_cpu: bool) -> None:
    """Reads what `accelerate launch` left in the environment, before `TrainingArguments` does; settles the rest.

    Raises:
        ValueError: it was started for another engine or precision, or for a CPU in a way that drops the engine.
    """
    launched = _launched_for()
    if launched is not None and launched != engine:
        raise ValueError(
            f"engine.kind={engine}, but accelerate was started for {launched}; set engine.kind={launched}, or start it "
            f"with scripts/accelerate/{engine}.yaml"
        )
    if engine != DDP and _is_true("ACCELERATE_USE_CPU"):
        raise ValueError(
            f"engine.kind={engine}, but ACCELERATE_USE_CPU is set, under which accelerate drops the engine and says "
            "nothing; unset it (and leave use_cpu out of accelerate's file), and set trainer.use_cpu=true instead"
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16" if bf16 else "no"):
        raise ValueError(
            f"accelerate was started with mixed_precision={precision}, but trainer.bf16={bf16} decides; set "
            "mixed_precision: 'no' in accelerate's file"
        )
    if engine in _STAGES:
        # accelerate refuses settings in both of its file and its arguments, equal ones too; these have been compared.
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")


def join_group(engine: str) -> None:
    """Lets DeepSpeed take over the process group that `TrainingArguments` has made.

    On a CPU nobody else does it before the model is built, and ZeRO-3 would then count one process.
    """
    if engine in _STAGES and torch.distributed.is_initialized():
        import_module("deepspeed").init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)


def require_processes(arguments: TrainingArguments, engine: str, processes: int) -> None:
    """Holds the processes that run against those that were asked for.

    Raises:
        ValueError: another number, several GPUs for one process, or no accelerator where one was asked for.
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
    if engine != DDP and not torch.distributed.is_initialized():
        raise ValueError(
            f"engine.kind={engine} needs a launcher also for one process; start the command plainly, without "
            "accelerate, or with torchrun"
        )


def refine_precision(trainer: Any, engine: str) -> None:
    """Under mixed precision, lets FSDP2 add up gradients in float32 and hand the loss over as it is.

    accelerate's own policy rounds both to bfloat16, which leaves three digits of a loss. Called before wrapping.
    """
    if engine == FSDP_2:
        plugin = trainer.accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        if policy is not None:
            plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def require_engine(trainer: Any, engine: str, batches: int) -> None:
    """Holds what wraps the model of a Trainer, and what each process reads, against what was asked for.

    Args:
        trainer: once everything is wrapped, before the first step.
        engine: one of `ENGINES`.
        batches: of this process in an epoch.

    Raises:
        ValueError: another engine, weights that are not in pieces, or data that is not shared out.
    """
    arguments = trainer.args
    runs = _running(trainer.model_wrapped)
    wanted = engine if arguments.world_size > 1 or engine != DDP else "none"
    if runs != wanted:
        processes = counted(arguments.world_size, "process", "processes")
        raise ValueError(
            f"engine.kind={engine} on {processes}, but the engine that runs is {runs}; start "
            "the command plainly, so that it chooses its launcher, or look at what accelerate was told"
        )
    whole = [name for name, parameter in trainer.model.named_parameters() if not is_sharded(parameter)]
    if engine in (ZERO_3, ZERO_3_OFFLOAD, FSDP_2) and whole:
        raise ValueError(
            f"engine.kind={engine}, but every process holds all of {whole[0]} ({len(whole)} parameters in all); build "
            "the model after the training arguments"
        )
    samples = len(trainer.train_dataset)
    share = math.ceil(samples / (arguments.train_batch_size * arguments.world_size))
    if not arguments.dataloader_drop_last and batches != share:
        raise ValueError(
            f"each of {arguments.world_size} processes would read {batches} batches an epoch instead of its share of "
            f"{share}: the data is not shared out; look at the launcher, and leave trainer.accelerator_config out"
        )


def _running(wrapped: Any) -> str:
    """The engine that a wrapped model shows; "none" for a bare model."""
    if is_compiled_module(wrapped):  # accelerate compiles what it has wrapped
        wrapped = wrapped._orig_mod
    if isinstance(wrapped, FSDPModule):
        return FSDP_2
    if isinstance(wrapped, DistributedDataParallel):
        return DDP
    name = type(wrapped).__name__
    if name == "DeepSpeedEngine":  # importing DeepSpeed only to ask would take seconds
        offload = "_offload" if wrapped.zero_offload_param() is not None else ""
        return f"zero{wrapped.zero_optimization_stage()}{offload}"
    return "fsdp1" if name == "FullyShardedDataParallel" else "none"


def _launched_for() -> str | None:
    """The engine that `accelerate launch` was started for; None where it only starts processes, or did not start us."""
    if _is_true("ACCELERATE_USE_FSDP"):
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    if not _is_true("ACCELERATE_USE_DEEPSPEED"):
        return None
    offload = os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") != "none"
    return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}{'_offload' if offload else ''}"


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def merge(settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings are merged; elsewhere the options have the last word."""
    merged = dict(settings)
    for name, value in options.items():
        before = merged.get(name)
        merged[name] = merge(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return merged
