"""Exact log-likelihoods of many continuations of a prompt in one forward pass, and greedy continuations.

Continuations of one prompt share their beginnings in a trie. A prompt and the inner nodes of its trie form one sequence
under a mask that lets each node see the prompt and its own ancestors, so the prompt is computed once, a shared token
once, and a last token, which predicts nothing, never. Every number equals that of scoring one continuation at a time.

Shapes: B prompts of a batch, P longest prompt, Q most inner nodes, V vocabulary, d dimension of the picture embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from revision.data.conversation import common_prefix
from revision.model.modeling_revision import CACHE

Track = Callable[[Sequence[Any], str], Iterable[Any]]  # shows progress through a sequence of batches, under a title

# Said in full, since LLMs ship habits of their own (sampling, a penalty on repetition) in their generation configs.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
_NORMALISER_ROWS = 64  # positions whose [rows, V] float32 copy is in memory at once


@dataclass(frozen=True)
class Prompt:
    """Token ids up to where the answer begins, image tokens expanded, and the picture (float [d]) they stand for."""

    ids: list[int]
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Trie:
    """Continuations with shared beginnings; nodes are in an order that puts parents before children.

    tokens: int64 [nodes], token of each node. parents: int64 [nodes], -1 where the parent is the end of the prompt.
    inner: int64 [inner nodes], nodes that have children; only these need a position in the forward pass.
    visible: bool [inner, inner], which inner nodes each inner node sees: its ancestors and itself.
    owners, path_nodes: int64, the nodes on the path of continuation owners[i], all continuations in a row.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    inner: torch.Tensor
    visible: torch.Tensor
    owners: torch.Tensor
    path_nodes: torch.Tensor
    size: int

    @classmethod
    def of(cls, continuations: Sequence[Sequence[int]]) -> Trie:
        """Builds the trie of continuations, each a non-empty list of token ids. Duplicates are allowed."""
        assert all(len(tokens) > 0 for tokens in continuations), "a continuation without tokens has no likelihood"
        nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node; insertion order is node order
        owners: list[int] = []
        path_nodes: list[int] = []
        for owner, tokens in enumerate(continuations):
            node = -1
            for token in tokens:
                node = nodes.setdefault((node, token), len(nodes))
                owners.append(owner)
                path_nodes.append(node)
        parents = torch.tensor([parent for parent, _ in nodes], dtype=torch.long)
        inner = torch.unique(parents[parents >= 0])
        position = {node: index for index, node in enumerate(inner.tolist())}
        visible = torch.eye(len(inner), dtype=torch.bool)
        for index, node in enumerate(inner.tolist()):
            parent = int(parents[node])
            if parent >= 0:
                visible[index] |= visible[position[parent]]
        return cls(
            tokens=torch.tensor([token for _, token in nodes], dtype=torch.long),
            parents=parents,
            inner=inner,
            visible=visible,
            owners=torch.tensor(owners, dtype=torch.long),
            path_nodes=torch.tensor(path_nodes, dtype=torch.long),
            size=len(continuations),
        )

    def predicting_columns(self) -> torch.Tensor:
        """int64 [nodes]: which logits predict each node, 0 for those of the prompt's end, 1 + i for inner node i."""
        column = torch.searchsorted(self.inner, self.parents.clamp(min=0)) + 1
        return torch.where(self.parents < 0, torch.zeros_like(column), column)

    def totals(self, node_values: torch.Tensor) -> torch.Tensor:
        """Sums values of nodes, float [nodes], along the path of each continuation: float64 [size]."""
        sums = torch.zeros(self.size, dtype=torch.float64)
        return sums.index_add_(0, self.owners, node_values.double()[self.path_nodes])


