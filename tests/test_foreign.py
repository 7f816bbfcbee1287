"""Embeddings of other programs: every format reads as the arrays it holds, and a bad file is one sentence."""

from __future__ import annotations

import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from foreign_files import COUNT, DIM, IDS, TEXTS, WRITERS, unit_rows, write_clip_retrieval, write_npy, write_parquet
from safetensors.torch import save_file

from revision import ReAlign
from revision.alignment.stores import open_sides
from revision.data.rows import Rows
from revision.embeddings import EmbeddingStore, foreign
from revision.embeddings.foreign import labels
from revision.embeddings.opening import open_store, open_stores


def opened(path: Path, kind: str = "text") -> foreign.ForeignStore:
    store = open_store(path, kind)
    assert isinstance(store, foreign.ForeignStore)
    return store


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_rows_it_holds(name: str, dtype: str, tmp_path: Path) -> None:
    rows = unit_rows().astype(dtype)
    store = opened(WRITERS[name](tmp_path / "f", rows))
    assert (len(store), store.dim) == (COUNT, DIM)
    assert (store.manifest.kind, store.manifest.dtype, store.manifest.count) == ("text", dtype, COUNT)
    chunks = list(store.chunks(4))
    assert max(map(len, chunks)) <= 4 and {chunk.dtype for chunk in chunks} == {np.dtype(dtype)}
    np.testing.assert_array_equal(np.concatenate(chunks), rows)
    index = np.array([16, 0, 4, 4, -1, 5, 22])
    for asked in (index, slice(None), slice(2, 9), slice(-1, 2, -3), np.array([], dtype=int)):
        found = store.rows(asked)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, rows[asked])
    np.testing.assert_array_equal(store.rows(7), rows[7:8])
    store.verify()


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_ids_and_texts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(WRITERS[name](tmp_path / "f", unit_rows()))
    with monkeypatch.context() as nothing_read:
        nothing_read.setattr(store, "_label", lambda *_: pytest.fail("a column is read to see whether it is there"))
        assert store.has_ids and store.has_payload
    assert store.ids() == IDS
    assert store.payload(slice(None)) == TEXTS
    assert store.payload(np.array([22, 0, -2])) == [TEXTS[22], TEXTS[0], TEXTS[21]]
    np.testing.assert_array_equal(store.index_of(["id-22", "id-0", "id-10", "id-22"]), [22, 0, 10, 22])
    assert store.index_of([]).shape == (0,)
    with pytest.raises(ValueError, match=r"id 'nobody' has no embedding in .*f.* \(1 of 2 ids have none\)"):
        store.index_of(["id-1", "nobody"])
    with pytest.raises(IndexError, match="which has 23 rows"):
        store.rows(23)


@pytest.mark.parametrize("name", WRITERS)
def test_fit_on_files_is_fit_on_arrays_to_the_bit(name: str, tmp_path: Path) -> None:
    """Of arrays cut where the files are: sums of other pieces differ in their last bits, as floats do."""
    text, image = unit_rows().astype(np.float16), unit_rows(1, middle=0.5)
    store = opened(WRITERS[name](tmp_path / "f", text))
    pieces = np.split(text, np.cumsum([part.rows for part in store.manifest.shards])[:-1])
    require_equal(ReAlign().fit(store, image), ReAlign().fit(pieces, image))
    whole = ReAlign().fit(text, image).statistics
    assert ReAlign().fit(store, image).statistics.gap_after == pytest.approx(whole.gap_after, rel=1e-9)


