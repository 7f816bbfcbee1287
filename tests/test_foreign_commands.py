"""Foreign embeddings as sources of the configuration: no `embed`, and every command reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_files import COUNT, DIM, IDS, TEXTS, WRITERS, pairs_file, records, unit_rows, write_clip_retrieval
from rich.console import Console
from two_sources import two_sources

from revision.alignment import load_alignment
from revision.assembly import open_sources, store_path
from revision.cli import main
from revision.commands import align, embed, gap
from revision.data.rows import Rows
from revision.data.samples import TextSamples
from revision.embeddings.foreign import ForeignStore
from revision.embeddings.opening import open_store
from revision.runs import rundir
from revision.schema import AlignmentConfig, BadRows, Config, GapConfig, Modality, SourceConfig


def make_config(root: Path, text: Path, image: Path, **changes: Any) -> Config:
    pairs = str(pairs_file(root / "pairs.jsonl"))
    return two_sources(
        root, text, image, foreign=True, pairs=pairs, gap=GapConfig(sample=COUNT, neighbours=[3]), **changes
    )  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_align_and_gap_without_embed(name: str, tmp_path: Path) -> None:
    text = WRITERS[name](tmp_path / "text", unit_rows())
    image = write_clip_retrieval(tmp_path / "image", -unit_rows(1, middle=0.5))  # its img_emb are the rows negated
    config = make_config(tmp_path, text, image)
    align.run(config)
    gap.run(config)
    report = json.loads((tmp_path / "runs/test/gap/report.json").read_text())
    found = report["against_image"]
    assert found["realign"]["centroid_gap"] < 0.2 * found["text"]["centroid_gap"]
    assert report["encoder"] == "b32"
    assert not (tmp_path / "stores").exists()


def test_rows_without_a_direction_are_left_out_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=120, record=True)
    monkeypatch.setattr("rich.get_console", lambda: console)
    image = unit_rows(1, middle=0.5)
    whole, holed = tmp_path / "whole.npy", tmp_path / "holed.npy"
    np.save(whole, image)
    np.save(holed, np.insert(image, [3, 7], np.array([[0.0], [np.nan]]), axis=0))
    np.save(tmp_path / "text.npy", unit_rows())
    align.run(make_config(tmp_path, tmp_path / "text.npy", whole))
    expected = load_alignment(tmp_path / "runs/test/align")
    config = make_config(tmp_path, tmp_path / "text.npy", holed)
    with pytest.raises(ValueError, match="^image row 3 is zero"):
        align.run(config)
    config.align.bad_rows = BadRows.skip
    align.run(config)
    found = load_alignment(tmp_path / "runs/test/align")
    np.testing.assert_allclose(found.apply(unit_rows()), expected.apply(unit_rows()), rtol=0, atol=1e-14)
    assert (found.statistics.text_skipped, found.statistics.image_skipped) == (0, 2)
    (shown,) = [line for line in console.export_text().splitlines() if "left out" in line]
    assert shown.split() == ["│", "left", "out", "│", "0", "│", "2", "│"]


def gap_of(root: Path, text: dict[str, list[str]], image: dict[str, list[str]], pairs: dict[str, str]) -> Any:
    """The report on rows in `.npy` files with such columns beside them, and pairs with such captions by their ids."""
    for name, columns, rows in (("text", text, unit_rows()), ("image", image, unit_rows(1, middle=0.5))):
        np.save(root / f"{name}.npy", rows)
        if columns:
            pq.write_table(pa.table(columns), root / f"{name}.parquet")
    config = make_config(root, root / "text.npy", root / "image.npy")
    lines = [json.dumps({"id": key, "image": "x.png", "text": caption}) for key, caption in pairs.items()]
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    align.run(config)
    gap.run(config)
    return json.loads((root / "runs/test/gap/report.json").read_text())


NUMBERED = {str(number): TEXTS[COUNT - 1 - number] for number in range(10)}  # pair 0 has the caption of the last row


def test_row_numbers_are_no_ids(tmp_path: Path) -> None:
    ids = [str(number) for number in range(COUNT)]
    report = gap_of(tmp_path, {"caption": TEXTS}, {"id": ids}, NUMBERED)
    assert (report["pairs"]["count"], report["pairs"]["matched_by"]) == (10, "text")
    expected = (unit_rows()[:-11:-1] * unit_rows(1, middle=0.5)[:10]).sum(axis=1).mean()
    assert report["pairs"]["by_cloud"]["text"]["cosine"] == pytest.approx(expected, abs=1e-5)


def test_pictures_without_ids_leave_the_pairs_out(tmp_path: Path) -> None:
    report = gap_of(tmp_path, {"caption": TEXTS}, {}, NUMBERED)
    assert "pairs" not in report
    said = "image.npy has no ids): write a column of ids, such as image_path, beside the rows of the pictures."
    assert report["pairs_left_out"].endswith(said)


@pytest.mark.parametrize("columns", [{}, {"id": IDS}])
def test_texts_without_captions_leave_the_pairs_out(columns: dict[str, list[str]], tmp_path: Path) -> None:
    """No id of a pair is an id of a text, and there are no words to compare."""
    report = gap_of(tmp_path, columns, {"id": [*NUMBERED, *IDS[10:]]}, NUMBERED)
    assert "pairs" not in report and report["against_image"]
    assert "text.npy has no texts): embed their captions as a text source and name it in" in report["pairs_left_out"]
    assert ("text.npy has no ids" in report["pairs_left_out"]) == (not columns)


def test_pairs_that_cannot_be_looked_up_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="id '1' occurs twice in .*image.npy: rows 0 and 1"):
        gap_of(tmp_path, {"caption": TEXTS}, {"id": ["1", "1", *IDS[2:]]}, NUMBERED)
    assert not (tmp_path / "runs/test/gap").exists()


def test_embed_has_nothing_to_do(tmp_path: Path) -> None:
    folder = write_clip_retrieval(tmp_path / "both", unit_rows())
    config = make_config(tmp_path, folder, folder)
    embed.run(config)
    assert rundir.is_finished(config, "embed") and not (tmp_path / "stores").exists()


def test_stage_one_reads_the_authors_chunks(tmp_path: Path) -> None:
    """The path of `pretrain`: aligned rows and their texts."""
    folder = WRITERS["pickles"](tmp_path / "text", unit_rows().astype(np.float16))
    config = make_config(tmp_path, folder, write_clip_retrieval(tmp_path / "image", unit_rows(1)))
    align.run(config)
    alignment = load_alignment(tmp_path / "runs/test/align")
    (store,) = open_sources(config, ["texts"])
    assert isinstance(store, ForeignStore) and store.manifest.encoder == {"name": "b32"}
    assert alignment.statistics.text_fingerprint == store.fingerprint()
    rows = Rows([store], embed_dim=DIM, alignment=alignment)
    expected = alignment.apply(unit_rows().astype(np.float16)[5:6].astype(np.float32))
    np.testing.assert_array_equal(rows[5].numpy(), expected[0])
    sample = TextSamples(store, ["<image>"], 0)[5]
    assert sample.messages[1].content == records(unit_rows())[5]["caption"]
    assert str(sample.name) == IDS[5]


@pytest.mark.parametrize("method", ["realign", "c3"])
def test_export_of_aligned_rows(method: str, tmp_path: Path) -> None:
    text = WRITERS["npy"](tmp_path / "text", unit_rows())
    image = write_clip_retrieval(tmp_path / "image", unit_rows(1))
    config = make_config(tmp_path, text, image, alignment=AlignmentConfig(method))
    align.run(config)
    assert rundir.is_finished(config, "align")
    config.align.export, config.align.shard_size = str(tmp_path / "aligned"), 10
    assert not rundir.is_finished(config, "align"), "`run` starts it again for the export"
    align.run(config)
    assert rundir.is_finished(config, "align")
    alignment = load_alignment(tmp_path / "runs/test/align")
    expected = alignment.apply(unit_rows(), row_ids=np.arange(COUNT), epoch=0).astype(np.float16)
    found = open_store(tmp_path / "aligned", "text")
    np.testing.assert_array_equal(np.concatenate(list(found.chunks())), expected)
    assert found.ids() == IDS
    assert len(list((tmp_path / "aligned/text_emb").glob("text_emb_*.npy"))) == 3


def test_a_source_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    config = make_config(tmp_path, tmp_path / "a.parquet" / "vec", tmp_path)
    assert store_path(config, "texts") == tmp_path / "a.parquet" / "vec"
    config.data.sources["other"] = SourceConfig(Modality.image, "x.jsonl")
    assert store_path(config, "other") == tmp_path / "stores/b32/other"
    for nothing in ("no/where", str(tmp_path / "b.npy"), str(tmp_path / "stores")):
        (tmp_path / "stores").mkdir(exist_ok=True)
        config.data.sources["texts"].embeddings = nothing
        with pytest.raises(ValueError, match=f"data.sources.texts.embeddings = {nothing}: there is nothing there"):
            align.run(config)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.sources.texts.embeddings=x", "data.sources.texts.records = data/nano/texts.jsonl: must be a file of"),
        (
            "data.sources.texts.records=null",
            "data.sources.texts.records = null: must be a file of records, or else null",
        ),
        ("align.shard_size=0", "align.shard_size = 0: must be at least 1"),
    ],
)
def test_mistakes_in_the_configuration(override: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", override]) == 2
    assert sentence in capsys.readouterr().err


def test_an_export_owes_a_row_to_every_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "align.bad_rows=skip", "align.export=out"]) == 2
    assert "align.bad_rows = skip: must be error where align.export is set, which owes a row" in capsys.readouterr().err


def test_naming_a_foreign_source_to_embed(capsys: pytest.CaptureFixture[str]) -> None:
    foreign = ["data.sources.texts.records=null", "data.sources.texts.embeddings=x"]
    assert main(["embed", *foreign, "embed.sources=[texts]"]) == 2
    assert "embed.sources = texts: must be a source of records; x is embedded already" in capsys.readouterr().err
