"""The embedding store: what goes in comes out, and nothing that happens while writing can change the bytes."""

import copy
import errno
import hashlib
import json
import os
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from revision.embeddings import EmbeddingStore, Rejected, StoreWriter, layout, store, writer

DIM = 6
ENCODER = {"name": "tiny", "weights": "123"}


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def new_writer(path: Path, records: int = 23, **changes: Any) -> StoreWriter:
    settings: dict[str, Any] = {
        "kind": "text", "dim": DIM, "encoder": ENCODER, "records_fingerprint": "abc", "records": records,
        "shard_size": 5, "reject_budget": 0.5,
    }  # fmt: skip
    return StoreWriter(path, **{**settings, **changes})


def write_shard(target: StoreWriter, shard: int, rejects: frozenset[int] = frozenset()) -> None:
    """Record number i of the file has the id `id-i`, row i of `unit_rows(100)`, and the payload `text i`."""
    kept = [position for position in target.positions(shard) if position not in rejects]
    target.write(
        shard,
        rows=unit_rows(100)[kept],
        ids=[f"id-{position}" for position in kept],
        payloads=[f"text {position}" for position in kept],
        lengths=kept,
        rejected=[Rejected(f"id-{p}", "empty") for p in target.positions(shard) if p in rejects],
    )


def write_store(path: Path, rejects: frozenset[int] = frozenset(), **changes: Any) -> EmbeddingStore:
    target = new_writer(path, **changes)
    for shard in target.missing():
        write_shard(target, shard, rejects)
    target.finish()
    return EmbeddingStore.open(path)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


REJECTS = frozenset({3, 10, 11, 12, 13, 14})  # one of shard 0, the whole of shard 2
KEPT = [position for position in range(23) if position not in REJECTS]


@pytest.fixture
def opened(tmp_path: Path) -> EmbeddingStore:
    return write_store(tmp_path / "s", REJECTS)


@pytest.mark.parametrize("rows_a_shard", [0, 100])  # by shard, and one by one
def test_rows_in_any_order(opened: EmbeddingStore, rows_a_shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_ROWS_A_SHARD", rows_a_shard)
    expected = unit_rows(100)[KEPT].astype(np.float16)
    index = np.array([16, 0, 4, 4, -1, 5, 3])
    assert len(opened) == 17 and opened.dim == DIM
    for asked in (index, slice(None), slice(2, 9), slice(-1, 2, -3), np.array([], dtype=int), np.arange(17)):
        found = opened.rows(asked)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected[asked])
    np.testing.assert_array_equal(opened.rows(7), expected[7:8])
    np.testing.assert_array_equal(np.concatenate(list(opened.chunks(3))), expected)
    assert max(len(chunk) for chunk in opened.chunks(3)) == 3


@pytest.mark.parametrize("index", [17, -18, np.array([0, 17])])
def test_rows_outside(opened: EmbeddingStore, index: Any) -> None:
    with pytest.raises(IndexError, match=r"which has 17 rows"):
        opened.rows(index)


def test_rows_by_mask_are_refused(opened: EmbeddingStore) -> None:
    with pytest.raises(TypeError, match=r"chosen by integers, not bool"):
        opened.rows(np.ones(17, dtype=bool))


def test_ids_and_payloads(opened: EmbeddingStore) -> None:
    assert opened.ids() == [f"id-{position}" for position in KEPT]
    assert opened.payload(slice(None)) == [f"text {position}" for position in KEPT]
    assert opened.payload(np.array([16, 0, -2])) == ["text 22", "text 0", "text 21"]
    asked = ["id-22", "id-0", "id-9", "id-22"]
    np.testing.assert_array_equal(opened.index_of(asked), [KEPT.index(p) for p in (22, 0, 9, 22)])
    assert opened.index_of([]).shape == (0,)
    lengths = [pq.read_table(file).column("length").to_pylist() for file in sorted(opened.path.glob("*.parquet"))]
    assert list(chain.from_iterable(lengths)) == KEPT


@pytest.mark.parametrize("missing", ["id-3", "elsewhere"])
def test_id_without_embedding(opened: EmbeddingStore, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"id '{missing}' has no embedding in .* .1 of 2 ids have none"):
        opened.index_of(["id-0", missing])


def test_ids_that_are_not_there_are_told_apart(opened: EmbeddingStore) -> None:
    ids = opened.ids()
    np.testing.assert_array_equal(opened.find(["nobody", ids[5], "", ids[0]]), [-1, 5, -1, 0])
    assert opened.find([]).tolist() == []


