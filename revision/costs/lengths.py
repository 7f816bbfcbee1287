"""How long the records of a training stage are, measured on a sample or assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from revision.data.conversation import IGNORED, build_processor, encode, encode_what_fits
from revision.data.templates import read_template
from revision.records import IMAGE_MARK, Message

_T = TypeVar("_T")

CHARACTERS = 4  # a token, where there is no tokenizer
_DRAWS = 200  # batches drawn to see how much is padding


@dataclass(frozen=True)
class Lengths:
    """Records of a stage. All but `records`, `longest` and `longest_labels` are means a record.

    Attributes:
        records: in one epoch.
        tokens: positions of the LLM's input, visual ones included.
        pairs: squared `tokens`.
        labels: tokens that are learned.
        pictures: share of records with a picture.
        padding: tokens of padding for each other one, in batches as they are drawn.
        longest, longest_labels: tokens of the largest record.
        source: where these numbers come from, for the reader of a plan.
    """

    records: int
    tokens: float
    pairs: float
    labels: float
    pictures: float
    padding: float
    longest: int
    longest_labels: int
    source: str


def sampled(records: Iterable[_T], size: int, seed: int) -> tuple[list[_T], int]:
    """At most `size` of the records, each as likely as any other, and how many there are; one pass over them."""
    rng = np.random.default_rng(seed)
    kept: list[_T] = []
    count = 0
    for count, record in enumerate(records, start=1):
        if len(kept) < size:
            kept.append(record)
        elif (place := int(rng.integers(count))) < size:
            kept[place] = record
    return kept, count


def counter(
    tokenizer: Any | None, template: Path | None, *, visual: int, max_length: int, cut_turns: bool = False
) -> Callable[[Sequence[Message]], tuple[int, int, bool]]:
    """A function that counts tokens, labels, and whether there is a picture, of a conversation.

    Args:
        tokenizer: of the LLM; None: a guess from the number of characters.
        template: chat template that replaces the LLM's own.
        visual: visual tokens of a picture.
        max_length: tokens a sample may have; the function raises ValueError for more, as training would.
        cut_turns: whole turns at the end of a longer one are left out, as training would leave them.
    """
    if tokenizer is None:
        return lambda talk: _guess(talk, visual)
    chosen = None if template is None else read_template(template)
    processor = build_processor(tokenizer, num_visual_tokens=visual, chat_template=chosen)

    def count(talk: Sequence[Message]) -> tuple[int, int, bool]:
        """Tokens, labels, and whether a picture is in it."""
        limits: dict[str, Any] = {"name": f"'{talk[-1].content[:40]}'", "max_length": max_length}
        pictured = _pictured(talk)
        if cut_turns:
            encoded, _ = encode_what_fits(processor, talk, pictured=pictured, **limits)
        else:
            encoded = encode(processor, talk, **limits)
        return len(encoded.input_ids), int((encoded.labels != IGNORED).sum()), pictured

    return count


def _pictured(talk: Sequence[Message]) -> bool:
    return any(IMAGE_MARK in message.content for message in talk)


def _guess(talk: Sequence[Message], visual: int) -> tuple[int, int, bool]:
    answers = sum(len(message.content) for message in talk if message.role == "assistant") // CHARACTERS
    text = sum(len(message.content.replace(IMAGE_MARK, "")) for message in talk) // CHARACTERS
    return text + visual * _pictured(talk), answers, _pictured(talk)


def measured(
    sample: Sequence[tuple[int, int, bool]], *, records: int, batch: int | None, grouped: bool, seed: int, source: str
) -> Lengths:
    """From a random sample of the records.

    Args:
        sample: tokens, labels, and whether there is a picture, of each.
        records: in all.
        batch: records that are padded to one length; None: they are packed.
        grouped: batches hold records of like length.
        seed: of the batches drawn to see the padding.
        source: for the reader.
    """
    tokens, labels, pictures = (np.array(column, dtype=np.float64) for column in zip(*sample, strict=True))
    rng = np.random.default_rng(seed)
    if batch is None:
        batches = tokens[:, None]
    elif grouped:
        ordered = np.sort(tokens)[: len(tokens) // batch * batch] if len(tokens) >= batch else tokens
        batches = ordered.reshape(-1, min(batch, len(ordered)))
    else:
        batches = rng.choice(tokens, (_DRAWS, batch))
    padding = float(batches.max(axis=1).sum() * batches.shape[1] / batches.sum() - 1)
    return Lengths(
        records=records,
        tokens=float(tokens.mean()),
        pairs=float((tokens**2).mean()),
        labels=float(labels.mean()),
        pictures=float(pictures.mean()),
        padding=padding,
        longest=int(tokens.max()),
        longest_labels=int(labels.max()),
        source=source,
    )


def assumed(*, records: int, text: float, labels: float, visual: int, longest: int, source: str) -> Lengths:
    """From means that somebody states, every record with a picture and none longer than the others.

    Args:
        records: in one epoch.
        text: tokens beside the visual ones.
        labels: of these, learned.
        visual: visual tokens of a picture.
        longest: tokens that a record may have.
        source: for the reader.
    """
    tokens = text + visual
    return Lengths(records, tokens, tokens**2, labels, 1.0, 0.0, longest, longest - visual, source)
