"""The one place through which embeddings are opened: a store of our own, or files of another program in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from revision.embeddings.foreign import ForeignStore
from revision.embeddings.foreign.finding import is_there
from revision.embeddings.layout import MANIFEST, PLAN
from revision.embeddings.store import EmbeddingStore

UNSTATED = "unstated"  # name of an encoder that neither files nor caller tell


def open_store(path: Path | str, kind: str, *, encoder: str = UNSTATED) -> EmbeddingStore:
    """Opens what lies at a path.

    Args:
        path: folder of an embedding store; or a file or folder in one of the foreign formats of `docs/formats.md`,
            followed by the name of a column where it has several.
        kind: "text" or "image". Foreign files do not tell, so the caller does; a store knows it itself.
        encoder: name of the encoder that made foreign embeddings.

    Returns:
        The store, or a `ForeignStore`, which is read in the same way.

    Raises:
        ValueError: nothing lies there, it is unfinished, truncated, or cannot be read.
    """
    return open_stores([(path, kind)], encoder=encoder)[0]


def open_stores(places: Sequence[tuple[Path | str, str]], *, encoder: str = UNSTATED) -> list[EmbeddingStore]:
    """Opens several, which one encoder is supposed to have made.

    Foreign embeddings among stores are taken to be of the stores' encoder: their files do not tell, and whoever names
    them together says so.

    Args:
        places: a path and a kind each, as `open_store` takes them.
        encoder: name of the encoder where all are foreign.

    Raises:
        ValueError: as `open_store`.
    """
    found = [(Path(path), kind) for path, kind in places]
    for path, _ in found:
        _require_something(path)
    ours = {path: EmbeddingStore.open(path) for path, _ in found if not _foreign(path)}
    described = next((store.manifest.encoder for store in ours.values()), {"name": encoder})
    return [ours[path] if path in ours else ForeignStore.at(path, kind, described) for path, kind in found]


def _require_something(path: Path) -> None:
    """Says what a path is that leads to no embeddings at all."""
    if is_there(path):
        return
    what = "is an empty folder" if path.is_dir() else "does not exist"
    raise ValueError(
        f"{path} {what}: there is no embedding store; run `revision embed` first, or give embeddings in one of the "
        "formats of docs/formats.md"
    )


def _foreign(path: Path) -> bool:
    """A folder with the marks or shards of a store is one, finished or not."""
    marks = (MANIFEST, PLAN, "shard-*.npy")
    return not any(next(path.glob(mark), None) for mark in marks)