def test_colliding_hashes_never_give_a_wrong_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "hash_id", lambda identity: len(identity))
    monkeypatch.setattr(store, "hash_id", lambda identity: len(identity))
    opened = write_store(tmp_path / "s")
    ids = [f"id-{position}" for position in (12, 3, 22, 0)]
    np.testing.assert_array_equal(opened.index_of(ids), [12, 3, 22, 0])
    with pytest.raises(ValueError, match=r"id 'id-99' has no embedding"):
        opened.index_of(["id-99"])


def test_manifest(opened: EmbeddingStore) -> None:
    manifest = json.loads((opened.path / "manifest.json").read_text())
    assert manifest["count"] == 17 and manifest["records"] == 23 and manifest["rejected"] == 6
    assert manifest["dim"] == DIM and manifest["dtype"] == "float16" and manifest["kind"] == "text"
    assert manifest["encoder"] == ENCODER and manifest["records_fingerprint"] == "abc"
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 5, 0, 5, 3]
    for shard in manifest["shards"]:
        rows = (opened.path / f"{shard['name']}.npy").read_bytes()
        assert shard["sha256"] == hashlib.sha256(rows).hexdigest()
    lines = [json.loads(line) for line in (opened.path / "rejected.jsonl").read_text().splitlines()]
    assert lines == [{"id": f"id-{position}", "reason": "empty"} for position in sorted(REJECTS)]
    names = {f"shard-0000{n}.{suffix}" for n in range(5) for suffix in ("npy", "parquet")}
    names |= {"manifest.json", "rejected.jsonl", "index-hashes.npy", "index-rows.npy"}
    assert contents(opened.path).keys() == names


def test_opening_reads_the_manifest_alone(tmp_path: Path) -> None:
    shards = [layout.Shard(f"shard-{n:05d}", 10**6, "x", "y") for n in range(100)]
    manifest = layout.Manifest(1, "text", 10**8, 1280, "float16", {}, "abc", None, 10**8, 0, 10**6, shards, {})
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    assert len(EmbeddingStore.open(tmp_path)) == 10**8
    with pytest.raises(ValueError, match=r"shard-00099\.npy cannot be read"):
        EmbeddingStore.open(tmp_path).rows(-1)


def test_more_shards_than_maps_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_OPEN_MAPS", 2)
    opened = write_store(tmp_path / "s")
    order = np.random.default_rng(0).permutation(23)
    for _ in range(2):
        np.testing.assert_array_equal(opened.rows(order), unit_rows(100)[order].astype(np.float16))


def test_maps_hold_no_file(tmp_path: Path) -> None:
    """A store may have more shards than a process may have files."""
    found = write_store(tmp_path / "s", records=60, shard_size=1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    np.testing.assert_array_equal(found.rows(slice(None)), unit_rows(100)[:60].astype(np.float16))
    assert len(found._maps) == 60
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_writing_to_a_chunk_changes_no_file(opened: EmbeddingStore) -> None:
    before = contents(opened.path)
    for chunk in opened.chunks():
        chunk[:] = 0
    assert contents(opened.path) == before


def test_goes_to_another_process_as_a_path(opened: EmbeddingStore) -> None:
    opened.rows(slice(None))
    assert opened.__reduce__() == (EmbeddingStore, (opened.path, opened.manifest))
    np.testing.assert_array_equal(copy.copy(opened).rows(3), opened.rows(3))


def test_fingerprint_follows_rows_and_encoder(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a").fingerprint()
    assert write_store(tmp_path / "b").fingerprint() == first
    assert write_store(tmp_path / "c", encoder={"name": "other"}).fingerprint() != first
    assert write_store(tmp_path / "d", frozenset({1})).fingerprint() != first


class Killed(BaseException):
    """Stands for a process that ends between two system calls."""


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, number: int, error: BaseException) -> None:
    """Makes the n-th `os.<call>` raise instead of doing its work."""
    real, count = getattr(os, call), iter(range(10**6))

    def maybe(*arguments: Any) -> Any:
        if next(count) == number:
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, call, maybe)