def test_fit_on_one_file_is_fit_on_its_array_to_the_bit(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", unit_rows())
    image = unit_rows(1, middle=0.5)
    require_equal(ReAlign().fit(opened(tmp_path / "rows.npy"), image), ReAlign().fit(unit_rows(), image))


def require_equal(found: ReAlign, expected: ReAlign) -> None:
    for key, vector in expected._vectors.items():
        assert torch.equal(found._vectors[key], vector), key
    for side in ("text", "image"):
        ours, theirs = vars(found.statistics)[side], vars(expected.statistics)[side]
        assert torch.equal(ours.mean, theirs.mean) and (ours.count, ours.scatter) == (theirs.count, theirs.scatter)
    assert found.statistics.gap_after == expected.statistics.gap_after


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_loading_process_gets_no_rows(name: str, tmp_path: Path) -> None:
    """torch hands the store to a process by its `__reduce__`; what goes over is small, and reads the same."""
    store = opened(WRITERS[name](tmp_path / "f", unit_rows()))
    store.rows(slice(None))
    make, arguments = store.__reduce__()
    copy = make(*arguments)
    np.testing.assert_array_equal(copy.rows(slice(None)), store.rows(slice(None)))
    assert copy.payload(3) == store.payload(3) and copy.fingerprint() == store.fingerprint()


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    rows = torch.from_numpy(unit_rows()).bfloat16()
    save_file({"embeddings": rows}, tmp_path / "rows.safetensors")
    store = opened(tmp_path / "rows.safetensors")
    assert store.manifest.dtype == "bfloat16"
    (chunk,) = store.chunks()
    np.testing.assert_array_equal(chunk, rows.float().numpy())
    bits = rows.view(torch.uint16).numpy()
    np.save(tmp_path / "rows.npy", bits.view("V2"))  # as numpy.save leaves an array of ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.concatenate(list(opened(tmp_path / "rows.npy").chunks())), rows.float().numpy())


@pytest.mark.parametrize("change", [np.asfortranarray, lambda rows: rows.astype(">f4")])
def test_arrays_of_other_order(change: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", change(unit_rows()))
    store = opened(tmp_path / "rows.npy")
    np.testing.assert_array_equal(store.rows(slice(None)), unit_rows())
    assert ReAlign().fit(store, unit_rows(1)).dim == DIM


def test_rows_are_put_on_the_sphere_and_chunks_are_not(tmp_path: Path) -> None:
    scaled = unit_rows() * np.linspace(0.5, 20, COUNT, dtype=np.float32)[:, None]
    np.save(tmp_path / "rows.npy", scaled)
    store = opened(tmp_path / "rows.npy")
    np.testing.assert_array_equal(np.concatenate(list(store.chunks())), scaled)
    np.testing.assert_allclose(np.linalg.norm(store.rows(slice(None)), axis=1), 1, rtol=1e-6)
    scaled[5] = 0
    np.save(tmp_path / "zero.npy", scaled)
    for read in (lambda s: s.rows(slice(None)), lambda s: s.verify()):
        with pytest.raises(ValueError, match="row 5 of .*zero.npy is zero, NaN or infinite"):
            read(opened(tmp_path / "zero.npy"))


def test_both_sides_of_clip_retrieval(tmp_path: Path) -> None:
    write_clip_retrieval(tmp_path / "laion", unit_rows())
    text, image = open_sides(tmp_path / "laion", tmp_path / "laion", encoder="b32")
    np.testing.assert_array_equal(text.rows(slice(None)), unit_rows())
    np.testing.assert_array_equal(image.rows(slice(None)), -unit_rows())
    assert text.manifest.encoder == image.manifest.encoder == {"name": "b32"}
    assert image.payload(slice(None)) == text.ids() == IDS, "image_path serves as id where there is no other"
    assert text.fingerprint() != image.fingerprint()
    alone = opened(tmp_path / "laion" / "img_emb", "image")
    assert alone.fingerprint() == image.fingerprint() and alone.ids() == IDS


def test_a_format_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", unit_rows())
    store = opened(tmp_path / "rows.npy")
    assert store.ids() == [str(number) for number in range(COUNT)] and not store.has_payload and not store.has_ids
    np.testing.assert_array_equal(store.index_of(["7", "0"]), [7, 0])
    with pytest.raises(ValueError, match="rows.npy has no texts; give a column such as 'caption'"):
        store.payload(0)
    with pytest.raises(ValueError, match="rows.npy has no paths of pictures; give a column such as 'image_path'"):
        opened(tmp_path / "rows.npy", "image").payload(0)


def test_column_at_the_end_of_the_path(tmp_path: Path) -> None:
    table = {"text_vec": list(unit_rows()), "picture": list(unit_rows(1)), "id": list(range(COUNT))}
    pq.write_table(pa.table(table), tmp_path / "both.parquet")
    save_file({name: torch.from_numpy(unit_rows(n)) for n, name in enumerate("ab")}, tmp_path / "t.safetensors")
    for path, seed in (("both.parquet/picture", 1), ("t.safetensors/a", 0), ("t.safetensors/b", 1)):
        np.testing.assert_array_equal(opened(tmp_path / path).rows(slice(None)), unit_rows(seed))
    assert opened(tmp_path / "both.parquet/picture").ids()[3] == "3", "a number is read as its digits"
    with pytest.raises(
        ValueError, match=r"has several columns of embeddings \(picture, text_vec\); name one at the end"
    ):
        opened(tmp_path / "both.parquet")
    with pytest.raises(ValueError, match=r"has no column 'images' of embeddings; those that fit: picture, text_vec"):
        opened(tmp_path / "both.parquet/images")
    with pytest.raises(ValueError, match=r"has several tensors of embeddings \(a, b\)"):
        opened(tmp_path / "t.safetensors")


def test_an_id_of_two_rows_is_named(tmp_path: Path) -> None:
    """Where rows are looked up by id, a second row of that id would be one that nobody can ask for."""
    ids = [*IDS[:-1], "id-4"]
    pq.write_table(pa.table({"id": ids, "text": TEXTS, "embedding": list(unit_rows())}), tmp_path / "t.parquet")
    store = opened(tmp_path / "t.parquet")
    sentence = r"id 'id-4' occurs twice in .*t.parquet: rows 4 and 22; give each row an id of its own"
    for look_up in (lambda: store.index_of(["id-1"]), store.verify):
        with pytest.raises(ValueError, match=sentence):
            look_up()
    other = opened(write_parquet(tmp_path / "other", unit_rows(1)))
    for stores in ([store], [store, other]):
        with pytest.raises(ValueError, match=sentence):
            Rows(stores, embed_dim=DIM).find(["id-4", "id-5"])
    both = Rows([other, opened(write_parquet(tmp_path / "same", unit_rows(2)))], embed_dim=DIM)
    assert both.find(["id-4"]).tolist() == [4], "the first store that has it"


@pytest.mark.parametrize(("kind", "seed"), [("text", 0), ("image", 1)])
def test_usual_names_tell_the_side(kind: str, seed: int, tmp_path: Path) -> None:
    columns = {"text_embedding": list(unit_rows()), "image_embedding": list(unit_rows(1))}
    pq.write_table(pa.table(columns), tmp_path / "both.parquet")
    np.testing.assert_array_equal(opened(tmp_path / "both.parquet", kind).rows(slice(None)), unit_rows(seed))


def test_fingerprint_follows_the_content_not_the_place(tmp_path: Path) -> None:
    first, second = write_npy(tmp_path / "a", unit_rows()), write_npy(tmp_path / "b", unit_rows())
    assert opened(first).fingerprint() == opened(second).fingerprint()
    changed = np.load(second / "part-9.npy"), np.load(second / "part-10.npy")
    np.save(second / "part-10.npy", -changed[1])
    assert opened(first).fingerprint() != opened(second).fingerprint()
    np.save(tmp_path / "large.npy", np.ones((300_000, DIM), np.float32))
    before = opened(tmp_path / "large.npy").fingerprint()
    np.save(tmp_path / "large.npy", np.full((300_000, DIM), 2, np.float32))
    assert opened(tmp_path / "large.npy").fingerprint() != before


def test_fingerprint_knows_what_was_read(tmp_path: Path) -> None:
    """Files alone do not tell which of two columns an alignment was fitted on."""
    rows, others = unit_rows(), unit_rows(1)
    save_file({"e": torch.from_numpy(rows), "f": torch.from_numpy(others)}, tmp_path / "x.safetensors")
    table = pa.table({"id": IDS, "e": list(rows), "f": list(others)})
    pq.write_table(table, tmp_path / "x.parquet")
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(tmp_path / "x")
    records = [{"id": one, "e": e, "f": f} for one, e, f in zip(IDS, rows, others, strict=True)]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(records, protocol=4))
    lists = [{**record, "e": record["e"].tolist(), "f": record["f"].tolist()} for record in records]
    (tmp_path / "y.pkl").write_bytes(pickle.dumps(lists, protocol=4))
    for name in ("x.safetensors", "x.parquet", "x", "x.pkl", "y.pkl"):
        one, other, again = (open_store(f"{tmp_path / name}/{field}", "text") for field in "efe")
        assert one.fingerprint() == again.fingerprint() != other.fingerprint(), name
        assert one.state() == again.state() != other.state(), name


def test_the_folders_of_laion_5b(tmp_path: Path) -> None:
    folder = write_clip_retrieval(tmp_path / "laion", unit_rows())
    (folder / "metadata").rename(folder / "laion2B-en-metadata")
    for place in (folder, folder / "text_emb"):
        found = open_store(place, "text")
        assert (found.ids(slice(0, 3)), found.payload(slice(0, 3))) == (IDS[:3], TEXTS[:3])
    (folder / "laion2B-multi-metadata").mkdir()
    with pytest.raises(ValueError, match="has laion2B-en-metadata and laion2B-multi-metadata; keep the one"):
        open_store(folder, "text")


def test_a_file_that_is_written_again_is_another_state(tmp_path: Path) -> None:
    """What was made of texts is not taken for theirs where a line of a large file may have changed."""
    folder = write_npy(tmp_path / "a", unit_rows())
    before = opened(folder).fingerprint(), opened(folder).state()
    assert opened(folder).state() == before[1]
    content = (folder / "part-10.npy").read_bytes()
    (folder / "part-10.npy").unlink()
    (folder / "part-10.npy").write_bytes(content)
    os.utime(folder / "part-10.npy", ns=(1, 1))
    assert opened(folder).fingerprint() == before[0]
    assert opened(folder).state() != before[1]


def test_stores_and_foreign_files_together(tiny_store: Any, tmp_path: Path) -> None:
    """Foreign files do not tell their encoder: beside a store they are taken to be of the store's."""
    store = tiny_store(kind="image", n=COUNT, dim=DIM)
    np.save(tmp_path / "rows.npy", unit_rows())
    text, image = open_sides(tmp_path / "rows.npy", store.path)
    assert text.manifest.encoder == image.manifest.encoder == {"name": "tiny"}
    assert type(image) is EmbeddingStore
    np.save(tmp_path / "narrow.npy", unit_rows()[:, :2])
    with pytest.raises(ValueError, match="narrow.npy has dimension 2 but .* 6: embed both with one encoder"):
        open_sides(tmp_path / "narrow.npy", store.path)


def test_a_folder_of_a_store_is_never_read_as_foreign(tiny_store: Any, tmp_path: Path) -> None:
    path = tiny_store(kind="text", n=COUNT, dim=DIM).path
    (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="there is no embedding store at .*; run `revision embed` first"):
        open_store(path, "text")
    (path / "plan.json").touch()
    with pytest.raises(ValueError, match="is unfinished; run `revision embed` again"):
        open_store(path, "text")
    for nothing in (tmp_path / "nowhere", tmp_path / "far" / "away"):
        with pytest.raises(ValueError, match=rf"^{nothing} does not exist: there is no embedding store; run"):
            open_stores([(nothing, "text")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is an empty folder: .*, or give embeddings in one of the formats of"):
        open_store(tmp_path / "empty", "image")
    with pytest.raises(ValueError, match=r"rows.npy does not exist"):
        open_store(tmp_path / "rows.npy", "image")


def _big(path: Path, name: str) -> tuple[int, Path]:
    rows = np.zeros((60_000, 256), np.float32)
    rows[:, 0] = np.arange(1, 60_001)
    if name == "npy":
        np.save(path / "big.npy", rows)
    elif name == "safetensors":
        save_file({"rows": torch.from_numpy(rows)}, path / "big.safetensors")
    else:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 256)
        pq.write_table(pa.table({"v": flat}), path / "big.parquet", use_dictionary=False)
    return rows.nbytes, next(path.iterdir())


@pytest.mark.parametrize("name", ["npy", "safetensors"])
def test_memory_is_mapped_and_not_read(name: str, tmp_path: Path) -> None:
    """In a process that may not take as much memory as the file has bytes, opening and streaming work all the same."""
    size, path = _big(tmp_path, name)
    before = _anonymous()
    store = opened(path)
    last = store.rows(np.array([59_999]))
    total = sum(float(chunk[:, 0].sum()) for chunk in store.chunks(4096))
    assert last[0, 0] == 1 and total == pytest.approx(60_000 * 60_001 / 2)
    assert _anonymous() - before < size / 4


def test_parquet_streams(tmp_path: Path) -> None:
    _, path = _big(tmp_path, "parquet")
    store = opened(path)
    lengths = [len(chunk) for chunk in store.chunks(4096)]
    assert sum(lengths) == 60_000 and max(lengths) <= 4096
    assert store.rows(np.array([59_999, 3]))[:, 0].tolist() == [1, 1]
    before = _anonymous()
    opened(path).rows(np.array([5]))
    assert _anonymous() - before < 60_000 * 256 * 4 / 2, "unpacked into a file, not into memory"


def _anonymous() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_large_columns_of_texts_leave_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_SMALL", 16)
    before = set(os.listdir(labels.tempfile.gettempdir()))
    store = opened(write_parquet(tmp_path / "f", unit_rows()))
    assert store.payload(np.array([22, 3])) == [TEXTS[22], TEXTS[3]] and store.ids() == IDS
    left = {name for name in set(os.listdir(labels.tempfile.gettempdir())) - before if name.endswith(".arrow")}
    assert left == set(), "the file has no name any more"


def _npy(path: Path) -> Path:
    np.save(path / "rows.npy", unit_rows())
    return path / "rows.npy"


def _cut(path: Path, to: int = -9) -> Path:
    path.write_bytes(path.read_bytes()[:to])
    return path


def _saved(path: Path, array: np.ndarray) -> Path:
    np.save(path / "rows.npy", array)
    return path / "rows.npy"


def _table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path / "t.parquet")
    return path / "t.parquet"


def _tensors(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path / "t.safetensors")
    return path / "t.safetensors"


def _header(path: Path, **changes: Any) -> Path:
    """Two tensors of eight bytes each, whose first has another entry in the header; None takes a field away."""
    entry = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    first = {name: value for name, value in {**entry, **changes}.items() if value is not None}
    header = json.dumps({"a": first, "b": {**entry, "data_offsets": [8, 16]}}).encode()
    return _written(path, "t.safetensors", len(header).to_bytes(8, "little") + header + b"\0" * 64)


def _also(path: Path, file: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), file.with_suffix(".parquet"))
    return path


