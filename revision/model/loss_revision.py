"""The loss of an output layer without its logits: summed cross-entropy, a chunk of positions at a time.

Logits in float32 are what training a small LLM runs out of memory for: 8,192 labels of a vocabulary of 128k take 4 GiB,
and as much again for their gradient. Here one chunk of them exists at a time, and becomes its own gradient in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn

MOST_LOGITS = 2**27  # float32 numbers that may exist at a time: half a GiB

# What LLMs of transformers call the factor on their logits, by the name in their config: multiplied, or divided by.
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_MULTIPLIES = ("hyperclovax",)  # types of model whose logits_scaling is a factor


class Shaping(NamedTuple):
    """What an LLM does to the numbers that its output layer puts out: y = scale * x, then cap * tanh(y / cap).

    Cohere, Granite and others scale them; Gemma 2 and others cap them (2408.00118, Sec. 2).
    """

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> Shaping:
        """As the configuration of a causal LM says it; training compares it with the LLM's own pass."""
        known = config.to_dict()
        scale = 1.0
        for name in (*_FACTORS, *_DIVISORS):
            value = known.get(name)
            if value is not None:
                divides = name in _DIVISORS and config.model_type not in _MULTIPLIES
                scale = scale / float(value) if divides else scale * float(value)
        cap = next((float(known[name]) for name in _CAPS if known.get(name)), None)
        return cls(scale, cap)

    @property
    def is_plain(self) -> bool:
        """Whether the output layer's numbers are the logits."""
        return self == Shaping()

    def logits(self, raw: torch.Tensor) -> torch.Tensor:
        """Numbers of the output layer to logits float32, for autograd."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def shape_(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The same in place, without autograd, and the derivative [like logits] where it is no constant."""
        if self.scale != 1.0:
            logits *= self.scale
        if self.cap is None:
            return None
        logits /= self.cap
        logits.tanh_()
        slope = logits.square().neg_().add_(1.0)
        logits *= self.cap
        return slope


PLAIN = Shaping()


def output_loss(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, shaping: Shaping = PLAIN
) -> tuple[torch.Tensor, Any]:
    """Summed cross-entropy of an output layer, and its logits where there are few.

    Args:
        head: hidden states to logits of V words. A linear layer is computed in chunks where there would be more than
            `MOST_LOGITS` logits, or where ZeRO-3 has its weights; any other (wrapped by an adapter) is called once.
        hidden: [n, H].
        targets: int64 [n].
        shaping: of the layer's numbers into logits.

    Returns:
        The sum in float32, and logits float32 [n, V], or None where they were computed in chunks.
    """
    if _is_linear(head):
        whole, many = is_whole_linear(head), len(targets) * head.out_features > MOST_LOGITS
        if (whole and _is_gathered(head)) or many:
            return _in_chunks(head, hidden, targets, shaping, called=not whole), None
    logits = shaping.logits(head(hidden))
    return nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum"), logits


def _in_chunks(
    head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, shaping: Shaping, *, called: bool
) -> torch.Tensor:
    """called: the weights are whole during a call of the layer alone, as FSDP2's are; so this becomes that call."""
    copies = 1 if shaping.cap is None else 2  # a cap's derivative is as large as the logits
    chunk = max(1, MOST_LOGITS // copies // head.out_features)

    def loss(inputs: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, H] to their summed loss, in the place of their logits."""
        wanted = targets.to(inputs.device)
        return linear_cross_entropy(inputs, head.weight, wanted, bias=head.bias, chunk=chunk, shaping=shaping)

    if not called:
        return loss(hidden)
    head.forward = loss  # type: ignore[method-assign,assignment]
    try:
        total: torch.Tensor = head(hidden)
    finally:
        del head.forward  # what stands in front of the class's own
    return total


def _is_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer computes what a linear one does, of whatever class an engine has made it."""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)


def is_whole_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a plain linear one with all of its weights here, and not a shard that an engine gathers."""
    whole = (head.out_features, head.in_features) if type(head) is nn.Linear else None
    return whole is not None and type(head.weight) is nn.Parameter and head.weight.shape == whole


def _is_gathered(head: nn.Linear) -> bool:
    """Whether ZeRO-3 has put the weights together, as it does for the whole pass where a forward looks at them.

    Then no process may call the layer: each call is a round of messages to all, and they differ in their labels.
    """
    return hasattr(head.weight, "ds_id")


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    chunk: int = 1024,
    shaping: Shaping = PLAIN,
) -> torch.Tensor:
    """Cross-entropy of `hidden @ weight.T + bias`, summed over positions, as torch computes it from float32 logits.

    Gradients are computed along with the sum, for the inputs that need them: a frozen table costs none. Products are in
    the type of the weights, or in that of autocast; everything else is float32.

    Args:
        hidden: [n, H].
        weight: [V, H].
        targets: int64 [n].
        bias: [V] or None.
        chunk: positions at a time.
        shaping: of the products into logits.
    """
    settings = (chunk, shaping, torch.is_grad_enabled())
    total: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, settings)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        settings: tuple[int, Shaping, bool],
    ) -> torch.Tensor:
        """The sum, and at once the gradients that will be asked for: the logits are there now and never again."""
        chunk, shaping, differentiate = settings
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needed = [differentiate and need for need in ctx.needs_input_grad[:3]]
        like = (hidden, weight, bias)
        gradients = [
            torch.zeros_like(one, dtype=torch.float32) if need and one is not None else None
            for one, need in zip(like, needed, strict=True)
        ]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            table, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(targets), chunk):
                part, wanted = hidden[start : start + chunk].to(dtype), targets[start : start + chunk, None]
                logits = nn.functional.linear(part, table, shift).float()
                slope = shaping.shape_(logits)
                logits -= logits.amax(dim=-1, keepdim=True)
                chosen = logits.gather(1, wanted)
                sums = logits.exp_().sum(dim=-1, keepdim=True)
                total += (sums.log() - chosen).sum()
                if any(needed):
                    # From here on what was the logits is the gradient of the sum in them: softmax minus one-hot.
                    logits.div_(sums).scatter_add_(1, wanted, torch.full_like(chosen, -1))
                    if slope is not None:
                        logits *= slope
                    if shaping.scale != 1.0:
                        logits *= shaping.scale
                    _add(gradients, start, part, table, logits)
                del logits, slope  # before the next ones are made
        ctx.dtypes = [None if one is None else one.dtype for one in like]
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of `forward`, scaled."""
        scaled = (
            None if one is None else (one * outer).to(dtype)
            for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None)


def _add(
    gradients: list[torch.Tensor | None], start: int, part: torch.Tensor, table: torch.Tensor, slopes: torch.Tensor
) -> None:
    """One chunk's share of the gradients of hidden states, table and bias."""
    of_hidden, of_weight, of_bias = gradients
    if of_bias is not None:
        of_bias += slopes.sum(dim=0)
    narrow = slopes.to(table.dtype)
    if of_hidden is not None:
        of_hidden[start : start + len(part)] = narrow @ table
    if of_weight is not None:
        of_weight += narrow.T @ part
