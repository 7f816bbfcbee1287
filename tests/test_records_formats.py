"""Every format of records gives the same records, from its content alone, in constant memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image as Pillow

from revision import records
from revision.pictures import Blob, open_picture, read_pixels
from revision.records import Conversation, Image, Message, Text
from revision.records.spans import since

ROWS = [{"id": "a", "text": "a cat"}, {"id": "b", "text": "ein großer Hund"}, {"id": "c", "text": "un chat"}]
TEXTS = [Text(row["id"], row["text"]) for row in ROWS]


def png(colour: int = 0, size: tuple[int, int] = (3, 2)) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", size, (colour, colour, colour)).save(file, "png")
    return file.getvalue()


def pixels(picture: Pillow.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture.resize((4, 4))).astype(np.float32)).permute(2, 0, 1)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write(folder: Path, form: str) -> Path:
    """The rows in one form; the names of files say as little as they can."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    file = folder / "records"
    match form:
        case "json lines":
            file.write_bytes(lines)
        case "json lines with BOM and CRLF":
            file.write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
        case "json lines, gzip":
            file.write_bytes(gzip.compress(lines))
        case "json list":
            file.write_text(json.dumps(ROWS, indent=1))
        case "json list with BOM":
            file.write_bytes(b"\xef\xbb\xbf\n " + json.dumps(ROWS).encode())
        case "one line":
            file.write_text(json.dumps({"images": [{"id": "i", "image": "i.png"}], "texts": ROWS}))
        case "mapping of lists":
            file.write_text(json.dumps({"version": [1, [2]], "texts": ROWS, "images": []}, indent=2))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=2)
        case "folder of parquet":
            file.mkdir()
            pq.write_table(pa.Table.from_pylist(ROWS[:1]), file / "train-0.parquet")
            pq.write_table(pa.Table.from_pylist(ROWS[1:]), file / "train-1.parquet")
        case "pattern":
            (folder / "part-0.jsonl").write_bytes(lines.split(b"\n")[0])
            (folder / "part-1.jsonl").write_bytes(b"\n".join(lines.split(b"\n")[1:]))
            return folder / "part-*.jsonl"
        case "tar":
            write_tar(file, {f"{row['id']}.txt": row["text"].encode() for row in ROWS})
        case "saved data set":
            datasets.Dataset.from_list(ROWS).save_to_disk(file)
        case "saved data set with a split":
            datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(file)
    return file