def _two(path: Path) -> Path:
    np.save(path / "a.npy", unit_rows())
    np.save(path / "b.npy", unit_rows()[:, :4])
    return path


def _several(path: Path) -> Path:
    np.save(path / "a.npy", unit_rows())
    (path / "b.pkl").touch()
    return path


def _written(path: Path, name: str, content: bytes) -> Path:
    (path / name).write_bytes(content)
    return path / name


def _dataset(path: Path, **state: Any) -> Path:
    (path / "d").mkdir()
    (path / "d/state.json").write_text(json.dumps(state))
    return path / "d"


def _clip(path: Path, remove: str) -> Path:
    write_clip_retrieval(path / "c", unit_rows())
    (path / "c" / remove).unlink()
    return path / "c"


def _only_images(path: Path) -> Path:
    (path / "c/img_emb").mkdir(parents=True)
    return path / "c"


def _cut_dataset(path: Path) -> Path:
    folder = WRITERS["dataset"](path / "d", unit_rows())
    _cut(folder / "data-00001-of-00002.arrow", -200)
    return folder


def _splits(path: Path, listed: str = '{"splits": ["train", "test"]}') -> Path:
    (path / "d").mkdir()
    (path / "d/dataset_dict.json").write_text(listed)
    return path / "d"


MISTAKES = {
    "truncated npy": (lambda p: _cut(_npy(p)), r"rows.npy is truncated: it has 671 of 680 bytes; copy or"),
    "no npy": (lambda p: _written(p, "a.npy", b"hello, this is no array"), r"a.npy is not a .npy file .*numpy.save"),
    "empty npy": (lambda p: _written(p, "a.npy", b""), r"a.npy is not a .npy file"),
    "one dimension": (lambda p: _saved(p, np.ones(5)), r"rows.npy has shape \(5,\); embeddings are \[n, d\]"),
    "whole numbers": (lambda p: _saved(p, np.ones((5, 2), int)), r"rows.npy has dtype int64; embeddings are float16"),
    "objects": (
        lambda p: _saved(p, np.array([[None, 1]], dtype=object)), r"rows.npy has dtype object; embeddings are float16"
    ),
    "no rows": (lambda p: _saved(p, np.ones((0, 4))), r"rows.npy holds no rows; give at least one"),
    "two dimensions": (_two, r"b.npy has rows of dimension 4 but .*a.npy 6; the embeddings of a source are of one"),
    "two formats": (_several, r"holds files of several formats \(.npy, .pkl\); keep one of them there"),
    "labels of another length": (
        lambda p: _also(p / "rows.npy", _npy(p), id=["a", "b"]), r"rows.parquet has 2 lines but .*rows.npy 23 rows"
    ),
    "truncated parquet": (lambda p: _cut(_table(p, v=list(unit_rows()))), r"t.parquet is not a whole parquet file"),
    "no vectors": (lambda p: _table(p, id=["a"], n=[1.5]), r"t.parquet has no column of embeddings: one list"),
    "ragged": (lambda p: _table(p, v=[[1.0, 2.0], [1.0]]), r"t.parquet row 1 has 1 numbers but the rows before it 2"),
    "null row": (lambda p: _table(p, v=[[1.0, 2.0], None]), r"t.parquet row 1 is null; leave records without"),
    "first row null": (lambda p: _table(p, v=[None, [1.0, 2.0]]), r"t.parquet row 0 is null"),
    "null inside": (lambda p: _table(p, v=[[1.0, 2.0], [1.0, None]]), r"t.parquet row 1 holds a null"),
    "labels of another type": (
        lambda p: _table(p, v=[[1.0]], id=[1.5]), r"column 'id' is of type double; ids, texts and paths are texts or"
    ),
    "truncated safetensors": (
        lambda p: _cut(_tensors(p, a=torch.ones(5, 2))), r"^[^ ]*t.safetensors is truncated: it has \d+ of \d+ bytes"
    ),
    "header of safetensors": (
        lambda p: _cut(_tensors(p, a=torch.ones(5, 2)), 20), r"t.safetensors is truncated: it has 20 of"
    ),
    "no safetensors": (lambda p: _written(p, "a.safetensors", b"{}"), r"a.safetensors is not a safetensors file"),
    "broken safetensors": (
        lambda p: _written(p, "a.safetensors", (4).to_bytes(8, "little") + b"nope"), r"is not a safetensors file \("
    ),
    "tensor without dtype": (lambda p: _header(p, dtype=None), r"t.safetensors, tensor 'a': its entry .*'dtype'"),
    "tensor without shape": (lambda p: _header(p, shape=None), r"t.safetensors, tensor 'a': its entry .*'shape'"),
    "tensor without place": (lambda p: _header(p, data_offsets=None), r"tensor 'a': its entry .*'data_offsets'"),
    "tensor of no length": (lambda p: _header(p, shape=[-1, -2]), r"tensor 'a': its entry .*whole numbers from 0 on"),
    "tensor of more than its bytes": (
        lambda p: _header(p, shape=[4, 4]),
        r"t.safetensors, tensor 'a' has 8 bytes, but its shape \[4, 4\] of float32 needs 64; save the rows again",
    ),
    "tensor of fewer than its bytes": (lambda p: _header(p, shape=[1, 1]), r"tensor 'a' has 8 bytes, .* needs 4; save"),
    "no tensor": (lambda p: _tensors(p, a=torch.ones(5)), r"t.safetensors has no tensor of embeddings"),
    "other file": (lambda p: _written(p, "a.csv", b"1,2"), r"a.csv is of no format that embeddings are read from"),
    "other folder": (lambda p: _written(p, "a.csv", b"1,2").parent, r"holds no embeddings; give .npy, .safetensors"),
    "no labels": (
        lambda p: _clip(p, "metadata/metadata_9.parquet"),
        r"c is not whole: it has 4 files in text_emb, 4 files in img_emb, 3 files in metadata, and metadata lacks num"
    ),
    "last part": (lambda p: _clip(p, "text_emb/text_emb_11.npy"), r"c is not whole: .*, and text_emb lacks number 11"),
    "the other side's part": (lambda p: _clip(p, "img_emb/img_emb_8.npy"), r"and img_emb lacks number 8; copy it"),
    "other side": (_only_images, r"c has img_emb but no text_emb, and text embeddings are needed"),
    "no arrays": (lambda p: (_only_images(p) / "img_emb").rename(p / "c/text_emb").parent, r"holds no .npy file"),
    "data set without file": (
        lambda p: _dataset(p, _data_files=[{"filename": "x.arrow"}]), r"x.arrow is missing, and .*state.json lists it"
    ),
    "data set re-ordered": (
        lambda p: _dataset(p, _data_files=[], _indices_files=[{"filename": "i"}]), r"selection of other rows; call"
    ),
    "no data set": (lambda p: _dataset(p), r"state.json is not of a saved data set"),
    "truncated data set": (_cut_dataset, r"data-00001-of-00002.arrow is not a whole Arrow stream"),
    "splits": (_splits, r"d has the splits train, test; name one: .*d/train"),
    "splits of nothing": (lambda p: _splits(p, "{}"), r"d/dataset_dict.json is not of a saved data set \('splits'\)"),
    "broken splits": (lambda p: _splits(p, "{"), r"d/dataset_dict.json is not of a saved data set \(Expecting"),
    "splits of a number": (lambda p: _splits(p, '{"splits": [1]}'), r"d/dataset_dict.json is not of a saved data set"),
    "unfinished export": (lambda p: _written(p, "unfinished.json", b"{}").parent, r"is an unfinished export; run"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    make, sentence = MISTAKES[name]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        store = opened(path)
        store.rows(slice(None))
        store.ids()
    assert "\n" not in str(caught.value)


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "f", unit_rows())
    store = opened(path)
    (path / "part-8.npy").unlink()
    with pytest.raises(ValueError, match="part-8.npy cannot be read: No such file"):
        store.rows(0)
