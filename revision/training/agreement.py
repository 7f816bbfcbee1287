"""Whether the loss is computed from the logits that the LLM itself would put out.

Training runs the LLM's decoder on embeddings and its output layer where labels are, and not the LLM's own forward pass.
Some LLMs do more in theirs: they scale embeddings, hidden states or logits, cap them, mask them. What is a factor or a
soft cap of the logits is `loss_revision.Shaping`; an LLM that does anything else would learn one function and answer
by another, and is refused here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from revision.model import RevisionForConditionalGeneration

_TOKENS = 6
_REACH = 100.0  # numbers of the output layer are taken from -100 to 100: trained LLMs stay within, and caps show
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}  # of hidden states, relative to the largest; others:
_HALF_ROUNDING = 2e-2
_SHAPE_ROUNDING = 1e-2  # of logits, since an LLM may round them to half precision


def require_own_logits(model: RevisionForConditionalGeneration) -> bool:
    """Refuses an LLM whose own forward pass is another function than the one that training computes its loss by.

    Compares, on a few tokens, what reaches the output layer in both, and what its numbers become behind it: there they
    are replaced by a ramp, so that a cap shows whatever the weights are. Each is one pass without gradients.

    Args:
        model: with all of its weights, frozen or not, before an engine or an adapter has it.

    Returns:
        Whether there was something to compare: not under ZeRO-3, nor on the meta device.

    Raises:
        ValueError: names the type of LLM, and what differs.
    """
    if is_deepspeed_zero3_enabled() or any(one.is_meta for one in model.parameters()):
        return False
    language_model: Any = model.language_model
    was_training = language_model.training
    language_model.eval()
    try:
        with torch.no_grad():
            problem = _difference(model, language_model)
    finally:
        language_model.train(was_training)
    if problem is not None:
        raise ValueError(
            f"model.llm is of type {model.config.text_config.model_type}, {problem}, so it would learn another "
            "function than it answers by; choose another LLM"
        )
    return True


def _difference(model: RevisionForConditionalGeneration, language_model: Any) -> str | None:
    """What the two passes do not share, in words."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    count: Any = table.num_embeddings
    ids = torch.linspace(1, count - 1, _TOKENS + 1).long()
    ids = ids[ids != model.config.image_token_id][None, :_TOKENS].to(next(table.parameters()).device)
    reached: list[torch.Tensor] = []
    ramps: list[torch.Tensor] = []

    def note(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Keeps what reaches the output layer."""
        reached.append(inputs[0])

    def replace(_layer: nn.Module, _inputs: Any, raw: torch.Tensor) -> torch.Tensor:
        """Puts a ramp in the place of the layer's numbers."""
        ramps.append(torch.linspace(-_REACH, _REACH, raw.shape[-1], device=raw.device).expand(raw.shape))
        return ramps[-1]

    hooks = [head.register_forward_pre_hook(note), head.register_forward_hook(replace)]
    try:
        own = language_model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(reached) != 1:
        return "which does not call its output layer once a pass, as the loss does"
    try:
        inputs = model.embed_inputs(ids, None)
        hidden = model.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        return f"which cannot be given embeddings in place of tokens ({reason})"
    factor = _factor(reached[0], hidden)
    if factor is None:
        return "which treats the embeddings of tokens otherwise than embeddings that it is given"
    shaped = model.shaping.logits(ramps[0] / factor)
    if own.shape != shaped.shape or not _close(own.float(), shaped, _SHAPE_ROUNDING):
        return "which does more to the numbers of its output layer than a factor and a soft cap from its config"
    return None


def _factor(own: torch.Tensor, ours: torch.Tensor) -> float | None:
    """What hidden states are multiplied by on their way to the output layer; None: they are others."""
    if own.shape != ours.shape:
        return None
    rounding = _ROUNDING.get(ours.dtype, _HALF_ROUNDING)
    own, ours = own.float(), ours.float()
    if _close(own, ours, rounding):
        return 1.0
    factor = float((own * ours).sum() / ours.square().sum())
    return factor if factor and _close(own, ours * factor, rounding) else None


def _close(one: torch.Tensor, other: torch.Tensor, rounding: float) -> bool:
    """False too where a number is none."""
    return bool((one - other).abs().max() <= rounding * other.abs().max())
