"""Rows by number: each reader gives those that are wanted, and spares the bytes of the others."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revision import records
from revision.pictures import Blob
from revision.records import Spans, tables, tar_shards
from revision.records.spans import ALL, since

WANTED = Spans([range(1, 3), range(3, 3), range(5, 6), range(8, 11)])
NUMBERS = [1, 2, 5, 8, 9, 10]
CONTENTS = [f"picture {number}".encode() * 40 for number in range(14)]


def test_spans_are_sets_of_numbers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        edges = np.sort(rng.integers(0, 40, size=2 * int(rng.integers(0, 5))))
        ranges = [range(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
        numbers = {number for one in ranges for number in one}
        spans = Spans(ranges)
        assert list(spans) == sorted(numbers) and spans.end == max(numbers, default=-1) + 1
        assert {number for number in range(50) if number in spans} == numbers
        for start, stop in product(range(0, 45, 4), repeat=2):
            assert spans.touch(start, stop) == bool(numbers & {*range(start, stop)})
        for start in (0, 3, 17):
            assert list(spans.after(start)) == sorted(number - start for number in numbers if number >= start)
    assert 0 in ALL and 10**15 in ALL and 6 not in since(7) and 7 in since(7)


@pytest.mark.parametrize("ranges", [[range(3, 5), range(0, 1)], [range(3, 5), range(4, 6)], [range(0, 6, 2)]])
def test_spans_in_disorder_are_a_defect(ranges: list[range]) -> None:
    with pytest.raises(AssertionError):
        Spans(ranges)


def write(folder: Path, form: str) -> Path:
    """Fourteen records with pictures in some form; of files, several."""
    names = [f"n{number:02}" for number in range(14)]
    match form:
        case "tar":
            for shard, part in enumerate((range(0, 4), range(4, 10), range(10, 14))):
                with tarfile.open(folder / f"{shard}.tar", "w") as archive:
                    for number in part:
                        for ending, data in ((".json", json.dumps({"id": names[number]}).encode()),
                                             (".jpg", CONTENTS[number])):  # fmt: skip
                            member = tarfile.TarInfo(f"x{number:02}{ending}")
                            member.size = len(data)
                            archive.addfile(member, io.BytesIO(data))
        case "parquet":
            for file, rows in enumerate((slice(0, 5), slice(5, 14))):
                table = pa.table({"id": names[rows], "image": pa.array(CONTENTS[rows], pa.binary())})
                pq.write_table(table, folder / f"{file}.parquet", row_group_size=2)
        case "saved":
            held = [{"id": n, "image": {"bytes": c, "path": None}} for n, c in zip(names, CONTENTS, strict=True)]
            features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
            datasets.Dataset.from_list(held, features=features).save_to_disk(folder)
        case "folder":
            for name in names:
                (folder / f"{name}.jpg").touch()
        case "json lines":
            lines = [json.dumps({"id": name, "image": f"{name}.jpg"}) for name in names]
            (folder / "a.jsonl").write_text("\n".join(lines[:6]))
            (folder / "b.jsonl").write_text("\n".join(lines[6:]))
    return folder


@pytest.mark.parametrize("form", ["tar", "parquet", "saved", "folder", "json lines"])
def test_the_wanted_rows_are_those_of_all_rows(tmp_path: Path, form: str) -> None:
    location = write(tmp_path, form)
    whole = list(records.read_images(location))
    assert len(whole) == 14
    assert list(records.read_images(location, wanted=WANTED)) == [whole[number] for number in NUMBERS]
    assert list(records.read_images(location, wanted=Spans([]))) == []
    assert list(records.read_images(location, wanted=since(12))) == whole[12:]
    assert list(records.read_images(location, wanted=since(20))) == []
    numbered = records.read_images(location, fields={"id": "#"}, wanted=WANTED)
    assert [image.id for image in numbered] == list(map(str, NUMBERS)), "the number is that among all rows"


def test_pictures_that_llava_names_are_counted_once_each(tmp_path: Path) -> None:
    names = [f"{number % 7}.jpg" for number in range(14)]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"id": str(i), "image": n}) for i, n in enumerate(names)))
    found = records.read_images(tmp_path / "c.jsonl", fields={"id": "image"}, wanted=WANTED)
    assert [image.id for image in found] == ["1.jpg", "2.jpg", "5.jpg"]


def test_of_a_shard_only_the_wanted_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        read.append(member.name)
        return original(archive, member)

    original = tar_shards._read
    monkeypatch.setattr(tar_shards, "_read", watched)
    list(records.read_images(write(tmp_path, "tar"), wanted=WANTED))
    assert read == [f"x{number:02}{ending}" for number in NUMBERS for ending in (".json", ".jpg")]


def test_of_a_table_only_the_row_groups_with_wanted_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    class Watched(pq.ParquetFile):
        def iter_batches(self, *, row_groups: list[int], **further: Any) -> Any:
            read.extend(row_groups)
            return super().iter_batches(row_groups=row_groups, **further)

    monkeypatch.setattr(tables.pq, "ParquetFile", Watched)
    found = list(records.read_images(write(tmp_path, "parquet"), wanted=WANTED))
    assert [image.picture.content for image in found if isinstance(image.picture, Blob)] == [
        CONTENTS[number] for number in NUMBERS
    ]
    # Rows 1 and 2 lie in groups 0 and 1 of the first file; 5, 8, 9 and 10 in groups 0, 1 and 2 of the second.
    assert read == [0, 1, 0, 1, 2]
