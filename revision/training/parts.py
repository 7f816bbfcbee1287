"""What trains: parts of the model by name, parameters by regular expression; in which precision; whether they moved."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import torch
from rich.table import Table
from torch import nn

from revision.model import RevisionForConditionalGeneration
from revision.training import sharding

PARTS = {"projector": "projector", "llm": "language_model"}  # names in configs -> modules of the model
ADAPTER = "adapter"  # a part without a module of its own: low-rank matrices beside layers of the LLM
_NEAR = 3  # parameter names that an error offers
_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module")  # what engines and compilers put into names


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name in the model: projector, llm or adapter."""
    if ".lora_" in name:
        return ADAPTER
    bare = plain_name(name)
    return next(part for part, module in PARTS.items() if bare.startswith(f"{module}."))


def plain_name(name: str) -> str:
    """The name of a parameter without what engines, compilers and adapters put into it."""
    return _without(name, *_WRAPPERS, "base_layer")


def select_parts(
    model: RevisionForConditionalGeneration, parts: Sequence[str], *, bf16: bool, masters: bool = False
) -> dict[str, list[str]]:
    """Freezes all but what is named. What trains is float32; what is frozen of the LLM, bfloat16 in mixed precision.

    Only parameters change their type: buffers, rotary frequencies above all, keep the precision they were made in.

    Args:
        model: with its adapter attached, if any.
        parts: "projector", "llm", "adapter", or regular expressions that match whole parameter names.
        bf16: whether training is in mixed precision.
        masters: the engine keeps float32 copies of what trains, so that under mixed precision all is bfloat16.

    Returns:
        For each entry of `parts`, the names of its parameters.

    Raises:
        ValueError: nothing named, a part that does not exist, a regular expression that matches no parameter or one of
            a layer that an adapter is on.
    """
    if not parts:
        raise ValueError(f"train=[] names no part of the model; choose one or more of {', '.join(PARTS)}")
    names = [name for name, _ in model.named_parameters()]
    chosen = {entry: _names_of(entry, names) for entry in parts}
    trained = {name for some in chosen.values() for name in some}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if parameter.is_floating_point() and not sharding.is_partitioned(parameter):  # ZeRO-3 has settled those
            half = bf16 and (masters or (part_of(name) == "llm" and name not in trained))
            parameter.data = parameter.data.to(torch.bfloat16 if half else torch.float32)
    return chosen


def _without(name: str, *words: str) -> str:
    return ".".join(word for word in name.split(".") if word not in words)


def _names_of(entry: str, names: Sequence[str]) -> list[str]:
    """Names of the parameters that an entry of `train` stands for."""
    if entry in (*PARTS, ADAPTER):
        found = [name for name in names if part_of(name) == entry]
        if entry == ADAPTER and not found:
            raise ValueError("train names adapter, but the model has none; set adapter.method, or take it out of train")
        return found
    plain = {plain_name(name): name for name in names if part_of(name) != ADAPTER}
    try:
        found = [name for bare, name in plain.items() if re.fullmatch(entry, bare)]
    except re.error as error:
        raise ValueError(f"train={entry!r} is no regular expression ({error})") from error
    if not found:
        near = difflib.get_close_matches(entry, list(plain), _NEAR, cutoff=0.0)
        raise ValueError(
            f"train={entry!r} is no part of the model; choose one or more of {', '.join(PARTS)}, or a regular "
            f"expression that matches whole parameter names, of which the nearest are {', '.join(near)}"
        )
    under = next((name for name in found if ".base_layer." in name), None)
    if under is not None:
        raise ValueError(
            f"train={entry!r} matches {plain_name(under)}, which an adapter stands in for; leave that layer out of "
            "train or out of adapter.targets"
        )
    return found


def checksums(model: nn.Module) -> dict[str, int]:
    """For each parameter, by name, the sum of its bit patterns. Tied parameters count once.

    Where processes hold pieces of the parameters, every one must call this.
    """
    named = {_without(name, *_WRAPPERS): parameter for name, parameter in model.named_parameters()}
    return dict(zip(named, sharding.bit_sums(list(named.values())), strict=True))


def require_moved(
    before: Mapping[str, int],
    after: Mapping[str, int],
    chosen: Mapping[str, Sequence[str]],
    *,
    steps: int,
    start: Mapping[str, int] | None = None,
) -> None:
    """Compares checksums from before and after training.

    Args:
        before, after: of all parameters.
        chosen: what trained, from `select_parts`.
        steps: that were taken, those before a resumed run was left among them.
        start: of a resumed run, before its checkpoint was loaded: what is left of it may be steps without an update.

    Raises:
        ValueError: nothing of an entry that trains has moved.
        AssertionError: a frozen parameter has.
    """
    assert before.keys() == after.keys(), "parameters came or went while training"
    moved = {name for name in before if before[name] != after[name]}
    frozen = moved - {name for some in chosen.values() for name in some}
    assert not frozen, f"{min(frozen)} is frozen, but has moved"
    earlier = {name for name in after if start is not None and start[name] != after[name]}
    for entry, names in chosen.items():
        if not (moved | earlier).intersection(names):
            raise ValueError(
                f"{entry} trains, but has not moved in {steps} step(s): the learning rate was 0 throughout; raise "
                "trainer.learning_rate, or lower trainer.warmup_steps, whose first step is at 0"
            )


def parts_table(model: nn.Module, rates: Mapping[str, tuple[float, float]]) -> Table:
    """What trains and what is frozen, with counts and types.

    rates: learning rate and weight decay of each part.
    """
    table = Table("part", "", "parameters", "type", "rate", "decay", title="What trains")
    for part in (*PARTS, ADAPTER):
        some = [one for name, one in model.named_parameters() if part_of(name) == part]
        count, trained = (sum(map(sharding.size, ones)) for ones in (some, [o for o in some if o.requires_grad]))
        if not some:
            continue
        state = "trains" if trained == count else "trains in part" if trained else "frozen"
        shown = f"{count:,}" if trained in (0, count) else f"{trained:,} of {count:,}"
        types = sorted({str(one.dtype).removeprefix("torch.") for one in some})
        speed = [f"{value:g}" for value in rates[part]] if trained else ["", ""]
        table.add_row(part, state, shown, ", ".join(types), *speed)
    return table
