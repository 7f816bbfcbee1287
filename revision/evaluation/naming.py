"""Captions and names of test pictures: likelihoods under a picture, under others and under none, and ranks.

Naming ranks candidates by pointwise mutual information: log p(name | picture) minus its mean over the pictures of the
group. A name that the language model likes whatever it sees gains nothing by that, and a model that says the same of
every picture is at chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from revision.evaluation.benchmarks import Picture
from revision.evaluation.draws import NamingGroup, naming_groups, other_pictures
from revision.evaluation.reader import Reader

TOP = 5  # best names kept for each picture
BLIND = 16  # captions scored together after one prompt without a picture


@dataclass(frozen=True)
class Candidate:
    """A name that pictures are ranked against: what the model would answer, and the encoder's vector, float [d]."""

    answer: str
    vector: np.ndarray


def centred(scores: np.ndarray) -> np.ndarray:
    """PMI up to a constant: log-likelihoods [pictures, names] minus each name's mean over the pictures."""
    return scores - scores.mean(axis=0, keepdims=True)


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank, from 1, of each row's right column: float [n, names], int [n] -> int64 [n]. A tie counts against it."""
    own = scores[np.arange(len(right)), right]
    return (scores >= own[:, None]).sum(axis=1)


def read_pictures_aloud(
    reader: Reader,
    pictures: Sequence[Picture],
    embeddings: np.ndarray,
    pool: Mapping[str, Candidate],
    *,
    prompt: str,
    candidates: int,
    others: int,
    max_new_tokens: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Everything a model does with the pictures of one track, as one row of plain values a picture.

    embeddings: float [n, d], unit rows, of the pictures. pool: every name that may be a candidate. prompt: the user's
    turn; `<image>` marks the picture. others: pictures that each caption is tried under besides its own.
    A row holds: nll, nll_other (mean over the others), nll_blind, in nats of the whole caption of `tokens` tokens;
    rank (by PMI), rank_likelihood, rank_blind (no picture) and rank_encoder (cosine) of the right name among
    `candidates`; `top`, the best names by PMI; and `says`, the greedy caption.
    """
    names = [picture.name for picture in pictures]
    rows = [
        {"row": "picture", "id": picture.id, "track": picture.track, "name": picture.name, "caption": picture.caption}
        for picture in pictures
    ]
    own, other, blind, tokens = caption_likelihoods(
        reader,
        [picture.caption for picture in pictures],
        embeddings,
        other_pictures(names, others=others, seed=seed),
        prompt,
    )
    said = reader.answers([reader.prompt(prompt, row) for row in embeddings], max_new_tokens, "captions, greedy")
    for row, *values in zip(rows, own, other, blind, tokens, said, strict=True):
        row |= dict(zip(("nll", "nll_other", "nll_blind", "tokens", "says"), values, strict=True))
    for group in naming_groups(names, list(pool), candidates=candidates, seed=seed):
        for place, ranked in zip(group.pictures, _rank_group(reader, group, embeddings, pool, prompt), strict=True):
            rows[place] |= ranked
    return rows


def caption_likelihoods(
    reader: Reader, captions: Sequence[str], embeddings: np.ndarray, others: np.ndarray, prompt: str
) -> tuple[list[float], list[float], list[float], list[int]]:
    """Negative log-likelihood of each caption, end of turn included, and its number of tokens.

    embeddings: float [n, d]. others: int64 [n, k], the pictures each caption is also tried under.
    Returns, for each caption, nats under its own picture, the mean over the others, without a picture; and tokens.
    """
    answers = [reader.answer_ids(caption) for caption in captions]
    # Each picture is a prompt once: its own caption first, then the captions that are tried under it.
    tried: list[list[int]] = [[place] for place in range(len(captions))]
    for caption, places in enumerate(others):
        for place in places:
            tried[place].append(caption)
    scores = reader.log_probs(
        [reader.prompt(prompt, row) for row in embeddings],
        [[answers[caption] for caption in caption_list] for caption_list in tried],
        "captions",
    )
    other = np.zeros(len(captions))
    for caption_list, values in zip(tried, scores, strict=True):
        np.add.at(other, caption_list[1:], -values[1:] / others.shape[1])
    together = [answers[start : start + BLIND] for start in range(0, len(answers), BLIND)]
    blind = reader.log_probs([reader.prompt(prompt, None)] * len(together), together, "captions, blind")
    return (
        [float(-values[0]) for values in scores],
        other.tolist(),
        (-np.concatenate(blind)).tolist(),
        [len(answer) for answer in answers],
    )


def _rank_group(
    reader: Reader,
    group: NamingGroup,
    embeddings: np.ndarray,
    pool: Mapping[str, Candidate],
    prompt: str,
) -> list[dict[str, Any]]:
    """Ranks for each picture of a group, in its order."""
    openings = [reader.opening_ids(pool[name].answer) for name in group.names]
    seen = embeddings[group.pictures]
    likelihood = np.stack(
        reader.log_probs([reader.prompt(prompt, row) for row in seen], [openings] * len(seen), f"{len(openings)} names")
    )
    (alone,) = reader.log_probs([reader.prompt(prompt, None)], [openings], "names, blind")
    blind = np.broadcast_to(alone, likelihood.shape)
    vectors = np.stack([pool[name].vector for name in group.names])
    cosine = np.asarray(seen, np.float64) @ vectors.T.astype(np.float64)
    information = centred(likelihood)
    best = np.argsort(-information, axis=1, kind="stable")[:, :TOP]
    by = {"rank": information, "rank_likelihood": likelihood, "rank_blind": blind, "rank_encoder": cosine}
    found = {field: ranks(scores, group.right).tolist() for field, scores in by.items()}
    return [
        {field: values[i] for field, values in found.items()}
        | {"candidates": len(group.names), "top": [group.names[j] for j in best[i]]}
        for i in range(len(seen))
    ]
