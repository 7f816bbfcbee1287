"""Embed the records of every source into embedding stores.

Stores are shared by all runs of one encoder: a finished store of the same records is left as it is, an interrupted one
is continued. Started by several processes at once (RANK and WORLD_SIZE, as launchers set them), each takes its share of
the shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from revision.schema import Config, Modality, SourceConfig

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from revision.embeddings import StoreWriter
    from revision.encoders import DualEncoder
    from revision.records import Image, Text

_T = TypeVar("_T")


def run(config: Config) -> None:
    """Embeds `embed.sources`, or all sources of the corpus."""
    from revision import rundir
    from revision.assembly import load_encoder
    from revision.records import count_records

    sources = _sources(config)
    rundir.start(config, "embed")
    if not sources:  # all of them name embeddings that exist already
        rundir.finish(config, "embed", stores={})
        return
    # Every record file is checked before the encoder is loaded and before anything is written.
    counts = {name: count_records(_records(source), source.kind.value) for name, source in sources.items()}
    encoder = load_encoder(config, config.embed.device)
    facts = {name: _embed_source(config, name, source, counts[name], encoder) for name, source in sources.items()}
    rundir.finish(config, "embed", stores=facts)


def _sources(config: Config) -> dict[str, SourceConfig]:
    known = config.data.sources
    if not known:
        raise ValueError("data.sources is empty; name at least one source of records to embed")
    for name in config.embed.sources or ():
        if name not in known:
            raise ValueError(f"embed.sources names {name!r}; data.sources of {config.data.name} has {', '.join(known)}")
    return {name: known[name] for name in config.embed.sources or known if known[name].records is not None}


def _records(source: SourceConfig) -> Path:
    assert source.records is not None, "sources of existing embeddings are left out"
    return Path(source.records)


def _embed_source(
    config: Config, name: str, source: SourceConfig, records: int, encoder: DualEncoder
) -> dict[str, Any]:
    from revision.embeddings import EmbeddingStore, StoreWriter
    from revision.progress import progress_bar, say
    from revision.records import fingerprint, read_images, read_texts

    file = _records(source)
    path = Path(config.data.stores) / config.encoder.name / name
    writer = StoreWriter(
        path,
        kind=source.kind.value,
        dim=encoder.dim,
        encoder=encoder.describe(),
        records_fingerprint=fingerprint(file),
        image_root=source.image_root,
        records=records,
        shard_size=config.embed.shard_size,
        reject_budget=config.embed.reject_budget,
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
    )
    main = writer.rank == 0
    if writer.complete:
        if main:
            say(f"{name}: {path} is finished and unchanged, skipped")
    else:
        missing = writer.missing()
        with progress_bar(f"{source.kind.value}s", visible=main) as progress:
            task = progress.add_task(name, total=sum(len(writer.positions(shard)) for shard in missing))
            if source.kind is Modality.text:
                _write_texts(writer, _shards(read_texts(file), writer, missing), encoder, config.encoder.batch_size,
                             progress, task)  # fmt: skip
            else:
                root = None if source.image_root is None else Path(source.image_root)
                _write_images(writer, _shards(read_images(file, root), writer, missing), encoder,
                              config.encoder.batch_size, config.embed.workers, progress, task)  # fmt: skip
        if main:
            manifest = writer.finish()
            say(f"{name}: {manifest.count} embeddings of {manifest.dim} dimensions, {manifest.rejected} rejected")
    if not main:
        return {}
    store = EmbeddingStore.open(path)
    if store.manifest.cut:
        say(f"{name}: {store.manifest.cut} of {len(store)} texts are longer than the encoder reads, and are cut")
    return {"path": str(path), "fingerprint": store.fingerprint(), "count": len(store),
            "rejected": store.manifest.rejected, "cut": store.manifest.cut}  # fmt: skip


def _shards(records: Iterable[_T], writer: StoreWriter, shards: Sequence[int]) -> Iterator[tuple[int, list[_T]]]:
    """Yields each shard's number and records, reading the file once."""
    stream = iter(records)
    position = 0
    for shard in shards:
        span = writer.positions(shard)
        yield shard, list(islice(stream, span.start - position, span.stop - position))
        position = span.stop


def _batches(records: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """A shard's batches: none crosses its border, so that a resumed run forms the same ones."""
    return (records[start : start + size] for start in range(0, len(records), size))


def _write_texts(
    writer: StoreWriter,
    shards: Iterable[tuple[int, list[Text]]],
    encoder: DualEncoder,
    batch_size: int,
    progress: Progress,
    task: TaskID,
) -> None:
    from revision.embeddings import Rejected

    for shard, records in shards:
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
    shards: Iterator[tuple[int, list[Image]]],
    encoder: DualEncoder,
    batch_size: int,
    workers: int,
    progress: Progress,
    task: TaskID,
) -> None:
    import numpy as np

    from revision.embeddings import Rejected
    from revision.pictures import read_pixel_batches

    # The decoding processes read ahead, over the border of a shard too, so they have an iterator of their own.
    shards, ahead = tee(shards)
    paths = ([record.path for record in batch] for _, records in ahead for batch in _batches(records, batch_size))
    reading = read_pixel_batches(paths, encoder.preprocess, workers=workers, open_file=encoder.open_file)
    with closing(reading) as decoded:
        for shard, records in shards:
            rows = [np.empty((0, encoder.dim), dtype=np.float32)]
            kept: list[tuple[Image, int]] = []
            rejected: list[Rejected] = []
            for batch in _batches(records, batch_size):
                pixels = next(decoded)
                if len(pixels.tensor):
                    rows.append(encoder.encode_pixels(pixels.tensor))
                for record, size, problem in zip(batch, pixels.sizes, pixels.problems, strict=True):
                    if problem is None:
                        kept.append((record, size))
                    else:
                        rejected.append(Rejected(record.id, problem))
                progress.advance(task, len(batch))
            writer.write(
                shard, rows=np.concatenate(rows), ids=[record.id for record, _ in kept],
                payloads=[str(record.path) for record, _ in kept], lengths=[size for _, size in kept],
                rejected=rejected,
            )  # fmt: skip
