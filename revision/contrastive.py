"""Contrastive training of the heads of a dual encoder whose towers stay locked.

A locked tower gives the same features for the same file or text in every epoch. They are computed once, held in
memory, and only the heads behind them run after that, so that thirty epochs take seconds. What is trained is the same
function as the whole model: the features are what open_clip's own heads receive, caught at their door.

The temperature is fixed at 100 by default, where CLIP's own training ends (Radford et al. 2021, Sec. 2.5: clamped at
100). Left free on small data it settles near 15, the two sides move together, and hardly any modality gap is left to
align.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from open_clip import ClipLoss, CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from torch import nn

from revision.openclip_folder import head_parameters, state_sha256

MAX_LOGIT_SCALE = 100.0
_BETAS = (0.9, 0.98)  # open_clip's own, as CLIP's
_EPS = 1e-6

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairFeatures:
    """What the heads receive for a set of pairs; each distinct picture and text is held once.

    Attributes:
        images: float32 [pictures, ...], features of the image tower before its head.
        texts: float32 [texts, width], pooled features of the text tower before its projection.
        image_of: int64 [pairs], which picture a pair has.
        text_of: int64 [pairs], which text.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_of: torch.Tensor
    text_of: torch.Tensor

    def __len__(self) -> int:
        return len(self.image_of)


@dataclass(frozen=True)
class HeadTraining:
    """Settings of `train_heads`; the fields of `schema.ContrastConfig` of the same names."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float
    logit_scale: float
    learn_logit_scale: bool
    probe_interval: int
    seed: int


def distinct(values: Iterable[str]) -> tuple[list[str], torch.Tensor]:
    """The distinct values in order of first appearance, and for each value its number there, int64 [n]."""
    numbers: dict[str, int] = {}
    which = [numbers.setdefault(value, len(numbers)) for value in values]
    return list(numbers), torch.tensor(which, dtype=torch.int64)


def lock_towers(model: nn.Module) -> CustomTextCLIP:
    """Freezes both towers with open_clip's own locks, normalisation statistics included.

    Returns:
        The same model; its head parameters are all that still requires gradients.

    Raises:
        ValueError: not a CustomTextCLIP of a timm and a Hugging Face tower with a head each.
    """
    heads = head_parameters(model)
    if (
        not isinstance(model, CustomTextCLIP)
        or not isinstance(model.visual, TimmModel)
        or not isinstance(model.text, HFTextEncoder)
        or {name.split(".")[0] for name in heads} != {"visual", "text"}
    ):
        raise ValueError(
            f"contrast.init holds a {type(model).__name__} whose heads cannot be trained alone; it needs an open_clip "
            "CustomTextCLIP with a timm image tower (timm_proj) and a Hugging Face text tower (hf_proj_type)"
        )
    model.requires_grad_(True)
    model.lock_image_tower()
    model.lock_text_tower(unlocked_layers=0)
    model.logit_scale.requires_grad_(False)
    model.eval()
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainable == heads.keys(), trainable ^ heads.keys()
    return model


@torch.no_grad()
def head_inputs(head: nn.Module, encode: Callable[[torch.Tensor], object], batch: torch.Tensor) -> torch.Tensor:
    """What a head receives while the whole model encodes a batch: float32 [n, ...] on the model's device."""
    caught: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        encode(batch)
    finally:
        hook.remove()
    (features,) = caught
    return features.float()


