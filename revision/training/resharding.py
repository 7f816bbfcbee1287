"""DeepSpeed's checkpoints on another number of processes than wrote them.

Its shards fit one number of processes. The library's own conversion takes them apart into one file for each parameter
and state of the optimizer ("universal checkpoint"), from which any number of processes can fetch its pieces. It needs
the disk once more for weights and optimizer, and minutes for large models, so it is made where it is needed alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from revision.progress import say
from revision.training import ranks

if TYPE_CHECKING:
    from revision.training.trainer import StageTrainer

_UNIVERSAL = "universal"


def load_engine(trainer: StageTrainer, folder: Path, tag: str, **options: Any) -> None:
    """Puts weights, optimizer and schedule of DeepSpeed's engine back in place. Called by all processes.

    Args:
        folder: a checkpoint after one step at least; DeepSpeed's files lie in its folder `tag`.
        options: of DeepSpeed's `load_checkpoint`.

    Raises:
        ValueError: the shards cannot be taken apart.
    """
    aside = folder.with_name(f".{folder.name}.{_UNIVERSAL}")  # a start clears it away
    failure = None
    if ranks.rank() == 0:
        say(f"the shards in {folder} are of another number of processes and are put together anew")
        failure = _take_apart(folder / tag, aside / _UNIVERSAL)
    ranks.agree(failure)
    engine = trainer.model_wrapped
    groups = [{name: value for name, value in group.items() if name != "params"} for group in _groups(engine)]
    engine._config.load_universal_checkpoint = True
    try:
        loaded, _ = engine.load_checkpoint(str(aside), tag=_UNIVERSAL, load_module_strict=False, **options)
    finally:
        engine._config.load_universal_checkpoint = False
    assert loaded is not None, f"DeepSpeed found nothing in {aside}"
    # DeepSpeed gives all states one tensor of steps, which each of them would count on in place.
    for state in engine.optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
    # DeepSpeed gives all groups the settings of the first. They are those that this run has built them with, but for
    # the rate, which the schedule knows.
    for group, settings in zip(_groups(engine), groups, strict=True):
        group.update({name: value for name, value in settings.items() if name != "lr"})
    if engine.lr_scheduler is not None:
        for group, rate in zip(_groups(engine), engine.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
    ranks.agree(None)  # nobody reads any more
    if ranks.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)


def _groups(engine: Any) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = engine.optimizer.param_groups
    return groups


def _take_apart(shards: Path, out: Path) -> str | None:
    """Runs the conversion in a process of its own, since it forks; a sentence where it fails."""
    shutil.rmtree(out.parent, ignore_errors=True)
    words = ["--input_folder", str(shards), "--output_folder", str(out), "--inject_missing_state"]
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words], capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
    return (
        f"the shards in {shards.parent} cannot be taken apart for another number of processes ({said}); resume with as "
        "many as wrote them, or delete the folder to start anew"
    )
