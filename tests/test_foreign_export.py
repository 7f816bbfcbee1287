"""Rows as plain files: what is written reads back, in our reader and by clip-retrieval's conventions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from foreign_files import COUNT, DIM, IDS, TEXTS, WRITERS, unit_rows

from revision import ReAlign
from revision.embeddings import EmbeddingStore, export
from revision.embeddings.export import export_rows
from revision.embeddings.opening import open_store


@pytest.fixture
def source(tmp_path: Path) -> EmbeddingStore:
    return open_store(WRITERS["npy"](tmp_path / "source", unit_rows()), "text")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip_of_every_format(name: str, tmp_path: Path) -> None:
    source = open_store(WRITERS[name](tmp_path / "source", unit_rows()), "text")
    export_rows(source, tmp_path / "out", dtype="float32", shard_size=9)
    found = open_store(tmp_path / "out", "text")
    np.testing.assert_array_equal(np.concatenate(list(found.chunks())), unit_rows())
    assert found.ids() == IDS and found.payload(slice(None)) == TEXTS
    assert found.index_of(["id-20"]).tolist() == [20]


def test_layout_is_clip_retrievals(source: EmbeddingStore, tmp_path: Path) -> None:
    """Plain numpy and pyarrow see shards of one number with one line a row; numbers are padded to equal length."""
    alignment = ReAlign().fit(source, unit_rows(1, middle=0.5))
    seen: list[int] = []
    written = export_rows(
        source,
        tmp_path / "out",
        transform=lambda rows, numbers: alignment.apply(rows),
        described={"method": "realign"},
        shard_size=2,
        on_rows=seen.append,
    )
    assert sum(seen) == COUNT
    vectors = sorted((tmp_path / "out/text_emb").iterdir())
    metadata = sorted((tmp_path / "out/metadata").iterdir())
    assert [file.name for file in vectors] == [f"text_emb_{number:02}.npy" for number in range(12)]
    assert [file.name for file in metadata] == [f"metadata_{number:02}.parquet" for number in range(12)]
    rows = np.concatenate([np.load(file) for file in vectors])
    assert rows.dtype == np.float16 and rows.shape == (COUNT, DIM)
    np.testing.assert_array_equal(rows, alignment.apply(unit_rows()).astype(np.float16))
    tables = [pq.read_table(file).to_pydict() for file in metadata]
    assert [text for table in tables for text in table["caption"]] == TEXTS
    assert [name for table in tables for name in table["id"]] == IDS
    assert [len(table["id"]) for table in tables] == [len(np.load(file)) for file in vectors]
    assert json.loads((tmp_path / "out/export.json").read_text()) == written
    assert (written["count"], written["dim"], written["transform"]) == (COUNT, DIM, {"method": "realign"})


def test_a_store_of_our_own_and_of_images(tiny_store: Callable[..., EmbeddingStore], tmp_path: Path) -> None:
    store = tiny_store(kind="image", n=25, dim=DIM)
    export_rows(store, tmp_path / "out", shard_size=11)
    found = open_store(tmp_path / "out", "image")
    np.testing.assert_array_equal(found.rows(slice(None)), store.rows(slice(None)))
    assert found.ids() == store.ids() and found.payload(slice(None)) == store.payload(slice(None))
    assert pq.read_schema(tmp_path / "out/metadata/metadata_0.parquet").names == ["id", "image_path"]


def test_a_source_without_texts(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", unit_rows())
    export_rows(open_store(tmp_path / "rows.npy", "text"), tmp_path / "out")
    assert pq.read_table(tmp_path / "out/metadata/metadata_0.parquet").to_pydict() == {"id": [*map(str, range(COUNT))]}


def test_the_transform_learns_the_numbers_of_its_rows(source: EmbeddingStore, tmp_path: Path) -> None:
    numbers: list[int] = []

    def transform(rows: np.ndarray, found: np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(rows, unit_rows()[found])
        assert len(rows) <= 5
        numbers.extend(found.tolist())
        return -rows

    export_rows(source, tmp_path / "out", transform=transform, shard_size=5)
    assert numbers == list(range(COUNT))


@pytest.mark.parametrize("calls", range(1, 6))
def test_an_interrupted_export_continues(calls: int, source: EmbeddingStore, tmp_path: Path) -> None:
    export_rows(source, tmp_path / "whole", transform=lambda rows, numbers: -rows, shard_size=5)
    left = calls

    def killed(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return -rows

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        export_rows(source, folder, transform=killed, shard_size=5)
    with pytest.raises(
        ValueError, match=r"cut is an unfinished export; run `revision align` with the same align.export"
    ):
        open_store(folder, "text")
    kept = {file: file.stat().st_ino for file in folder.rglob("*.npy")}
    seen: list[int] = []
    export_rows(source, folder, transform=lambda rows, numbers: -rows, shard_size=5, on_rows=seen.append)
    assert contents(folder) == contents(tmp_path / "whole") and sum(seen) == COUNT
    assert all(file.stat().st_ino == inode for file, inode in kept.items()), "whole files are not written again"


def test_a_finished_export_is_left_alone_and_a_lost_file_written_again(source: EmbeddingStore, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = export_rows(source, folder, shard_size=5)
    before = contents(folder)

    def never(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        raise AssertionError("nothing is to do")

    seen: list[int] = []
    assert export_rows(source, folder, transform=never, shard_size=5, on_rows=seen.append) == first
    assert seen == [COUNT]
    (folder / "text_emb/text_emb_2.npy").unlink()
    export_rows(source, folder, shard_size=5)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shard_size": 6}, "shard_size"),
        ({"dtype": "float32"}, "dtype"),
        ({"described": {"method": "c3"}}, "transform"),
    ],
)
def test_an_export_of_something_else_is_refused(
    changes: dict[str, Any], named: str, source: EmbeddingStore, tmp_path: Path
) -> None:
    export_rows(source, tmp_path / "out", shard_size=5)
    with pytest.raises(ValueError, match=rf"out holds an export of something else \(changed: {named}\); delete it"):
        export_rows(source, tmp_path / "out", **{"shard_size": 5, **changes})


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"shard_size": 0}])
def test_settings_that_no_export_has_are_refused(
    settings: dict[str, Any], source: EmbeddingStore, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must be one of float16, float32, and shard_size="):
        export_rows(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(source: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source is not empty and holds no export; export to another folder"):
        export_rows(source, tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/export.json").write_text("{")
    with pytest.raises(ValueError, match=r"export.json is not JSON \(.*delete the folder and export again"):
        export_rows(source, tmp_path / "out")


def test_a_full_disk_is_one_sentence(source: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, write: Any) -> str:
        if path.suffix == ".npy":
            raise OSError(28, "No space left on device")
        return whole(path, write)

    whole = export.write_whole
    monkeypatch.setattr(export, "write_whole", full)
    with pytest.raises(
        ValueError, match="cannot write the export .*out: No space left on device; free space .* resumes"
    ):
        export_rows(source, tmp_path / "out")
