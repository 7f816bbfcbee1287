"""Parameters of which each process holds a piece, as under ZeRO-3 and FSDP2: their sizes, sums and whole values.

From outside, a partitioned parameter of ZeRO-3 looks like an empty tensor: its elements are in `ds_tensor`, its size is
in `ds_numel`. One of FSDP2 is a DTensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed has partitioned a parameter (ZeRO-3)."""
    return hasattr(parameter, "ds_id")


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether each process holds a piece of a parameter only."""
    return is_partitioned(parameter) or isinstance(parameter, DTensor)


def size(parameter: Any) -> int:
    """Elements of a parameter, the pieces of all processes together."""
    return int(parameter.ds_numel) if is_partitioned(parameter) else int(parameter.numel())


@torch.no_grad()
def bit_sums(parameters: Sequence[nn.Parameter]) -> list[int]:
    """For each parameter the sum of its bit patterns, which no change of a weight leaves alone but by chance.

    A sum over pieces is the sum of their sums, so no parameter is ever put together. Where any is sharded, every
    process must call this.
    """
    own = [_bit_sum(_piece(parameter)) for parameter in parameters]
    if not any(is_sharded(parameter) for parameter in parameters):
        return own
    every: list[list[int]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(every, own)
    sums = zip(*every, strict=True)
    return [sum(one) if is_sharded(parameter) else one[0] for one, parameter in zip(sums, parameters, strict=True)]


@torch.no_grad()
def whole_weights(
    model: nn.Module, *, keep: bool, dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
) -> dict[str, torch.Tensor] | None:
    """The weights of a model by name, whole, on the CPU; None where the model holds all of them itself.

    What DeepSpeed trains in bfloat16 or float16 comes from its float32 master weights, so that saving rounds nothing
    that training did not. Every process must call this, while the engine is alive.

    Args:
        keep: whether this process is to have them; the others get an empty mapping, and never hold more than one whole
            parameter at once.
        dtypes: that weights, by name, are turned into on the way; the others keep their own.
    """
    state: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    if not any(is_sharded(one) or _has_master(one) for one in state.values()):
        return None
    weights: dict[str, torch.Tensor] = {}
    done: dict[int, torch.Tensor] = {}
    for name, one in state.items():
        if id(one) not in done:
            whole = _whole(one)
            done[id(one)] = whole.to("cpu", dtypes.get(name), copy=True) if keep else torch.empty(0)
        if keep:
            weights[name] = done[id(one)]  # tied weights stay one tensor
    return weights


def _piece(parameter: Any) -> torch.Tensor:
    """What this process holds of a parameter, flat, without the padding at the end of the last piece."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach().flatten()
    if not is_partitioned(parameter):
        return parameter.detach().flatten()
    held = parameter.ds_tensor.detach().flatten()
    begin = torch.distributed.get_rank(parameter.ds_process_group) * held.numel()
    return held[: max(0, min(held.numel(), size(parameter) - begin))]


def _bit_sum(values: torch.Tensor) -> int:
    return int(values.contiguous().view(_INTEGERS[values.element_size()]).sum(dtype=torch.int64))


def _has_master(tensor: Any) -> bool:
    """Whether DeepSpeed trains a parameter and keeps it in float32 besides."""
    return hasattr(tensor, "_hp_mapping") or (is_partitioned(tensor) and tensor.requires_grad)


def _whole(tensor: Any) -> torch.Tensor:
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach()
    if _has_master(tensor):
        whole = import_module("deepspeed.utils").safe_get_full_fp32_param(tensor)
        assert isinstance(whole, torch.Tensor), "DeepSpeed trains a parameter of which it holds no master weights"
        return whole.detach().view(tensor.ds_shape if is_partitioned(tensor) else tensor.shape)
    if is_partitioned(tensor):
        with import_module("deepspeed").zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return torch.as_tensor(tensor).detach()
