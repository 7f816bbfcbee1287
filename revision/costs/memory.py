"""What lies in the memory of each GPU while a stage trains.

Bytes a parameter, of P that train and all Q, on n GPUs, in bfloat16 with AdamW:

| | weights | gradients | optimizer |
|---|---|---|---|
| zero0: plain data parallelism under autocast | as they are typed: 4P, frozen 2 | 4P | 8P |
| zero1 (Rajbhandari et al. 2020, ZeRO, Fig. 1) | 2Q | 2P | (4 + 8) P / n |
| zero2 | 2Q | 2P / n | (4 + 8) P / n |
| zero3 | 2Q / n | 2P / n | (4 + 8) P / n |
| fsdp: all is sharded, weights typed as under zero0 | (4P, frozen 2) / n | 4P / n | 8P / n |

Besides come buffers, activations, logits, and the work of a layer's backward pass (`Footprint`). Weights in four bits
(QLoRA: 2305.14314, Sec. 3) take half a byte, and a byte for each 64 and four for each 16,384 of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from revision.costs.sketch import Saved, saved_bytes
from revision.model import loss_revision

GIB = 2**30
# Bytes a trained parameter that an optimizer of transformers keeps; others are counted as AdamW.
STATE_BYTES = {"sgd": 0, "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "lion_32bit": 4, "adafactor": 0}
_ADAM_BYTES = 8
_BUCKET = 5e8  # numbers in each of DeepSpeed's two buckets, of gradients and of gathered weights; its defaults
_LIVE = 2e9  # numbers that ZeRO-3 keeps gathered, as `training.engines` sets it


class Sharding(Enum):
    """How weights, gradients and optimizer states are spread over the GPUs, from the most memory to the least."""

    zero0 = "zero0"
    zero1 = "zero1"
    zero2 = "zero2"
    zero3 = "zero3"
    fsdp = "fsdp"


@dataclass(frozen=True)
class Size:
    """Parameters of a model, tied ones once.

    Attributes:
        trains, total: numbers.
        trained_bytes, total_bytes: as they are typed.
        layer: numbers of the largest layer of the LLM, which FSDP gathers as a whole.
        root: numbers outside of the layers, which FSDP gathers from the first use to the last.
        packed, packed_bytes: of these, in four bits: numbers, and bytes.
        unpacked: numbers of the largest matrix among them, which is made whole to be multiplied with.
    """

    trains: int
    total: int
    trained_bytes: int
    total_bytes: int
    layer: int
    root: int
    packed: int = 0
    packed_bytes: int = 0
    unpacked: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes on each GPU at the peak of a step.

    Attributes:
        buffers: copies for arithmetic and communication.
        activations: what autograd keeps from the forward pass.
        logits: and what their loss makes of them, a chunk at a time or at once (`loss_revision`); gone when the
            backward pass reaches the layers.
        layer: one layer in the backward pass, its gradients, and itself where it is computed again.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float
    logits: float
    layer: float

    @property
    def total(self) -> float:
        """All that is there at once: never both logits and a layer's backward pass."""
        lasting = self.weights + self.gradients + self.optimizer + self.buffers + self.activations
        return lasting + max(self.logits, self.layer)


@dataclass(frozen=True)
class Batch:
    """The largest batch that a GPU meets at once: sequences, positions of all of them, and labels."""

    sequences: int
    tokens: float
    labels: float


