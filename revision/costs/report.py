"""A plan of a stage in the terminal: what trains, how long it takes, and what lies in memory by engine."""

from __future__ import annotations

from rich import get_console
from rich.table import Table

from revision.costs.devices import Device
from revision.costs.memory import GIB
from revision.costs.stage import StagePlan
from revision.progress import say


def show(stage: str, plan: StagePlan, device: Device, *, embeddings: str, mfu: float) -> None:
    """Two tables and the lines between them.

    Args:
        stage: its name.
        plan: of it.
        device: that it was planned for.
        embeddings: what the stage reads in the place of pictures, in words.
        mfu: share of the peak that the plan assumes.
    """
    setting, lengths, console = plan.setting, plan.lengths, get_console()
    console.rule(f"{stage} on {setting.gpus} x {device.title}", align="left")
    micro = f"{setting.batch}" if setting.row is None else f"{setting.row:,} tokens"
    parts = Table("part", "", "parameters", title="What trains", title_justify="left")
    for part in plan.parts:
        parts.add_row(part.name, part.state, f"{part.parameters:,}")
    console.print(parts)
    say(f"embeddings of {embeddings}")
    padding = "" if setting.row is not None else f"; padding adds {lengths.padding:.1%}"
    if setting.row is None and lengths.pairs == lengths.tokens**2:
        padding = "; how much padding adds is not known, since all are taken to be of one length"
    say(
        f"{plan.extent.records:,} samples in {plan.extent.steps:,} steps of {micro} x {setting.accumulation} x "
        f"{setting.gpus}; a sample has {lengths.tokens:,.1f} tokens, {lengths.labels:,.1f} of them labels "
        f"({lengths.source}){padding}"
    )
    say(
        f"{plan.extent.tokens:.3g} tokens, {plan.cost.model.total:.3g} FLOPs ({plan.cost.hardware:.3g} with padding "
        f"and repetition): {plan.cost.hours:.2f} hours at {mfu:.0%} of {device.tflops:g} TFLOP/s"
    )
    table = Table("GiB on each GPU", *plan.memory, title="Memory in the worst step", title_justify="left")
    columns = list(plan.memory.values())
    for name in ("weights", "gradients", "optimizer", "buffers", "logits", "activations", "layer"):
        table.add_row(name, *(f"{vars(without)[name] / GIB:.2f}" for without, _ in columns))
        if name in ("activations", "layer"):
            table.add_row("... checkpointed", *(f"{vars(with_it)[name] / GIB:.2f}" for _, with_it in columns))
    table.add_section()
    for label, place in (("in all", 0), ("... checkpointed", 1)):
        table.add_row(label, *(f"{both[place].total / GIB:.1f}" for both in columns))
    console.print(table)
    checkpointing = "with" if setting.checkpointing else "without"
    verdict = "fits" if plan.fits else "does NOT fit"
    say(
        f"set: {setting.sharding.value} {checkpointing} checkpointing, {plan.peak.total / GIB:.1f} GiB, which "
        f"{verdict} into {plan.budget / GIB:.1f} GiB"
    )
