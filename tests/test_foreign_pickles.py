"""The authors' pickled chunks: read without unpickling, in every protocol and form, refused where they hold more."""

from __future__ import annotations

import collections
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import COUNT, DIM, IDS, TEXTS, records, unit_rows

from revision.embeddings.foreign import ForeignStore
from revision.embeddings.opening import open_store

PROTOCOLS = (2, 3, 4, 5)


def store_of(path: Path, content: Any, protocol: int = 4, kind: str = "text") -> ForeignStore:
    path = path / "chunk.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    store = open_store(path, kind)
    assert isinstance(store, ForeignStore)
    return store


def require_same(store: ForeignStore, rows: np.ndarray, labelled: bool = True) -> None:
    np.testing.assert_array_equal(np.concatenate(list(store.chunks(4))), rows)
    np.testing.assert_array_equal(store.rows(np.array([5, 0, -1])), rows[[5, 0, -1]])
    if labelled:
        assert store.ids() == IDS
        np.testing.assert_array_equal(store.index_of(["id-7", "id-3"]), [7, 3])


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_records_in_every_protocol(protocol: int, dtype: str, tmp_path: Path) -> None:
    rows = unit_rows().astype(dtype)
    store = store_of(tmp_path, records(rows), protocol)
    require_same(store, rows)
    assert store.payload(slice(None)) == TEXTS
    assert all(chunk.dtype.isnative for chunk in store.chunks())