FORMS = [
    "json lines", "json lines with BOM and CRLF", "json lines, gzip", "json list", "json list with BOM", "one line",
    "mapping of lists", "parquet", "folder of parquet", "pattern", "tar", "saved data set",
    "saved data set with a split",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_formats_agree(tmp_path: Path, form: str) -> None:
    location = write(tmp_path, form)
    assert list(records.read_texts(location)) == TEXTS
    assert list(records.read_texts(location, wanted=since(1))) == TEXTS[1:]
    assert records.count_records(location, "text") == 3
    assert records.fingerprint(location) == records.fingerprint(location)


def test_the_fingerprint_of_the_whole_misses_nothing(tmp_path: Path) -> None:
    """Of several files, samples stand for each; a single letter between two of these goes unnoticed."""
    large = bytearray(b"x" * 2**21)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(large)
    sampled, whole = records.fingerprint(tmp_path), records.fingerprint(tmp_path, whole=True)
    large[100_000] = ord("y")
    (tmp_path / "b.jsonl").write_bytes(large)
    assert records.fingerprint(tmp_path) == sampled
    assert records.fingerprint(tmp_path, whole=True) != whole
    assert records.fingerprint(tmp_path / "a.jsonl", whole=True) == records.fingerprint(tmp_path / "a.jsonl")


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    """`load_dataset` takes a folder in place of a name, which needs no network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    location = f"hf://{tmp_path}/corpus?split=train&streaming={str(streaming).lower()}"
    assert list(records.read_texts(location)) == TEXTS
    assert list(records.read_texts(location, wanted=since(2))) == TEXTS[2:]
    before = records.fingerprint(location)
    (tmp_path / "corpus" / "train.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert records.fingerprint(location) != before != records.fingerprint(location, whole=True)
    with pytest.raises(ValueError, match=r"cannot be loaded: .*look at its name, split and config"):
        list(records.read_texts(location.replace("split=train", "split=no")))
    with pytest.raises(ValueError, match=r"write hf://owner/name\?split=train, .* not 'splt'"):
        list(records.read_texts(location.replace("split=", "splt=")))


def test_splits_of_the_hub_that_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "corpus" / "test.jsonl").write_text(json.dumps(ROWS[1]))
    for plus in ("+", "%2B"):
        assert list(records.read_texts(f"hf://{tmp_path}/corpus?split=train{plus}test")) == TEXTS[:2]
    assert list(records.read_texts(f"hf://{tmp_path}/corpus?split=train[:50%25]+test")) == TEXTS[1:2]


def test_what_a_download_keeps_beside_a_data_set_is_not_of_it(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text(json.dumps(ROWS[0]))
    location = f"hf://{tmp_path}/corpus?split=train"
    before = records.fingerprint(location)
    for name in (".cache/huggingface/download/train.jsonl.metadata", ".gitattributes"):
        (tmp_path / "corpus" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / name).write_text("x")
        assert records.fingerprint(location) == before
    (tmp_path / "corpus" / "test.jsonl").write_text(json.dumps(ROWS[1]))
    assert records.fingerprint(location) != before


def test_pictures_inside_of_files(tmp_path: Path) -> None:
    """A tar shard, a parquet file of bytes, one as `datasets` writes it, and a saved data set: the same pictures."""
    names, contents = ["x", "y"], [png(10), png(200)]
    members: dict[str, bytes] = {}
    for name, content in zip(names, contents, strict=True):
        members |= {f"00/{name}.jpg": content, f"00/{name}.json": b'{"url": "u"}', f"00/{name}.cls": b"1"}
    shard = write_tar(tmp_path / "shard.tar", members)
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"id": names, "image": pa.array(contents, pa.binary())}), plain)
    saved, exported = tmp_path / "saved", tmp_path / "hf.parquet"
    rows = [{"id": name, "image": {"bytes": data, "path": None}} for name, data in zip(names, contents, strict=True)]
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(saved)
    dataset.to_parquet(exported)
    for location in (shard, plain, saved, exported):
        found = list(records.read_images(location))
        assert [image.id for image in found] == names
        assert [image.picture.content for image in found if isinstance(image.picture, Blob)] == contents
        assert [np.asarray(open_picture(image.picture))[0, 0, 0] for image in found] == [10, 200]
        assert len({str(image.picture) for image in found}) == 2, "each says where it lies"
        assert [image.id for image in records.read_images(location, wanted=since(1))] == ["y"]
        assert records.count_records(location, "image") == 2


def media_table() -> datasets.Dataset:
    """A row with a sound, a video, and pictures in a list and in a list of structs; none of them can be decoded."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cell = {"bytes": b"RIFF", "path": None}
    features = datasets.Features({
        "id": datasets.Value("string"), "image": datasets.Audio(), "clip": datasets.Video(),
        "views": datasets.List(datasets.Image()), "parts": datasets.List({"view": datasets.Image()}),
    })  # fmt: skip
    table = pa.table({
        "id": ["a"], "image": pa.array([cell], kind), "clip": pa.array([cell], kind),
        "views": pa.array([[cell]], pa.list_(kind)),
        "parts": pa.array([[{"view": cell}]], pa.list_(pa.struct({"view": kind}))),
    })  # fmt: skip
    return datasets.Dataset(table.cast(features.arrow_schema), info=datasets.DatasetInfo(features=features))


@pytest.mark.parametrize("form", ["saved", "hub", "streamed"])
def test_nothing_in_a_data_set_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Decoding a sound or a video takes libraries that need not be there."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    location: Path | str = tmp_path / "saved"
    if form == "saved":
        media_table().save_to_disk(location)
    else:
        (tmp_path / "hub").mkdir()
        media_table().to_parquet(tmp_path / "hub" / "train.parquet")
        location = f"hf://{tmp_path}/hub?split=train" + "&streaming=true" * (form == "streamed")
    (row,) = records.read_rows(location)
    assert row["image"].content == row["clip"].content == b"RIFF"
    assert [view.content for view in row["views"]] == [row["parts"][0]["view"]["bytes"]] == [b"RIFF"]
    assert records.count_records(location, "image") == 1
    assert not list((tmp_path / "saved").glob("cache-*")), "nothing is written anew"


def test_a_data_set_that_needs_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")

    def refuse(*given: Any, **options: Any) -> Any:
        raise ImportError("To support decoding, please install 'torchcodec'.")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "select", refuse)
        with pytest.raises(ValueError, match=r"saved cannot be read \(after row 0\): .* install 'torchcodec'"):
            list(records.read_rows(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "load_from_disk", refuse)
    with pytest.raises(ValueError, match=r"is not a readable data set of `datasets`: .* install 'torchcodec'"):
        list(records.read_rows(tmp_path / "saved"))
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"cannot be loaded: .* install 'torchcodec'"):
        list(records.read_rows("hf://owner/name"))


