"""`revision embed`: records to stores, through rejects, kills, full disks, several processes and changed inputs."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_corpus import make_corpus, make_groups
from tiny_encoder import DIM, WORDS, make_encoder_folder, make_picture

from revision.commands import embed
from revision.decoding import read_pixel_batches
from revision.embeddings import EmbeddingStore
from revision.encoders import load_encoder
from revision.pictures import Pixels
from revision.schema import Config, DataConfig, EmbedConfig, EncoderConfig, Modality, SourceConfig


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_folder(tmp_path_factory.mktemp("encoder") / "tiny")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def phrase(number: int) -> str:
    return " ".join(np.random.default_rng(number).choice(WORDS, size=1 + number % 5))


def make_config(root: Path, encoder_folder: Path, texts: int = 11, pictures: int = 7, **changes: Any) -> Config:
    """A corpus of texts and pictures in `root`; texts 4 and 9 are empty where there are so many, picture 2 is missing
    and picture 5 truncated."""
    rows = [{"id": f"t{number}", "text": "  " if number in (4, 9) else phrase(number)} for number in range(texts)]
    write_lines(root / "texts.jsonl", rows)
    write_lines(root / "pictures.jsonl", [{"id": f"p{n}", "image": f"p/{n}.png"} for n in range(pictures)])
    for number in range(pictures):
        file = make_picture(root / "p" / f"{number}.png", number, size=(20 + number, 28))
        if number == 5:
            file.write_bytes(file.read_bytes()[:200])
    (root / "p" / "2.png").unlink(missing_ok=True)
    return config_of(root, encoder_folder, **changes)


def config_of(root: Path, encoder_folder: Path, **changes: Any) -> Config:
    """The configuration of a corpus that is there already."""
    settings = {"shard_size": 4, "reject_budget": 0.5, "device": "cpu", **changes}
    return Config(
        name="test",
        runs=str(root / "runs"),
        data=DataConfig(
            name="tiny",
            folder=str(root),
            stores=str(root / "stores"),
            sources={
                "texts": SourceConfig(Modality.text, str(root / "texts.jsonl")),
                "pictures": SourceConfig(Modality.image, str(root / "pictures.jsonl")),
            },
        ),
        encoder=EncoderConfig(name="tiny", model=f"local-dir:{encoder_folder}", batch_size=3),
        embed=EmbedConfig(**settings),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_stores_hold_what_the_encoder_gives(tmp_path: Path, encoder_folder: Path) -> None:
    embed.run(make_config(tmp_path, encoder_folder))
    model = f"local-dir:{encoder_folder}"
    encoder = load_encoder(kind="open_clip", model=model, pretrained=None, dtype="float32", device="cpu", name="tiny")
    texts = EmbeddingStore.open(tmp_path / "stores/tiny/texts")
    kept = [number for number in range(11) if number not in (4, 9)]
    assert texts.ids() == [f"t{number}" for number in kept] and texts.dim == DIM
    assert texts.payload(slice(None)) == [phrase(number) for number in kept]
    assert texts.manifest.kind == "text" and texts.manifest.encoder == encoder.describe()
    np.testing.assert_allclose(
        texts.rows(slice(None)), encoder.encode_texts([phrase(number) for number in kept]), atol=1e-3
    )
    pictures = EmbeddingStore.open(tmp_path / "stores/tiny/pictures")
    sound = [number for number in range(7) if number not in (2, 5)]
    assert pictures.ids() == [f"p{number}" for number in sound]
    assert pictures.payload(slice(None)) == [str(tmp_path / "p" / f"{number}.png") for number in sound]
    opened = [Image.open(path).convert("RGB") for path in pictures.payload(slice(None))]
    np.testing.assert_allclose(pictures.rows(slice(None)), encoder.encode_images(opened), atol=1e-3)
    for store in (texts, pictures):
        store.verify()

    rejected = [json.loads(line) for line in (texts.path / "rejected.jsonl").read_text().splitlines()]
    assert rejected == [{"id": "t4", "reason": "the text is empty"}, {"id": "t9", "reason": "the text is empty"}]
    reasons = {(row := json.loads(line))["id"]: row["reason"]
               for line in (pictures.path / "rejected.jsonl").read_text().splitlines()}  # fmt: skip
    assert reasons.keys() == {"p2", "p5"}
    assert "does not exist" in reasons["p2"] and "is damaged" in reasons["p5"]
    finished = json.loads((tmp_path / "runs/test/embed/finished.json").read_text())["facts"]["stores"]
    assert finished["texts"]["fingerprint"] == texts.fingerprint()
    pictures_a_second = finished["pictures"].pop("records_per_second")
    assert pictures_a_second * finished["pictures"].pop("seconds") == pytest.approx(7)
    assert finished["pictures"] == {
        "path": str(pictures.path), "fingerprint": pictures.fingerprint(), "count": 5, "rejected": 2, "cut": 0,
    }  # fmt: skip


def test_what_is_null_is_within_the_budget_of_rejects(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder, pictures=2)
    write_lines(tmp_path / "texts.jsonl", [{"id": "a", "text": phrase(1)}, {"id": "b", "text": None}])
    write_lines(tmp_path / "pictures.jsonl", [{"id": "a", "image": "p/0.png"}, {"id": "b", "image": None}])
    embed.run(config)
    for source, reason in (
        ("texts", "the text is empty"),
        ("pictures", f"{tmp_path}/pictures.jsonl, line 2, image is not a picture: it is empty"),
    ):
        store = EmbeddingStore.open(tmp_path / "stores/tiny" / source)
        assert store.ids() == ["a"] and (store.manifest.records, store.manifest.rejected) == (2, 1)
        assert json.loads((store.path / "rejected.jsonl").read_text()) == {"id": "b", "reason": reason}
    write_lines(tmp_path / "texts.jsonl", [{"id": "a", "text": phrase(1)}, {"id": "b"}])
    with pytest.raises(ValueError, match=r"line 2: the record has no 'text'"):
        embed.run(config)


def test_finished_stores_are_left_alone(
    tmp_path: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, encoder_folder)
    embed.run(config)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "stores").rglob("*")}
    monkeypatch.setattr("revision.encoders.OpenClipEncoder.encode_texts", None)
    monkeypatch.setattr("revision.encoders.OpenClipEncoder.encode_pixels", None)
    capsys.readouterr()
    embed.run(config)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "stores").rglob("*")} == before
    assert capsys.readouterr().out.count("finished and unchanged, skipped") == 2
    facts = json.loads((tmp_path / "runs/test/embed/finished.json").read_text())["facts"]["stores"]
    assert not {"seconds", "records_per_second"} & {*facts["texts"], *facts["pictures"]}, "nothing was embedded"


def test_each_record_is_embedded_once_over_a_resume(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from revision.encoders import OpenClipEncoder

    config = make_config(tmp_path, encoder_folder)
    seen: list[str] = []
    encode = OpenClipEncoder.encode_texts

    def counting(self: OpenClipEncoder, texts: list[str], *arguments: Any, **options: Any) -> np.ndarray:
        if len(seen) > 4:
            raise KeyboardInterrupt
        seen.extend(texts)
        return encode(self, texts, *arguments, **options)

    monkeypatch.setattr(OpenClipEncoder, "encode_texts", counting)
    with pytest.raises(KeyboardInterrupt):
        embed.run(config)
    first, seen = seen, []
    embed.run(replace(config, embed=replace(config.embed, sources=["texts"])))
    assert first + seen == [phrase(number) for number in range(11) if number not in (4, 9)]


def test_kill_in_the_middle_gives_the_same_bytes_after_a_resume(tmp_path: Path, encoder_folder: Path) -> None:
    whole = make_config(tmp_path / "whole", encoder_folder, texts=600, shard_size=2)
    whole.embed.sources = ["texts"]
    embed.run(whole)
    config = make_config(tmp_path / "killed", encoder_folder, texts=600, shard_size=2)
    config.embed.sources = ["texts"]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_embed as test; "
        "config = test.make_config(Path(sys.argv[2]), Path(sys.argv[3]), texts=600, shard_size=2); "
        "config.embed.sources = ['texts']; test.embed.run(config)"
    )
    store = tmp_path / "killed" / "stores/tiny/texts"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "killed"), str(encoder_folder)],
        stdout=subprocess.DEVNULL,
    )
    while not (store / "shard-00003.npy").exists():
        assert process.poll() is None, "the process ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    present = {file.name for file in store.glob("shard-*.npy")}
    assert 4 <= len(present) < 300 and not (store / "manifest.json").exists()
    written = {name: (store / name).stat().st_mtime_ns for name in present}
    embed.run(config)
    assert {name: (store / name).stat().st_mtime_ns for name in present} == written
    assert contents(store) == contents(tmp_path / "whole" / "stores/tiny/texts")


def test_full_disk(tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed.run(make_config(tmp_path / "whole", encoder_folder))
    config = make_config(tmp_path / "full", encoder_folder)
    real, room = os.fsync, iter(range(8))

    def fsync(descriptor: int) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match=r"the disk is full; free space .* run `embed`"),
    ):
        patch.setattr(os, "fsync", fsync)
        embed.run(config)
    assert not (tmp_path / "full/runs/test/embed/finished.json").exists()
    embed.run(config)
    found, expected = contents(tmp_path / "full/stores/tiny/texts"), contents(tmp_path / "whole/stores/tiny/texts")
    assert found == expected


def test_processes_change_no_byte(tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, encoder_folder, pictures=10)
    embed.run(replace(config, data=replace(config.data, stores=str(tmp_path / "one"))))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        embed.run(config)
        assert (tmp_path / "stores/tiny/pictures/manifest.json").exists() == (rank == "0")
    assert contents(tmp_path / "stores") == contents(tmp_path / "one")


def test_two_processes_at_once_change_no_byte(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one is the first of two, and waits for the other's shards."""
    config = make_config(tmp_path, encoder_folder, pictures=10)
    embed.run(replace(config, data=replace(config.data, stores=str(tmp_path / "one"))))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_embed as test; "
        "test.embed.run(test.config_of(Path(sys.argv[2]), Path(sys.argv[3])))"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), str(encoder_folder)],
        env={**os.environ, "RANK": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    sleep = time.sleep

    def wait(seconds: float) -> None:
        assert other.poll() in (None, 0), "the other process failed, and its shards never come"
        sleep(seconds)

    monkeypatch.setattr("revision.embeddings.writer.time.sleep", wait)
    embed.run(config)
    monkeypatch.undo()
    assert other.wait() == 0
    assert contents(tmp_path / "stores") == contents(tmp_path / "one")


def test_ranks_wait_until_their_own_launch_holds_the_store(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, encoder_folder)
    store = tmp_path / "stores" / "tiny" / "texts"
    store.parent.mkdir(parents=True, exist_ok=True)
    announced = store.with_name(".texts.launch")
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "7"}.items():
        monkeypatch.setenv(name, value)
    announced.write_text(str(embed._launch()).replace("7", "8"))  # another launch is at it
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            announced.write_text(str(embed._launch()))

    monkeypatch.setattr(embed.time, "sleep", wait)
    with embed._stores_to_ourselves(config, ["texts"]):
        assert len(waits) == 3
    monkeypatch.setenv("RANK", "0")
    with embed._stores_to_ourselves(config, ["texts"]):
        assert announced.read_text() == embed._launch() and store.with_name(".texts.lock").is_file()
    assert not announced.exists() and not store.with_name(".texts.lock").exists()
    store.mkdir(parents=True)
    (store / "manifest.json").touch()
    with embed._stores_to_ourselves(config, ["texts"]):  # finished: it may lie where nobody can write
        assert not store.with_name(".texts.lock").exists()


