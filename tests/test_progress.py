"""Progress in a log file: lines instead of a bar."""

import pytest

from revision import progress


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 30.0, 30.0, 45.0, 61.0, 61.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress_bar("items") as bar:
        task = bar.add_task("towers", total=5000)
        for _ in range(4):
            bar.advance(task, 1000)
        bar.update(task, completed=5000)
    lines = [line.split(",  ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("towers: ")]
    assert [line.split(" of ")[0] for line in lines] == ["towers: 2,000", "towers: 4,000"]
    assert all(" of 5,000" in line for line in lines)


@pytest.mark.parametrize(("each", "rate"), [(1000, "100/s"), (25_000, "2,500/s"), (5, "0.5/s")])
def test_lines_say_how_fast_it_goes(
    each: int, rate: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress_bar("items") as bar:
        task = bar.add_task("towers", total=10 * each)
        for now in (10.0, 20.0):  # one advance is no rate yet
            monkeypatch.setattr(bar, "get_time", lambda now=now: now)
            bar.advance(task, each)
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == f"towers: {each:,} of {10 * each:,}"
    assert second == f"towers: {2 * each:,} of {10 * each:,}, {rate}, {80 / 60:.1f} minutes left"


def test_nothing_where_it_is_hidden(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress_bar("items", visible=False) as bar:
        bar.advance(bar.add_task("towers", total=5), 1)
    assert "towers" not in capsys.readouterr().out
