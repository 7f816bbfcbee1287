"""What real corpora hold beside records: each is read right, is a sentence with its place, or is a reject."""

from __future__ import annotations

import gzip
import io
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from PIL import Image as Pillow
from test_records_formats import pixels, png, write_tar

from revision import records
from revision.pictures import Blob, read_pixels
from revision.records import Text

GOOD = b'{"id": "a", "text": "a cat"}\n'
DEEP = b'{"id": "a", "text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"

# File name, content, and what it gives: texts by id, or a sentence.
FLIPPED = bytes(byte ^ 0x5A if 40 < place < 90 else byte for place, byte in enumerate(gzip.compress(GOOD * 3000)))
FILES: list[tuple[str, str, bytes, dict[str, str] | str]] = [
    ("byte order mark", "t.jsonl", b"\xef\xbb\xbf" + GOOD, {"a": "a cat"}),
    ("windows line ends", "t.jsonl", GOOD.replace(b"\n", b"\r\n"), {"a": "a cat"}),
    ("blank lines", "t.jsonl", b"\n \n" + GOOD + b"\n\n", {"a": "a cat"}),
    ("no last line end", "t.jsonl", GOOD.strip(), {"a": "a cat"}),
    ("line separators inside a text", "t.jsonl", '{"id": "a", "text": "x\u2028y\u0085z"}'.encode(),
     {"a": "x\u2028y\u0085z"}),
    ("a huge line", "t.jsonl", b'{"id": "a", "text": "' + b"x" * 3_000_000 + b'"}\n', {"a": "x" * 3_000_000}),
    ("a huge record of a list", "t.json", b'[{"id": "a", "text": "' + b"x" * 3_000_000 + b'"}]',
     {"a": "x" * 3_000_000}),
    ("nulls and lists in fields not asked for", "t.jsonl",
     b'{"id": "a", "text": "a cat", "meta": null, "deep": {"x": [null, {"y": null}]}}', {"a": "a cat"}),
    ("NaN in a field not asked for", "t.jsonl", b'{"id": "a", "text": "a cat", "score": NaN}', {"a": "a cat"}),
    ("a negative id", "t.jsonl", b'{"id": -3, "text": "a cat"}', {"-3": "a cat"}),
    ("an id above 64 bits", "t.jsonl", b'{"id": 123456789012345678901234567890, "text": "x"}',
     {"123456789012345678901234567890": "x"}),
    ("the same key twice", "t.jsonl", b'{"id": "a", "text": "one", "text": "two"}', {"a": "two"}),
    ("escaped surrogate pairs", "t.jsonl", b'{"id": "a", "text": "\\ud83d\\ude00"}', {"a": "\N{GRINNING FACE}"}),
    ("a zero byte in a text", "t.jsonl", b'{"id": "a", "text": "x\\u0000y"}', {"a": "x\0y"}),
    ("an empty text", "t.jsonl", b'{"id": "a", "text": ""}', {"a": ""}),  # a reject of `embed`
    ("a null text", "t.jsonl", b'{"id": "a", "text": null}', {"a": ""}),
    ("json lines named json", "t.json", GOOD + b'{"id": "b", "text": "x"}\n', {"a": "a cat", "b": "x"}),
    ("a list named parquet", "t.parquet", b"[" + GOOD + b"]", {"a": "a cat"}),
    ("half of a record", "t.jsonl", GOOD + b'{"id": "b", "te', "line 2 is not valid JSON"),
    ("half of a list", "t.json", b"[" + GOOD + b", ", "is not valid JSON"),
    ("a list without commas", "t.json", b"[" + GOOD + GOOD + b"]", "',' is expected, not '{'"),
    ("more behind a list", "t.json", b"[" + GOOD + b"] x", "'x' follows its end"),
    ("half of a mapping", "t.json", b'{\n"texts": [', "is not valid JSON"),
    ("a number as a key", "t.json", b'{\n"texts": [], 3: 4}', "3 stands where a key is expected"),
    ("not UTF-8", "t.jsonl", GOOD + b'{"id": "b", "text": "\xff"}', "line 2 is not valid JSON: 'utf-8' codec"),
    ("a list that is not UTF-8", "t.json", b'[{"id": "b", "text": "\xff"}]', "is not valid JSON: 'utf-8' codec"),
    ("UTF-16", "t.jsonl", GOOD.decode().encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ("UTF-16 without a mark", "t.json", GOOD.decode().encode("utf-16-le"), "is UTF-16 text; save it as UTF-8"),
    ("a NaN id", "t.jsonl", b'{"id": NaN, "text": "x"}', "'id' must be a text, not nan"),
    ("a null id", "t.jsonl", b'{"id": null, "text": "x"}', "'id' must be a text, not None"),
    ("a list as an id", "t.jsonl", b'{"id": ["a"], "text": "x"}', "'id' must be a text, not ['a']"),
    ("a mapping as a text", "t.jsonl", b'{"id": "a", "text": {"en": "x"}}', "'text' must be a text, not {'en': 'x'}"),
    ("nested nulls as a text", "t.jsonl", b'{"id": "a", "text": [[null]]}', "'text' must be a text, not [[None]]"),
    ("a number as a text", "t.jsonl", b'{"id": "a", "text": 3}', "'text' must be a text, not 3"),
    ("half a surrogate pair", "t.jsonl", b'{"id": "a", "text": "\\ud83d"}', "holds half a surrogate pair"),
    ("a list as a record", "t.jsonl", GOOD + b"[1]", "line 2: a record must be a mapping, not list"),
    ("null as a record", "t.jsonl", GOOD + b"null", "line 2: a record must be a mapping, not NoneType"),
    ("duplicate ids", "t.jsonl", GOOD + GOOD, "id 'a' occurs twice"),
    ("an id as text and number", "t.jsonl", b'{"id": 7, "text": "x"}\n{"id": "7", "text": "y"}', "id '7' occurs twice"),
    ("nothing", "t.jsonl", b"", "holds no text records"),
    ("blank lines alone", "t.jsonl", b"\n\n", "holds no text records"),
    ("an empty list", "t.json", b"[]", "holds no text records"),
    ("an empty json file", "t.json", b"", "is not valid JSON"),
    ("too deep", "t.jsonl", DEEP, "nested too deeply to be a record"),
    ("too deep in a list", "t.json", b"[" + DEEP + b"]", "nested too deeply"),
    ("a web page", "t.json", b"<!DOCTYPE html><html>", "is not valid JSON"),
    ("a web page named for nothing", "t", b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html><html'"),
    ("a pointer of git-lfs", "t.parquet", b"version https://git-lfs.github.com/spec/v1\n", "not a readable parquet"),
    ("half of a parquet file", "t.parquet", b"PAR1" + b"\0" * 40, "is not a readable parquet file"),
    ("half of a gzip file", "t.jsonl.gz", gzip.compress(GOOD * 3000)[:-30], "is damaged|is a damaged gzip file"),
    ("a gzip file with flipped bytes", "t.jsonl.gz", FLIPPED, "is damaged|is a damaged gzip file"),
    ("half of a small gzip file", "t.json.gz", gzip.compress(GOOD)[:-12], "is damaged|is a damaged gzip file"),
    ("an empty tar file", "t.tar", b"", "is not a whole, uncompressed tar shard"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_files(tmp_path: Path, name: str, content: bytes, expected: dict[str, str] | str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    if isinstance(expected, dict):
        assert records.count_records(file, "text") == len(expected)
        assert list(records.read_texts(file)) == [Text(*item) for item in expected.items()]
        return
    with pytest.raises(ValueError) as caught:
        records.count_records(file, "text")
    said = str(caught.value)
    assert any(part in said for part in expected.split("|")) and str(file) in said
    assert len(said) < 700, "a sentence, not the record"


def talk(*turns: tuple[str, Any], **row: Any) -> dict[str, Any]:
    return {"id": "a", "conversations": [{"from": role, "value": value} for role, value in turns], **row}


ASKED, SAID = ("human", "<image>\nWhat?"), ("gpt", "A cat.")
TALKS: list[tuple[str, dict[str, Any], str]] = [
    ("two pictures", talk(ASKED, SAID, image=["a", "b"]), "2 pictures; a conversation is about one at most: split it"),
    ("two marks", talk(("human", "<image><image>"), SAID, image="a"), "2 <image> mark"),
    ("a mark without a picture", talk(ASKED, SAID), "1 <image> mark.s. in the user's turns, but no image"),
    ("a null picture", talk(ASKED, SAID, image=None), "but no image"),
    ("a picture without a mark", talk(("human", "What?"), SAID, image="a"), "0 <image> mark.s. .* but one image"),
    ("a picture that is a number", talk(ASKED, SAID, image=3), "'image' must be a text, not 3"),
    ("null among pictures", talk(ASKED, SAID, image=[None]), "'image' must be a text, not None"),
    ("no turns", talk(image="a"), "no answer to learn from"),
    ("turns that are missing", {"id": "a"}, "it needs a list 'messages'"),
    ("turns that are a text", {"id": "a", "conversations": "hi"}, "it needs a list 'messages'"),
    ("an answer that is missing", talk(ASKED, image="a"), "no answer to learn from"),
    ("an answer that is empty", talk(ASKED, ("gpt", " \n"), image="a"), "no answer to learn from"),
    ("an answer that is null", talk(ASKED, ("gpt", None), image="a"), "turn 2: 'value' must be a text, not None"),
    ("a turn that is null", {"id": "a", "conversations": [None]}, "turn 1: a turn must be a mapping, not None"),
    ("an unknown role", talk(("tool", "x"), SAID), "turn 1: 'from' is 'tool'; known are human, user, gpt"),
    ("no role", {"id": "a", "conversations": [{"value": "x"}]}, "turn 1: the record has no 'from'"),
    ("a video", {"id": "a", "messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a part of type 'video'"),
    ("a part of no type", {"id": "a", "messages": [{"role": "user", "content": ["x"]}]}, "a mapping with a 'type'"),
    ("a picture as data", {"id": "a", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}, "as data inside the message"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "sentence"), [row[1:] for row in TALKS], ids=[row[0] for row in TALKS])
def test_conversations(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=rf"c\.jsonl, line 1.*{sentence}"):
        list(records.read_conversations(tmp_path / "c.jsonl"))


def test_damaged_shards(tmp_path: Path) -> None:
    """However a shard is cut off, what is missing is not passed over in silence."""
    whole = write_tar(tmp_path / "whole.tar", {f"{n}.{kind}": png(n) if kind == "png" else b"x"
                                               for n in range(4) for kind in ("png", "txt")}).read_bytes()  # fmt: skip
    file = tmp_path / "cut.tar"
    for length in range(512, 4 * 2 * 1024 + 1, 256):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.tar is not a whole, uncompressed tar shard"):
            records.count_records(file, "image")
    file.write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match=r"is not a whole, uncompressed tar shard"):
        list(records.read_images(file))
    for members, sentence in [
        ({"a.png": png(), "a.jpg": png()}, r"a\.jpg: the sample has a second picture; .*such as fields {image: png}$"),
        ({"a.txt": b"x", "a.cap": b"y"}, r"a\.cap: the sample has a second text; .*, such as fields {text: txt}$"),
        ({"a.png": png(), "./a.png": png()}, r"a\.png: the sample has this file twice; leave one out$"),
        ({"a.json": b"[1]"}, r"sample a: its \.json must hold a mapping, not list"),
        ({"a.json": b"{"}, r"a\.json is not valid JSON"),
        ({"a.txt": b"\xff"}, r"a\.txt is not valid UTF-8"),
        ({"a.txt": b"x"}, r"sample a: the record has no 'image'; it has 'id', 'text'"),
        (
            {"0/a.png": png(), "1/a.png": png()},
            r"id 'a' occurs twice: .*sample 0/a, and .*sample 1/a; ids .* {id: __key__}",
        ),
    ]:
        with pytest.raises(ValueError, match=sentence):
            records.count_records(write_tar(file, members), "image")


def test_rows_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", None], "text": ["x", "y"]}), file)
    with pytest.raises(ValueError, match=r"t\.parquet, row 2: 'id' must be a text, not None"):
        records.count_records(file, "text")
    pq.write_table(pa.table({"id": [1.0, float("nan")], "text": ["x", "y"]}), file)
    with pytest.raises(ValueError, match=r"row 1: 'id' must be a text, not 1\.0"):
        records.count_records(file, "text")
    pq.write_table(pa.table({"id": ["a"], "image": pa.array([None], pa.binary())}), file)
    (image,) = records.read_images(file)
    problem = f"{file}, row 1, image is not a picture: it is empty"
    assert isinstance(image.picture, Blob) and read_pixels([image.picture], pixels).problems == [problem]


def test_a_text_of_a_table_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    raw = pa.array([b"a", b"b", b"\xff", b"d"]).view(pa.string())
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "text": raw}), file, row_group_size=2)
    with pytest.raises(ValueError, match=r"t\.parquet, row 3: 'text' is not valid UTF-8: 'utf-8' codec"):
        records.count_records(file, "text")
    datasets.Dataset(pa.table({"id": ["a", "b"], "text": raw[1:3]})).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"saved cannot be read \(after row 1\): 'utf-8' codec"):
        records.count_records(tmp_path / "saved", "text")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub's client says when there is no answer is no OSError; it may come at any row of a stream."""
    location = "hf://owner/name?split=train&streaming=true"

    def refuse(*given: Any, **options: Any) -> Any:
        raise HTTPError("[Errno 111] Connection refused")

    def rows() -> Iterator[dict[str, str]]:
        yield {"id": "a", "text": "a cat"}
        refuse()

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    with pytest.raises(
        ValueError, match=r"^hf://owner/name: the hub does not tell its revision \(.*refused\); try again"
    ):
        records.fingerprint(location)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *given, **options: datasets.IterableDataset.from_generator(rows)
    )
    with pytest.raises(ValueError, match=r"streaming=true cannot be read \(after row 1\): .*Connection refused"):
        records.count_records(location, "text")
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"streaming=true cannot be loaded: .*Connection refused; look at its name"):
        records.count_records(location, "text")


