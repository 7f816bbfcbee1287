"""The options of `revision gap`: further alignments, sample size, domains, captions; and what each of them refuses."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from test_gap import corpus, make_config, plain_gap, read_report, stored, unit_rows, write_store

from revision.alignment import MeanShift
from revision.cli import main
from revision.commands import align, gap
from revision.geometry.frame_trace import FrameTrace
from revision.runs import rundir
from revision.schema import Config, Modality, SourceConfig

__all__ = ["corpus"]  # a fixture


def test_further_alignments_stand_beside_the_runs_own(corpus: Path) -> None:
    config = make_config(corpus, compare=["none", "mean_shift", "c3", "realign"], alignment={"noise_std": 0.02})
    align.run(config)
    gap.run(config)
    report = read_report(corpus)
    assert list(report["against_image"]) == ["text", "realign", "mean_shift", "c3"]  # `none` is `text`
    assert report["alignments"]["c3"] == {"noise_std": 0.02, "seed": 0}
    text, image = stored(corpus)
    shifted = MeanShift().fit(text, image).apply(text)
    assert report["centroid_gap_all_rows"]["mean_shift"] == pytest.approx(plain_gap(shifted, image), rel=1e-9)
    assert report["centroid_gap_all_rows"]["c3"] == report["centroid_gap_all_rows"]["mean_shift"]
    assert report["against_image"]["c3"] != report["against_image"]["mean_shift"]
    assert "mean_shift" in (corpus / "runs/test/gap/report.html").read_text()


def test_a_refused_comparison_costs_no_finished_report(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(corpus)
    align.run(config)
    gap.run(config)
    assert rundir.is_finished(config, "gap")

    def refuse(*sides: object, **options: object) -> None:
        raise ValueError("no spread")

    monkeypatch.setattr(MeanShift, "fit", refuse)
    with pytest.raises(ValueError, match="^no spread"):
        gap.run(make_config(corpus, compare=["mean_shift"]))
    assert rundir.is_finished(config, "gap")


def test_without_an_alignment_there_is_the_raw_text(corpus: Path) -> None:
    config = make_config(corpus, alignment={"method": "none"}, sizes=[20], held_out=20)
    align.run(config)
    gap.run(config)
    report = read_report(corpus)
    assert list(report["against_image"]) == ["text"] and report["neighbours_kept"] == {}
    assert list(report["sample_size"]["methods"]) == ["none"]
    gaps = report["sample_size"]["methods"]["none"]["centroid_gap"]
    assert np.mean(gaps) == pytest.approx(report["sample_size"]["raw"]["centroid_gap"])


def test_sample_size_and_domains_are_measured_on_request(corpus: Path) -> None:
    write_store(corpus / "stores/tiny/legends", unit_rows(90, 5, 0.1), "text", "l")
    write_store(corpus / "stores/tiny/photos", unit_rows(80, 6, -0.4), "image", "p")
    config = make_config(
        corpus, sizes=[20, 100], held_out=50, trials=2, domains=["texts/statistics", "legends/photos"]
    )  # fmt: skip
    align.run(config)
    gap.run(config)
    report = read_report(corpus)
    curve, transfer = report["sample_size"], report["domain_transfer"]
    assert (curve["sizes"], curve["held_out"], curve["trials"]) == ([20, 100], 50, 2)
    gaps = np.mean(curve["methods"]["realign"]["centroid_gap"], axis=1)
    assert gaps[1] < gaps[0] < curve["raw"]["centroid_gap"]
    assert transfer["domains"] == ["texts/statistics", "legends/photos"]
    assert transfer["rows"]["legends/photos"] == {"text": 45, "image": 40}
    matrix = np.array(transfer["methods"]["realign"]["centroid_gap"]["mean"])
    assert matrix[0, 0] < matrix[1, 0] and matrix[1, 1] < matrix[0, 1]
    folder = corpus / "runs/test/gap"
    assert {"sample_size.png", "domain_transfer.png"} <= {path.name for path in folder.iterdir()}
    gap.run(config)
    assert read_report(corpus) == report


def test_every_step_of_the_bar_is_counted(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress

    totals: list[tuple[float, float | None]] = []
    monkeypatch.setattr(
        Progress, "stop", lambda self: totals.extend((task.completed, task.total) for task in self.tasks)
    )
    write_pairs(corpus, [f"i{number}" for number in range(20)])
    write_store(corpus / "stores/tiny/captions", unit_rows(20, 3, -0.2), "text", "i")
    more = {
        "sizes": [20],
        "held_out": 20,
        "domains": ["texts/statistics", "captions/statistics"],
        "captions": "captions",
    }
    for changes in ({}, {"compare": ["c3"], "pairs": str(corpus / "pairs.jsonl"), **more}):
        config = make_config(corpus, **changes)
        align.run(config)
        totals.clear()
        gap.run(config)
        assert len(totals) == 1 and totals[0][0] == totals[0][1]


def write_pairs(root: Path, ids: list[str], words: str = "{}") -> None:
    rows = [{"id": name, "image": f"{name}.png", "text": words.format(name)} for name in ids]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(config: Config) -> None:
    align.run(config)
    gap.run(config)


def test_captions_come_from_a_source_of_their_own(corpus: Path) -> None:
    write_pairs(corpus, [f"i{number}" for number in range(30)])
    write_store(corpus / "stores/tiny/captions", unit_rows(30, 1, 0.4), "text", "i")
    measured(make_config(corpus, pairs=str(corpus / "pairs.jsonl"), captions="captions"))
    pairs = read_report(corpus)["pairs"]
    assert (pairs["count"], pairs["matched_by"], pairs["subspace"]["energy"]) == (30, "id", 0.9)
    assert list(pairs["by_cloud"]) == ["text", "realign"]


def test_captions_are_found_by_their_words_where_no_id_is_known(corpus: Path) -> None:
    """Payloads of the text store are t0, t1, ...: here the captions of pictures i0, i1, ..."""
    rows = [{"id": f"i{number}", "image": "x.png", "text": f"t{number}"} for number in range(5)]
    rows.append({"id": "i5", "image": "x.png", "text": "words that no store has"})
    (corpus / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured(make_config(corpus, pairs=str(corpus / "pairs.jsonl")))
    pairs = read_report(corpus)["pairs"]
    assert (pairs["count"], pairs["records"], pairs["matched_by"]) == (5, 6, "text")
    text, image = stored(corpus)
    cosine = (text[:5] * image[:5]).sum(axis=1).mean()
    assert pairs["by_cloud"]["text"]["cosine"] == pytest.approx(cosine, abs=1e-6)


def test_pairs_without_rows_are_said_to_be_left_out(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(corpus, ["i1", "i2"], "nothing like {}")
    measured(make_config(corpus, pairs=str(corpus / "pairs.jsonl")))
    report = read_report(corpus)
    assert "pairs" not in report
    assert report["pairs_left_out"].startswith(f"0 of the 2 pairs of {corpus / 'pairs.jsonl'} have a row in both")
    assert report["pairs_left_out"] in capsys.readouterr().out
    assert "name it in gap.captions" in (corpus / "runs/test/gap/report.html").read_text()


def test_more_rows_than_there_are_is_refused_before_anything_is_measured(corpus: Path) -> None:
    config = make_config(corpus, sizes=[20, 170], held_out=20)
    align.run(config)
    with pytest.raises(
        ValueError, match="a fit on 170 rows beside 20 held-out ones needs 190 image rows, there are 180"
    ):
        gap.run(config)
    assert not (corpus / "runs/test/gap").exists()


def test_a_domain_of_another_encoder_is_refused(corpus: Path) -> None:
    other = {"name": "other", "weights": "xyz"}
    write_store(corpus / "stores/tiny/legends", unit_rows(90, 5, 0.1), "text", "l", other)
    write_store(corpus / "stores/tiny/photos", unit_rows(80, 6, -0.4), "image", "p", other)
    config = make_config(corpus, domains=["texts/statistics", "legends/photos"])
    align.run(config)
    with pytest.raises(ValueError, match="legends was made by encoder 'other' but .*statistics by 'tiny'"):
        gap.run(config)


def test_captions_that_were_never_embedded_are_refused(corpus: Path) -> None:
    config = make_config(corpus, captions="captions")
    config.data.sources["captions"] = SourceConfig(Modality.text, "captions.jsonl")
    align.run(config)
    with pytest.raises(
        ValueError, match="captions does not exist: there is no embedding store; run `revision embed` first"
    ):
        gap.run(config)


@pytest.mark.parametrize("given", ["contrast", "contrast/trace.jsonl"])
def test_the_trace_of_contrast_is_drawn(given: str, corpus: Path) -> None:
    (corpus / "contrast").mkdir()
    trace = FrameTrace(corpus / "contrast/trace.jsonl", batches=[np.arange(30)], energy=0.8)
    images, *texts = (unit_rows(40, seed, 0.1) for seed in range(3))
    lines = [trace.record(step, images, rows, 20.0) for step, rows in zip((10, 20), texts, strict=True)]
    measured(make_config(corpus, trace=str(corpus / given)))
    folder = corpus / "runs/test/gap"
    frame = read_report(corpus)["frame"]
    assert frame == {"file": str(corpus / "contrast/trace.jsonl"), "lines": lines}
    assert base64.b64encode((folder / "frame.png").read_bytes()).decode() in (folder / "report.html").read_text()


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_trace_that_is_none_is_refused_before_anything_is_measured(content: str | None, corpus: Path) -> None:
    (corpus / "contrast").mkdir()
    if content is not None:
        (corpus / "contrast/trace.jsonl").write_text(content)
    config = make_config(corpus, trace=str(corpus / "contrast"))
    align.run(config)
    why = "does not exist: run `revision contrast` first" if content is None else "is not a trace .*contrast` again"
    with pytest.raises(ValueError, match=rf"gap.trace = .*contrast: .*trace.jsonl {why}, or set gap.trace=null"):
        gap.run(config)
    assert not (corpus / "runs/test/gap").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("gap.sample=3", "gap.sample = 3: must be at least 4"),
        ("gap.compare=[realgn]", "gap.compare = realgn: must be one of blockwise, c3"),
        ("gap.compare=c3", "gap.compare = c3: must be a list of strings"),
        ("gap.captions=statistics", "gap.captions = statistics: must be a source of kind text"),
        ("gap.captions=caption", "gap.captions = caption: must be one of texts, statistics"),
        ("gap.energy=1", "gap.energy = 1.0: must be a share of the trace between 0 and 1"),
        ("gap.energy=0", "gap.energy = 0.0: must be a share of the trace"),
        ("gap.sizes=[100,1]", "gap.sizes = [100, 1]: must be a list of numbers of rows, each at least 2"),
        ("gap.held_out=1", "gap.held_out = 1: must be at least 2"),
        ("gap.trials=0", "gap.trials = 0: must be at least 1"),
        ("gap.domains=[texts/statistics]", "must be two or more different <text source>/<image source>, or []"),
        ("gap.domains=[texts/pictures,texts/pictures]", "must be two or more different"),
        ("gap.domains=[texts,names]", "gap.domains = texts: must be <text source>/<image source>, such as"),
        ("gap.domains=[texts/statistics,texts/names]", "gap.domains = names: must be a source of kind image"),
        ("gap.domains=[texts/statistics,text/pictures]", "gap.domains = text: must be one of"),
    ],
)  # fmt: skip
def test_fields_of_gap_are_checked(override: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gap", override]) == 2
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and err.count("\n") == 1