WRITES = range(1 + 5 * 2 + 4)  # plan; sidecar and rows of five shards; rejected, two index files, manifest


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", WRITES)
def test_kill_anywhere_and_resume_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    expected = contents(write_store(tmp_path / "whole", REJECTS).path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        fail_at(patch, call, number, Killed())
        write_store(tmp_path / "s", REJECTS)
    with pytest.raises(ValueError, match=r"unfinished|no embedding store"):
        EmbeddingStore.open(tmp_path / "s")
    write_store(tmp_path / "s", REJECTS)
    assert contents(tmp_path / "s") == expected


@pytest.mark.parametrize("number", WRITES)
def test_full_disk_anywhere_is_a_sentence_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    expected = contents(write_store(tmp_path / "whole", REJECTS).path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"the disk is full; free space .* resumes"):
        fail_at(patch, "fsync", number, full)
        write_store(tmp_path / "s", REJECTS)
    left = contents(tmp_path / "s")
    left.pop("plan.json", None)
    assert left.items() <= expected.items()
    write_store(tmp_path / "s", REJECTS)
    assert contents(tmp_path / "s") == expected


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"cannot write embedding store .*s: .*File exists"):
        new_writer(tmp_path / "s")


def test_finished_shards_are_not_written_again(tmp_path: Path) -> None:
    first = new_writer(tmp_path / "s")
    write_shard(first, 0)
    write_shard(first, 3)
    again = new_writer(tmp_path / "s")
    assert again.missing() == [1, 2, 4] and not again.complete
    for shard in again.missing():
        write_shard(again, shard)
    again.finish()
    finished = new_writer(tmp_path / "s")
    assert finished.complete and finished.missing() == []


