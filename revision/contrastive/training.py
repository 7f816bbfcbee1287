"""Contrastive training of a part of a dual encoder. Where that is the heads, only they run: thirty epochs take seconds.

The temperature is fixed at 100 by default, where CLIP's own training ends (Radford et al. 2021, Sec. 2.5: clamped at
100). Left free on small data it settles near 15, the two sides move together, and hardly any modality gap is left to
align.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from open_clip import ClipLoss

from revision.contrastive.features import PairInputs
from revision.contrastive.parts import TrainedPart, project
from revision.contrastive.probe import probe, unit_rows
from revision.encoders.openclip_folder import state_sha256

MAX_LOGIT_SCALE = 100.0
_BETAS = (0.9, 0.98)  # open_clip's own, as CLIP's
_EPS = 1e-6


@dataclass(frozen=True)
class ContrastSettings:
    """Settings of `train`; the fields of `schema.ContrastConfig` of the same names."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float
    logit_scale: float
    learn_logit_scale: bool
    probe_interval: int
    seed: int


@dataclass(frozen=True)
class Snapshot:
    """The validation pairs at one step.

    Attributes:
        step: steps done; steps: steps in all.
        images, texts: unit rows, float32 [distinct pictures, d] and [distinct texts, d].
        logit_scale: factor on the cosines.
    """

    step: int
    steps: int
    images: torch.Tensor
    texts: torch.Tensor
    logit_scale: float


