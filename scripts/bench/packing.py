"""Packed rows beside padded batches: how full they are, and samples a second, on the nano texts and conversations.

python scripts/bench/packing.py [--samples 128] [--batch 16]     needs data/nano, as `make run` leaves it

Forward and backward of a frozen LLM behind a training projector, as in stage 1, over the same samples in each way, in
turns within one run. On a CPU, seconds are those of the process, so that others on a busy machine do not count. What
packing can gain is bounded by the padding that it saves, and the limit is what `make bench` asks for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import MISSED, RandomRows, conclude, frozen_dtype

from revision import building
from revision.data.collators import Collator, PackedCollator
from revision.data.dataset import ConversationDataset, Example
from revision.data.packing import PackPlan, budget_for
from revision.data.samples import Sample
from revision.progress import say
from revision.records import Message, read_conversations, read_texts
from revision.training.parts import select_parts
from revision.training.segments import SEGMENTS

# Packed against padded in random order. Texts are of nearly one length, so that there is little padding to save.
LIMITS = {"texts": 0.9, "conversations": 1.1}
DIM = 512


def corpora(folder: Path) -> Iterator[tuple[str, list[Sample]]]:
    """Samples of both stages, without their embeddings."""
    texts = enumerate(read_texts(folder / "texts.jsonl"))
    yield (
        "texts",
        [Sample(one.id, [Message("user", "<image>"), Message("assistant", one.text)], row) for row, one in texts],
    )
    talks = enumerate(read_conversations(folder / "conversations.jsonl"))
    yield "conversations", [Sample(one.id, one.messages, None if one.image is None else row) for row, one in talks]


def step(model: Any, batch: dict[str, Any]) -> None:
    """One forward and backward pass."""
    model(**batch).loss.backward()
    model.zero_grad()


def ways(examples: Sequence[Example], batch: int, pad: int) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """The same examples as batches in three ways, each with the attention that goes with it on this machine."""
    on_gpu = torch.cuda.is_available()
    lengths = np.array([len(example["input_ids"]) for example in examples])
    order = np.argsort(lengths, kind="stable")
    padded, packed = Collator(pad), PackedCollator(boundaries=not on_gpu)

    def cut(places: np.ndarray) -> list[dict[str, Any]]:
        """Padded batches of samples in this order."""
        return [padded([examples[place] for place in places[at : at + batch]]) for at in range(0, len(places), batch)]

    packs = PackPlan(lengths, budget_for(lengths, batch)).epoch(0)
    return {
        "padded": ("sdpa" if on_gpu else "eager", cut(np.arange(len(lengths)))),
        "padded, grouped by length": ("sdpa" if on_gpu else "eager", cut(order)),
        "packed": ("sdpa" if on_gpu else SEGMENTS, [packed([[examples[place] for place in pack]]) for pack in packs]),
    }


def speeds(model: Any, examples: Sequence[Example], batch: int, pad: int, rounds: int) -> dict[str, float]:
    """Samples a second in each way: the fastest of some rounds, in turns."""
    made = ways(examples, batch, pad)
    best = dict.fromkeys(made, 0.0)
    for attempt in range(rounds + 1):  # the first warms up: kernels are made for each shape
        for name, (attention, batches) in made.items():
            model.set_attn_implementation(attention)
            moved = [{key: _move(value, model.device) for key, value in one.items()} for one in batches]
            started = _seconds()
            for one in moved:
                step(model, one)
            if attempt:
                best[name] = max(best[name], len(examples) / (_seconds() - started))
    return best


def _seconds() -> float:
    """The clock: of the wall once a GPU is done, else of this process."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def fills(lengths: np.ndarray) -> str:
    """How full rows are at several budgets, and how long planning a million samples would take."""
    started = time.process_time()
    budgets = [budget_for(lengths, 8), 1024, 2048, 4096, 8192]
    shown = ", ".join(f"{tokens:,}: {PackPlan(lengths, tokens).fill:.1%}" for tokens in budgets)
    each = (time.process_time() - started) / len(budgets) / len(lengths)
    return f"fill at {shown}; {each * 1e6:.1f} s to plan a million samples"


def main() -> None:
    """Measure, print each ratio with its bound and the limit, and fail below the limit or without data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/nano"))
    parser.add_argument("--samples", type=int, default=128, help="of each corpus, for speed; lengths are of 5,000")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if not (options.data / "assets" / "llm").is_dir():
        sys.exit(f"{options.data} has no assets/llm: `make run` makes it, or name the corpus with --data")
    model, processor = building.build_model(
        str(options.data / "assets" / "llm"), chat_template=None, dtype=frozen_dtype(), seed=0,
        embed_dim=DIM, num_visual_tokens=4, visual_tokens="slots",
    )  # fmt: skip
    select_parts(model, ["projector"], bf16=frozen_dtype() == torch.bfloat16)
    device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    for name, samples in corpora(options.data):
        dataset = ConversationDataset(samples, RandomRows(DIM), processor, max_length=4096, limit=5000)
        examples = [dataset[place] for place in range(len(dataset))]
        lengths = np.array([len(example["input_ids"]) for example in examples])
        say(f"{name}: {lengths.mean():.1f} tokens on average, {lengths.max()} at most; {fills(lengths)}")
        chosen = examples[: options.samples]
        found = speeds(model, chosen, options.batch, processor.tokenizer.pad_token_id, options.rounds)
        for way, speed in found.items():
            say(f"  {way:26} {speed:8.2f} samples/s")
        sizes = np.array([len(example["input_ids"]) for example in chosen])
        spent = sum(len(part) * part.max() for part in np.split(sizes, range(options.batch, len(sizes), options.batch)))
        ratio = found["packed"] / found["padded"]
        say(
            f"  packed / padded {ratio:.2f} (limit {LIMITS[name]}; padding saved allows {spent / sizes.sum():.2f}), "
            f"packed / grouped {found['packed'] / found['padded, grouped by length']:.2f}"
        )
        MISSED.extend([f"packed / padded of {name}"] if ratio < LIMITS[name] else [])


if __name__ == "__main__":
    main()
    conclude()
