"""What a pair is worth in texts: the interpolation against closed forms, its bounds, and what a sweep gets of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_evaluation_table import write_job

from revision.evaluation.scaling import ends, scalings, section, texts_for
from revision.evaluation.statistics import interval, resampled
from revision.evaluation.sweeps import read_jobs
from revision.evaluation.table import collect

TEXTS = np.array([1000, 2000, 4000])


def test_a_goal_on_a_power_of_the_curve_is_found_where_algebra_puts_it() -> None:
    """With a score of log2(T / 1000), a goal g is reached at T = 1000 * 2**g."""
    curve = np.log2(TEXTS / 1000)
    for goal in (0.0, 0.25, 1.0, 1.9, 2.0):
        assert texts_for(TEXTS, curve, goal, higher_is_better=True) == pytest.approx(1000 * 2**goal)
        assert texts_for(TEXTS, -curve, -goal, higher_is_better=False) == pytest.approx(1000 * 2**goal)
    # Between two points the mean of the scores lies at the geometric mean of the numbers, not at the arithmetic one.
    assert texts_for(np.array([100, 10_000]), np.array([3.0, 5.0]), 4.0, higher_is_better=True) == pytest.approx(1000)


def test_beyond_what_was_measured_nothing_is_claimed() -> None:
    curve = np.array([1.0, 2.0, 2.5])
    assert texts_for(TEXTS, curve, 2.6, higher_is_better=True) == math.inf
    assert texts_for(TEXTS, curve, 0.9, higher_is_better=True) == 0
    assert texts_for(TEXTS, -curve, -0.9, higher_is_better=False) == 0
    assert texts_for(TEXTS, curve, 1.0, higher_is_better=True) == 1000, "exactly there"


def test_of_a_curve_that_falls_again_the_first_crossing_counts() -> None:
    found = texts_for(np.array([10, 100, 1000, 10_000]), np.array([0.0, 1.0, 0.5, 2.0]), 0.5, higher_is_better=True)
    assert found == pytest.approx(math.sqrt(10 * 100))


def test_ends_of_draws_that_are_bounds() -> None:
    draws = [0.0] * 2 + list(range(1, 96)) + [math.inf] * 4
    assert ends(draws[::-1]) == (1.0, math.inf), "2 of 101 lie below, more than 2 are infinite"
    assert ends([math.inf] * 9) == (math.inf, math.inf)
    plain = np.random.default_rng(0).normal(size=2001)
    assert ends(plain.tolist()) == pytest.approx(np.quantile(plain, [0.025, 0.975]).tolist(), abs=0.02)


def test_resamples_are_those_of_the_interval() -> None:
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(size=(3, 40)), rng.uniform(1, 2, size=(3, 40))
    value, draws = resampled(top, bottom, resamples=500)
    found = interval(top, bottom, resamples=500)
    assert value == found.value == pytest.approx(top.sum() / bottom.sum())
    assert (found.low, found.high) == tuple(np.quantile(draws, [0.025, 0.975]))


def write_sweep(folder: Path, quality: Callable[[int], float], pairs: dict[int, float]) -> None:
    """Two seeds of realign at three numbers of texts, and of pairs whose quality is given."""
    for seed in (0, 1):
        for limit in TEXTS.tolist():
            write_job(folder, "realign", seed, quality=quality(limit), limit=limit)
        for limit, level in pairs.items():
            write_job(folder, "pairs", seed, quality=level, limit=limit)


def test_a_sweep_over_texts_and_pairs(tmp_path: Path) -> None:
    """The NLL of each caption falls by 0.5 with each doubling of the texts, from 10 + i at 1,000."""
    write_sweep(tmp_path, lambda limit: 0.5 * math.log2(limit / 1000), {500: 0.25, 2000: 0.75, 8000: 1.5})
    (nll,) = (one for one in scalings(read_jobs(tmp_path), "known") if one.metric.name == "token_nll")
    assert (nll.arm, nll.seeds, nll.texts.tolist(), nll.pairs.tolist()) == (
        "realign",
        2,
        [1000, 2000, 4000],
        [500, 2000, 8000],
    )
    # Six captions of 15 tokens in all, 75 nats and 0.05 of the second seed each, less their quality.
    assert nll.of_texts == pytest.approx([(75.3 - 6 * quality) / 15 for quality in (0.0, 0.5, 1.0)])
    first, second, third = nll.equivalences()
    for found, texts in ((first, 1000 * 2**0.5), (second, 1000 * 2**1.5)):
        assert (found.texts, found.low, found.high) == pytest.approx((texts,) * 3), "all resamples agree"
    assert (third.texts, third.low, third.high) == (math.inf,) * 3

    collect(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "Every point had 300 steps: the amount of data alone varies" in table
    assert "texts moved by realign, 2 seeds" in table
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith(("| 500 |", "| 2,000 |", "| 8,000 |"))]
    assert [line[-1] for line in lines] == ["2.83 [2.83, 2.83] |", "1.41 [1.41, 1.41] |", "> 0.5 [> 0.5, > 0.5] |"]
    assert Image.open(tmp_path / "scaling-pretrain-known.png").size[1] > 1000
    assert Image.open(tmp_path / "map-pretrain-known.png").size[1] > 1000


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        ({500: 1.5, 900: 2.0}, "no number of texts up to 4,000 is as good as any number of pairs"),
        ({500: -1.0, 900: -0.5}, "1,000 texts are better than each number of pairs"),
        ({500: -1.0, 900: 2.0}, "some numbers of pairs lie below the curve of the texts and the others above it"),
    ],
)
def test_curves_that_do_not_overlap_are_said_to(levels: dict[int, float], told: str, tmp_path: Path) -> None:
    write_sweep(tmp_path, lambda limit: 0.5 * math.log2(limit / 1000), levels)
    parts = section(read_jobs(tmp_path), "known")
    assert f"By NLL / token the two curves do not overlap: {told}. No number of texts can be named." in parts


def test_what_is_no_sweep_of_both_has_no_such_table(tmp_path: Path) -> None:
    write_sweep(tmp_path / "texts", lambda limit: limit / 1000, {})
    assert section(read_jobs(tmp_path / "texts"), "known") == []
    write_job(tmp_path / "arms", "realign", 0)
    write_job(tmp_path / "arms", "pairs", 0)
    assert section(read_jobs(tmp_path / "arms"), "known") == []
    assert section(read_jobs(tmp_path / "arms"), "unseen") == []


def test_other_swept_settings_stay_at_their_base_and_all_records_are_no_number(tmp_path: Path) -> None:
    write_sweep(tmp_path, lambda limit: limit / 1000, {500: 2.5})
    write_job(tmp_path, "realign", 0, quality=99.0, depth=3, limit=1000)
    write_job(tmp_path, "realign", 0, quality=99.0, limit=None)
    (nll,) = (one for one in scalings(read_jobs(tmp_path), "known") if one.metric.name == "token_nll")
    assert nll.of_texts == pytest.approx([(75.3 - 6 * quality) / 15 for quality in (1.0, 2.0, 4.0)])
    assert section(read_jobs(tmp_path), "known")[-1].startswith("Jobs with pretrain.limit = null are left out here")


def test_points_of_other_lengths_are_told(tmp_path: Path) -> None:
    """Where steps grow with the records, they are no setting of their own, but are not held fixed either."""
    for limit in TEXTS.tolist():
        write_job(tmp_path, "realign", 0, quality=limit / 1000, limit=limit, steps=limit)
        write_job(tmp_path, "pairs", 0, quality=limit / 2000, limit=limit, steps=limit)
    parts = section(read_jobs(tmp_path), "known")
    assert any("The points differ in steps: more records were also more training." in part for part in parts)