def project(model: CustomTextCLIP, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Head inputs [n, ...] and [m, width] to unit rows [n, d] and [m, d]."""
    normalize = nn.functional.normalize
    return normalize(model.visual.head(images), dim=-1), normalize(model.text.proj(texts), dim=-1)


def distinct_batches(features: PairFeatures, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
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


def learning_rate_at(step: int, *, steps: int, warmup: float, peak: float) -> float:
    """Cosine decay to 0 after a linear warm-up over the share `warmup` of all steps; `step` counts from 0."""
    ramp = math.ceil(warmup * steps)
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def train_heads(
    model: CustomTextCLIP,
    *,
    train: PairFeatures,
    validation: PairFeatures,
    settings: HeadTraining,
    report: Callable[[dict[str, float]], None],
    advance: Callable[[int, int], None],
) -> dict[str, float]:
    """Trains the heads in place with open_clip's ClipLoss, AdamW and a cosine schedule.

    Args:
        model: towers locked by `lock_towers`.
        train, validation: features on the device of the heads.
        report: receives one mapping before the first step, each `probe_interval` steps and at the end: step, loss and
            learning rate (once there are any), logit scale, and `probe` of the validation pairs.
        advance: called with (steps done, steps in all).

    Returns:
        The last report.

    Raises:
        ValueError: fewer than two distinct pairs to contrast, or a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    batches = [b for _ in range(settings.epochs) for b in distinct_batches(train, settings.batch_size, generator)]
    if not batches or len(batches[0]) < 2:
        raise ValueError("contrast needs at least two training pairs that differ in picture and text")
    heads = head_parameters(model)
    before = {name: value.detach().clone() for name, value in heads.items()}
    towers = _towers_sha256(model)
    optimizer = _optimizer(model, heads, settings)
    clip_loss = ClipLoss()
    torch.manual_seed(settings.seed)  # for the dropout of a head, where it has one
    report(_measure(model, validation, step=0))
    measured: dict[str, float] = {}
    for step, batch in enumerate(batches, start=1):
        rate = learning_rate_at(step - 1, steps=len(batches), warmup=settings.warmup, peak=settings.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(model, train, batch, optimizer, clip_loss)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {step}; lower contrast.learning_rate="
                f"{settings.learning_rate}, or check the pictures and texts"
            )
        advance(step, len(batches))
        if step % settings.probe_interval == 0 or step == len(batches):
            measured = _measure(model, validation, step=step, loss=loss, learning_rate=rate)
            report(measured)
    unmoved = [name for name, value in heads.items() if torch.equal(value, before[name])]
    assert not unmoved, f"these heads did not move: {unmoved}"
    assert _towers_sha256(model) == towers, "a locked tower moved"
    return measured


def _measure(model: CustomTextCLIP, validation: PairFeatures, **training: float) -> dict[str, float]:
    return {**training, "logit_scale": float(model.logit_scale.detach().exp()), **probe(model, validation)}


def _optimizer(model: CustomTextCLIP, heads: dict[str, nn.Parameter], settings: HeadTraining) -> torch.optim.AdamW:
    """Sets the temperature; weight decay is for matrices only, as in open_clip."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(settings.logit_scale))
    model.logit_scale.requires_grad_(settings.learn_logit_scale)
    matrices = [value for value in heads.values() if value.ndim >= 2]
    others = [value for value in heads.values() if value.ndim < 2]
    if settings.learn_logit_scale:
        others.append(model.logit_scale)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, eps=_EPS)


def _step(
    model: CustomTextCLIP,
    features: PairFeatures,
    batch: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    clip_loss: ClipLoss,
) -> float:
    model.visual.head.train()
    model.text.proj.train()
    images, texts = project(model, features.images[features.image_of[batch]], features.texts[features.text_of[batch]])
    loss = clip_loss(images, texts, model.logit_scale.exp())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if model.logit_scale.requires_grad:
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
    return float(loss.detach())


@torch.inference_mode()
def probe(model: CustomTextCLIP, pairs: PairFeatures) -> dict[str, float]:
    """Retrieval and geometry of a set of pairs under the present heads.

    Returns:
        `image_to_text_r1`, `_r5`, `text_to_image_r1`, `_r5`: share of distinct pictures (texts) with one of their own
        texts (pictures) among the first 1 (5) of all distinct ones; ties count against.
        `gap`: distance of the two centroids. `trace_image`, `trace_text`: mean squared distance of a row from its
        centroid (ReVision v3, Sec. 3).
    """
    model.visual.head.eval()
    model.text.proj.eval()
    images, texts = project(model, pairs.images, pairs.texts)
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


def _towers_sha256(model: CustomTextCLIP) -> str:
    heads = head_parameters(model).keys() | {"logit_scale"}
    return state_sha256({name: value for name, value in model.state_dict().items() if name not in heads})


def stack_features(batches: Sequence[tuple[np.ndarray, torch.Tensor]]) -> torch.Tensor:
    """Batches of (positions, features) in any order to one tensor in the order of the positions."""
    positions = torch.from_numpy(np.concatenate([where for where, _ in batches]))
    features = torch.cat([rows for _, rows in batches])
    return features[torch.argsort(positions)]