LOOK = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def illustrated(folder: Path, form: str, column: str) -> Path:
    """Conversations with their pictures inside of them, but for the second, which is about none."""
    pictures: list[Any] = [png(10), None, png(200)]
    kind: Any = datasets.Value("binary")
    if form != "bytes":
        pictures, kind = [one and {"bytes": one, "path": "p.png"} for one in pictures], datasets.Image()
    if column == "images":
        pictures, kind = [[] if one is None else [one] for one in pictures], datasets.List(kind)
    turns = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    features = datasets.Features({"id": datasets.Value("string"), "messages": turns, column: kind})
    rows = [{"id": name, "messages": TALK if name == "b" else LOOK, column: picture}
            for name, picture in zip("abc", pictures, strict=True)]  # fmt: skip
    dataset = datasets.Dataset.from_list(rows, features=features)
    if form == "saved":
        dataset.save_to_disk(folder / "saved")
        return folder / "saved"
    dataset.to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("form", ["parquet", "bytes", "saved"])
def test_conversations_with_their_pictures_inside(tmp_path: Path, form: str, column: str) -> None:
    """One file is the image source and the conversations: a picture goes by the id of its row in both."""
    file = illustrated(tmp_path, form, column)
    assert [(talk.id, talk.image) for talk in records.read_conversations(file)] == [("a", "a"), ("b", None), ("c", "c")]
    named = {"id": "image", "image": column}
    if column == "images":
        named["id"] = "images"
    for fields, ids in ((None, ["a", "b", "c"]), (named, ["a", "c"])):
        found = list(records.read_images(file, fields=fields))
        assert [image.id for image in found] == ids and records.count_records(file, "image", fields) == len(ids)
        sound = [image.picture for image in found if image.id != "b"]
        assert [np.asarray(open_picture(picture))[0, 0, 0] for picture in sound] == [10, 200]
        assert [image.id for image in records.read_images(file, fields=fields, wanted=since(1))] == ids[1:]
    empty = [read_pixels([image.picture], pixels).problems for image in records.read_images(file) if image.id == "b"]
    assert "is not a picture: it is empty" in str(empty[0][0])


