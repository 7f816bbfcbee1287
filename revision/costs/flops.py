"""FLOPs of a training step, frozen parts counted for what they cost.

A product of an activation with n weights costs 2n FLOPs a position forwards. Backwards it costs 2n for the gradient of
the weights where they train, and 2n for the gradient of its input where anything below it trains. So an LLM that
trains costs 6N a token, a frozen one above a trained projector 4N, and a frozen part below everything that trains 2N.
Attention adds products without weights: 4 * width a query-key pair and layer forwards, twice that backwards (12 L H Q T
a token in all: Chowdhery et al. 2022, PaLM, App. B; the half that a causal kernel skips is counted, as there), less
where gradients do not reach queries, keys and values alike. Norms, activations and other work by element are not
counted, nor what gradient checkpointing computes again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

IGNORED = -100  # label of a position that nothing is learned from

# Places of a layer's modules in the order of computation, which is not that in which they are registered.
_PLACES = {
    "input_layernorm": 0,
    "self_attn": 1,
    "post_attention_layernorm": 2,
    "pre_feedforward_layernorm": 3,
    "post_feedforward_layernorm": 5,
}
_OTHERS = 4
# What reads the other parts of its module; these all read the input of the module.
_LAST = ("o_proj", "down_proj", "lora_B")
_Part = nn.Module | nn.Parameter


class Flops(NamedTuple):
    """FLOPs of the two passes."""

    forward: float
    backward: float

    def plus(self, other: Flops) -> Flops:
        """The sum of both."""
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def times(self, count: float) -> Flops:
        """That often."""
        return Flops(self.forward * count, self.backward * count)

    @property
    def total(self) -> float:
        """Forwards and backwards."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Counts:
    """What a batch, or a whole training stage, holds. Numbers may be means.

    Attributes:
        tokens: positions of the LLM's input, visual ones included.
        pairs: query-key pairs: the sum of squared lengths of the sequences.
        labels: positions with a label, for which logits are computed.
        pictures: embeddings that the projector reads.
    """

    tokens: float
    pairs: float
    labels: float
    pictures: float


@dataclass(frozen=True)
class Work:
    """FLOPs of one unit of each of `Counts`."""

    token: Flops
    pair: Flops
    label: Flops
    picture: Flops

    def of(self, counts: Counts) -> Flops:
        """FLOPs of all that is counted."""
        parts = [
            self.token.times(counts.tokens),
            self.pair.times(counts.pairs),
            self.label.times(counts.labels),
            self.picture.times(counts.pictures),
        ]
        return Flops(sum(part.forward for part in parts), sum(part.backward for part in parts))


def work_of(model: nn.Module) -> Work:
    """The work of a multimodal model as its parameters are frozen now.

    Mixtures of experts count the experts that a token visits. A layer with a sliding window counts all pairs. Attention
    is taken to come before the rest of a layer, which reads what it puts out.

    Args:
        model: RevisionForConditionalGeneration, on any device, fake or sharded by ZeRO-3.
    """
    whole: Any = model
    language_model, text = whole.language_model, whole.config.get_text_config()
    flow = _Flow()
    picture = flow.through(whole.projector)
    flow.pass_by(language_model.get_input_embeddings())
    decoder = language_model.get_decoder()
    token, pair = Flops(0, 0), Flops(0, 0)
    share = _active_experts(text)
    once = 4.0 * text.num_attention_heads * _head_dim(text)
    for layer in decoder.layers:
        pairs = None
        for name, part in sorted(_parts(layer), key=_place):
            if name == "self_attn" and isinstance(part, nn.Module):
                pairs = flow.pairs(part, once)
            token = token.plus(flow.through(part, share))
        pair = pair.plus(pairs or Flops(once, 2 * once if flow.reached else 0))
    flow.pass_by(decoder)
    label = flow.through(language_model.get_output_embeddings())
    return Work(token=token, pair=pair, label=label, picture=picture)


