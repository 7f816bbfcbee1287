"""Embed the records of every source into embedding stores.

Stores are shared by all runs of one encoder: a finished store of the same records is left as it is, an interrupted one
is continued. Started by several processes at once (RANK and WORLD_SIZE, as launchers set them), each takes its share of
the shards.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from revision.schema import Config, Modality, SourceConfig

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from revision.embeddings import StoreWriter
    from revision.encoders import DualEncoder
    from revision.pictures import Picture
    from revision.records import Image, Text

_T = TypeVar("_T")


def run(config: Config) -> None:
    """Embeds `embed.sources`, or all sources of the corpus."""
    from revision.assembly import load_encoder
    from revision.records import count_records
    from revision.runs import rundir

    sources = _sources(config)
    if not sources:  # all of them name embeddings that exist already
        rundir.start(config, "embed")
        rundir.finish(config, "embed", stores={})
        return
    # Every record file is checked before the encoder is loaded and before anything is written.
    counts = {
        name: count_records(_records(source), source.kind.value, source.fields) for name, source in sources.items()
    }
    encoder = load_encoder(config, config.embed.device)
    with _stores_to_ourselves(config, sources):
        _embed(config, sources, counts, encoder)


def _embed(config: Config, sources: dict[str, SourceConfig], counts: dict[str, int], encoder: DualEncoder) -> None:
    from revision.runs import rundir

    writers = {name: _writer(config, name, source, counts[name], encoder) for name, source in sources.items()}
    rundir.start(config, "embed")  # only now: records, encoders and stores that are refused cost no finished run
    facts = {name: _embed_source(config, name, source, writers[name], encoder) for name, source in sources.items()}
    rundir.finish(config, "embed", stores=facts)


@contextmanager
def _stores_to_ourselves(config: Config, sources: Iterable[str]) -> Iterator[None]:
    """Waits for another launch that writes one of the stores: two would mix their rows. Finished ones need no lock.

    The main process holds the locks of its launch; the others wait until it does, which it says in a file beside them.
    """
    from revision import locks
    from revision.assembly import store_path
    from revision.embeddings.layout import MANIFEST
    from revision.runs import rundir

    launch = _launch()
    with ExitStack() as stack:
        for store in sorted(store_path(config, name) for name in sources):
            lock, ours = (store.with_name(f".{store.name}.{what}") for what in ("lock", "launch"))
            if rundir.is_main_process():
                if not (store / MANIFEST).is_file():
                    stack.enter_context(locks.held(lock, f"embedding store {store}", wait=True))
                    if launch is not None:
                        stack.callback(ours.unlink, missing_ok=True)
                        rundir.write_text(ours, launch)
            elif launch is not None:
                while not (store / MANIFEST).is_file() and not (ours.is_file() and ours.read_text() == launch):
                    time.sleep(0.2)
        yield


def _launch() -> str | None:
    """What tells one launch of torchrun, or accelerate, from another; None for other processes.

    A process whose RANK somebody has set by hand may have to do its share before the main process is even started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return "/".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))


def _sources(config: Config) -> dict[str, SourceConfig]:
    known = config.data.sources
    if not known:
        raise ValueError("data.sources is empty; name at least one source of records to embed")
    for name in config.embed.sources or ():
        if name not in known:
            raise ValueError(f"embed.sources names {name!r}; data.sources of {config.data.name} has {', '.join(known)}")
    return {name: known[name] for name in config.embed.sources or known if known[name].records is not None}


def _records(source: SourceConfig) -> str:
    assert source.records is not None, "sources of existing embeddings are left out"
    return source.records


def _writer(config: Config, name: str, source: SourceConfig, records: int, encoder: DualEncoder) -> StoreWriter:
    """The writer of this process for one source; ValueError where a store of something else is in its place."""
    from revision.assembly import store_path
    from revision.embeddings import StoreWriter
    from revision.records import fingerprint

    file, fields = _records(source), source.fields
    return StoreWriter(
        store_path(config, name),
        kind=source.kind.value,
        dim=encoder.dim,
        encoder=encoder.describe(),
        records_fingerprint=fingerprint(file, fields),
        image_root=source.image_root,
        records=records,
        shard_size=config.embed.shard_size,
        reject_budget=config.embed.reject_budget,
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
    )


def _embed_source(
    config: Config, name: str, source: SourceConfig, writer: StoreWriter, encoder: DualEncoder
) -> dict[str, Any]:
    from revision.embeddings import EmbeddingStore
    from revision.progress import say

    path, main = writer.path, writer.rank == 0
    speed: dict[str, float] = {}
    if writer.complete:
        if main:
            say(f"{name}: {path} is finished and unchanged, skipped")
    else:
        speed = _embed_missing(config, name, source, writer, encoder)
        if main:
            manifest = writer.finish()
            say(f"{name}: {manifest.count} embeddings of {manifest.dim} dimensions, {manifest.rejected} rejected")
    if not main:
        return {}
    store = EmbeddingStore.open(path)
    if store.manifest.cut:
        say(f"{name}: {store.manifest.cut} of {len(store)} texts are longer than the encoder reads, and are cut")
    return {"path": str(path), "fingerprint": store.fingerprint(), "count": len(store),
            "rejected": store.manifest.rejected, "cut": store.manifest.cut, **speed}  # fmt: skip


