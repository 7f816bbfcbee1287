"""What of a running training goes into a checkpoint, and back out of it.

One process and DDP: safetensors and JSON. Only what trains is written; the rest of the model is built anew from where
it came from, and held against its fingerprint. No state of random numbers is kept, since each step draws from numbers
seeded by (seed, step, rank). DeepSpeed and FSDP write their own sharded formats beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from accelerate.utils import load_fsdp_optimizer
from torch import nn
from transformers import Trainer, TrainerState

from revision.files import write_text
from revision.training import ranks, resharding

if TYPE_CHECKING:
    from revision.training.trainer import StageTrainer

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
TRAINER_STATE = "trainer_state.json"
_ENGINE_TAG = "engine"  # folder of DeepSpeed's files


def save(trainer: StageTrainer, folder: Path) -> None:
    """Writes the state between two steps into a folder that exists. Called by all processes.

    Raises:
        OSError, SafetensorError, RuntimeError: the disk cannot be written.
        ValueError: the optimizer keeps a state that only a pickle could hold.
    """
    sums = ranks.gather(float(trainer._tr_loss))
    state: dict[str, Any] = {
        "processes": ranks.world(),
        "logged": {"step": trainer._globalstep_last_logged, "sums": sums},
        "sync": trainer.sync.state(),
    }
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.save_checkpoint(str(folder), tag=_ENGINE_TAG, exclude_frozen_parameters=True)
    elif trainer.is_fsdp_enabled:
        Trainer._save_optimizer_and_scheduler(trainer, str(folder))
        if trainer.state.global_step == 0:
            trainer.optimizer.state.clear()  # PyTorch has made one up to save it, by a step that Adam would count
    whole = not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled
    tensors: dict[str, torch.Tensor] = {}
    if whole:
        tensors, state["optimizer"] = _split(trainer.optimizer.state_dict())
        scaler = trainer.accelerator.scaler
        state["scaler"] = None if scaler is None else scaler.state_dict()
    if not engine_has_scheduler(trainer):
        state["scheduler"] = trainer.lr_scheduler.state_dict()
    text = json.dumps(state, default=_refuse)  # on every process, so that all of them stop where it is refused
    if not trainer.args.should_save:
        return
    if whole:
        safetensors.torch.save_file(_trained(trainer.model), folder / WEIGHTS)
        safetensors.torch.save_file(tensors, folder / OPTIMIZER)
    write_text(folder / STATE, text)
    trainer.state.save_to_json(str(folder / TRAINER_STATE))


def processes_of(folder: Path) -> int:
    """How many processes wrote a checkpoint."""
    return int(json.loads((folder / STATE).read_text(encoding="utf-8"))["processes"])


def load_weights(model: nn.Module, folder: Path) -> None:
    """Puts what trains back in place.

    Raises:
        ValueError: other parameters train than those in the checkpoint.
    """
    stored, wanted = safetensors.torch.load_file(folder / WEIGHTS), _trained(model)
    different = sorted(
        name for name in {*stored, *wanted} if name not in stored or name not in wanted
        or stored[name].shape != wanted[name].shape
    )  # fmt: skip
    if different:
        raise ValueError(
            f"{folder} holds other parameters than those that train now (the first is {different[0]}); restore the "
            "settings it was made with, or delete the folder to start anew"
        )
    model.load_state_dict(stored, strict=False)


def load_parameters(trainer: StageTrainer, folder: Path) -> None:
    """Puts weights and optimizer alone back in place, in the midst of a run. Called by all processes."""
    if trainer.is_deepspeed_enabled:
        _load_engine(trainer, folder, load_lr_scheduler_states=False)
    elif trainer.is_fsdp_enabled:
        _load_fsdp(trainer, folder)
    else:
        load_weights(trainer.model, folder)
        _load_optimizer(trainer, folder)


def _load_engine(trainer: StageTrainer, folder: Path, **options: Any) -> None:
    if processes_of(folder) != ranks.world():
        resharding.load_engine(trainer, folder, _ENGINE_TAG, **options)
        return
    loaded, _ = trainer.model_wrapped.load_checkpoint(str(folder), tag=_ENGINE_TAG, load_module_strict=False, **options)
    assert loaded is not None, f"DeepSpeed found nothing in {folder}"


def _load_fsdp(trainer: StageTrainer, folder: Path) -> None:
    Trainer._load_from_checkpoint(trainer, str(folder), trainer.model_wrapped)
    if TrainerState.load_from_json(str(folder / TRAINER_STATE)).global_step == 0:
        trainer.optimizer.state.clear()  # what is stored was made up: see `save`
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    load_fsdp_optimizer(plugin, trainer.accelerator, trainer.optimizer, trainer.model, str(folder))


def _load_optimizer(trainer: StageTrainer, folder: Path) -> None:
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))["optimizer"]
    trainer.optimizer.load_state_dict(_join(safetensors.torch.load_file(folder / OPTIMIZER), content))


def load(trainer: StageTrainer, folder: Path) -> None:
    """Puts everything but the weights of one process or DDP back in place, once the engine stands. By all processes.

    Raises:
        ValueError: shards of another number of processes that cannot be taken apart.
    """
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if trainer.is_deepspeed_enabled:
        _load_engine(trainer, folder)
    elif trainer.is_fsdp_enabled:
        _load_fsdp(trainer, folder)
    else:
        _load_optimizer(trainer, folder)
        if content["scaler"] is not None:
            trainer.accelerator.scaler.load_state_dict(content["scaler"])
    if not engine_has_scheduler(trainer):
        trainer.lr_scheduler.load_state_dict(content["scheduler"])
    trainer.sync.restore(content["sync"])
    sums = content["logged"]["sums"]
    mine = sums[ranks.rank()] if len(sums) == ranks.world() else math.fsum(sums) / len(sums)
    trainer.resumed_log = (content["logged"]["step"], mine)


def engine_has_scheduler(trainer: StageTrainer) -> bool:
    """Whether the engine steps the schedule and keeps it in its own files."""
    from accelerate.utils import DeepSpeedSchedulerWrapper

    return isinstance(trainer.lr_scheduler, DeepSpeedSchedulerWrapper)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters that train, tied ones once, and buffers that belong to the state."""
    trained = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    kept = {name: one for name, one in model.state_dict().items() if name in buffers} if buffers else {}
    return {name: one.contiguous() for name, one in {**trained, **kept}.items()}


def _split(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors, named `<parameter>.<name>`, and what is left of it."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        plain[str(parameter)] = {}
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{parameter}.{name}"] = value.detach().contiguous()
            else:
                plain[str(parameter)][name] = value
    return tensors, {"state": plain, "groups": state["param_groups"]}


def _join(tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any]) -> dict[str, Any]:
    """What `_split` took apart."""
    state: dict[int, dict[str, Any]] = {int(parameter): dict(plain) for parameter, plain in content["state"].items()}
    for key, tensor in tensors.items():
        parameter, name = key.split(".", 1)
        state[int(parameter)][name] = tensor
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in content["groups"]
    ]
    return {"state": state, "param_groups": groups}


def _refuse(value: Any) -> Any:
    raise ValueError(
        f"the optimizer or schedule keeps a {type(value).__name__}, which no checkpoint of ours can hold; choose "
        "another trainer.optim or trainer.lr_scheduler_type"
    )
