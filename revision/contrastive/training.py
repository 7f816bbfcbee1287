"""Contrastive training of a part of a dual encoder. Where that is the heads, only they run: thirty epochs take seconds.

The temperature is fixed at 100 by default, where CLIP's own training ends (Radford et al. 2021, Sec. 2.5: clamped at
100). Left free on small data it settles near 15, the two sides move together, and hardly any modality gap is left to
align.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
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
    image_of, text_of = features.image_of.tolist(), features.text_of.tolist()
    waiting = deque(torch.randperm(len(features), generator=generator).tolist())
    first = True
    while waiting:
        batch: list[int] = []
        later: list[int] = []
        images: set[int] = set()
        texts: set[int] = set()
        while waiting and len(batch) < batch_size:
            pair = waiting.popleft()
            if image_of[pair] in images or text_of[pair] in texts:
                later.append(pair)
            else:
                batch.append(pair)
                images.add(image_of[pair])
                texts.add(text_of[pair])
        if len(batch) < batch_size and not first:
            return
        yield torch.tensor(batch)
        first = False
        waiting.extendleft(reversed(later))


def warmup_steps(steps: int, warmup: float) -> int:
    """Steps of the linear warm-up, the share `warmup` of all."""
    return math.ceil(warmup * steps)


def learning_rate_at(step: int, *, steps: int, warmup: float, peak: float) -> float:
    """Cosine decay to 0 after a linear warm-up over the share `warmup` of all steps; `step` counts from 0."""
    ramp = warmup_steps(steps, warmup)
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def train(
    part: TrainedPart,
    *,
    pairs: PairInputs,
    validation: PairInputs,
    settings: ContrastSettings,
    report: Callable[[dict[str, float]], None],
    advance: Callable[[int, int], None],
    observe: Callable[[Snapshot], None] | None = None,
) -> dict[str, float]:
    """Trains in place with open_clip's ClipLoss, AdamW and a cosine schedule.

    Args:
        pairs, validation: inputs on the device of the model.
        report: receives one mapping before the first step, each `probe_interval` steps and at the end: step, loss and
            learning rate (once there are any), logit scale, and `probe` of the validation pairs.
        advance: called with (steps done, steps in all).
        observe: receives the validation pairs whenever `report` is called, before it.

    Returns:
        The last report.

    Raises:
        ValueError: fewer than two distinct pairs to contrast, or a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    batches = [b for _ in range(settings.epochs) for b in distinct_batches(pairs, settings.batch_size, generator)]
    if not batches or len(batches[0]) < 2:
        raise ValueError("contrast needs at least two training pairs that differ in picture and text")
    before = {name: value.detach().clone() for name, value in part.parameters.items()}
    locked = _locked_sha256(part)
    optimizer = _optimizer(part, settings)
    clip_loss = ClipLoss()
    torch.manual_seed(settings.seed)  # for dropout, where there is any

    def measure(step: int, **training: float) -> dict[str, float]:
        """Retrieval and gap on the validation pairs, reported and handed to the observer; gives what was measured."""
        images, texts = unit_rows(part, validation)
        scale = float(part.model.logit_scale.detach().exp())
        if observe is not None:
            observe(Snapshot(step, len(batches), images, texts, scale))
        measured = {"step": step, **training, "logit_scale": scale, **probe(images, texts, validation)}
        report(measured)
        return measured

    measured = measure(0)
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
    return measured


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