def test_pictures_inside_are_each_a_record(tmp_path: Path) -> None:
    """Two rows of one id are not taken for one picture that is named twice, and a row of two pictures for none."""
    kind = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    cells = [{"bytes": png(n), "path": None} for n in range(2)]
    messages = pa.array([LOOK, LOOK])
    table = pa.table({"id": ["a", "a"], "messages": messages, "images": pa.array([[one] for one in cells], kind)})
    pq.write_table(table, tmp_path / "t.parquet")
    for fields in (None, {"id": "images", "image": "images"}):
        with pytest.raises(ValueError, match=r"id 'a' occurs twice: .*t\.parquet, row 1, and .*t\.parquet, row 2"):
            records.count_records(tmp_path / "t.parquet", "image", fields)
    table = pa.table({"id": ["a"], "messages": messages[:1], "images": pa.array([cells], kind)})
    pq.write_table(table, tmp_path / "t.parquet")
    for fields in (None, {"id": "images", "image": "images"}):
        with pytest.raises(ValueError, match=r"row 1: it lists 2 pictures; a record of an image source has one"):
            records.count_records(tmp_path / "t.parquet", "image", fields)
    with pytest.raises(ValueError, match=r"row 1: 2 pictures; a conversation is about one at most: split it"):
        list(records.read_conversations(tmp_path / "t.parquet"))


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="datasets before 4.7")
def test_json_inside_of_a_data_set_is_read(tmp_path: Path) -> None:
    features = datasets.Features({"turns": datasets.Json(), "view": datasets.Image()})
    rows = [{"turns": [1, "x"], "view": None}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    assert next(iter(records.read_rows(tmp_path / "saved")))["turns"] == [1, "x"]


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_records_of_pictures_alone(tmp_path: Path, form: str) -> None:
    """Without its column of pictures such a table has no column, but still its rows."""
    rows = [{"image": {"bytes": png(number), "path": None}} for number in range(3)]
    dataset = datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image()}))
    location = tmp_path / "only"
    if form == "saved":
        dataset.save_to_disk(location)
    else:
        dataset.to_parquet(location)
    assert records.count_records(location, "image", {"id": "#"}) == 3
    assert [image.id for image in records.read_images(location, fields={"id": "#"})] == ["0", "1", "2"]


def test_counting_reads_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "shard.tar", {f"{number}.png": png(number) for number in range(3)})
    monkeypatch.setattr(tarfile.TarFile, "extractfile", None)
    assert records.count_records(shard, "image") == 3


def test_a_table_may_name_files(tmp_path: Path) -> None:
    table = pa.table({"id": ["x"], "image": [{"bytes": None, "path": "p/x.png"}]}, schema=pa.schema(
        {"id": pa.string(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()})}))  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    assert list(records.read_images(tmp_path / "t.parquet")) == [Image("x", tmp_path / "p/x.png")]


