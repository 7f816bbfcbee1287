"""Benchmarks of questions alone: in the tables of a sweep, in tables over experiments, in an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from test_evaluate_command import config, finish_stage, write_lines  # noqa: F401
from test_evaluation_table import benchmark, picture

from revision.cli import multirun
from revision.commands import evaluate
from revision.evaluation.metrics import QUESTION_METRICS, scores
from revision.evaluation.statistics import mean_of_parts
from revision.evaluation.sweeps import (
    difference,
    difference_mean,
    estimate,
    estimate_mean,
    group_jobs,
    read_jobs,
    seed_values,
    suite_of,
    swept_fields,
)
from revision.evaluation.table import collect, collect_experiments
from revision.runs import rundir
from revision.schema import Config

ACCURACY = next(metric for metric in QUESTION_METRICS if metric.name == "accuracy")


def write_job(
    run: Path, *, arm: str = "realign", seed: int = 0, right: tuple[int, int] = (4, 1), named: int = 0
) -> None:
    """A run that has `right` answers of 8 questions of mme, in pairs, and of 2 of pope; and `named` pictures."""
    folder = run / "evaluate" / "instruct"
    folder.mkdir(parents=True)
    settings = {"name": run.name, "seed": seed, "alignment": {"method": arm}, "pretrain": {"input": "text"}}
    OmegaConf.save(OmegaConf.create(settings), run / "evaluate" / "config.yaml")
    rows = [benchmark("mme", n, "scene", n < right[0], groups={"picture": str(n // 2)}) for n in range(8)]
    rows += [benchmark("pope", n, "random", n < right[1]) for n in range(2)]
    rows += [picture(n, nll=3.0) for n in range(named)]
    write_lines(folder / "predictions.jsonl", rows)
    (folder / "scores.json").write_text(json.dumps(scores(rows, resamples=20, seed=0)))


def test_the_mean_of_a_suite_is_paired_by_question_and_seed(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_job(tmp_path / f"none-{seed}", arm="none", seed=seed, right=(2, 1))
        write_job(tmp_path / f"realign-{seed}", seed=seed, right=(4 + 2 * seed, 1))
    jobs = read_jobs(tmp_path)
    assert suite_of(jobs) == ["mme", "pope"]
    none, realign = group_jobs(jobs, [])
    mean = estimate_mean(realign, ACCURACY, tracks=["mme", "pope"])
    assert mean is not None and mean.value == pytest.approx(((4 + 6) / 16 + 1 / 2) / 2)
    found = difference_mean(realign, none, ACCURACY, tracks=["mme", "pope"])
    assert found is not None and found.value == pytest.approx(((10 - 4) / 16 + 0) / 2)
    assert found.low >= 0, "no question is answered worse"
    assert estimate_mean(realign, ACCURACY, tracks=["mme", "other"]) is None


def test_a_sweep_has_one_table_and_one_figure_of_its_benchmarks(tmp_path: Path) -> None:
    for arm, right in (("none", (2, 1)), ("realign", (6, 1))):
        write_job(tmp_path / arm, arm=arm, right=right)
    collect(tmp_path)
    page = (tmp_path / "table.md").read_text()
    assert "## instruct, benchmarks\n\nAccuracy:\n\n| alignment | seeds | mean | mme | pope |" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| realign |")]
    assert line.startswith("| realign | 1 | 62.5 [") and "| 75.0 [" in line and "| 50.0 [" in line
    (line,) = [line for line in page.splitlines() if line.startswith("| realign - none |")]
    assert "+25.0" in line and "+50.0" in line
    assert "mme concepts" not in page
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["benchmarks-instruct.png", "table.csv", "table.md"]
    with Image.open(tmp_path / "benchmarks-instruct.png") as figure:
        assert figure.size[0] > 1000
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    found = {
        (row["run"], row["track"], row["kind"]): float(row["value"]) for row in lines if row["metric"] == "accuracy"
    }
    assert found["realign", "mean", ""] == 0.625
    assert found["realign", "mme", "each picture"] == 0.75
    assert found["none", "mme", "each picture"] == 0.25


def test_one_run_made_the_numbers_of_all_benchmarks(tmp_path: Path) -> None:
    """Seeds that are .4, .5 and .6 right everywhere: more benchmarks make the mean over seeds no surer."""
    parts = [(np.repeat([[0.4], [0.5], [0.6]], 40, axis=1), None)]
    one, many = (mean_of_parts(parts * number, resamples=4000) for number in (1, 11))
    assert (one.value, many.value) == pytest.approx((0.5, 0.5))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=1e-6)
    assert many.n == 11 * one.n


def test_questions_about_one_picture_are_one_draw() -> None:
    """Twenty pictures, half of them right, asked about thrice: as sure as if they had been asked about once."""
    once = [benchmark("pope", n, "random", n < 10, image=str(n)) for n in range(20)]
    thrice = [row | {"id": f"{row['id']}-{copy}"} for copy in range(3) for row in once]
    found = [scores(rows, resamples=2000, seed=0)["questions"]["pope"]["all"]["accuracy"] for rows in (once, thrice)]
    assert [one.pop("n") for one in found] == [20, 60]
    assert found[0] == pytest.approx(found[1])
    yes = [row | {"is_yes": True, "yes": row["right"]} for row in thrice]
    f1 = scores(yes, resamples=200, seed=0)["questions"]["pope"]["all"]["f1"]
    assert f1["value"] == pytest.approx(2 * 0.5 / 1.5)


def test_a_sweep_counts_questions_of_one_picture_as_an_evaluation_does(tmp_path: Path) -> None:
    """Three questions about each of four pictures, five of them answered rightly."""
    for arm in ("none", "realign"):
        write_job(tmp_path / arm, arm=arm)
        rows = [benchmark("pope", n, "random", n < 5, image=str(n // 3)) for n in range(12)]
        write_lines(tmp_path / arm / "evaluate" / "instruct" / "predictions.jsonl", rows)
    none, realign = group_jobs(read_jobs(tmp_path), [])
    whole = scores(rows, resamples=2000, seed=0)["questions"]["pope"]["all"]["accuracy"]
    assert whole["value"] == pytest.approx(5 / 12)
    for found in (
        estimate(realign, ACCURACY, row="question", track="pope"),
        estimate_mean(realign, ACCURACY, tracks=["pope"]),
    ):
        assert found is not None
        assert (found.value, found.low, found.high) == pytest.approx((whole["value"], whole["low"], whole["high"]))
    assert seed_values(realign, ACCURACY, row="question", track="pope") == pytest.approx([5 / 12])
    same = difference(realign, none, ACCURACY, row="question", track="pope")
    assert same is not None and (same.value, same.low, same.high) == (0, 0, 0)


def test_a_score_with_a_scale_of_its_own_is_not_subtracted(tmp_path: Path) -> None:
    """F1 has what a model says in its denominator, which two models do not share."""
    for arm in ("none", "realign"):
        write_job(tmp_path / arm, arm=arm, named=2)
        file = tmp_path / arm / "evaluate" / "instruct" / "predictions.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows += [benchmark("known", n, "presence", True, is_yes=True, yes=arm == "none" or n > 0) for n in range(4)]
        write_lines(file, rows)
    collect(tmp_path)
    page = (tmp_path / "table.md").read_text()
    assert "F1 of yes" in page
    assert all("F1" not in line for line in page.splitlines() if line.startswith("| paired difference"))


def test_runs_from_before_a_field_are_compared(tmp_path: Path) -> None:
    write_job(tmp_path / "none", arm="none")
    write_job(tmp_path / "realign")
    file = tmp_path / "realign" / "evaluate" / "config.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(file), {"evaluate": {"spare_tokens": 2}}), file)
    assert swept_fields(read_jobs(tmp_path)) == []
    OmegaConf.save(
        OmegaConf.merge(OmegaConf.load(file), {"evaluate": {"spare_tokens": 9}}), tmp_path / "none/evaluate/config.yaml"
    )
    assert "evaluate.spare_tokens" in swept_fields(read_jobs(tmp_path))


def test_named_pictures_keep_their_own_part(tmp_path: Path) -> None:
    write_job(tmp_path / "realign", named=3)
    collect(tmp_path)
    page = (tmp_path / "table.md").read_text()
    assert "## instruct, known concepts" in page and "## instruct, benchmarks" in page
    assert (tmp_path / "table.png").is_file()


def test_experiments_share_a_table_and_the_first_is_compared_with(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_job(tmp_path / "full" / f"seed={seed}", seed=seed, right=(6, 2))
        write_job(tmp_path / "ablation" / f"seed={seed}", seed=seed, right=(2, 2))
    write_job(tmp_path / "ablation" / "instruct.limit=10,seed=0", right=(0, 0))
    out = tmp_path / "tables" / "both"
    runs = [
        "full/seed=0",
        "full/seed=1",
        *(f"ablation/{name}" for name in ("seed=0", "seed=1", "instruct.limit=10,seed=0")),
    ]
    collect_experiments([tmp_path / run for run in runs], tmp_path, out)
    page = (out / "table.md").read_text()
    assert "Differences are full minus the other" in page
    assert "| experiment | seeds | mean | mme | pope |" in page
    heads = [line.split(" |")[0] for line in page.splitlines() if line.startswith("| ")]
    assert heads == [
        "| experiment", "| ---", "| ablation", "| ablation instruct.limit=10", "| full",
        "| paired difference", "| ---", "| full - ablation", "| full - ablation instruct.limit=10",
    ]  # fmt: skip
    (line,) = [line for line in page.splitlines() if line.startswith("| full - ablation |")]
    assert line.startswith("| full - ablation | 2 | +25.0")
    told = {row["run"] for row in csv.DictReader((out / "table.csv").read_text().splitlines())}
    assert "ablation/seed=1" in told


def test_a_sweep_over_experiments_ends_in_that_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def outcomes(*names: str) -> list[multirun.Outcome]:
        return [multirun.Outcome(tmp_path / name.split("/")[0], name, None, tmp_path) for name in names]

    for name in ("one", "one/alignment.dim=3", "two"):  # the second is of another sweep
        write_job(tmp_path / name)
    multirun.draw_table_of_experiments(outcomes("two", "none yet", "one"))
    assert "table of all experiments" in capsys.readouterr().out
    page = (tmp_path / "tables" / "two+one" / "table.md").read_text()
    assert "Differences are two minus the other" in page and "alignment.dim" not in page
    multirun.draw_table_of_experiments(outcomes("one", "none yet"))
    multirun.draw_table_of_experiments(outcomes("one", "one/alignment.dim=3"))
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["two+one"]
    write_job(tmp_path / "three", named=3)
    write_job(tmp_path / "four", named=4)
    multirun.draw_table_of_experiments(outcomes("three", "four"))
    said = " ".join(capsys.readouterr().out.split())
    assert "no table over these experiments" in said and "was evaluated on other pictures of track known" in said


def test_only_those_are_asked_that_are_named(config: Config, finish_stage: Any) -> None:  # noqa: F811
    finish_stage(config)
    other = finish_stage(config, "instruct")
    config.run.steps = ["pretrain", "instruct", "evaluate"]
    config.evaluate.models, config.evaluate.asked = ["pretrain", "instruct"], ["instruct"]
    evaluate.run(config)
    folder = rundir.folder(config, "evaluate")
    made = {name: json.loads((folder / name / "scores.json").read_text()) for name in ("pretrain", "instruct")}
    assert made["pretrain"]["questions"] == {} and made["pretrain"]["pictures"].keys() == {"known", "unseen"}
    assert made["instruct"]["questions"]["known"]["all"]["exact"]["n"] == 3
    config.evaluate.models = config.evaluate.asked = [str(other)]
    evaluate.run(config)
    assert json.loads((folder / "test-instruct" / "scores.json").read_text())["questions"]
    config.evaluate.models, config.evaluate.asked = ["pretrain", "instruct"], ["instruct"]
    config.data.naming = None
    with pytest.raises(ValueError, match=r"evaluate\.asked is \['instruct'\], which leaves pretrain without questions"):
        evaluate.run(config)


def test_answers_about_benchmarks_are_read_and_averaged(config: Config, finish_stage: Any) -> None:  # noqa: F811
    """A tiny model, whose answers name nothing: right are those whose most likely choice is, at most."""
    finish_stage(config)
    asked = {"question": "Is it red?\nA. yes\nB. no", "answer": "B", "kind": "colour", "split": "test"}
    closed = {"choices": ["A", "B"], "texts": ["yes", "no"]}
    rows: list[dict[str, Any]] = [
        {"id": "a0", "image": "p1", "track": "mmstar", **asked, **closed},
        {"id": "a1", "image": "p1", "track": "mmstar", **asked, **closed},  # the same question about the same picture
        {"id": "b0", "image": "p2", "track": "mme", **asked, "answer": "Yes", "choices": ["Yes", "No"],
         "groups": {"picture": "p2"}},
        {"id": "c0", "image": "p3", "track": "logicvista", **asked, "answer": "A, C", "also": ["12", "12.0"]},
    ]  # fmt: skip
    write_lines(Path(str(config.data.questions)), rows)
    config.data.naming = None
    config.evaluate.spare_tokens, config.evaluate.max_new_tokens = 9, 6
    evaluate.run(config)
    folder = rundir.folder(config, "evaluate")
    found = [json.loads(line) for line in (folder / "pretrain/predictions.jsonl").read_text().splitlines()]
    first, second, yes, open_ended = found
    assert first["says"] == second["says"] and first["chooses"] in ("A", "B")
    assert {"names", "names_blind", "right", "right_blind"} <= set(first)
    assert yes["groups"] == {"picture": "p2"} and yes["is_yes"] is True
    assert "names" not in open_ended and open_ended["right"] == open_ended["correct"]
    made = json.loads((folder / "pretrain/scores.json").read_text())
    per_track = [made["questions"][track]["all"]["accuracy"]["value"] for track in ("mmstar", "mme", "logicvista")]
    assert made["mean"]["accuracy"]["value"] == pytest.approx(np.mean(per_track))
    assert "## benchmarks, pretrain" in (folder / "table.md").read_text()
    assert "## mme, pretrain" in (folder / "table.md").read_text()