@torch.inference_mode()
def continuation_log_probs(
    model: Any,
    prompts: Sequence[Prompt],
    tries: Sequence[Trie],
    *,
    pad_token_id: int,
    batch_size: int,
    track: Track | None = None,
    title: str = "scoring",
) -> list[np.ndarray]:
    """Log p(continuation | prompt) in nats, for each prompt and each continuation of its trie.

    model: a RevisionForConditionalGeneration in eval mode. What all prompts begin with (a system message) is computed
    once, for all of them.
    tries: one for each prompt; the same object may stand for many.
    Returns float64 [trie.size] for each prompt, in the order given.
    """
    assert len(prompts) == len(tries), "one trie for each prompt"
    scores: list[np.ndarray] = [np.empty(0)] * len(prompts)
    batches = _batches(
        [(len(prompt.ids), len(trie.inner)) for prompt, trie in zip(prompts, tries, strict=True)], batch_size
    )
    # Short of the last token of each, whose logits are needed.
    shared = common_prefix([prompt.ids for prompt in prompts], model.config.image_token_id)
    cache = model(input_ids=torch.tensor([shared], device=model.device))[CACHE] if shared else None
    for batch in batches if track is None else track(batches, title):
        rest = [Prompt(prompts[i].ids[len(shared) :], prompts[i].picture) for i in batch]
        inputs, kept = _tree_inputs(model, rest, [tries[i] for i in batch], len(shared), pad_token_id)
        if cache is not None:
            inputs[CACHE] = copy.deepcopy(cache)  # the forward pass appends to it
            inputs[CACHE].batch_repeat_interleave(len(batch))
        logits = model(**inputs, logits_to_keep=kept, use_cache=cache is not None).logits
        for row, i in enumerate(batch):
            scores[i] = tries[i].totals(_node_log_probs(logits[row], tries[i])).numpy()
    return scores


def _batches(lengths: Sequence[tuple[int, ...]], batch_size: int) -> list[list[int]]:
    """Places of items of like length together, so that little is padded."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]


def _tree_inputs(
    model: Any, prompts: Sequence[Prompt], tries: Sequence[Trie], shared: int, pad_token_id: int
) -> tuple[dict[str, Any], int]:
    """Prompts padded on the left and tries on the right, so that the logits needed are the last Q + 1 of every row.

    shared: positions of the cache in front of all rows; every token sees them.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    total = longest + max(len(trie.inner) for trie in tries)
    ids = torch.full((len(prompts), total), pad_token_id, dtype=torch.long)
    positions = torch.zeros_like(ids)
    visible = torch.eye(total, dtype=torch.bool).repeat(len(prompts), 1, 1)  # padding sees itself: no empty softmax
    for row, (prompt, trie) in enumerate(zip(prompts, tries, strict=True)):
        start, end = longest - len(prompt.ids), longest + len(trie.inner)
        ids[row, start:longest] = torch.tensor(prompt.ids, dtype=torch.long)
        ids[row, longest:end] = trie.tokens[trie.inner]
        visible[row, start:longest, start:longest] = torch.ones(
            longest - start, longest - start, dtype=torch.bool
        ).tril()
        visible[row, longest:end, start:longest] = True
        visible[row, longest:end, longest:end] = trie.visible
        positions[row, start:end] = shared + visible[row, start:end].sum(dim=1) - 1
    visible = torch.nn.functional.pad(visible, (shared, 0), value=True)
    dtype = model.get_input_embeddings().weight.dtype  # of the LLM: its projector may be in another
    mask = torch.zeros(len(prompts), 1, total, shared + total, dtype=dtype)
    mask.masked_fill_(~visible[:, None], torch.finfo(dtype).min)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **_pictures(prompts, model)}
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}, total - longest + 1


def _pictures(prompts: Sequence[Prompt], model: Any) -> dict[str, torch.Tensor]:
    pictures = [prompt.picture for prompt in prompts if prompt.picture is not None]
    if not pictures:
        return {}
    return {"image_embeds": torch.from_numpy(np.stack(pictures).astype(np.float32)).to(model.device)}


def _node_log_probs(logits: torch.Tensor, trie: Trie) -> torch.Tensor:
    """logits: [Q + 1, V] of one row. Returns float32 [nodes] on the CPU."""
    used = logits[: len(trie.inner) + 1]
    normaliser = torch.cat([rows.float().logsumexp(dim=-1) for rows in used.split(_NORMALISER_ROWS)])
    columns, tokens = trie.predicting_columns().to(logits.device), trie.tokens.to(logits.device)
    return (used[columns, tokens].float() - normaliser[columns]).cpu()


@torch.inference_mode()
def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    track: Track | None = None,
    title: str = "answering",
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """The greedy continuation of each prompt as text, special tokens dropped and blanks at both ends stripped.

    streamer: is told every token as it is made; for one prompt only.
    """
    answers = [""] * len(prompts)
    batches = _batches([(len(prompt.ids),) for prompt in prompts], batch_size)
    for batch in batches if track is None else track(batches, title):
        longest = max(len(prompts[i].ids) for i in batch)
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, longest - len(prompts[i].ids) :] = torch.tensor(prompts[i].ids, dtype=torch.long)
            mask[row, longest - len(prompts[i].ids) :] = 1
        made = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            **_pictures([prompts[i] for i in batch], model),
            **_GREEDY,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            streamer=streamer,
        )
        for i, tokens in zip(batch, made[:, longest:], strict=True):
            answers[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return answers