FORMS = {
    "mapping of ids": lambda rows: dict(zip(IDS, rows, strict=True)),
    "columns": lambda rows: {"ids": IDS, "embeddings": rows, "note": "made up"},
    "columns of arrays": lambda rows: {"ids": np.array(IDS), "embeddings": list(rows)},
    "records with lists": lambda rows: [{"id": i, "embed": row.tolist()} for i, row in zip(IDS, rows, strict=True)],
    "records in another order": lambda rows: [
        {"embed": row, "score": 0.5, "id": name} if number else {"id": name, "score": 1.0, "embed": row}
        for number, (name, row) in enumerate(zip(IDS, rows, strict=True))
    ],
    "array": lambda rows: rows,
    "columns first": lambda rows: np.asfortranarray(rows),
    "list of arrays": lambda rows: list(rows),
    "tuple of arrays": lambda rows: [tuple(row.tolist()) for row in rows],
    "every other": lambda rows: list(np.repeat(rows, 2, axis=1)[:, ::2]),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("form", FORMS)
def test_other_forms(form: str, protocol: int, tmp_path: Path) -> None:
    rows = unit_rows()
    labelled = any(word in form for word in ("ids", "columns of", "records")) or form == "columns"
    require_same(store_of(tmp_path, FORMS[form](rows), protocol), rows, labelled)


def test_images_and_numbers_as_ids(tmp_path: Path) -> None:
    rows = unit_rows()
    images = [{"id": number, "image_path": f"{number}.png", "embed": row} for number, row in enumerate(rows)]
    store = store_of(tmp_path, images, kind="image")
    assert store.ids()[:2] == ["0", "1"] and store.payload(3) == ["3.png"]
    columns = {"ids": np.arange(COUNT), "embeddings": rows}
    assert store_of(tmp_path, columns).ids()[-1] == str(COUNT - 1)


def old_names(content: bytes) -> bytes:
    """A pickle as numpy 1 writes it, where `numpy._core` was `numpy.core`; protocol 4 and up count the letters."""
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        content = content.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
        content = content.replace(b"c" + new, b"c" + old)
    if content[2:3] == b"\x95":  # the length of the one frame
        (length,) = struct.unpack("<Q", content[3:11])
        content = content[:3] + struct.pack("<Q", length - 1) + content[11:]
    return content


@pytest.mark.filterwarnings("ignore:numpy.core")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_1_and_numpy_2(protocol: int, tmp_path: Path) -> None:
    rows = unit_rows()
    new = pickle.dumps(records(rows), protocol=protocol)
    old = old_names(new)
    assert b"numpy._core" in new and b"numpy._core" not in old and b"numpy.core" in old
    np.testing.assert_array_equal(pickle.loads(old)[3]["embed"], rows[3])  # noqa: S301  our own, to check the change
    for content in (new, old):
        require_same(store_of(tmp_path, content), rows)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_ever_called(protocol: int, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    row = unit_rows()[0]
    for call, arguments, name in (
        (os.system, (f"touch {victim}",), f"{os.system.__module__}.system"),
        (eval, (f"open({str(victim)!r}, 'w')",), "(__builtin__|builtins).eval"),
        (np.load, (str(victim),), "numpy.load"),
        (np.ndarray.__new__, (), "builtins.getattr|__builtin__.getattr"),
    ):
        evil = Evil(call, *arguments)
        for content in (
            evil,
            [evil],
            [{"id": evil, "embed": row}],
            [{"id": "a", "embed": row}, evil],
            {"a": [(evil,)]},
        ):
            with pytest.raises(
                ValueError, match=rf"names the forbidden global ({name}), which unpickling would import"
            ):
                store_of(tmp_path, content, protocol)
    assert not victim.exists()


REFUSED = {
    "an object array": (np.array([{"a": 1}], dtype=object), "holds an object array, which can hold anything"),
    "an object array of floats": (np.ones((3, 2), dtype=object), "holds an object array"),
    "fields": (np.zeros(3, dtype=[("a", "f4")]), "holds an array of dtype 'V4'; arrays of floats"),
    "times": (np.zeros(3, dtype="M8[s]"), "holds an array of dtype 'M8'"),
    "complex numbers": (np.zeros((3, 2), dtype="c8"), "holds an array of dtype 'c8'"),
    "a masked array": (np.ma.ones(3), "forbidden global numpy.ma"),
    "a numpy scalar": (np.float32(1), r"forbidden global numpy._core.multiarray.scalar"),
    "a tensor": (torch.ones(2, 2), "forbidden global torch._utils._rebuild_tensor_v2"),
    "an ordered dict": (collections.OrderedDict(a=1), "forbidden global collections.OrderedDict"),
    "a path": (Path("a"), "forbidden global pathlib.PosixPath"),
    "a set": ({1, 2}, "holds a set; only numpy arrays"),
    "a name for terminals": (b"\x80\x02cos\n\x1b[2Jsystem\n.", r"forbidden global os\.\?\[2Jsystem, which unpickling"),
    "an odd key": ({(1, 2): np.ones(2)}, "has a dict whose keys are neither texts nor numbers"),
    "text": ("hello", "holds a Span that is no list of records with a vector each"),
    "nothing": ([], "holds a list that is no list of records"),
    "no vectors": ([{"id": "a", "caption": "b"}], "has no field of embeddings"),
    "several vectors": (
        [{"x": np.ones(2), "y": np.ones(2)}], r"several fields of embeddings \(x, y\); name one at the end of the path"
    ),
    "another length": (
        [{"embed": np.ones(2)}, {"embed": np.ones(3)}], r"record 1 has a vector of shape \(3,\) but record 0 of \(2,\)"
    ),
    "another dtype": (
        [{"embed": np.ones(2)}, {"embed": np.ones(2, np.float32)}], r"record 1 has a vector of another dtype"
    ),
    "another record": ([{"id": "a", "embed": np.ones(2)}, {"embed": np.ones(2)}], r"record 1 has other fields than"),
    "whole numbers": (np.ones((3, 2), np.int64), "has dtype int64; embeddings are float16"),
    "three dimensions": (np.ones((3, 2, 2)), r"holds an array of shape \(3, 2, 2\); embeddings are \[n, d\]"),
    "too few ids": ({"id": ["a"], "embeddings": np.ones((2, 2))}, "has 1 entries of 'id' for 2 vectors"),
    "an odd id": ([{"id": 1.5, "embed": np.ones(2)}], "record 0 has a label of type float; ids and texts are"),
    "no id": ([{"id": "a", "embed": np.ones(2)}, {"id": None, "embed": np.ones(2)}], "record 1 has no label; ids"),
    "no caption": ([{"id": "a", "caption": None, "embed": np.ones(2)}], "record 0 has no label; ids and texts are"),
    "a vector as id": ({"id": np.ones(2), "embeddings": np.ones((2, 2))}, "holds labels of dtype float64"),
    "empty file": (b"", "is empty; copy or write it again"),
    "protocol 0": (pickle.dumps([1], protocol=0), "is no pickle of protocol 2 to 5"),
    "no pickle": (b"PK\x03\x04 a zip file", "is no pickle of protocol 2 to 5"),
    "persistent reference": (b"\x80\x04\x8c\x01aQ.", "holds a persistent reference"),
    "extension code": (b"\x80\x04\x82\x01.", "holds an extension code"),
    "old class": (b"\x80\x02(ios\nsystem\n.", "holds an object of a class"),
    "unknown instruction": (b"\x80\x04\xff.", "holds the unknown pickle instruction 0xff"),
    "two ways of calling": (b"\x80\x02cnumpy\nndarray\n)R.", "calls .*array in a way that numpy does not"),
    "a list of lists of words": ([[0.5, 1.5], ["a", "b"]], "record 1 has no vector: one array or list of floats"),
    "lists in lists": ([[0.5, 1.5], [0.5, [1.5]]], "record 1 has no vector"),
    "one id for all": ({"id": 7, "embeddings": np.ones((2, 2))}, "holds a single value where each row has an id"),
    "a text that is none": (
        pickle.dumps([{"id": "abcdefgh", "embed": np.ones(2)}]).replace(b"abcdefgh", b"abc\xffefgh"), "is not UTF-8"
    ),
    "underflow": (b"\x80\x04R.", "is damaged near byte 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        store_of(tmp_path, content).ids()
    assert "\n" not in str(caught.value) and "chunk.pkl" in str(caught.value)


def test_out_of_band_buffers_are_refused(tmp_path: Path) -> None:
    buffers: list[Any] = []
    content = pickle.dumps(unit_rows(), protocol=5, buffer_callback=buffers.append)
    assert buffers
    with pytest.raises(ValueError, match="holds a buffer that lies outside of it"):
        store_of(tmp_path, content).ids()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_cut_is_noticed_wherever_it_is(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(records(unit_rows())[:3], protocol=protocol)
    for stop in range(1, len(content)):
        with pytest.raises(ValueError, match="chunk.pkl (is truncated|is no pickle|is damaged)"):
            store_of(tmp_path, content[:stop])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damage_is_a_sentence_or_other_numbers_but_no_accident(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(records(unit_rows())[:2], protocol=protocol)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            store = store_of(tmp_path, bytes(damaged))
            list(store.chunks())
            store.ids()
        except ValueError as error:
            assert "chunk.pkl" in str(error) and "\n" not in str(error), "ours, and none of numpy's or a codec's"
            refused += 1
    assert refused > 500


def test_vectors_stay_in_the_file(tmp_path: Path) -> None:
    """The part keeps where vectors lie, not the vectors."""
    rows = unit_rows(count=400)
    content = [{"id": str(number), "embed": np.tile(row, 500)} for number, row in enumerate(rows)]
    store = store_of(tmp_path, content)
    size = len(pickle.dumps(store.__reduce__()[1]))
    assert size < 0.02 * (tmp_path / "chunk.pkl").stat().st_size
    np.testing.assert_array_equal(next(store.chunks(3)), np.tile(rows[:3], (1, 500)))
    assert store.dim == 500 * DIM
