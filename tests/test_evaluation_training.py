"""The training stages of a sweep side by side: final losses, settings and rates, curves."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from revision.evaluation.training_table import collect_training, read_trained


def write_stage(run: Path, stage: str, losses: list[float], *, finished: bool = True, **facts: Any) -> None:
    """A stage of a run `<arm>-<seed>-<learning rate>` that has logged every tenth step."""
    arm, seed, rate = run.name.split("-")
    folder = run / stage
    folder.mkdir(parents=True)
    config = {
        "name": run.name,
        "seed": int(seed),
        "alignment": {"method": "none" if arm == "pairs" else arm},
        "pretrain": {"input": "pairs" if arm == "pairs" else "text", "trainer": {"learning_rate": float(rate)}},
        "evaluate": {"splits": f"{arm}{seed}{rate}"},  # differs in every job, and has no part in what is trained
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    lines = [{"step": 10 * number, "loss": loss} for number, loss in enumerate(losses, start=1)]
    lines.append({"step": 10 * len(losses), "memory_gib": 1.0})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        mark = {"facts": {"steps": 10 * len(losses), "samples_per_second": 2.5, "nested": {"a": 1}, **facts}}
        (folder / "finished.json").write_text(json.dumps(mark))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "training.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_a_line_for_each_finished_stage(tmp_path: Path) -> None:
    falling = [2.0 - 0.1 * number for number in range(20)]
    write_stage(tmp_path / "none-0-0.1", "pretrain", falling, bad_steps=3)
    write_stage(tmp_path / "none-0-0.1", "instruct", [1.0])
    write_stage(tmp_path / "pairs-1-0.2", "pretrain", [4.0, 3.0])
    write_stage(tmp_path / "realign-0-0.2", "pretrain", [5.0], finished=False)
    assert collect_training(tmp_path)
    first, second, third = rows_of(tmp_path)
    assert (first["run"], first["stage"], first["arm"], first["seed"]) == ("none-0-0.1", "pretrain", "none", "0")
    assert float(first["final_loss"]) == pytest.approx((0.2 + 0.1) / 2), "steps 190 and 200 of 200"
    assert (first["bad_steps"], first["steps"], first["samples_per_second"]) == ("3", "200", "2.5")
    assert (second["arm"], second["final_loss"], second["bad_steps"]) == ("pairs", "3.0", "")
    assert (third["stage"], third["final_loss"]) == ("instruct", "1.0")
    swept = [name for name in first if "." in name]
    assert swept == ["pretrain.trainer.learning_rate"], "what differs between jobs and was not for an evaluation"
    assert [row[swept[0]] for row in (first, second)] == ["0.1", "0.2"]
    assert "nested" not in first
    with Image.open(tmp_path / "training.png") as image:
        assert image.width > image.height, "a panel a stage"


def test_a_log_that_is_lost_leaves_its_line(tmp_path: Path) -> None:
    write_stage(tmp_path / "none-0-0.1", "pretrain", [1.0])
    (tmp_path / "none-0-0.1" / "pretrain" / "log.jsonl").unlink()
    assert collect_training(tmp_path)
    assert rows_of(tmp_path)[0]["final_loss"] == ""


def test_nothing_is_written_where_nothing_was_trained(tmp_path: Path) -> None:
    write_stage(tmp_path / "none-0-0.1", "pretrain", [1.0], finished=False)
    assert not collect_training(tmp_path)
    assert read_trained(tmp_path) == [] and not (tmp_path / "training.csv").exists()


def test_a_stage_without_its_settings_is_an_error(tmp_path: Path) -> None:
    write_stage(tmp_path / "none-0-0.1", "pretrain", [1.0])
    (tmp_path / "none-0-0.1" / "pretrain" / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"is finished but has no config\.yaml; run `revision pretrain` of that run"):
        collect_training(tmp_path)
