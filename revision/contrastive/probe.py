"""Retrieval and geometry of a set of pairs, as embedded by the part that trains."""

from __future__ import annotations

from collections.abc import Callable

import torch

from revision.contrastive.features import PairInputs
from revision.contrastive.parts import TrainedPart

_CHUNK = 1024  # rows at once


@torch.inference_mode()
def unit_rows(part: TrainedPart, pairs: PairInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows of all distinct pictures [n, d] and texts [m, d] of the pairs, in evaluation mode."""
    part.training_mode(False)
    return _embedded(part.image, pairs.images), _embedded(part.text, pairs.texts)


def _embedded(encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.nn.functional.normalize(encode(rows), dim=-1) for rows in inputs.split(_CHUNK)])


@torch.inference_mode()
def probe(images: torch.Tensor, texts: torch.Tensor, pairs: PairInputs) -> dict[str, float]:
    """Retrieval and geometry of a set of pairs.

    Args:
        images, texts: their `unit_rows`.

    Returns:
        `image_to_text_r1`, `_r5`, `text_to_image_r1`, `_r5`: share of distinct pictures (texts) with one of their own
        texts (pictures) among the first 1 (5) of all distinct ones; ties count against.
        `gap`: distance of the two centroids. `trace_image`, `trace_text`: mean squared distance of a row from its
        centroid (ReVision v3, Sec. 3).
    """
    to_text = retrieval_ranks(images, texts, pairs.image_of, pairs.text_of)
    to_image = retrieval_ranks(texts, images, pairs.text_of, pairs.image_of)
    measures = {
        f"{direction}_r{k}": float((ranks < k).double().mean())
        for direction, ranks in (("image_to_text", to_text), ("text_to_image", to_image))
        for k in (1, 5)
    }
    sides = {"image": images.double(), "text": texts.double()}
    centroids = {side: rows.mean(dim=0) for side, rows in sides.items()}
    traces = {f"trace_{side}": float((rows - centroids[side]).square().sum(1).mean()) for side, rows in sides.items()}
    return {**measures, "gap": float(torch.dist(centroids["image"], centroids["text"])), **traces}


def retrieval_ranks(
    queries: torch.Tensor, candidates: torch.Tensor, query_of: torch.Tensor, candidate_of: torch.Tensor
) -> torch.Tensor:
    """Rank from 0 of each query's best own candidate among all candidates that are not its own.

    Args:
        queries: unit rows [n, d]; candidates: unit rows [m, d].
        query_of, candidate_of: int64 [pairs], which query and candidate belong together.

    Returns:
        int64 [n].
    """
    ranks = []
    for start in range(0, len(queries), 1024):
        scores = queries[start : start + 1024] @ candidates.T
        own = torch.zeros_like(scores, dtype=torch.bool)
        inside = (query_of >= start) & (query_of < start + len(scores))
        own[query_of[inside] - start, candidate_of[inside]] = True
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((scores.masked_fill(own, -torch.inf) >= best).sum(dim=1))
    return torch.cat(ranks)
