"""A learning rate and a weight decay for each part: the groups of an optimizer, split by part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from revision.training.parts import ADAPTER, PARTS, part_of

Rates = Mapping[str, Mapping[str, float | None]]  # part -> learning_rate and weight_decay; None: as the others
_ORDER = (*PARTS, ADAPTER)
_FIELDS = {"learning_rate": "lr", "weight_decay": "weight_decay"}


def is_set(rates: Rates) -> bool:
    """Whether any part has a rate or a decay of its own."""
    return any(value is not None for part in rates.values() for value in part.values())


def require_trained(rates: Rates, names: Iterable[str]) -> None:
    """Refuses a rate for a part of which nothing trains. names: of all parameters that train.

    Raises:
        ValueError: names the part and what trains instead.
    """
    trained = sorted({part_of(name) for name in names})
    for part, values in rates.items():
        for field, value in values.items():
            if value is not None and part not in trained:
                raise ValueError(
                    f"parts.{part}.{field}={value} is for a part of which nothing trains; leave it out, or add {part} "
                    f"to train, which has {', '.join(trained)}"
                )


def of_parts(rates: Rates, *, learning_rate: float, weight_decay: float) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each part, its own or the common one."""
    common = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    found = {part: {**common, **_own(rates.get(part, {}))} for part in _ORDER}
    return {part: (values["learning_rate"], values["weight_decay"]) for part, values in found.items()}


def split(
    optimizer: torch.optim.Optimizer,
    rates: Rates,
    *,
    named: Iterable[tuple[str, torch.nn.Parameter]],
    decayed: Collection[str],
) -> None:
    """Splits the groups of a fresh optimizer by part, in place, and gives each its part's rate and decay.

    All else that a group holds stays as it is, so schedulers and engines see nothing new.

    Args:
        optimizer: before its first step and before a scheduler is put on it.
        rates: of the parts.
        named: all parameters that train, with their names.
        decayed: names of those that weight decay is for; the others, norms and biases, keep none.

    Raises:
        ValueError: the optimizer holds other parameters than those that train, as layer-wise ones do.
    """
    names = {id(parameter): name for name, parameter in named}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if {id(parameter) for parameter in held} != set(names):
        raise ValueError(
            f"trainer.optim: {type(optimizer).__name__} groups parameters in a way of its own, so parts cannot have "
            "rates of their own; leave out the fields under parts, or choose another optimizer"
        )
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_part: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            by_part.setdefault((part_of(name), name in decayed), []).append(parameter)
        for (part, decays), parameters in sorted(by_part.items(), key=_order):
            own = {_FIELDS[field]: value for field, value in _own(rates.get(part, {})).items()}
            if not decays:
                own.pop("weight_decay", None)
            groups.append({**group, **own, "params": parameters})
    optimizer.param_groups = groups


def _own(values: Mapping[str, float | None]) -> dict[str, float]:
    return {field: value for field, value in values.items() if value is not None}


def _order(entry: tuple[tuple[str, bool], Sequence[Any]]) -> tuple[int, bool]:
    """The projector first: its learning rate is the one that curves show."""
    (part, decays), _ = entry
    return _ORDER.index(part), not decays