def distinct_batches(features: PairInputs, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """One epoch of batches, int64 [batch_size], in which no picture and no text occurs twice.

    Two rows with the same text would each be pushed away from the other's picture, though it fits. Pairs are taken in
    random order; one that clashes with its batch waits for the next. The pairs left when no full batch can be formed
    sit out this epoch, unless there is no full batch at all: then one smaller batch is the epoch.
    """
    keys = list(zip(features.image_of.tolist(), (-1 - text for text in features.text_of.tolist()), strict=True))
    order = torch.randperm(len(features), generator=generator).tolist()
    # A pair that has clashed waits under the picture or text that it clashed over, of whose pairs a batch takes one at
    # most: so a batch looks at the first of each such queue alone, and an epoch costs what sorting does, however many
    # pairs share a caption. `heads` holds (place of the first pair in `order`, key); an entry may be out of date.
    queues: dict[int, list[int]] = {}
    heads: list[tuple[int, int]] = []
    fresh = 0
    first = True
    while fresh < len(order) or heads:
        batch: list[int] = []
        used: set[int] = set()
        later: set[int] = set()  # keys whose queues have a part in the next batch again
        while len(batch) < batch_size and (heads or fresh < len(order)):
            if heads:
                place, key = heapq.heappop(heads)
                if not queues[key] or queues[key][0] != place:
                    continue
                if key in used:
                    later.add(key)
                    continue
                heapq.heappop(queues[key])
                if queues[key]:
                    heapq.heappush(heads, (queues[key][0], key))
            else:
                place, fresh = fresh, fresh + 1
            clash = next((key for key in keys[order[place]] if key in used), None)
            if clash is None:
                batch.append(order[place])
                used.update(keys[order[place]])
            else:
                heapq.heappush(queues.setdefault(clash, []), place)
                later.add(clash)
        if len(batch) < batch_size and not first:
            return
        yield torch.tensor(batch)
        first = False
        for key in later:
            heapq.heappush(heads, (queues[key][0], key))


def warmup_steps(steps: int, warmup: float) -> int:
    """Steps of the linear warm-up, the share `warmup` of all."""
    return math.ceil(warmup * steps)


def learning_rate_at(step: int, *, steps: int, warmup: float, peak: float) -> float:
    """Cosine decay to 0 after a linear warm-up over the share `warmup` of all steps; `step` counts from 0."""
    ramp = warmup_steps(steps, warmup)
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def training_batches(pairs: PairInputs, settings: ContrastSettings) -> list[torch.Tensor]:
    """The batches of all epochs in order, a step each.

    Raises:
        ValueError: fewer than two distinct pairs to contrast.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    batches = [b for _ in range(settings.epochs) for b in distinct_batches(pairs, settings.batch_size, generator)]
    if not batches or len(batches[0]) < 2:
        raise ValueError("contrast needs at least two training pairs that differ in picture and text")
    return batches


def train(
    part: TrainedPart,
    *,
    pairs: PairInputs,
    validation: PairInputs,
    settings: ContrastSettings,
    report: Callable[[dict[str, float]], None],
    advance: Callable[[int, int], None],
    observe: Callable[[Snapshot], None] | None = None,
    batches: Sequence[torch.Tensor] | None = None,
) -> dict[str, float]:
    """Trains in place with open_clip's ClipLoss, AdamW and a cosine schedule.

    Args:
        pairs, validation: inputs on the device of the model.
        report: receives one mapping before the first step, each `probe_interval` steps and at the end: step, loss and
            learning rate (once there are any), logit scale, and `probe` of the validation pairs.
        advance: called with (steps done, steps in all).
        observe: receives the validation pairs whenever `report` is called, before it.
        batches: from `training_batches`, where they are made already.

    Returns:
        The last report, and `left_out`, the share of pairs that sat out, over all epochs.

    Raises:
        ValueError: fewer than two distinct pairs to contrast, or a loss that is not finite.
    """
    batches = training_batches(pairs, settings) if batches is None else batches
    before = {name: value.detach().clone() for name, value in part.parameters.items()}
    locked = _locked_sha256(part)
    optimizer = _optimizer(part, settings)
    clip_loss = ClipLoss()
    torch.manual_seed(settings.seed)  # for dropout, where there is any

    def measure(step: int, **training: float) -> dict[str, float]:
        """Retrieval and gap on the validation pairs, reported and handed to the observer; gives what was measured."""
        images, texts = unit_rows(part, validation)
        if not (bool(images.isfinite().all()) and bool(texts.isfinite().all())):  # NaN would rank first everywhere
            raise ValueError(
                f"embeddings of the validation pairs are NaN or infinite at step {step}; lower "
                f"contrast.learning_rate={settings.learning_rate}, or check the weights it starts from"
            )
        scale = float(part.model.logit_scale.detach().exp())
        if observe is not None:
            observe(Snapshot(step, len(batches), images, texts, scale))
        measured = {"step": step, **training, "logit_scale": scale, **probe(images, texts, validation)}
        report(measured)
        return measured

    measured = measure(0)
    left_out = settings.epochs * len(pairs) - sum(map(len, batches))
    for step, batch in enumerate(batches, start=1):
        rate = learning_rate_at(step - 1, steps=len(batches), warmup=settings.warmup, peak=settings.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(part, pairs, batch, optimizer, clip_loss)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {step}; lower contrast.learning_rate="
                f"{settings.learning_rate}, or check the pictures and texts"
            )
        advance(step, len(batches))
        if step % settings.probe_interval == 0 or step == len(batches):
            measured = measure(step, loss=loss, learning_rate=rate)
    unmoved = [name for name, value in part.parameters.items() if torch.equal(value, before[name])]
    assert not unmoved, f"these parameters did not move: {unmoved}"
    assert _locked_sha256(part) == locked, "a locked tower moved"
    return {**measured, "left_out": left_out / (settings.epochs * len(pairs))}


def _locked_sha256(part: TrainedPart) -> str:
    return state_sha256({name: value for name, value in part.model.state_dict().items() if name in part.locked})


def _optimizer(part: TrainedPart, settings: ContrastSettings) -> torch.optim.AdamW:
    """Sets the temperature; weight decay is for matrices only, as in open_clip."""
    scale = part.model.logit_scale
    with torch.no_grad():
        scale.fill_(math.log(settings.logit_scale))
    scale.requires_grad_(settings.learn_logit_scale)
    matrices = [value for value in part.parameters.values() if value.ndim >= 2]
    others = [value for value in part.parameters.values() if value.ndim < 2]
    if settings.learn_logit_scale:
        others.append(scale)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, eps=_EPS)


def _step(
    part: TrainedPart,
    inputs: PairInputs,
    batch: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    clip_loss: ClipLoss,
) -> float:
    part.training_mode(True)
    images, texts = project(part, inputs.images[inputs.image_of[batch]], inputs.texts[inputs.text_of[batch]])
    scale = part.model.logit_scale
    loss = clip_loss(images, texts, scale.exp())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if scale.requires_grad:
        with torch.no_grad():
            scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
    return float(loss.detach())