def test_the_mapping_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of the page on formats, read as it stands there."""
    page = (Path(__file__).parent.parent / "docs/formats.md").read_text()
    data = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["data"]
    monkeypatch.chdir(tmp_path)
    texts, pictures = data["sources"]["texts"], data["sources"]["pictures"]
    pq.write_table(pa.table({"caption": ["a cat", "a dog"]}), texts["records"])
    Path("shards").mkdir()
    write_tar(Path("shards/0.tar"), {"00/0.jpg": png(1), "00/0.json": b'{"key": "x"}'})
    write_tar(Path("shards/1.tar"), {"00/0.jpg": png(2), "00/0.json": b'{"key": "y"}'})
    Path("c.jsonl").write_text(json.dumps({"id": "a", "image": "row-1", "dialogue": [USER, ANSWER]}))
    assert list(records.read_texts(texts["records"], texts["fields"])) == [Text("0", "a cat"), Text("1", "a dog")]
    assert [image.id for image in records.read_images(pictures["records"], None, pictures["fields"])] == ["x", "y"]
    assert list(records.read_conversations("c.jsonl", data["conversation_fields"])) == [EXPECTED]


def test_every_sample_of_a_shard_is_a_record(tmp_path: Path) -> None:
    """Endings of pictures that Pillow reads, one that nobody knows, and a sample of nothing but that."""
    unknown = {"c.heic": b"ftypheic", "d.json": b'{"id": "D"}', "d.cls": b"1", "e": png(5), "._a.jpg": b"", ".x": b""}
    shard = write_tar(tmp_path / "s.tar", {"a.jfif": png(1), "b.cls": b"1", "b.png": png(2), **unknown})
    found = list(records.read_images(shard))
    assert [image.id for image in found] == ["a", "b", "c", "D", "e"] and records.count_records(shard, "image") == 5
    assert [str(image.picture) for image in found] == [f"{shard}, {name}" for name in
                                                        ("a.jfif", "b.png", "c.heic", "d.cls", "e")]  # fmt: skip
    problems = read_pixels([image.picture for image in found], pixels).problems
    assert [problem and problem.split(":")[0] for problem in problems] == [
        None, None, f"{shard}, c.heic is not a picture of a format that is read",
        f"{shard}, d.cls is not a picture of a format that is read", None,
    ]  # fmt: skip
    assert [image.id for image in records.read_images(shard, wanted=since(3))] == ["D", "e"]
    with pytest.raises(ValueError, match=r"s\.tar, c\.heic: the record has no 'text'"):
        list(records.read_texts(write_tar(shard, {"a.txt": b"x", "c.heic": b""})))


def test_files_of_a_sample_are_named_by_their_endings(tmp_path: Path) -> None:
    """A picture beside its segmentation, two languages, and a name that comes in two folders."""
    members: dict[str, bytes] = {}
    for number, folder in enumerate("01"):
        key = f"{folder}/a"
        members |= {f"{key}.JPG": png(number), f"{key}.seg.png": png(100 + number), f"{key}.txt": b"a cat",
                    f"{key}.de.txt": b"eine Katze", f"{key}.json": b'{"url": "u"}', f"{key}.cls": b"7"}  # fmt: skip
    shard = write_tar(tmp_path / "s.tar", members)
    for image, values in (("jpg", [0, 1]), ("seg.png", [100, 101])):
        fields = {"id": "__key__", "image": image}
        found = list(records.read_images(shard, fields=fields))
        assert [one.id for one in found] == ["0/a", "1/a"] and records.count_records(shard, "image", fields) == 2
        assert [np.asarray(open_picture(one.picture))[0, 0, 0] for one in found] == values
        assert [one.id for one in records.read_images(shard, fields=fields, wanted=since(1))] == ["1/a"]
    fields = {"id": "__key__", "image": "jpg", "text": "de.txt"}
    assert list(records.read_texts(shard, fields)) == [Text("0/a", "eine Katze"), Text("1/a", "eine Katze")]
    assert list(records.read_texts(shard, {**fields, "text": "cls"})) == [Text("0/a", "7"), Text("1/a", "7")]
    assert list(records.read_texts(shard, {**fields, "text": "url"})) == [Text("0/a", "u"), Text("1/a", "u")]
    with pytest.raises(ValueError, match=r"s\.tar, sample 0/a: the record has no 'image'"):
        records.count_records(shard, "image", {"image": "webp"})
    with pytest.raises(ValueError, match=r"0/a\.seg\.png: the sample has a second picture; .* fields {image: jpg}$"):
        records.count_records(shard, "image", {"id": "__key__"})
    with pytest.raises(
        ValueError, match=r"id 'a' occurs twice: .*: name another field .* {id: \"#\"}, .*{id: __key__}"
    ):
        records.count_records(shard, "image", {"image": "jpg"})


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_links_in_shards_are_the_files_they_lead_to(tmp_path: Path) -> None:
    """A packer writes a file it has met before as a hard link; symbolic links start from their own folder."""
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as archive:
        for member, data in [
            (tarfile.TarInfo("x/a.png"), png(1)), (link("x/b.png", "x/a.png", tarfile.LNKTYPE), b""),
            (link("x/c.png", "d.png", tarfile.SYMTYPE), b""), (tarfile.TarInfo("x/c.txt"), b"c"),
            (link("x/d.png", "../y/e.png", tarfile.SYMTYPE), b""), (tarfile.TarInfo("y/e.png"), png(5)),
        ]:  # fmt: skip
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = list(records.read_images(shard))
    assert [image.id for image in found] == ["a", "b", "c", "d", "e"] and records.count_records(shard, "image") == 5
    assert [np.asarray(open_picture(image.picture))[0, 0, 0] for image in found] == [1, 1, 5, 5, 5]
    assert str(found[2].picture) == f"{shard}, x/c.png"
    assert [image.id for image in records.read_images(shard, wanted=since(2))] == ["c", "d", "e"]


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (link("b.png", "gone.png", tarfile.SYMTYPE), r"s\.tar, b\.png: it links to gone\.png, where the shard has no"),
        (link("b.png", "/etc/hostname", tarfile.SYMTYPE), r"b\.png: it links to /etc/hostname, where the shard has no"),
        (link("b.png", "b.png", tarfile.SYMTYPE), r"b\.png: it links to b\.png, where the shard has no file; pack"),
        (link("b.png", "gone.png", tarfile.LNKTYPE), r"b\.png: it links to gone\.png, where the shard has no file"),
        (link("b.png", "", tarfile.FIFOTYPE), r"b\.png: it is no file and links to none; leave it out"),
    ],
)
def test_links_in_shards_that_lead_nowhere(tmp_path: Path, member: tarfile.TarInfo, sentence: str) -> None:
    with tarfile.open(write_tar(tmp_path / "s.tar", {"a.png": png()}), "a") as archive:
        archive.addfile(member)
    with pytest.raises(ValueError, match=sentence):
        records.count_records(tmp_path / "s.tar", "image")


def test_members_whose_names_are_not_utf8(tmp_path: Path) -> None:
    """Latin-1, as old archivers wrote it: id and place are texts that a sidecar can hold."""
    latin = {os.fsdecode(name): png(1) for name in (b"caf\xe9.png", b"caf\xe8.png")}
    shard = write_tar(tmp_path / "s.tar", {**latin, "café.png": png(3)})
    found = list(records.read_images(shard))
    assert [image.id for image in found] == ["caf\\xe9", "caf\\xe8", "café"]
    places = pa.array([str(image.picture) for image in found])
    assert places.to_pylist() == [f"{shard}, {image.id}.png" for image in found]
    assert records.count_records(shard, "image") == 3


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    names = ["b/2.JPG", "b/10.png", "a.heic", "b.webp", "c/d/e.tif"]
    for name in [*names, "notes.txt", ".hidden.png", ".cache/x.png", "b/._2.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    expected = [Image(name, tmp_path / name) for name in ["a.heic", "b/10.png", "b/2.JPG", "b.webp", "c/d/e.tif"]]
    assert list(records.read_images(tmp_path)) == expected
    assert list(records.read_images(str(tmp_path), wanted=since(3))) == expected[3:]
    assert records.count_records(tmp_path, "image") == 5
    assert next(iter(records.read_images(tmp_path, Path("root")))) == Image("a.heic", Path("root/a.heic"))
    before = records.fingerprint(tmp_path)
    (tmp_path / "notes.txt").unlink()
    assert records.fingerprint(tmp_path) == before
    (tmp_path / "a.heic").rename(tmp_path / "a.png")
    assert records.fingerprint(tmp_path) != before
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a\.png: the record has no 'text'; it has 'id', 'image'"):
        records.count_records(tmp_path, "text")
    (tmp_path / "list.jsonl").write_text('{"id": "x", "image": "b/10.png"}')
    assert list(records.read_images(tmp_path)) == [Image("x", tmp_path / "b/10.png")], "a list goes before"


def test_folders_of_pictures_that_cannot_be_records(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").touch()
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    assert [image.id for image in records.read_images(tmp_path)] == ["a/x.png", "b/x.png"]
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match=r"a/loop links to a folder that it lies in"):
        records.count_records(tmp_path, "image")
    (tmp_path / "a/loop").unlink()
    (tmp_path / "caf\udce9.png").touch()
    with pytest.raises(ValueError, match=r"holds 'caf.udce9\.png', a name that is not UTF-8 .*; rename the file"):
        records.count_records(tmp_path, "image")


@pytest.mark.parametrize("name", ["data/train-0.parquet", "data/0.tar", "a/b/talks.jsonl.gz", "train/data-0.arrow"])
def test_one_picture_does_not_hide_the_records_below(tmp_path: Path, name: str) -> None:
    """A snapshot of the hub: a logo on top, the data in a folder."""
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / "logo.png").write_bytes(png())
    (tmp_path / name).write_bytes(b"x")
    sentence = (
        rf"^{tmp_path} holds pictures, and {name}, whose .*; name the folder of .*, such as {tmp_path}/.*, or move"
    )
    for read in (lambda: records.count_records(tmp_path, "image"), lambda: records.fingerprint(tmp_path)):
        with pytest.raises(ValueError, match=sentence):
            read()
    (tmp_path / name).rename((tmp_path / name).with_name("describes.json"))
    assert records.count_records(tmp_path, "image") == 1, "what a .json beside pictures holds describes them"


def test_brackets_in_the_names_of_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("run[1]", "run1", "x"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_text(json.dumps({"id": folder, "text": ""}))
    (tmp_path / "x/a*.jsonl").write_text(json.dumps({"id": "star", "text": ""}))
    (tmp_path / "x/ab.jsonl").write_text(json.dumps({"id": "ab", "text": ""}))

    def ids(location: Path | str) -> list[str]:
        assert records.fingerprint(location)
        return [text.id for text in records.read_texts(location)]

    for pattern, expected in {
        "run[1]/*.jsonl": ["run[1]"], "run[1]/t.jsonl": ["run[1]"], "run?/t.*": ["run1"], "run[12]/t.jsonl": ["run1"],
        "x/a*.jsonl": ["star"], "x/[ab]*.jsonl": ["star", "ab"], "*/t.jsonl": ["run1", "run[1]", "x"],
    }.items():  # fmt: skip
        assert ids(tmp_path / pattern) == expected
    monkeypatch.chdir(tmp_path)
    assert ids("run[1]/*.jsonl") == ["run[1]"] and ids("r*[1]/t.jsonl") == ["run1"]


def test_a_location_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/i.jsonl").write_text('{"id": "a", "image": "p.png", "text": "x"}')
    for location in ("~/c/i.jsonl", Path("~/c"), "~/c/*.jsonl"):
        assert list(records.read_images(location)) == [Image("a", tmp_path / "c/p.png")]
        assert records.count_records(location, "text") == 1 and records.fingerprint(location)
    (image,) = records.read_images("~/c", Path("~/d"))
    assert image.picture == tmp_path / "d/p.png"
    with pytest.raises(ValueError, match=r"~no-such-user/x does not exist"):
        list(records.read_texts("~no-such-user/x"))


def test_folders_of_two_kinds_of_records(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    assert list(records.read_texts(tmp_path)) == TEXTS
    (tmp_path / "a.jsonl").write_bytes(lines)
    sentence = r"holds \.jsonl beside \.jsonl\.gz files \(a\.jsonl, b\.jsonl\.gz\); name one kind by a pattern"
    with pytest.raises(ValueError, match=sentence):
        list(records.read_texts(tmp_path))
    with pytest.raises(ValueError, match=sentence):
        records.fingerprint(tmp_path)
    (tmp_path / "b.jsonl.gz").unlink()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"holds \.parquet beside \.jsonl files"):
        records.count_records(tmp_path, "text")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "dataset_info.json").write_text("{}")
    assert list(records.read_texts(tmp_path)) == TEXTS
    write_tar(tmp_path / "a.tar", {"x.txt": b"of the shard"})  # and `a.parquet` lists it, as img2dataset does
    assert list(records.read_texts(tmp_path)) == [Text("x", "of the shard")]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"holds \.tar beside \.parquet files \(a\.tar, b\.parquet\)"):
        records.count_records(tmp_path, "text")


def test_pictures_of_conversations(tmp_path: Path) -> None:
    """LLaVA's own file as a source of pictures: the ids are what its conversations name."""
    file = tmp_path / "llava.json"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    text = [{"from": "human", "value": "Hi"}, turns[1]]
    rows = [{"id": 1, "conversations": text}, {"id": 2, "image": "p/1.jpg", "conversations": turns},
            {"id": 3, "image": "p/1.jpg", "conversations": turns}, {"id": 4, "image": None, "conversations": text},
            {"id": 5, "image": ["p/2.jpg"], "conversations": turns}]  # fmt: skip
    file.write_text(json.dumps(rows))
    expected = [Image("p/1.jpg", tmp_path / "p/1.jpg"), Image("p/2.jpg", tmp_path / "p/2.jpg")]
    fields = {"id": "image"}
    assert list(records.read_images(file, fields=fields)) == expected
    assert list(records.read_images(file, fields=fields, wanted=since(1))) == expected[1:]
    assert records.count_records(file, "image", fields) == 2
    named = {talk.image for talk in records.read_conversations(file)}
    assert named == {None, *(image.id for image in expected)}
    with pytest.raises(ValueError, match=r"item 1: the record has no 'image' but is a conversation; .* \{id: image\}"):
        records.count_records(file, "image")
    file.write_text(json.dumps([{"image": "p/1.jpg"}, {"picture": "p/2.jpg"}]))
    with pytest.raises(ValueError, match=r"item 2: the record has no 'id'"):
        records.count_records(file, "image", fields)


