"""Searches: spaces, proposals, the journal, resuming, failures; jobs are real processes with stand-in steps."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from revision.cli import main, proposals, search
from revision.cli.proposals import Choice, Point, Space, Span, contains
from revision.runs import processes

OPTUNA = importlib.util.find_spec("optuna") is not None
SPACE: Space = {"a": Choice(("x", "y")), "b": Span(1e-4, 1e-1, log=True), "c": Span(1, 9, whole=True)}
SWEEP = ["pretrain.trainer.learning_rate=tag(log,interval(1e-3,1e-1))", "alignment=none,realign"]


def command_line(command: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("stand_in_scores.py")), command, *arguments]


def at_random(
    space: Space, known: Sequence[tuple[Point, float]], *, count: int, taken: Sequence[Point], seed: int, **_: Any
) -> list[Point]:
    """Stands in for Optuna: points that depend on how many there are already."""
    found: list[Point] = []
    for place in range(count):
        rng = np.random.default_rng([seed, len(taken) + place])
        drawn = {name: float(rng.uniform(one.low, one.high)) for name, one in space.items() if isinstance(one, Span)}
        chosen = {name: str(rng.choice(one.values)) for name, one in space.items() if isinstance(one, Choice)}
        found.append({name: drawn[name] if name in drawn else chosen[name] for name in space})
    return found


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log.jsonl"))
    monkeypatch.delenv("STAND_IN_FAIL", raising=False)
    monkeypatch.setattr(processes, "command_line", command_line)
    monkeypatch.setattr(search, "draw_table", lambda _folder: None)
    if not OPTUNA:
        monkeypatch.setattr(search, "require_optuna", lambda _trials: None)
        monkeypatch.setattr(search, "propose", at_random)


def started() -> list[str]:
    """Names of the jobs that ran since the last call."""
    path = Path("log.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return [line["config"]["name"] for line in lines]


def journal() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path("runs/s/search.json").read_text())["trials"]
    return found


def run(trials: int, *more: str) -> int:
    return main(["evaluate", "-m", "name=s", f"search.trials={trials}", *SWEEP, *more])


def test_a_search_runs_its_trials_and_a_longer_one_goes_on(jobs: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(3) == 0
    first = started()
    assert len(first) == 3 and all(name.startswith("s/alignment=") and "search" not in name for name in first)
    shown = capfd.readouterr().out
    assert "3 of 3 jobs finished" in shown
    best = max(journal(), key=lambda trial: search_score(trial))
    assert f"({best['job']})" in shown and "best pretrain.pictures.known.margin of 3 jobs" in shown
    assert run(3) == 0
    assert started() == [], "all are finished"
    assert run(4, "seed=0") == 0
    assert len(started()) == 4, "other fixed settings are another search"
    assert run(5) == 0
    assert len(started()) == 2
    assert [trial["job"] for trial in journal() if trial["fixed"] == journal()[0]["fixed"]][:3] == first


def search_score(trial: dict[str, Any]) -> float:
    rate = trial["point"]["pretrain.trainer.learning_rate"]
    return -((rate - 0.01) ** 2) - (trial["point"]["alignment"] != "realign")


def test_an_interrupted_search_proposes_what_it_would_have(jobs: None, tmp_path: Path) -> None:
    assert run(3) == 0
    whole = [trial["point"] for trial in journal()]
    Path("runs/s/search.json").unlink()
    assert run(1) == 0 and run(3) == 0
    assert [trial["point"] for trial in journal()] == whole


def test_a_failed_job_is_reported_and_tried_again(
    jobs: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAND_IN_FAIL", ".*")
    assert run(1) == 1
    assert "`evaluate` ended with exit code 1" in capfd.readouterr().out
    failed = started()
    assert journal()[0]["failure"] is not None
    monkeypatch.delenv("STAND_IN_FAIL")
    assert run(2) == 0
    assert started()[0] == failed[0]
    assert [trial["failure"] for trial in journal()] == [None, None]


def test_a_job_without_the_metric_has_failed(jobs: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(1, "search.metric=pretrain.pictures.unseen.margin") == 1
    assert "has no 'unseen' there" in capfd.readouterr().out
    assert run(1) == 0, "the job is there; only the metric was wrong"


@pytest.mark.parametrize(
    ("command", "override", "expected"),
    [
        ("align", "seed=0", "search.trials = 1: `align` leaves no scores to search by; give the search to `run` or"),
        ("run", "run.steps=[embed,align,pretrain]", "must have evaluate among them, whose scores search.metric reads."),
        ("evaluate", "search.metric=pretrain", "search.metric = pretrain: must be <model>.<path in its scores.json>"),
        ("evaluate", "search.metric=pretrain..margin", "search.metric = pretrain..margin: must be <model>.<path"),
        (
            "evaluate",
            "search.metric=pretrian.mean",
            "run.steps = ['embed', 'align', 'gap', 'pretrain', 'instruct', 'evaluate']) (did you mean 'pretrain'?).",
        ),
        ("evaluate", "evaluate.models=[instruct]", "search.metric = pretrain.pictures.known.margin: must begin with a"),
        ("run", "run.steps=[instruct,evaluate]", "must begin with a model that is scored, which pretrain is not"),
    ],
)
def test_a_metric_that_no_job_would_leave_is_refused_before_the_first(
    command: str, override: str, expected: str, jobs: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "-m", "name=s", "search.trials=1", *SWEEP, override]) == 2
    said = capfd.readouterr().err
    assert expected in said and said.count("\n") == 1
    assert started() == [] and not Path("runs").exists()


def test_what_a_swept_job_scores_is_not_foretold(jobs: None, capfd: pytest.CaptureFixture[str]) -> None:
    metric = "search.metric=some_folder.pictures.known.margin"
    assert main(["evaluate", "-m", "name=s", "search.trials=1", *SWEEP, metric, "evaluate.models=[a/some_folder]"]) == 1
    assert len(started()) == 1
    assert main(["evaluate", "-m", "name=s", "search.trials=1", "evaluate.models=[pretrain],[instruct]"]) == 0
    assert len(started()) == 1


def test_a_journal_that_is_none_is_refused(jobs: None, capfd: pytest.CaptureFixture[str]) -> None:
    Path("runs/s").mkdir(parents=True)
    Path("runs/s/search.json").write_text("{}")
    assert run(1) == 1
    assert "search.json is not what a search writes" in capfd.readouterr().err


def test_nothing_swept_and_no_optuna_are_one_sentence(
    jobs: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "-m", "search.trials=2"]) == 1
    assert "search.trials = 2: nothing is swept; write a=1,2 or a=interval(0.1,0.9)." in capfd.readouterr().err
    monkeypatch.setattr(search, "require_optuna", proposals.require_optuna)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert run(2) == 1
    assert "Optuna is not installed; `pip install 'revision-mllm[sweeps]'`" in capfd.readouterr().err
    assert started() == []


def test_an_interval_is_no_grid(jobs: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "-m", SWEEP[0]]) == 2
    error = capfd.readouterr().err
    assert "has no end of values for a grid: set search.trials to search it" in error and error.count("\n") == 1


def test_points_of_another_space_do_not_count() -> None:
    point: Point = {"a": "x", "b": 0.01, "c": 3}
    assert contains(SPACE, point)
    for change in ({"a": "z"}, {"b": 1.0}, {"c": 12}, {"c": "three"}, {"c": 3.5}):
        assert not contains(SPACE, {**point, **change})
    assert not contains(SPACE, {"a": "x", "b": 0.01})
    odd: Space = {"c": Span(1, 9, step=2, whole=True), "d": Span(0.1, 0.7, step=0.2)}
    assert contains(odd, {"c": 7, "d": 0.5}) and contains(odd, {"c": 1, "d": 0.1 + 0.2 + 0.2 + 0.2})
    assert not contains(odd, {"c": 2, "d": 0.5}) and not contains(odd, {"c": 3, "d": 0.4})


def test_points_of_a_finite_space_are_known() -> None:
    assert proposals.all_points(SPACE) is None
    finite: Space = {"a": Choice(("x", "y")), "c": Span(1, 8, step=3, whole=True)}
    points = list(proposals.all_points(finite) or ())
    assert points == [{"a": a, "c": c} for a in "xy" for c in (1, 4, 7)]
    assert all(contains(finite, point) for point in points)


@pytest.mark.skipif(not OPTUNA, reason="optuna is an extra")
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_optuna_comes_to_the_end_of_a_finite_space(sampler: str) -> None:
    space: Space = {"c": Span(1, 64, log=True, whole=True)}
    known: list[tuple[Point, float]] = []
    for _ in range(64):
        taken = [point for point, _ in known]
        (point,) = proposals.propose(space, known, count=1, taken=taken, maximize=True, sampler=sampler, seed=0)
        known.append((point, 1.0))
    assert sorted(int(point["c"]) for point, _ in known) == list(range(1, 65))
    taken = [point for point, _ in known]
    assert proposals.propose(space, known, count=1, taken=taken, maximize=True, sampler=sampler, seed=0) == []


@pytest.mark.skipif(not OPTUNA, reason="optuna is an extra")
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_optuna_proposes_new_points_inside_the_space(sampler: str) -> None:
    def ask(known: list[tuple[Point, float]], count: int) -> list[Point]:
        return proposals.propose(
            SPACE, known, count=count, taken=[point for point, _ in known], maximize=True, sampler=sampler, seed=1
        )

    first = ask([], 5)
    assert len(first) == 5 and all(contains(SPACE, point) for point in first)
    assert first == ask([], 5), "the same seed"
    known = [(point, float(place)) for place, point in enumerate(first)]
    assert all(point not in first for point in ask(known, 5))
    full: Space = {"a": Choice(("x", "y"))}
    both: list[Point] = [{"a": "x"}, {"a": "y"}]
    assert proposals.propose(full, [], count=3, taken=both, maximize=True, sampler=sampler, seed=0) == []


@pytest.mark.skipif(not OPTUNA, reason="optuna is an extra")
def test_optuna_finds_the_better_half() -> None:
    known: list[tuple[Point, float]] = []
    for _ in range(30):
        (point,) = proposals.propose(
            {"b": SPACE["b"]}, known, count=1, taken=[one for one, _ in known], maximize=False, sampler="tpe", seed=0
        )
        known.append((point, (np.log10(float(point["b"])) + 2) ** 2))
    late = [score for _, score in known[15:]]
    assert np.mean(late) < 0.5 * np.mean([score for _, score in known[:10]])
