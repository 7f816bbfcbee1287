"""What a stage does otherwise when its rows are packed: attention sample by sample, and the proof that it is so."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_flash_attn_2_available

from revision.data.collators import PackedCollator
from revision.model import RevisionForConditionalGeneration
from revision.progress import say
from revision.training.segments import SEGMENTS

_TOLERANCE = 1e-5  # relative, of a loss that must not change at all
_LOW_PRECISION_TOLERANCE = 1e-3  # experts of a mixture may be computed in other groups


def prepare_packing(model: RevisionForConditionalGeneration, arguments: TrainingArguments) -> PackedCollator:
    """Sets model and arguments up for packed rows, and returns the collator that goes with their attention.

    On a CPU, attention goes sample by sample where the LLM's attention is plain, else over a dense mask. On a GPU,
    flash attention takes the place of sdpa, whose mask is dense, in half precision and where it is installed; it is
    told where samples begin.

    Raises:
        ValueError: flex attention on a CPU, which has no backward there.
    """
    arguments.per_device_train_batch_size = 1  # an item of the data set is a whole batch
    implementation = str(model.config.text_config._attn_implementation)
    if arguments.device.type == "cpu":
        if implementation == "flex_attention":
            raise ValueError(
                "flex attention has no backward pass on a CPU; load the LLM with eager or sdpa, or train on a GPU"
            )
        _attend_by_segments(model, main=arguments.process_index == 0)
    elif implementation == "sdpa" and (arguments.bf16 or arguments.fp16) and is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")
    implementation = str(model.config.text_config._attn_implementation)
    return PackedCollator(boundaries=implementation == SEGMENTS or implementation.startswith("flash"))


def _attend_by_segments(model: RevisionForConditionalGeneration, *, main: bool) -> None:
    """Attention sample by sample, if it gives what the LLM's own eager attention does; else that, on a dense mask."""
    if is_deepspeed_zero3_enabled():  # shards cannot be asked before the engine has them
        model.set_attn_implementation("eager")
        return
    ids = torch.from_numpy(_words(model, 24, seed=0))[None]
    hidden = []
    training = model.training
    model.eval()
    for implementation in ("eager", SEGMENTS):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            hidden.append(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float())
    model.train(training)
    eager, segments = hidden
    if (eager - segments).norm() > 0.03 * eager.norm():
        model.set_attn_implementation("eager")
        if main:
            say("the LLM's attention is not plain: packed rows of T tokens cost T^2 here; keep pack_tokens small")


class SeparationCheck(TrainerCallback):
    """Proves, before the first step and on the wrapped model, that the samples of a row do not see each other.

    Two rows begin with different samples and end with the same one, whose loss must be the same. Where it is not, the
    LLM mixes the samples of a row, which no curve would show.
    """

    def __init__(self, trainer: Any, collator: PackedCollator) -> None:
        self._trainer, self._collator = trainer, collator

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises ValueError where samples mix."""
        model = self._trainer.model
        second = _words(model, 12, seed=1)
        losses = []
        self._trainer.model_wrapped.eval()
        for seed in (2, 3):
            first = _words(model, 12, seed=seed)
            pack = [_example(first, np.full_like(first, -100)), _example(second, second.copy())]
            batch = self._trainer._prepare_inputs(self._collator([pack]))
            with torch.no_grad(), self._trainer.compute_loss_context_manager():
                losses.append(float(self._trainer.model_wrapped(**batch).loss))
        apart = abs(losses[0] - losses[1])
        exact = model.dtype == torch.float32 and not (args.bf16 or args.fp16)
        if apart > (_TOLERANCE if exact else _LOW_PRECISION_TOLERANCE) * abs(losses[0]):
            raise ValueError(
                "this LLM lets the samples of a packed row see each other: the loss of one changed by "
                f"{apart:.2g} with the one before it; set packing=none for it"
            )


def _words(model: RevisionForConditionalGeneration, count: int, *, seed: int) -> np.ndarray:
    """Token ids that are no pictures, int64 [count]."""
    ids = np.random.default_rng(seed).integers(model.config.text_config.vocab_size - 1, size=count)
    return np.where(ids >= model.config.image_token_id, ids + 1, ids)


def _example(ids: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"input_ids": ids, "labels": labels, "image_embed": None}