@dataclass
class _Flow:
    """Walks the model in the order of computation; `reached`: something so far trains, so gradients come back here."""

    reached: bool = False

    def through(self, part: _Part, share: float = 1.0) -> Flops:
        """One position through all weights of a module, or through one matrix, or that of each expert."""
        if isinstance(part, nn.Parameter):
            return self._times(part, share)
        if isinstance(part, nn.Embedding):
            self.pass_by(part)
            return Flops(0, 0)
        work = Flops(0, 0)
        for beside in _stages(part):
            before, after = self.reached, self.reached
            for chain in beside:
                self.reached = before
                for one in chain:
                    work = work.plus(self.through(one, share))
                after |= self.reached
            self.reached = after
        return work

    def pairs(self, attention: nn.Module, once: float) -> Flops:
        """A query-key pair of a layer that this attention is about to be walked in; `once`: both products forwards."""
        query, key, value = (
            self.reached
            or any(one.requires_grad for name, one in attention.named_parameters() if letter in _makes(name))
            for letter in "qkv"
        )
        # Gradients of queries, keys, the weights that both make, and values: a product each.
        return Flops(once, once / 2 * (query + key + (query or key) + value))

    def pass_by(self, module: nn.Module) -> None:
        """Parameters that cost nothing worth counting: embeddings, norms, biases."""
        self.reached |= any(parameter.requires_grad for parameter in module.parameters())

    def _times(self, weight: nn.Parameter, share: float) -> Flops:
        """A product with a matrix; norms and biases have none."""
        shape = _shape(weight)
        size = float(math.prod(shape)) if len(shape) in (2, 3) else 0.0
        if len(shape) == 3:  # the matrices of all experts of a layer
            size *= share
        backward = 2 * size * (int(weight.requires_grad) + int(self.reached))
        self.reached |= weight.requires_grad
        return Flops(2 * size, backward)


def _parts(module: nn.Module) -> list[tuple[str, _Part]]:
    """Modules and parameters that a module has itself, by name."""
    return [*module.named_children(), *module.named_parameters(recurse=False)]


def _place(named: tuple[str, _Part]) -> int:
    """Of a part of a decoder layer, in the order of computation."""
    return _PLACES.get(named[0], _OTHERS)


def _stages(module: nn.Module) -> list[list[list[_Part]]]:
    """Stages one after the other; in each, chains that read the same; in a chain, each part reads the one before it."""
    parts = _parts(module)
    last: list[_Part] = [part for name, part in parts if name in _LAST]
    if not last:
        return [[[part for _, part in parts]]]
    chains: dict[str, list[_Part]] = {}
    for name, part in parts:
        if name not in _LAST:
            chains.setdefault(name.split("_")[0], []).append(part)  # as q_proj and q_norm
    return [list(chains.values()), [last]]


def _makes(name: str) -> str:
    """What a parameter of an attention makes, of q, k and v: all of them where its name does not say which."""
    part = name.split(".")[0]
    word = part.split("_")[0]
    return "" if part in _LAST else word if set(word) <= set("qkv") else "qkv"


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, also where ZeRO-3 has cut it into pieces, or bitsandbytes keeps two numbers in a byte."""
    known = vars(parameter)
    quantized = known.get("quant_state")  # None until the weights are on a GPU
    return tuple(known.get("ds_shape", parameter.shape) if quantized is None else quantized.shape)


def _active_experts(text: Any) -> float:
    """Share of a layer's experts that a token visits."""
    known = text.to_dict()
    experts = next((known[name] for name in ("num_local_experts", "num_experts") if known.get(name)), None)
    return known["num_experts_per_tok"] / experts if experts and known.get("num_experts_per_tok") else 1.0


def _head_dim(text: Any) -> int:
    return int(text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads)


def counts_of(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """int64 [5] on the batch's device, without waiting for it: tokens, pairs, labels, pictures as in `Counts`; samples.

    Padding is not counted, nor are samples without a label, which only fill up the share of a process. The samples of
    packed rows begin where `position_ids` are 0; positions 0 .. n-1 sum to n^2 pairs.
    """
    ids, labels, mask = batch["input_ids"], batch["labels"], batch.get("attention_mask")
    learned = labels[:, 1:] != IGNORED
    if mask is not None:
        lengths = mask.sum(dim=1)
        tokens, pairs, samples = lengths.sum(), (lengths * lengths).sum(), learned.any(dim=1).sum()
    else:
        tokens = torch.tensor(ids.numel(), device=ids.device)
        places = batch["position_ids"] if "position_ids" in batch else torch.arange(ids.shape[1], device=ids.device)
        places = places.expand(len(ids), -1)
        pairs = (2 * places + 1).sum()
        number = (places == 0).flatten().cumsum(0).view_as(places)[:, 1:]  # of the sample that a position belongs to
        of_each = torch.zeros(ids.numel() + 1, dtype=torch.int64, device=ids.device)
        samples = (of_each.index_add_(0, number.flatten(), learned.flatten().long()) > 0).sum()
    pictures = len(batch["image_embeds"]) if "image_embeds" in batch else 0
    return torch.stack([tokens, pairs, learned.sum(), torch.tensor(pictures, device=ids.device), samples]).to(
        torch.int64
    )
