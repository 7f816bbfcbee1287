"""A causal language model as a text encoder: attention in both directions, mean over the text's own tokens.

This is LLM2Vec (arXiv 2404.05961) as LLM2CLIP (arXiv 2411.04997) applies it, written from the papers, the model cards
of microsoft/LLM2CLIP-Openai-L-14-336 and microsoft/LLM2CLIP-Llama-3.2-1B-Instruct-CC-Finetuned, and the behaviour of
McGill-NLP/llm2vec:

- a text stands as the user's turn of a Llama 3 chat, after the beginning-of-text token, with no system turn and no
  instruction; space at its end goes;
- every token attends to every other one; padding is attended to by none;
- the last layer's states (after the final norm) are averaged over the text and the end-of-turn token; the tokens before
  it, which LLM2Vec counts as instruction, are left out (`skip_instruction`).

LLM2Vec pads on the left. Rotary positions are relative, so that the side makes no difference; we pad on the right,
where the positions of a text do not depend on its batch.

Over-long texts: LLM2Vec drops words until 512 tokens are left and then cuts what the chat adds off the end, whereby the
end-of-turn token is lost and the mean includes the turn's head. Here the text is cut to what fits with its head and its
end, and the cut is counted. Texts of up to 506 tokens are not concerned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaModel, PreTrainedTokenizerBase

HEAD = "<|start_header_id|>user<|end_header_id|>\n\n"
END = "<|eot_id|>"
_MARKS = ("<|start_header_id|>", "<|end_header_id|>", END)


@dataclass(frozen=True)
class Prompt:
    """One text as the tower reads it.

    Attributes:
        ids: of the whole turn.
        pooled: how many ids at the end are averaged over.
        cut: whether the text lost tokens.
    """

    ids: list[int]
    pooled: int
    cut: bool


def require_marks(field: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Holds that the marks of a turn are tokens that the model knows; spelled out in letters, they would be text.

    Args:
        rows: of the model's token embeddings.

    Raises:
        ValueError: a tokenizer of another model.
    """
    vocabulary = tokenizer.get_vocab()
    for mark in _MARKS:
        if vocabulary.get(mark, rows) >= rows:
            raise ValueError(f"{field}: its tokenizer has no token {mark}; LLM2CLIP's text towers are Llama 3 models")


def prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Prompt]:
    """Texts as turns of at most `max_length` tokens."""
    if not texts:
        return []
    ends = [f"{text.rstrip()}{END}" for text in texts]
    whole = tokenizer([HEAD + end for end in ends])["input_ids"]
    own = tokenizer(ends, add_special_tokens=False)["input_ids"]
    return [_fit(ids, len(alone), max_length) for ids, alone in zip(whole, own, strict=True)]


def _fit(ids: list[int], pooled: int, max_length: int) -> Prompt:
    over = len(ids) - max_length
    if over <= 0:
        return Prompt(ids, pooled, cut=False)
    if over >= pooled - 1:
        raise ValueError(f"encoder.max_length = {max_length}: must leave room for text besides the turn around it")
    return Prompt([*ids[: max_length - 1], ids[-1]], pooled - over, cut=True)


def padded(batch: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch on the CPU.

    Returns:
        ids int64 [n, length], padded on the right; real, bool [n, length], where there is a token; pooled, bool
        [n, length], where there is one to average over.
    """
    lengths = torch.tensor([len(one.ids) for one in batch])
    ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.int64)  # any id: padding is attended to by none
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
    places = torch.arange(ids.shape[1])
    starts = lengths - torch.tensor([one.pooled for one in batch])
    real = places < lengths[:, None]
    return ids, real, real & (places >= starts[:, None])


def bidirectional_states(model: LlamaModel, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The last layer's states with attention in both directions.

    Args:
        model: with sdpa attention: it takes a mask of four dimensions as it is. Flash attention would ignore it, and be
            causal.
        ids: int64 [n, length].
        real: bool [n, length], False for padding.

    Returns:
        [n, length, width] in the model's dtype; those of padding mean nothing.
    """
    assert model.config._attn_implementation == "sdpa"
    seen = real[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
    return model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state


def mean_pooled(states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """float32 [n, width]: the mean of states [n, length, width] where `pooled` [n, length] says so."""
    weights = pooled.to(torch.float32)
    return (states.float() * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