def test_places_that_the_system_refuses(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    for read in (records.fingerprint, lambda place: list(records.read_texts(place)), records.read_images):
        with pytest.raises(ValueError, match=rf"^records {long} cannot be read: File name too long; correct the path$"):
            read(long)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder without \.tar, \.parquet, \.jsonl or \.json files"):
        list(records.read_texts(tmp_path))
    with pytest.raises(ValueError, match=r"no-\*\.tar does not exist"):
        list(records.read_texts(tmp_path / "no-*.tar"))


def saved(picture: Pillow.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def exif_turned() -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return saved(Pillow.new("RGB", (3, 2), (9, 9, 9)), "jpeg", exif=exif)


def frames(form: str) -> bytes:
    return saved(Pillow.new("RGB", (4, 4), (200, 0, 0)), form, save_all=True, append_images=[Pillow.new("RGB", (4, 4))])


def png_of(width: int, height: int) -> bytes:
    """A header that promises a picture of any size, with the data of a small one."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


GREY = np.full((3, 3), 0x8000, dtype=np.uint16)
# A picture, and its size where it is read, or why it is not.
PICTURES: list[tuple[str, bytes, int | str]] = [
    ("CMYK", saved(Pillow.new("CMYK", (3, 2)), "jpeg"), 6),
    ("16 bits", saved(Pillow.fromarray(GREY), "png"), 9),
    ("32 bits", saved(Pillow.fromarray(GREY.astype(np.int32)), "tiff"), 9),
    ("floating point", saved(Pillow.fromarray(GREY.astype(np.float32)), "tiff"), "floating-point numbers"),
    ("palette", saved(Pillow.new("P", (3, 2)), "gif"), 6),
    ("palette with transparency", saved(Pillow.new("P", (3, 2)), "png", transparency=0), 6),
    ("one bit", saved(Pillow.new("1", (3, 2)), "png"), 6),
    ("grey with alpha", saved(Pillow.new("LA", (3, 2)), "png"), 6),
    ("YCbCr", saved(Pillow.new("YCbCr", (3, 2)), "jpeg"), 6),
    ("Lab", saved(Pillow.new("LAB", (3, 2)), "tiff"), 6),
    ("one pixel", png(0, (1, 1)), 1),
    ("a line", png(0, (150, 1)), 150),
    ("a long line", png(0, (4000, 1)), "too narrow"),
    ("turned by EXIF", exif_turned(), 6),
    ("an animated gif", frames("gif"), 16),
    ("an animated webp", frames("webp"), 16),
    ("a tiff of two pages", frames("tiff"), 16),
    ("damaged EXIF", exif_turned().replace(b"Exif\0\0MM", b"Exif\0\0QQ"), 6),
    ("a decompression bomb", png_of(60_000, 60_000), "has more than 120,000,000 pixels"),
    ("a smaller bomb", png_of(12_000, 10_001), "has more than 120,000,000 pixels"),
    ("no width", png_of(0, 5), "damaged|not a picture"),
    ("more promised than there", png_of(300, 300), "damaged"),
    ("cut off", saved(Pillow.effect_noise((64, 64), 90).convert("RGB"), "jpeg")[:700], "damaged"),
    ("nothing", b"", "not a picture"),
    ("a web page", b"<html>404</html>", "not a picture"),
    ("an svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
    ("noise", bytes(range(256)) * 8, "not a picture"),
    ("a png header alone", png()[:33], "damaged|not a picture"),
    ("zeros", bytes(4096), "not a picture"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), [row[1:] for row in PICTURES], ids=[row[0] for row in PICTURES])
@pytest.mark.parametrize("as_file", [True, False])
def test_pictures(tmp_path: Path, content: bytes, expected: int | str, as_file: bool) -> None:
    (tmp_path / "p.jpg").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read_pixels([tmp_path / "p.jpg" if as_file else Blob("shard.tar, p.jpg", content)], pixels)
    (problem,) = found.problems
    if isinstance(expected, int):
        assert problem is None and found.sizes == [expected] and len(found.tensor) == 1
    else:
        assert problem is not None and any(part in problem for part in expected.split("|")) and "p.jpg" in problem
        assert found.sizes == [0] and len(found.tensor) == 0
