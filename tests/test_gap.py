"""`revision align` and `revision gap` on stores on disk, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from two_sources import two_sources

from revision.alignment import ReAlign, load_alignment
from revision.alignment.stores import open_sides
from revision.commands import align, gap
from revision.embeddings import EmbeddingStore, StoreWriter
from revision.geometry import measures
from revision.runs import rundir
from revision.schema import AlignmentConfig, Config, GapConfig

DIM = 16
ENCODER = {"name": "tiny", "weights": "abc"}


def unit_rows(count: int, seed: int, middle: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, DIM)) * np.linspace(1, 0.2, DIM) + middle
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_store(path: Path, rows: np.ndarray, kind: str, prefix: str, encoder: dict[str, str] | None = None) -> None:
    count = len(rows)
    writer = StoreWriter(
        path, kind=kind, dim=rows.shape[1], encoder=encoder or ENCODER, records_fingerprint="f", records=count,
        shard_size=64, reject_budget=0.0,
    )  # fmt: skip
    for shard in writer.missing():
        part = list(writer.positions(shard))
        ids = [f"{prefix}{number}" for number in part]
        writer.write(shard, rows=rows[part], ids=ids, payloads=ids, lengths=[1] * len(part), rejected=[])
    writer.finish()


def make_config(root: Path, **changes: Any) -> Config:
    """Changes are fields of `gap`, but for `seed`, `pairs` and `alignment`, a mapping of settings."""
    own = {name: changes.pop(name, default) for name, default in (("seed", 0), ("pairs", None))}
    alignment = AlignmentConfig(**changes.pop("alignment", {}))
    gap = GapConfig(**{"sample": 150, "neighbours": [3, 5], **changes})
    records = root / "texts.jsonl", root / "statistics.jsonl"
    return two_sources(root, *records, foreign=False, alignment=alignment, gap=gap, **own)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """200 texts t0.. and 180 images i0.. with a gap between them."""
    write_store(tmp_path / "stores/tiny/texts", unit_rows(200, 0, -0.2), "text", "t")
    write_store(tmp_path / "stores/tiny/statistics", unit_rows(180, 1, 0.5), "image", "i")
    return tmp_path


def plain_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)))


def stored(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of both stores, float64."""
    sides = []
    for source in ("texts", "statistics"):
        rows = EmbeddingStore.open(root / "stores/tiny" / source).rows(slice(None)).astype(np.float64)
        sides.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return sides[0], sides[1]