def test_ranks_share_the_shards(tmp_path: Path) -> None:
    expected = contents(write_store(tmp_path / "whole", REJECTS).path)
    ranks = [new_writer(tmp_path / "s", rank=rank, world=2) for rank in range(2)]
    assert [one.missing() for one in ranks] == [[0, 2, 4], [1, 3]]
    for shard in ranks[0].missing():
        write_shard(ranks[0], shard, REJECTS)
    finishing = threading.Thread(target=ranks[0].finish, kwargs={"poll_seconds": 0.01})
    finishing.start()
    for shard in ranks[1].missing():
        assert not (tmp_path / "s" / "manifest.json").exists()
        write_shard(ranks[1], shard, REJECTS)
    finishing.join()
    assert contents(tmp_path / "s") == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"records_fingerprint": "new"}, "records_fingerprint"),
        ({"encoder": {"name": "tiny", "weights": "456"}}, "encoder weights"),
        ({"shard_size": 6}, "shard_size"),
        ({"image_root": "pictures"}, "image_root"),
        ({"dim": 7}, "dim"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_changed_settings_are_refused(tmp_path: Path, change: dict[str, Any], named: str, finished: bool) -> None:
    if finished:
        write_store(tmp_path / "s")
    else:
        write_shard(new_writer(tmp_path / "s"), 0)
    with pytest.raises(ValueError, match=rf"other settings .changed: {named}.; delete the folder"):
        new_writer(tmp_path / "s", **change)


def test_reject_budget_counts_over_shards(tmp_path: Path) -> None:
    target = new_writer(tmp_path / "s", reject_budget=2 / 23)
    write_shard(target, 0, frozenset({1, 2}))
    write_shard(target, 1)
    with pytest.raises(ValueError, match=r"3 of 23 records .* embed.reject_budget=0.08.* the first is 'id-1': empty"):
        write_shard(target, 2, frozenset({11}))
    lines = (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["id-1", "id-2", "id-11"]
    # The shards with rejects are tried anew, now with mended records, and nothing tells of the trouble.
    assert new_writer(tmp_path / "s").missing() == [0, 2, 3, 4]
    write_store(tmp_path / "s")
    assert contents(tmp_path / "s") == contents(write_store(tmp_path / "whole").path)


def test_nothing_is_left_of_a_plan_that_kept_no_rows(tmp_path: Path) -> None:
    target = new_writer(tmp_path / "s", shard_size=2, reject_budget=2 / 23)
    with pytest.raises(ValueError, match=r"3 of 23 records"):
        for shard in (11, 10):
            write_shard(target, shard, frozenset({20, 21, 22}))
    write_store(tmp_path / "s")
    assert contents(tmp_path / "s") == contents(write_store(tmp_path / "whole").path)


def test_reject_budget_counts_over_a_resume(tmp_path: Path) -> None:
    write_shard(new_writer(tmp_path / "s"), 0, frozenset({1, 2}))
    with pytest.raises(ValueError, match=r"3 of 23 records"):
        write_shard(new_writer(tmp_path / "s", reject_budget=2 / 23), 1, frozenset({5}))


def test_reject_budget_counts_over_ranks(tmp_path: Path) -> None:
    ranks = [new_writer(tmp_path / "s", rank=rank, world=2, reject_budget=2 / 23) for rank in range(2)]
    for one in ranks:
        for shard in one.missing():
            write_shard(one, shard, frozenset({0, 4, 6}))
    with pytest.raises(ValueError, match=r"3 of 23 records"):
        ranks[0].finish()
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert new_writer(tmp_path / "s").missing() == [0, 1]


def test_a_budget_that_is_exceeded_takes_back_the_shards_of_all_ranks(tmp_path: Path) -> None:
    """All rejects are listed, and the records of all are tried anew."""
    one, other = (new_writer(tmp_path / "s", rank=rank, world=2, reject_budget=0.1) for rank in (0, 1))
    write_shard(one, 0, frozenset({1}))
    with pytest.raises(ValueError, match="4 of 23 records .* could not be embedded"):
        write_shard(other, 1, frozenset({5, 6, 7}))
    listed = [json.loads(line)["id"] for line in (tmp_path / "s" / "rejected.jsonl").read_text().splitlines()]
    assert listed == ["id-1", "id-5", "id-6", "id-7"]
    assert new_writer(tmp_path / "s", rank=0, world=2).missing() == [0, 2, 4]


def test_a_store_that_another_launch_began_anew_is_not_finished(tmp_path: Path) -> None:
    first = new_writer(tmp_path / "s", records=5)
    new_writer(tmp_path / "s", records=5, encoder={"name": "tiny", "weights": "456"})  # before any shard was there
    write_shard(first, 0)
    with pytest.raises(ValueError, match="was made with other settings .changed: encoder weights"):
        first.finish()


def test_a_store_of_nothing_is_refused(tmp_path: Path) -> None:
    target = new_writer(tmp_path / "s", records=2, reject_budget=1.0)
    with pytest.raises(ValueError, match=r"2 of 2 records"):
        write_shard(target, 0, frozenset({0, 1}))


@pytest.mark.parametrize("value", [np.nan, 0.0, 2.0])
def test_vectors_that_are_not_unit_are_refused(tmp_path: Path, value: float) -> None:
    target = new_writer(tmp_path / "s", records=2)
    rows = unit_rows(2)
    rows[1] = value
    with pytest.raises(ValueError, match=r"the encoder gave record 'b' a vector of length"):
        target.write(0, rows=rows, ids=["a", "b"], payloads=["", ""], lengths=[0, 0], rejected=[])
    assert new_writer(tmp_path / "s", records=2).missing() == [0]


def test_shards_of_unknown_origin(tmp_path: Path) -> None:
    write_shard(new_writer(tmp_path / "s"), 0)
    (tmp_path / "s" / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"neither manifest\.json nor plan\.json says of what; delete it"):
        new_writer(tmp_path / "s")


def test_no_store_and_unfinished_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no embedding store at"):
        EmbeddingStore.open(tmp_path / "s")
    new_writer(tmp_path / "s")
    with pytest.raises(ValueError, match=r"is unfinished; run `revision embed` again, it resumes"):
        EmbeddingStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has version None"),
        ('{"version": 99}', "has version 99, this program reads 1"),
        ('{"version": 1, "shards": []}', "is not a manifest of version 1"),
        ('{"version": 1}', "is not a manifest of version 1"),
    ],
)
def test_damaged_manifest(opened: EmbeddingStore, content: str, sentence: str) -> None:
    (opened.path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        EmbeddingStore.open(opened.path)


@pytest.mark.parametrize("name", ["shard-00001.npy", "shard-00003.parquet", "index-rows.npy"])
def test_verify_finds_altered_files(opened: EmbeddingStore, name: str) -> None:
    opened.verify()
    data = bytearray((opened.path / name).read_bytes())
    data[-1] ^= 1
    (opened.path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is missing or altered"):
        opened.verify()
    (opened.path / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing or altered"):
        opened.verify()


def test_truncated_files(opened: EmbeddingStore) -> None:
    for name in ("shard-00001.npy", "shard-00001.parquet"):
        file = opened.path / name
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"shard-00001\.npy cannot be read"):
        opened.rows(5)
    with pytest.raises(ValueError, match=r"shard-00001\.parquet cannot be read"):
        opened.payload(5)


def test_files_of_another_store(tmp_path: Path) -> None:
    opened = write_store(tmp_path / "a")
    other = write_store(tmp_path / "b", shard_size=4)
    for suffix in ("npy", "parquet"):
        name = f"shard-00001.{suffix}"
        (opened.path / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(ValueError, match=r"shard-00001.npy has shape \(4, 6\), its manifest says \(5, 6\)"):
        opened.rows(5)
    with pytest.raises(ValueError, match=r"shard-00001.parquet has 4 rows, its manifest says 5"):
        opened.payload(5)
