"""The trained jobs of a sweep side by side: their settings and figures as CSV, the curves of their losses as PNG."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.evaluation.style import INK, plain, save
from revision.evaluation.sweeps import Job, arm_of, arm_order, settings_of, swept_fields, value_order
from revision.files import write_text

STAGES = ("pretrain", "instruct")
_END = 0.1  # share of the steps whose mean loss is called the final one; a single logged loss is noise


@dataclass(frozen=True)
class Trained:
    """A stage that has been finished. `facts`: what its mark says; `steps`, `losses`: its log, float64 [n]."""

    job: Job
    facts: dict[str, Any]
    steps: np.ndarray
    losses: np.ndarray

    @property
    def final_loss(self) -> float | None:
        """Mean of the losses logged in the last tenth of the steps; None where none was logged."""
        return float(self.losses[self.steps > (1 - _END) * self.steps[-1]].mean()) if len(self.steps) else None


def read_trained(folder: Path) -> list[Trained]:
    """Every finished training stage below a folder, stage 1 first. Raises ValueError where one lacks its config."""
    return [_read(mark.parent, stage) for stage in STAGES for mark in sorted(folder.rglob(f"{stage}/finished.json"))]


def collect_training(folder: Path) -> bool:
    """Writes training.csv and training.png of a sweep's finished stages; False, and nothing, where there is none."""
    found = read_trained(folder)
    if found:
        write_text(folder / "training.csv", csv_of(found, folder))
        draw_curves(folder / "training.png", found)
    return bool(found)


def csv_of(found: Sequence[Trained], folder: Path) -> str:
    """One line a stage: where it lies below `folder`, arm, seed and the swept settings, its final loss, its facts."""
    fields = list(dict.fromkeys(name for members in _by_stage(found).values() for name in _fields(members)))
    facts = list(dict.fromkeys(name for one in found for name, value in one.facts.items() if _is_plain(value)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "stage", "arm", "seed", *fields, "final_loss", *facts])
    for one in found:
        job = one.job
        head = [str(job.run.relative_to(folder)), job.model, job.arm, job.seed]
        values = [job.settings.get(name) for name in fields]
        writer.writerow([*head, *values, one.final_loss, *(one.facts.get(name) for name in facts)])
    return text.getvalue()


def draw_curves(path: Path, found: Sequence[Trained]) -> None:
    """A panel a stage: the loss of each job over its steps, faint as logged and bold as a moving mean over a tenth."""
    stages = _by_stage(found)
    longest = max(len(members) for members in stages.values())
    size = (6.4 * len(stages), max(3.4, 0.6 + 0.17 * longest))
    figure = Figure(figsize=size, layout="constrained", dpi=200)
    for axis, (stage, members) in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages.items(), strict=True):
        fields = _fields(members)
        order = sorted(members, key=lambda one: _place(one.job, fields))
        for number, one in enumerate(order):
            _curve(axis, one, _label(one.job, fields), number / max(1, len(order) - 1))
        plain(axis)
        axis.set_title(stage, fontsize=9, fontweight="bold", color=INK)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel("training loss (nats / token)", fontsize=8)
        if any(len(one.losses) for one in members):
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=6, frameon=False, borderaxespad=0)
    save(figure, path)


def _read(folder: Path, stage: str) -> Trained:
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is finished but has no config.yaml; run `revision {stage}` of that run again")
    settings = settings_of(folder)
    told = {name: value for name, value in settings.items() if not name.startswith("evaluate.")}
    job = Job(folder.parent, stage, arm_of(settings), settings["seed"], told, rows=[])
    facts = json.loads((folder / "finished.json").read_text(encoding="utf-8"))["facts"]
    log = folder / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    points = np.array([(row["step"], row["loss"]) for row in rows if "loss" in row], dtype=np.float64).reshape(-1, 2)
    return Trained(job, facts, points[:, 0], points[:, 1])


def _by_stage(found: Sequence[Trained]) -> dict[str, list[Trained]]:
    members = {stage: [one for one in found if one.job.model == stage] for stage in STAGES}
    return {stage: of_stage for stage, of_stage in members.items() if of_stage}


def _fields(members: Sequence[Trained]) -> list[str]:
    return swept_fields([one.job for one in members])


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _place(job: Job, fields: Sequence[str]) -> tuple[Any, ...]:
    return [value_order(job.settings.get(name)) for name in fields], arm_order(job.arm), job.seed


def _label(job: Job, fields: Sequence[str]) -> str:
    swept = (f"{name.rpartition('.')[2]}={job.settings.get(name)}" for name in fields)
    return " ".join([job.arm, *swept, f"seed={job.seed}"])


def _curve(axis: Axes, one: Trained, label: str, shade: float) -> None:
    """shade: 0 to 1, the place among the jobs of the stage; a scale of colours tells more jobs apart than a palette."""
    if not len(one.losses):
        return
    ink = mpl.colormaps["viridis"](0.92 * shade)
    window = max(1, int(_END * len(one.losses)))
    axis.plot(one.steps, one.losses, color=ink, linewidth=0.6, alpha=0.3)
    sums = np.cumsum(np.concatenate([[0.0], one.losses]))
    means = (sums[window:] - sums[:-window]) / window
    axis.plot(one.steps[window - 1 :], means, color=ink, linewidth=1.3, label=label)
