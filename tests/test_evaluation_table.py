"""Metrics from rows of predictions, and the tables and figures of a sweep made of such rows."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from revision.evaluation.figures import base_groups, draw_map
from revision.evaluation.metrics import PICTURE_METRICS, scores
from revision.evaluation.report import kind_tables, score_tables
from revision.evaluation.sweeps import difference, estimate, group_jobs, read_jobs, seed_values, swept_fields
from revision.evaluation.table import collect
from revision.files import write_json

METRICS = {metric.name: metric for metric in PICTURE_METRICS}


def picture(number: int, *, nll: float, track: str = "known", rank: int = 3) -> dict[str, Any]:
    return {
        "row": "picture",
        "id": f"p{number}",
        "track": track,
        "nll": nll,
        "nll_other": nll + 4.0,
        "nll_blind": nll + 1.0,
        "tokens": 2 + number % 2,
        "rank": rank,
        "rank_likelihood": 7,
        "rank_blind": 50,
        "rank_encoder": 1,
        "candidates": 20,
    }


def question(number: int, kind: str, correct: bool, **changes: Any) -> dict[str, Any]:
    row = {"row": "question", "id": f"q{number}", "track": "known", "kind": kind, "correct": correct}
    return row | {"correct_blind": False, "constant": number % 2 == 0} | changes


def write_job(
    folder: Path,
    arm: str,
    seed: int,
    *,
    quality: float = 0.0,
    steps: int = 300,
    depth: int = 2,
    pictures: int = 6,
    model: str = "pretrain",
    options: dict[str, float] | None = None,
    **pretrain: Any,
) -> None:
    """A job with scores; the higher its quality, the likelier each caption. `pretrain`: further fields of stage 1."""
    more = "".join(f"-{name}-{value}" for name, value in {**pretrain, **(options or {})}.items())
    evaluated = folder / f"{arm}-{seed}-{steps}-{depth}{more}" / "evaluate"
    (evaluated / model).mkdir(parents=True)
    config = {
        "name": evaluated.parent.name,
        "seed": seed,
        "alignment": {
            "method": "none" if arm == "pairs" else arm,
            "noise_std": 0.1 if arm == "c3" else 0.0,
            "options": options or {},
        },
        "pretrain": {
            "input": "pairs" if arm == "pairs" else "text",
            "trainer": {"max_steps": steps, "warmup": steps / 10},
            **pretrain,
        },
        "model": {"projector": {"depth": depth}},
        "run": {"steps": [arm]},
    }
    OmegaConf.save(OmegaConf.create(config), evaluated / "config.yaml")
    rows = [picture(i, nll=10.0 + i - quality + 0.1 * seed, rank=1 + i % 6) for i in range(pictures)]
    rows += [question(i, "colour", i % 3 == 0) for i in range(4)]
    (evaluated / model / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    (evaluated / model / "scores.json").write_text(json.dumps(scores(rows, resamples=50, seed=0)))


def test_scores_of_rows() -> None:
    rows = [picture(0, nll=4.0, rank=1), picture(1, nll=9.0, rank=5), picture(2, nll=8.0, track="unseen", rank=6)]
    rows += [question(0, "colour", True), question(1, "count", False, chosen=True, chosen_blind=False)]
    found = scores(rows, resamples=100, seed=0)
    known = found["pictures"]["known"]
    assert known["caption_nll"]["value"] == pytest.approx(6.5)
    assert known["token_nll"]["value"] == pytest.approx(13 / 5)
    assert known["margin"]["value"] == pytest.approx(8 / 5)
    assert known["margin_blind"]["value"] == pytest.approx(2 / 5)
    assert (known["naming_r1"]["value"], known["naming_r5"]["value"], known["naming_r5_likelihood"]["value"]) == (
        0.5,
        1,
        0,
    )
    assert known["naming_r1_encoder"]["value"] == 1
    assert (known["naming_r1_chance"]["value"], known["naming_r5_chance"]["value"]) == (1 / 20, 5 / 20)
    assert known["token_nll"]["n"] == 2
    assert known["token_nll"]["low"] == pytest.approx(4 / 2)
    assert known["token_nll"]["high"] == pytest.approx(9 / 3)
    assert found["pictures"]["unseen"]["naming_r5"]["value"] == 0
    questions = found["questions"]["known"]
    assert list(questions) == ["all", "colour", "count"]
    assert questions["all"]["exact"]["value"] == 0.5
    assert questions["all"]["exact_gain"]["value"] == 0.5
    assert questions["count"]["choice"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert "choice" not in questions["colour"]  # no question of that kind has choices
    assert "unseen" not in found["questions"]


def benchmark(track: str, number: int, kind: str, right: bool, **changes: Any) -> dict[str, Any]:
    row = question(number, kind, right, track=track, right=right, right_blind=False)
    return row | {"id": f"{track}{number}"} | changes


def test_benchmarks_count_alike_and_groups_as_a_whole() -> None:
    """Three of four right, in pairs one of which is right as a whole; one of two right: the mean is 62.5 %."""
    rows = [benchmark("mme", n, "scene", n > 0, groups={"picture": f"p{n // 2}"}, correct=False) for n in range(4)]
    rows += [benchmark("pope", n, "random", n == 0, is_yes=True, yes=n == 0) for n in range(2)]
    rows += [benchmark("pope", 2, "random", False, is_yes=False, yes=True)]
    found = scores(rows, resamples=200, seed=0)
    assert found["pictures"] == {}
    assert found["questions"]["mme"]["all"]["accuracy"]["value"] == 0.75
    assert found["questions"]["mme"]["scene"]["exact"]["value"] == 0
    assert found["groups"] == {"mme": {"picture": found["groups"]["mme"]["picture"]}}
    assert found["groups"]["mme"]["picture"]["accuracy"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2}
    f1 = found["questions"]["pope"]["all"]["f1"]  # one hit, one false alarm, one miss
    assert f1["value"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    mean = found["mean"]["accuracy"]
    assert mean["value"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert mean["n"] == 7 and mean["low"] < mean["value"] < mean["high"]
    assert "f1" not in found["mean"], "mme has none"
    overview, first, second = [*score_tables({"instruct": found}), *kind_tables({"instruct": found})]
    assert overview.title == "benchmarks, instruct" and overview.head[:3] == ["benchmark", "n", "accuracy"]
    assert [line[0] for line in overview.lines] == ["mme", "pope", "mean"]
    assert overview.lines[2][:2] == ["mean", "7"] and overview.lines[2][2].startswith("54.2 [")
    assert [line[0] for line in first.lines] == ["all", "scene", "each picture as a whole"]
    assert first.lines[2][1:3] == ["2", "50.0 [0.0, 100.0]"]
    assert second.title == "pope, instruct"


def test_naming_tracks_are_no_benchmarks() -> None:
    rows = [picture(0, nll=4.0), question(0, "colour", True, right=True, right_blind=False)]
    found = scores(rows, resamples=10, seed=0)
    assert "mean" not in found and "groups" not in found
    assert [table.title for table in score_tables({"m": found})][1] == "questions about known concepts, m"
    assert kind_tables({"m": found}) == []


def test_no_yes_at_all_is_an_f1_of_nothing() -> None:
    found = scores(
        [benchmark("pope", n, "random", True, is_yes=False, yes=False) for n in range(3)], resamples=9, seed=0
    )
    assert found["questions"]["pope"]["all"]["f1"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 3}


def test_swept_fields_leave_out_what_follows_from_others(tmp_path: Path) -> None:
    for arm in ("none", "c3", "realign", "pairs"):
        write_job(tmp_path, arm, 0)
    assert swept_fields(read_jobs(tmp_path)) == []  # noise and input follow the arm; run.steps does not matter
    write_job(tmp_path, "c3", 0, steps=600)
    write_job(tmp_path, "c3", 0, depth=3)
    assert swept_fields(read_jobs(tmp_path)) == ["model.projector.depth", "pretrain.trainer.max_steps"]


def test_a_key_of_an_open_mapping_that_is_absent_is_at_its_default(tmp_path: Path) -> None:
    """As another value it makes another setting; as nothing it would make the runs repetitions of one."""
    for seed, options in ((0, None), (1, None), (0, {"share": 0.5}), (1, {"share": 0.5})):
        write_job(tmp_path, "realign", seed, options=options)
    jobs = read_jobs(tmp_path)
    assert swept_fields(jobs) == ["alignment.options.share"]
    groups = group_jobs(jobs, swept_fields(jobs))
    assert {(group.settings, tuple(job.seed for job in group.jobs)) for group in groups} == {
        ((("alignment.options.share", None),), (0, 1)), ((("alignment.options.share", 0.5),), (0, 1)),
    }  # fmt: skip


def test_numbers_over_seeds_are_paired(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_job(tmp_path, "none", seed)
        write_job(tmp_path, "realign", seed, quality=0.6)
    write_job(tmp_path, "realign", 3, quality=50.0)  # a seed that `none` lacks: outside the comparison
    none, realign = group_jobs(read_jobs(tmp_path), [])
    assert (none.arm, realign.arm) == ("none", "realign")
    nll = METRICS["caption_nll"]
    plain = estimate(none, nll, row="picture", track="known")
    assert plain is not None
    assert plain.value == pytest.approx(np.mean([10.0 + i + 0.1 * s for i in range(6) for s in range(3)]))
    assert plain.n == 6
    assert seed_values(none, nll, row="picture", track="known") == pytest.approx([12.5, 12.6, 12.7])
    found = difference(realign, none, nll, row="picture", track="known")
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((-0.6, -0.6, -0.6))
    per_token = difference(realign, none, METRICS["token_nll"], row="picture", track="known")
    assert per_token is not None
    assert per_token.value == pytest.approx(-0.6 * 6 / 15)
    assert estimate(none, nll, row="picture", track="unseen") is None


def test_runs_on_other_pictures_are_not_compared(tmp_path: Path) -> None:
    write_job(tmp_path, "none", 0)
    write_job(tmp_path, "realign", 0, pictures=5)
    with pytest.raises(ValueError, match=r"was evaluated on other pictures of track known than .*same evaluate"):
        collect(tmp_path)


def test_collect_writes_table_and_figure(tmp_path: Path) -> None:
    for seed in (0, 1):
        for arm, quality in (("none", 0.0), ("c3", 0.3), ("realign", 0.6), ("pairs", 0.9)):
            write_job(tmp_path, arm, seed, quality=quality)
    collect(tmp_path)
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert {line["run"] for line in lines} >= {"pairs-0-300-2", "realign-1-300-2"}
    (line,) = (x for x in lines if (x["arm"], x["seed"], x["metric"]) == ("pairs", "1", "caption_nll"))
    assert float(line["value"]) == pytest.approx(12.5 - 0.9 + 0.1)
    table = (tmp_path / "table.md").read_text().splitlines()
    arms = [row.split(" | ")[0] for row in table if row.startswith("| ")]
    assert arms[:8] == [
        "| alignment",
        "| ---",
        "| none",
        "| c3",
        "| realign",
        "| pairs",
        "| encoder, cosine",
        "| chance",
    ]
    (row,) = (
        row for row in table if row.startswith("| realign - none") and "-0.240" in row
    )  # -.6 * 6 / 15 nats a token
    assert "**[-0.2" in row
    assert Image.open(tmp_path / "table.png").size[0] > 1000
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["table.csv", "table.md", "table.png"]


def test_sweep_of_a_setting_gets_a_map_and_a_row_each(tmp_path: Path) -> None:
    for arm, quality in (("none", 0.0), ("realign", 0.6)):
        for steps in (100, 300, 900):
            write_job(tmp_path, arm, 0, quality=quality * steps / 300, steps=steps)
        write_job(tmp_path, arm, 0, depth=3)
    jobs = read_jobs(tmp_path)
    assert [(group.arm, dict(group.settings)) for group in base_groups(jobs)] == [
        (arm, {"model.projector.depth": 2, "pretrain.trainer.max_steps": 300}) for arm in ("none", "realign")
    ]
    collect(tmp_path)
    assert Image.open(tmp_path / "map-pretrain-known.png").size[1] > 1000
    table = (tmp_path / "table.md").read_text()
    assert "| alignment | model.projector.depth | pretrain.trainer.max_steps | seeds |" in table
    assert "| realign - none | 2 | 900 | 1 | -0.720 " in table


def test_base_point_of_a_sweep_is_one_that_ran(tmp_path: Path) -> None:
    for steps, depth in ((300, 3), (300, 4), (600, 2), (900, 2)):  # 300 and 2 are the commonest, but never together
        write_job(tmp_path, "realign", 0, steps=steps, depth=depth)
    (group,) = base_groups(read_jobs(tmp_path))
    assert dict(group.settings) == {"model.projector.depth": 2, "pretrain.trainer.max_steps": 600}
    collect(tmp_path)
    assert (tmp_path / "table.png").is_file()


def test_arms_of_other_settings_are_not_compared(tmp_path: Path) -> None:
    write_job(tmp_path, "none", 0)
    write_job(tmp_path, "realign", 0, steps=600)  # the sweep's other jobs failed
    collect(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| alignment | pretrain.trainer.max_steps | seeds |" in table
    assert "realign - none" not in table


def test_nothing_to_collect_and_nothing_to_map(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no evaluated run lies below .*; finish `revision evaluate`"):
        collect(tmp_path)
    write_job(tmp_path, "none", 0)
    with pytest.raises(ValueError, match="nothing but alignment and seed was swept for pretrain"):
        draw_map(tmp_path / "map.png", read_jobs(tmp_path), ours="realign", track="known")
    (tmp_path / "none-0-300-2/evaluate/config.yaml").unlink()
    with pytest.raises(ValueError, match=r"has scores but no config\.yaml; run `revision evaluate` of that run again"):
        collect(tmp_path)


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "scores.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