def test_align_fits_the_two_stores(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(corpus)
    align.run(config)
    text, image = stored(corpus)
    alignment = load_alignment(corpus / "runs/test/align")
    statistics = alignment.statistics
    assert alignment.method == "realign" and alignment.dim == DIM
    assert statistics.gap_before == pytest.approx(plain_gap(text, image), rel=1e-12)
    assert statistics.gap_after == pytest.approx(plain_gap(alignment.apply(text), image), rel=1e-9)
    stores = [EmbeddingStore.open(corpus / "stores/tiny" / source) for source in ("texts", "statistics")]
    fitted = [statistics.text_fingerprint, statistics.image_fingerprint]
    assert fitted == [store.fingerprint() for store in stores]
    shown = capsys.readouterr().out
    for value in (
        f"{statistics.gap_before:.3e}",
        f"{statistics.gap_after:.3e}",
        f"{alignment.scale:.4f}",
        "200",
        "180",
    ):
        assert value in shown
    assert rundir.is_finished(config, "align")
    facts = json.loads((corpus / "runs/test/align/finished.json").read_text())["facts"]
    assert facts["centroid_gap"]["after"] == statistics.gap_after


def test_an_align_that_is_refused_costs_no_finished_one(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(corpus)
    align.run(config)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("rows that the method refuses")

    monkeypatch.setattr(ReAlign, "fit", refuse)
    with pytest.raises(ValueError, match="rows that the method refuses"):
        align.run(config)
    assert rundir.is_finished(config, "align")


def test_align_passes_its_settings_on(corpus: Path) -> None:
    align.run(make_config(corpus, alignment={"centroid_steps": 3}))
    assert load_file(corpus / "runs/test/align/alignment.safetensors")["corrections"].shape == (3, DIM)
    align.run(make_config(corpus, alignment={"until": 1e-7}))
    assert (load_alignment(corpus / "runs/test/align").statistics.gap_after or 1) < 1e-7
    align.run(make_config(corpus, seed=7, alignment={"method": "c3", "noise_std": 0.5}))
    assert load_alignment(corpus / "runs/test/align").parameters() == {"noise_std": 0.5, "seed": 7}


def test_only_the_main_process_aligns(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    align.run(make_config(corpus))
    gap.run(make_config(corpus))
    assert not (corpus / "runs").exists()


def test_stores_of_two_encoders_are_refused(corpus: Path) -> None:
    other = {"name": "other", "weights": "xyz"}
    write_store(corpus / "stores/tiny/strange", unit_rows(40, 2, 0.5), "image", "i", other)
    with pytest.raises(ValueError, match=r"encoder 'tiny' but .*strange by 'other' \(they differ in name, weights\)"):
        open_sides(corpus / "stores/tiny/texts", corpus / "stores/tiny/strange")
    config = make_config(corpus)
    config.data.statistics = "strange"
    with pytest.raises(ValueError, match="by 'other'"):
        align.run(config)
    assert not (corpus / "runs").exists()


def test_stores_of_two_dimensions_are_refused(corpus: Path) -> None:
    write_store(corpus / "stores/tiny/narrow", unit_rows(40, 2, 0.5)[:, :1] * 0 + 1, "image", "i")
    with pytest.raises(ValueError, match=r"has dimension 16 but .*narrow 1: embed both with one encoder"):
        open_sides(corpus / "stores/tiny/texts", corpus / "stores/tiny/narrow")


def test_a_store_of_the_wrong_kind_is_refused(corpus: Path) -> None:
    with pytest.raises(ValueError, match="texts holds text embeddings where image embeddings are needed"):
        open_sides(corpus / "stores/tiny/texts", corpus / "stores/tiny/texts")


def test_a_missing_store_is_refused(corpus: Path) -> None:
    with pytest.raises(ValueError, match="run `revision embed` first"):
        open_sides(corpus / "stores/tiny/texts", corpus / "stores/tiny/nowhere")


def read_report(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "runs/test/gap/report.json").read_text())
    return report


def test_gap_reports_before_and_after(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(corpus, sample=1000)  # more than there are: as many as the smaller side has
    align.run(config)
    gap.run(config)
    report = read_report(corpus)
    text, image = stored(corpus)
    alignment = load_alignment(corpus / "runs/test/align")
    assert report["sample"] == {"text": 180, "image": 180, "text_rows": 200, "image_rows": 180, "seed": 0}
    assert report["encoder"] == "tiny" and report["alignment"] == alignment.facts()
    gaps = {"text": alignment.statistics.gap_before, "realign": alignment.statistics.gap_after}
    assert report["centroid_gap_all_rows"] == gaps
    assert report["clouds"]["image"]["trace"] == pytest.approx(measures.trace(image), rel=1e-5)
    chosen = np.sort(np.random.default_rng(0).choice(200, 180, replace=False))
    before, after = report["against_image"]["text"], report["against_image"]["realign"]
    assert before["centroid_gap"] == pytest.approx(plain_gap(text[chosen], image), rel=1e-5)
    assert after["centroid_gap"] == pytest.approx(plain_gap(alignment.apply(text[chosen]), image), rel=1e-4)
    assert after["centroid_gap"] < 0.1 * before["centroid_gap"]
    assert after["probe_accuracy"] < before["probe_accuracy"] and after["knn_mixing"]["5"] > before["knn_mixing"]["5"]
    assert not {"pairs", "pairs_left_out", "sample_size", "domain_transfer"} & set(report)
    folder = corpus / "runs/test/gap"
    figures = {"pca.png", "methods.png", "cosines.png", "spectra.png", "means.png"}
    assert figures | {"report.json", "report.html", "finished.json"} <= {path.name for path in folder.iterdir()}
    assert "180 of 200 text rows" in (folder / "report.html").read_text()
    shown = capsys.readouterr().out
    assert "effective rank" in shown and "report.html" in shown
    assert rundir.is_finished(config, "gap")


def test_gap_is_a_function_of_its_seed(corpus: Path) -> None:
    reports = []
    for seed in (3, 3, 4):
        config = make_config(corpus, seed=seed)
        align.run(config)
        gap.run(config)
        reports.append(read_report(corpus))
    assert reports[0] == reports[1] != reports[2]
    assert reports[0]["sample"]["text"] == 150


def test_gap_shows_noise_as_training_sees_it(corpus: Path) -> None:
    config = make_config(corpus, sample=180, alignment={"method": "c3"})
    align.run(config)
    gap.run(config)
    text, image = stored(corpus)
    chosen = np.sort(np.random.default_rng(0).choice(200, 180, replace=False))
    noisy = load_alignment(corpus / "runs/test/align").apply(text[chosen], row_ids=chosen, epoch=0)
    found = read_report(corpus)["against_image"]["c3"]
    assert found["centroid_gap"] == pytest.approx(plain_gap(noisy, image), rel=1e-4)


def test_gap_measures_pairs_where_there_are_some(corpus: Path) -> None:
    rng = np.random.default_rng(2)
    image = unit_rows(180, 1, 0.5)
    paired = image + 0.1 * rng.normal(size=image.shape).astype(np.float32)
    paired /= np.linalg.norm(paired, axis=1, keepdims=True)
    write_store(corpus / "stores/tiny/captions", paired[:100], "text", "i")
    rows = [{"id": f"i{number}", "image": f"{number}.png", "text": "x"} for number in range(60, 140)]
    (corpus / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(corpus, pairs=str(corpus / "pairs.jsonl"))
    config.data.texts = "captions"
    config.data.sources["captions"] = config.data.sources.pop("texts")
    align.run(config)
    gap.run(config)
    report = read_report(corpus)["pairs"]
    assert (report["count"], report["records"], report["matched_by"]) == (40, 80, "id")
    found = report["by_cloud"]
    both = slice(60, 100)  # those that both stores hold
    assert found["text"]["cosine"] == pytest.approx((paired[both] * image[both]).sum(axis=1).mean(), abs=1e-3)
    nearest = (paired[both] @ image[both].T).argmax(axis=1)
    assert found["text"]["text_to_image"]["1"] == pytest.approx(np.mean(nearest == np.arange(40)), abs=0.03)
    energy = found["realign"]["decomposition"]["energy"]
    assert sum(energy.values()) == pytest.approx(2 - 2 * found["realign"]["cosine"], rel=1e-5)


def test_pairs_of_one_id_are_counted(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures with five captions each: one of them is measured, and the others are spoken of."""
    rows = [{"id": f"i{number // 5}", "image": f"{number // 5}.png", "text": f"x {number}"} for number in range(50)]
    (corpus / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_store(corpus / "stores/tiny/captions", unit_rows(40, 3, 0.5), "text", "i")
    config = make_config(corpus, pairs=str(corpus / "pairs.jsonl"))
    config.data.texts = "captions"
    config.data.sources["captions"] = config.data.sources.pop("texts")
    align.run(config)
    gap.run(config)
    assert "pairs: 40 of 50 have the id of one before, and are left out" in " ".join(capsys.readouterr().out.split())
    assert read_report(corpus)["pairs"]["records"] == 10 and read_report(corpus)["pairs"]["repeated_ids"] == 40


def test_gap_needs_align_first(corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"`align` never ran there: run `revision align`"):
        gap.run(make_config(corpus))


def test_a_store_that_changed_since_align_is_refused(corpus: Path) -> None:
    config = make_config(corpus)
    align.run(config)
    store = corpus / "stores/tiny/texts"
    for path in store.iterdir():
        path.unlink()
    write_store(store, unit_rows(200, 9, -0.2), "text", "t")
    with pytest.raises(
        ValueError, match="texts has changed since the alignment was fitted; run `revision align` again"
    ):
        gap.run(config)


def test_default_neighbours_fit_the_rows(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for sample, ks in ((15, ["10"]), (6, ["5"]), (150, ["10", "20"])):
        config = make_config(corpus, sample=sample, neighbours=None)
        align.run(config)
        capsys.readouterr()
        gap.run(config)
        assert list(read_report(corpus)["against_image"]["text"]["knn_mixing"]) == ks
        line = f"nearest neighbours: {', '.join(ks)}, since there are {sample} rows a side"
        assert (line in capsys.readouterr().out) == (sample < 20)


def test_too_few_rows_for_the_neighbours_are_refused(corpus: Path) -> None:
    config = make_config(corpus, neighbours=[3, 150])
    align.run(config)
    with pytest.raises(ValueError, match=r"gap.neighbours = \[3, 150\]: must be below the 150 rows a side that are"):
        gap.run(config)
    assert not (corpus / "runs/test/gap").exists(), "before any work"
