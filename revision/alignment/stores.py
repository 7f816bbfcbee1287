"""The two embedding stores that an alignment is fitted on."""

from __future__ import annotations

from pathlib import Path

from revision.alignment.rows import Source
from revision.embeddings import EmbeddingStore
from revision.embeddings.opening import UNSTATED, open_store, open_stores


def open_sides(text: Path, image: Path, *, encoder: str = UNSTATED) -> tuple[EmbeddingStore, EmbeddingStore]:
    """Open a store of texts and a store of images that one dual encoder made.

    Args:
        text, image: folders of stores, or embeddings in a foreign format (docs/formats.md).
        encoder: name of the encoder where both sides are foreign; beside a store, they are taken to be of its encoder.

    Raises:
        ValueError: a store is missing or unfinished, holds the other kind of rows, or the two are of different encoders
            (other weights or preprocessing included) or dimensions.
    """
    text_store, image_store = open_stores([(text, "text"), (image, "image")], encoder=encoder)
    _require_kind(text_store, "text")
    _require_kind(image_store, "image")
    if text_store.dim != image_store.dim:
        raise ValueError(
            f"{text_store.path} has dimension {text_store.dim} but {image_store.path} {image_store.dim}: "
            f"embed both with one encoder"
        )
    ours, theirs = text_store.manifest.encoder, image_store.manifest.encoder
    if ours != theirs:
        fields = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
        raise ValueError(
            f"{text_store.path} was made by encoder {ours['name']!r} but {image_store.path} by {theirs['name']!r} "
            f"(they differ in {', '.join(fields)}): embed both with one encoder"
        )
    return text_store, image_store


def opened_sides(text: Source | str | Path, image: Source | str | Path) -> tuple[Source, Source]:
    """Both sides of a fit, opened where they are paths; anything else comes back as it is.

    Raises:
        ValueError: as `open_sides`, which two paths are opened by.
    """
    if isinstance(text, str | Path) and isinstance(image, str | Path):
        return open_sides(Path(text), Path(image))
    return _opened(text, "text"), _opened(image, "image")


def _opened(source: Source | str | Path, kind: str) -> Source:
    if not isinstance(source, str | Path):
        return source
    store = open_store(Path(source), kind)
    _require_kind(store, kind)
    return store


def _require_kind(store: EmbeddingStore, kind: str) -> None:
    if store.manifest.kind != kind:
        raise ValueError(f"{store.path} holds {store.manifest.kind} embeddings where {kind} embeddings are needed")