@pytest.mark.slow
def test_launcher_changes_no_byte(tmp_path: Path, tiny_llm: Path) -> None:
    """`engine.processes=2` through the command line: a launcher, two processes, the same stores."""
    groups = make_groups(tmp_path / "configs", make_corpus(tmp_path / "corpus", tiny_llm))
    for count in (1, 2):
        words = ["embed", "data=tiny", "encoder=tiny", f"engine.processes={count}", "embed.shard_size=2",
                 "embed.device=cpu", f"data.stores={tmp_path}/{count}", f"runs={tmp_path}/runs{count}"]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "revision", *words, "--config-dir", str(groups)],
            cwd=Path(__file__).parent.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"runs{count}/default/embed/finished.json").is_file()
    assert len(list((tmp_path / "2/tiny/texts").glob("shard-*.npy"))) == 3
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_workers_change_no_byte(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder, pictures=10, workers=1)
    embed.run(replace(config, data=replace(config.data, stores=str(tmp_path / "one")),
                      embed=replace(config.embed, workers=0)))  # fmt: skip
    embed.run(config)
    assert contents(tmp_path / "stores") == contents(tmp_path / "one")


def test_workers_follow_the_device(tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(*arguments: Any, workers: int, **options: Any) -> Iterator[Pixels]:
        seen.append(workers)
        return read_pixel_batches(*arguments, workers=0, **options)

    monkeypatch.setattr("revision.decoding.read_pixel_batches", spy)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = make_config(tmp_path, encoder_folder, sources=["pictures"])
    for device, workers in (("cpu", None), ("cuda", None), ("cuda", 0)):
        monkeypatch.setattr("revision.encoders.resolve_device", lambda _, device=device: torch.device(device))
        config.embed.workers, config.data.stores = workers, str(tmp_path / f"{device}-{workers}")
        embed.run(config)
    assert seen == [0, 3, 0]


def test_reject_budget(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder, reject_budget=0.1)
    with pytest.raises(ValueError, match=r"2 of 11 records for .*texts could not be embedded.*reject_budget=0.1.*'t4'"):
        embed.run(config)
    rows = [{"id": f"t{number}", "text": phrase(number)} for number in range(11)]
    write_lines(tmp_path / "texts.jsonl", rows)
    with pytest.raises(ValueError, match=r"changed: records_fingerprint"):
        embed.run(config)


def test_mended_pictures_are_embedded_on_the_next_run(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder, reject_budget=0.2)
    config.embed.sources = ["pictures"]
    with pytest.raises(ValueError, match=r"2 of 7 records for .*pictures could not be embedded.*the first is 'p2'"):
        embed.run(config)
    for number in (2, 5):
        make_picture(tmp_path / "p" / f"{number}.png", number)
    embed.run(config)
    assert len(EmbeddingStore.open(tmp_path / "stores/tiny/pictures")) == 7


def test_changed_encoder_is_refused(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder)
    embed.run(config)
    other = make_encoder_folder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"was made with other settings .changed: encoder weights.; delete the folder"):
        embed.run(replace(config, encoder=replace(config.encoder, model=f"local-dir:{other}")))