class Memory:
    """Footprints of one model whose parameters are frozen and typed as training would.

    Args:
        model: a sketch.
        half: training is in bfloat16 (or float16).
        optimizer: name as in `trainer.optim`.
        four_bit: parameters that are kept in four bits.
    """

    def __init__(
        self, model: Any, *, half: bool, optimizer: str = "adamw_torch", four_bit: Iterable[nn.Parameter] = ()
    ) -> None:
        self.size = size_of(model, four_bit)
        self._shaping, self._head = model.shaping, model.get_output_embeddings().weight
        self._dora = _norm_numbers(model)
        text = model.config.get_text_config()
        self._half = half
        self._states = STATE_BYTES.get(optimizer, _ADAM_BYTES)
        self._layers, self._hidden, self._vocabulary = text.num_hidden_layers, text.hidden_size, text.vocab_size
        self._typed = self._lean = _Kept.of(model, half=half)
        # What is float32 of the LLM is under autocast; DeepSpeed would make all weights bfloat16.
        if half and any(one.element_size() == 4 for one in model.language_model.parameters()):
            self._lean = _Kept.of(copy.deepcopy(model).to(torch.bfloat16), half=True)

    def footprint(
        self, sharding: Sharding, *, gpus: int, batch: Batch, checkpointing: bool, offload: bool = False
    ) -> Footprint:
        """Bytes on each GPU.

        Args:
            gpus: that share the work.
            batch: the largest micro-batch.
            checkpointing: activations are computed again in the backward pass, layer by layer.
            offload: optimizer states lie in the memory of the host.
        """
        weights, gradients, optimizer, buffers = self._states_of(sharding, gpus)
        deepspeed = sharding in (Sharding.zero1, Sharding.zero2, Sharding.zero3)
        activations, layer = self._activations(batch, checkpointing, self._lean if deepspeed else self._typed)
        whole = self.size.unpacked * (2 if self._half else 4)
        return Footprint(
            weights=weights,
            gradients=gradients,
            optimizer=0.0 if offload else optimizer,
            buffers=buffers,
            activations=activations,
            layer=layer + whole + self._dora * (2 if deepspeed and self._half else 4),
            logits=self._logits(batch.labels, sharding),
        )

    def _logits(self, labels: float, sharding: Sharding) -> float:
        """Of the output layer and its loss, in chunks where training computes them so."""
        table, numbers = self._vocabulary * self._hidden, labels * self._vocabulary
        held = 2 if self._half and sharding is not Sharding.zero0 else self._head.element_size()
        width = 2 if self._half else 4  # of products
        cast = width * table if held != width else 0  # of the output layer, under autocast
        # ZeRO-3's pieces of the output layer are put together, and never called.
        if numbers <= loss_revision.MOST_LOGITS and sharding is not Sharding.zero3:
            # They, their log-probabilities, and the gradients of both, in float32 in every precision; behind a cap,
            # also what it is the product of.
            return (16.0 if self._shaping.cap is None else 20.0) * numbers + cast
        copies = 1 if self._shaping.cap is None else 2
        rows = max(1, min(labels, loss_revision.MOST_LOGITS // copies // self._vocabulary))
        chunk = rows * self._vocabulary * (4 * copies + (2 if width == 2 else 0))
        of_hidden = 4 * labels * self._hidden  # gradients come with the sum, and are scaled on the way back
        trains = self._head.requires_grad
        forward = chunk + cast + of_hidden + (table * (4 + width) if trains else 0)
        backward = 2 * of_hidden + (table * (8 + (2 if held == 2 else 0)) if trains else 0)
        return float(max(forward, backward))

    def _states_of(self, sharding: Sharding, gpus: int) -> tuple[float, float, float, float]:
        """Weights, gradients, optimizer and buffers."""
        size = self.size
        states = float(self._states * size.trains)
        casts = self._typed.saved.casts
        if sharding is Sharding.zero0:  # the buckets of gradients are a copy of them
            copies = size.trained_bytes if gpus > 1 else 0
            return size.total_bytes, size.trained_bytes, states, casts + copies
        width = 2 if self._half else 4
        if sharding is Sharding.fsdp:  # two layers gathered, and the gradients of one unit
            gathered = float(width * (size.root + 2 * size.layer + max(size.root, size.layer))) if gpus > 1 else casts
            return size.total_bytes / gpus, size.trained_bytes / gpus, states / gpus, gathered
        weights = float(width * (size.total - size.packed) + size.packed_bytes)
        gradients = float(width * size.trains)
        optimizer = (states + 4 * size.trains) / gpus
        buckets = 2 * width * min(size.trains, _BUCKET)
        if sharding is Sharding.zero1:
            return weights, gradients, optimizer, buckets
        if sharding is Sharding.zero2:
            return weights, gradients / gpus, optimizer, buckets
        live = width * min(size.total, _LIVE) if gpus > 1 else 0.0
        return weights / gpus, gradients / gpus, optimizer, live + width * min(size.trains, _BUCKET)

    def _activations(self, batch: Batch, checkpointing: bool, kept: _Kept) -> tuple[float, float]:
        """What is kept of all layers, and the work of one."""
        pictures = batch.sequences * kept.saved.picture
        layer = batch.tokens * kept.alive.token / self._layers  # its gradients take about as much
        if not checkpointing:
            return batch.tokens * kept.saved.token + pictures, layer
        inputs = batch.tokens * self._layers * self._hidden * kept.stream  # of each layer
        return inputs + pictures, 2 * layer


@dataclass(frozen=True)
class _Kept:
    """Bytes of activations: `saved` by autograd; `alive` while a layer is worked on, were none of it frozen; and those
    of a number in the stream between layers."""

    saved: Saved
    alive: Saved
    stream: int

    @classmethod
    def of(cls, model: Any, *, half: bool) -> _Kept:
        """What passes through a model keep: as it trains, and as if all of it did."""
        saved = alive = saved_bytes(model, half=half)
        if not all(one.requires_grad for one in model.get_decoder().parameters()):
            alive = saved_bytes(copy.deepcopy(model).requires_grad_(True), half=half)
        return cls(saved, alive, model.get_input_embeddings().weight.element_size())


def size_of(model: nn.Module, four_bit: Iterable[nn.Parameter] = ()) -> Size:
    """Counts the parameters of a model. four_bit: those of them that are kept in four bits, whole here."""
    parameters = list(model.parameters())
    trained = [one for one in parameters if one.requires_grad]
    chosen = {id(one) for one in four_bit}
    packed = {id(one): one.numel() for one in parameters if id(one) in chosen}
    whole: Any = model
    layers = [sum(one.numel() for one in layer.parameters()) for layer in whole.get_decoder().layers]
    return Size(
        trains=sum(one.numel() for one in trained),
        total=sum(one.numel() for one in parameters),
        trained_bytes=sum(one.numel() * one.element_size() for one in trained),
        total_bytes=sum(one.numel() * one.element_size() for one in parameters if id(one) not in packed)
        + sum(map(four_bit_bytes, packed.values())),
        layer=max(layers),
        root=sum(one.numel() for one in parameters) - sum(layers),
        packed=sum(packed.values()),
        packed_bytes=sum(map(four_bit_bytes, packed.values())),
        unpacked=max(packed.values(), default=0),
    )


def four_bit_bytes(numbers: int) -> int:
    """Bytes of a matrix in NF4, quantised twice as bitsandbytes does it: a scale of one byte for each 64 numbers, one
    of four for each 256 of these, and its tables of 16 and 256 values and the mean of the scales in float32."""
    scales = -(-numbers // 64)
    return -(-numbers // 2) + scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1)


def _norm_numbers(model: nn.Module) -> int:
    """Numbers that DoRA makes, at most at a time, to learn the length of a layer's rows: an identity matrix, B A, and
    twice the sum of it and the layer."""
    sizes = [0]
    for name, _ in model.named_parameters():
        if ".lora_magnitude_vector." in name:
            layer: Any = model.get_submodule(name.partition(".lora_magnitude_vector.")[0])
            outputs, inputs = layer.get_base_layer().weight.shape
            sizes.append(inputs * (inputs + 3 * outputs))
    return max(sizes)
