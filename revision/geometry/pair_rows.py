"""Which rows of two stores are the caption and the picture of one pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from revision.embeddings import EmbeddingStore

_TEXTS = 65536  # read at once


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
    ids = sorted(rows) if images.has_ids else []
    image = images.find(ids) if ids else np.empty(0, np.int64)
    text = np.array([rows[name] for name in ids], np.int64)
    return PairRows(text[image >= 0], image[image >= 0], matched_by)


def what_lacks(texts: EmbeddingStore, images: EmbeddingStore) -> list[str]:
    """What pairs are found by and the stores do not have, as parts of a sentence."""
    lacking = [f"{store.path} has no ids" for store in (texts, images) if not store.has_ids]
    return lacking + ([] if texts.has_payload else [f"{texts.path} has no texts"])


def _caption_rows(captions: Mapping[str, str], store: EmbeddingStore) -> tuple[dict[str, int], str]:
    """Row of the caption of each pair that has one, by the pair's id, and how it was found."""
    names = list(captions)
    found = store.find(names).tolist() if store.has_ids else []
    if any(row >= 0 for row in found):
        return {name: row for name, row in zip(names, found, strict=True) if row >= 0}, "id"
    if not store.has_payload:
        return {}, "text"
    wanted = set(captions.values())
    by_text: dict[str, int] = {}
    for start in range(0, len(store), _TEXTS):
        texts = store.payload(slice(start, start + _TEXTS))
        by_text |= {text: start + row for row, text in enumerate(texts) if text in wanted}
    return {name: by_text[text] for name, text in captions.items() if text in by_text}, "text"