def _embed_missing(
    config: Config, name: str, source: SourceConfig, writer: StoreWriter, encoder: DualEncoder
) -> dict[str, float]:
    """Writes the shards that this process still has to; gives the time it took and its records a second, if any."""
    from revision.decoding import decoding_workers
    from revision.encoders import resolve_device
    from revision.progress import progress_bar
    from revision.records import Spans, read_images, read_texts

    file, fields, size = _records(source), source.fields, config.encoder.batch_size
    missing = writer.missing()
    records = sum(len(writer.positions(shard)) for shard in missing)
    wanted = Spans(map(writer.positions, missing))
    started = time.perf_counter()
    with progress_bar(f"{source.kind.value}s", visible=writer.rank == 0) as progress:
        task = progress.add_task(name, total=records)
        if source.kind is Modality.text:
            texts = _shards(read_texts(file, fields, wanted=wanted), writer, missing)
            _write_texts(writer, texts, encoder, size, progress, task)
        else:
            workers = decoding_workers(config.embed.workers, gpu=resolve_device(config.embed.device).type != "cpu")
            root = None if source.image_root is None else Path(source.image_root)
            images = _shards(read_images(file, root, fields, wanted=wanted), writer, missing)
            _write_images(writer, images, encoder, size, workers, progress, task)
    seconds = time.perf_counter() - started
    # Of this process alone: the others begin and end when they like.
    return {"seconds": seconds, "records_per_second": records / seconds} if records else {}


def _shards(records: Iterable[_T], writer: StoreWriter, shards: Sequence[int]) -> Iterator[tuple[int, Iterator[_T]]]:
    """Yields each shard's number and records, which come in order and are those of these shards alone.

    The records of a shard are a stream, to be used up before the next shard: those with bytes fill no memory.
    """
    stream = iter(records)
    for shard in shards:
        yield shard, islice(stream, len(writer.positions(shard)))


def _batches(records: Iterator[_T], size: int) -> Iterator[list[_T]]:
    """A shard's batches: none crosses its border, so that a resumed run forms the same ones."""
    while batch := list(islice(records, size)):
        yield batch


@dataclass(frozen=True)
class _Batch:
    """A batch of pictures on its way through the decoding processes: its shard, and id and name of each."""

    shard: int
    names: list[tuple[str, str]]


def _write_texts(
    writer: StoreWriter,
    shards: Iterable[tuple[int, Iterator[Text]]],
    encoder: DualEncoder,
    batch_size: int,
    progress: Progress,
    task: TaskID,
) -> None:
    from revision.embeddings import Rejected

    for shard, stream in shards:
        records = list(stream)
        kept = [record for record in records if record.text.strip()]
        rejected = [Rejected(record.id, "the text is empty") for record in records if not record.text.strip()]
        texts = [record.text for record in kept]
        cut = encoder.cut_texts
        rows = encoder.encode_texts(texts, batch_size, on_batch=lambda done: progress.advance(task, done))
        progress.advance(task, len(rejected))
        writer.write(
            shard, rows=rows, ids=[record.id for record in kept], payloads=texts, lengths=list(map(len, texts)),
            rejected=rejected, cut=encoder.cut_texts - cut,
        )  # fmt: skip


def _write_images(
    writer: StoreWriter,
    shards: Iterator[tuple[int, Iterator[Image]]],
    encoder: DualEncoder,
    batch_size: int,
    workers: int,
    progress: Progress,
    task: TaskID,
) -> None:
    import numpy as np

    from revision.decoding import read_pixel_batches
    from revision.embeddings import Rejected

    # The decoding processes read ahead, over the border of a shard too. What they are sent waits here by name alone.
    waiting: deque[_Batch] = deque()

    def ahead() -> Iterator[list[Picture]]:
        """Pictures of the batches to come, whose shard and ids are left in `waiting`."""
        for shard, records in shards:
            for batch in _batches(records, batch_size):
                waiting.append(_Batch(shard, [(record.id, str(record.picture)) for record in batch]))
                yield [record.picture for record in batch]

    sound: list[tuple[str, str, int]] = []  # id, name and size of what has a row
    rows: list[np.ndarray] = []
    rejected: list[Rejected] = []
    reading = read_pixel_batches(ahead(), encoder.preprocess, workers=workers, open_file=encoder.open_file)
    with closing(reading) as decoded:
        for pixels in decoded:
            batch = waiting.popleft()
            if len(pixels.tensor):
                rows.append(encoder.encode_pixels(pixels.tensor))
            for (identity, name), size, problem in zip(batch.names, pixels.sizes, pixels.problems, strict=True):
                if problem is None:
                    sound.append((identity, name, size))
                else:
                    rejected.append(Rejected(identity, problem))
            progress.advance(task, len(batch.names))
            if len(sound) + len(rejected) == len(writer.positions(batch.shard)):
                writer.write(
                    batch.shard, rows=np.concatenate([np.empty((0, encoder.dim), dtype=np.float32), *rows]),
                    ids=[identity for identity, _, _ in sound], payloads=[name for _, name, _ in sound],
                    lengths=[size for _, _, size in sound], rejected=rejected,
                )  # fmt: skip
                sound, rows, rejected = [], [], []