def test_bad_records_are_found_before_anything_is_written(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder)
    write_lines(tmp_path / "pictures.jsonl", [{"id": "x", "image": "p/0.png"}, {"id": "x", "image": "p/1.png"}])
    with pytest.raises(ValueError, match=r"id 'x' occurs twice: .*pictures\.jsonl, line 1, and .*, line 2"):
        embed.run(config)
    assert not (tmp_path / "stores").exists()


def test_an_embed_that_is_refused_costs_no_finished_one(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder)
    embed.run(config)
    model = config.encoder.model
    for change in (
        lambda: setattr(config.encoder, "model", "local-dir:nowhere"),
        lambda: setattr(config.embed, "shard_size", 3),
        lambda: write_lines(tmp_path / "texts.jsonl", [{"id": "x", "text": "a"}] * 2),
    ):
        change()
        with pytest.raises(ValueError):
            embed.run(config)
        config.encoder.model = model
        assert (tmp_path / "runs/test/embed/finished.json").is_file()


def test_image_root(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder)
    config.embed.sources = ["pictures"]
    source = config.data.sources["pictures"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p").rename(tmp_path / "elsewhere/p")
    with pytest.raises(ValueError, match=r"4 of 7 records for .* could not be embedded.*p/0\.png does not exist"):
        embed.run(config)
    source.image_root = str(tmp_path / "elsewhere")  # nothing was embedded, so nothing is in the way of a correction
    embed.run(config)
    assert EmbeddingStore.open(tmp_path / "stores/tiny/pictures").payload(0) == [f"{source.image_root}/p/0.png"]
    source.image_root = str(tmp_path)
    with pytest.raises(ValueError, match=r"changed: image_root"):
        embed.run(config)


def test_pictures_that_are_no_files(tmp_path: Path, encoder_folder: Path) -> None:
    """A tar shard, parquet bytes and a saved data set give the rows that the same files give, over a resume too."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from test_records_formats import write_tar

    config = make_config(tmp_path, encoder_folder, pictures=10, workers=0)
    (tmp_path / "p/2.png").write_bytes(b"not a picture")
    files = sorted((tmp_path / "p").glob("*.png"), key=lambda file: int(file.stem))
    rows: list[dict[str, Any]] = [{"id": f"p{file.stem}", "image": file.read_bytes()} for file in files]
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(shards / "0.tar", {f"{row['id']}.png": row["image"] for row in rows[:6]})
    write_tar(shards / "1.tar", {f"{row['id']}.png": row["image"] for row in rows[6:]})
    table = pa.table({"key": [row["id"] for row in rows], "jpg": pa.array([row["image"] for row in rows], pa.binary())})
    pq.write_table(table, tmp_path / "pictures.parquet", row_group_size=3)
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    saved = [{"id": row["id"], "image": {"bytes": row["image"], "path": None}} for row in rows]
    datasets.Dataset.from_list(saved, features=features).save_to_disk(tmp_path / "saved")
    config.embed.sources, config.data.sources = ["pictures"], {"pictures": config.data.sources["pictures"]}
    for name, location in (("tar", shards), ("table", tmp_path / "pictures.parquet"), ("saved", tmp_path / "saved")):
        config.data.sources[name] = SourceConfig(Modality.image, str(location))
        config.embed.sources.append(name)
    config.data.sources["table"].fields = {"id": "key", "image": "jpg"}
    embed.run(config)
    expected = EmbeddingStore.open(tmp_path / "stores/tiny/pictures")
    for name in ("tar", "table", "saved"):
        folder = tmp_path / "stores/tiny" / name
        store = EmbeddingStore.open(folder)
        assert store.ids() == expected.ids() == [f"p{n}" for n in (0, 1, 3, 4, 6, 7, 8, 9)]
        np.testing.assert_array_equal(store.rows(slice(None)), expected.rows(slice(None)))
        rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
        assert [row["id"] for row in rejected] == ["p2", "p5"] and "is not a picture" in rejected[0]["reason"]
        whole = contents(folder)
        for file in ("manifest.json", "rejected.jsonl", "index-hashes.npy", "index-rows.npy", "shard-00001.npy"):
            (folder / file).unlink()
        (folder / "plan.json").write_text(store.manifest.plan().to_json())
        embed.run(replace(config, embed=replace(config.embed, sources=[name])))
        assert contents(folder) == whole


def test_a_name_that_no_file_can_have_is_a_reject(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder, sources=["pictures"])
    with (tmp_path / "pictures.jsonl").open("a") as file:
        file.write(json.dumps({"id": "long", "image": "x" * 300 + ".png"}) + "\n")
    embed.run(config)
    store = EmbeddingStore.open(tmp_path / "stores/tiny/pictures")
    *_, last = [json.loads(line) for line in (store.path / "rejected.jsonl").read_text().splitlines()]
    reason = f"picture {tmp_path}/{'x' * 300}.png cannot be read: File name too long"
    assert last == {"id": "long", "reason": reason} and len(store) == 5


def test_unknown_source(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder, sources=["text"])
    with pytest.raises(ValueError, match=r"embed.sources names 'text'; data.sources of tiny has texts, pictures"):
        embed.run(config)
    config.embed.sources, config.data.sources = None, {}
    with pytest.raises(ValueError, match=r"data.sources is empty"):
        embed.run(config)