def test_fields_are_renamed(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"key": 7, "json": {"caption": "a cat"}, "id": "other"}\n')
    fields = {"id": "key", "text": "json.caption"}
    assert list(records.read_texts(file, fields)) == [Text("7", "a cat")]
    assert records.count_records(file, "text", fields) == 1
    assert list(records.read_texts(file, {"id": "#", "text": "json.caption"})) == [Text("0", "a cat")]
    assert records.fingerprint(file, fields) != records.fingerprint(file) == records.fingerprint(file, {})
    with pytest.raises(ValueError, match=r"line 1: the record has no 'text'; it has 'key', 'json', 'id'"):
        list(records.read_texts(file, {"text": "captoin"}))


USER = {"role": "user", "content": "<image>\nWhat?"}
ANSWER = {"role": "assistant", "content": "A cat."}
EXPECTED = Conversation("a", "row-1", [Message("user", "<image>\nWhat?"), Message("assistant", "A cat.")])


@pytest.mark.parametrize(
    "row",
    [
        {"image": "row-1", "messages": [USER, ANSWER]},
        {"images": ["row-1"], "messages": [USER, ANSWER]},
        {"image": ["row-1"], "conversations": [{"from": "human", "value": USER["content"]},
                                               {"from": "gpt", "value": "A cat."}]},
        {"image": "row-1", "conversations": [{"from": "user", "value": USER["content"]},
                                             {"from": "assistant", "value": "A cat."}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "row-1"}},
                                                   {"type": "text", "text": "What?"}]}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "row-1", "text": None},
                                                   {"type": "text", "text": "What?", "image": None}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]},
        {"image": "row-1", "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text",
                                                                                       "text": "What?"}]}, ANSWER]},
    ],
)  # fmt: skip
def test_conversations_of_every_form(tmp_path: Path, row: dict[str, Any]) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text(json.dumps({"id": "a", **row}))
    assert list(records.read_conversations(file)) == [EXPECTED]


def test_a_long_list_is_read_in_constant_memory(tmp_path: Path) -> None:
    """A JSON list of 60,000 records and 12 MB, in chunks of 1 MiB."""
    file = tmp_path / "t.json"
    with file.open("w") as out:
        out.write("[")
        out.writelines(f'{"," if number else ""}{{"id": {number}, "text": "{"x" * 180}"}}' for number in range(60_000))
        out.write("]")
    tracemalloc.start()
    assert sum(1 for _ in records.read_texts(file)) == 60_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.stat().st_size > 12_000_000 and peak < 8_000_000


def test_records_that_span_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revision.records.json_text._CHUNK", 3)
    for form in ("json list", "json list with BOM", "mapping of lists"):
        (tmp_path / form).mkdir()
        assert list(records.read_texts(write(tmp_path / form, form))) == TEXTS
