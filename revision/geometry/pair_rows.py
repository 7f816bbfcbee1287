"""Which rows of two stores are the caption and the picture of one pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from revision.embeddings import EmbeddingStore


@dataclass(frozen=True)
class PairRows:
    """Row numbers of the pairs that have a row in both stores, in the order of their ids.

    Attributes:
        text, image: int64 [n], entry i of both the same pair.
        matched_by: how captions were found: "id" or "text".
    """

    text: np.ndarray
    image: np.ndarray
    matched_by: str


def find_pairs(captions: Mapping[str, str], texts: EmbeddingStore, images: EmbeddingStore) -> PairRows:
    """The rows of pairs.

    Pictures are found by id. Captions are found by id, or, where the store has none of the ids, by the text itself: the
    same words have the same embedding, whatever record they come from. Row numbers that stand in for ids are no ids: a
    pair called "7" has nothing to do with the row of that number.

    Args:
        captions: of all pairs, by their ids.
        texts, images: the two stores.

    Raises:
        ValueError: an id that several rows of a store have.
    """
    rows, matched_by = _caption_rows(captions, texts)
    ids = sorted({*rows} & {*images.ids()}) if images.has_ids else []
    image = images.index_of(ids) if ids else np.empty(0, np.int64)
    return PairRows(np.array([rows[name] for name in ids], np.int64), image, matched_by)


def what_lacks(texts: EmbeddingStore, images: EmbeddingStore) -> list[str]:
    """What pairs are found by and the stores do not have, as parts of a sentence."""
    lacking = [f"{store.path} has no ids" for store in (texts, images) if not store.has_ids]
    return lacking + ([] if texts.has_payload else [f"{texts.path} has no texts"])


def _caption_rows(captions: Mapping[str, str], store: EmbeddingStore) -> tuple[dict[str, int], str]:
    """Row of the caption of each pair that has one, by the pair's id, and how it was found."""
    known = [name for name in dict.fromkeys(store.ids()) if name in captions] if store.has_ids else []
    if known:
        return dict(zip(known, store.index_of(known).tolist(), strict=True)), "id"
    if not store.has_payload:
        return {}, "text"
    wanted = set(captions.values())
    by_text = {text: row for row, text in enumerate(store.payload(slice(None))) if text in wanted}
    return {name: by_text[text] for name, text in captions.items() if text in by_text}, "text"
