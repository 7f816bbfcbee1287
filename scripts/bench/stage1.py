"""Speed and memory of stage 1 beside a naive loop, and what each of the differences brings.

python scripts/bench/stage1.py                               all arms on the nano parts; an hour on two CPU cores
python scripts/bench/stage1.py --copies 32 --batch 2 --steps 1 --repeats 1     a look in minutes; its ratios mean little

Naive: one embedding becomes 576 positions, each projected by itself, batches of random captions padded to the longest,
logits at every position. Arm by arm one thing changes; each arm is a process of its own, the arms take turns, and the
median of the repeats counts. The LLM is frozen in all of them, and in bfloat16 where the device has it; captions and
steps are the same, and embeddings random: their values do not change the speed. Memory is the most that the device, or
on a CPU the process, ever held; the model alone is its floor, which no arm can get below.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RandomRows, frozen_dtype
from torch import nn

from revision import training
from revision.building import build_model
from revision.data.collators import Collator, PackedCollator
from revision.data.conversation import IGNORED
from revision.data.dataset import ConversationDataset
from revision.data.packing import PackPlan, budget_for
from revision.data.samples import Sample
from revision.model import RevisionForConditionalGeneration
from revision.progress import say
from revision.records import Message, read_texts
from revision.training import stage
from revision.training.segments import SEGMENTS

DIM = 512  # of the embeddings
COPIES = 576  # positions that the authors' code gives an embedding; aims are for so many
AIMS = {"parity": 1.8, "default": 10.0}  # times the naive loop
MOST_MEMORY = {"default": 0.4}  # of what the naive loop takes, with as many samples a step


@dataclass(frozen=True)
class Arm:
    """How stage 1 is done. `title` names what is new against the arm before."""

    title: str
    one_by_one: bool = False  # a projection for each copy
    all_logits: bool = False  # also where nothing is learned
    packed: bool = False  # a step's captions one after the other in rows without padding
    slots: bool = False  # `--slots` different tokens in place of copies
    trainer: bool = False  # through the Trainer, as `revision pretrain` runs it
    prefix: bool = False  # what the samples of a batch begin with passes through the LLM once


ARMS = {
    "naive": Arm("naive loop", one_by_one=True, all_logits=True),
    "once": Arm("projected once, then copied", all_logits=True),
    "labels": Arm("logits where labels are"),
    "parity": Arm("packed", packed=True),
    "slots": Arm("slots in place of copies", packed=True, slots=True),
    "trainer": Arm("through the Trainer", slots=True, trainer=True),
    "default": Arm("what a batch begins with computed once", slots=True, trainer=True, prefix=True),
}


def loss_of(model: RevisionForConditionalGeneration, batch: dict[str, torch.Tensor], arm: Arm) -> torch.Tensor:
    """The loss of one batch, computed as the arm says; the same number in all arms with the same tokens."""
    if not arm.all_logits:
        loss: torch.Tensor = model(**batch).loss
        return loss
    ids, embeds = batch["input_ids"], batch["image_embeds"]
    if arm.one_by_one:
        copies = model.config.num_visual_tokens
        tokens = model.projector(embeds.repeat_interleave(copies, dim=0))[:, 0]
        table = model.get_input_embeddings()(ids)
        visual = (ids == model.config.image_token_id)[..., None]
        inputs = table.masked_scatter(visual, tokens.to(table.dtype))
    else:
        inputs = model.embed_inputs(ids, embeds)
    decoder = model.get_decoder()
    hidden = decoder(inputs_embeds=inputs, attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden).float()
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )


def steps_of(dataset: ConversationDataset, size: int, count: int) -> list[list[int]]:
    """Places of random captions, step by step; the same ones in every arm."""
    places = np.random.default_rng(0).permutation(len(dataset))[: size * count]
    return [part.tolist() for part in np.split(places, count)]


def batch_of(dataset: ConversationDataset, places: list[int], arm: Arm, pad: int) -> dict[str, torch.Tensor]:
    """The captions of one step as the arm takes them."""
    examples = [dataset[place] for place in places]
    if not arm.packed:
        return Collator(pad)(examples)
    lengths = np.array([len(example["input_ids"]) for example in examples])
    [row] = PackPlan(lengths, budget_for(lengths, len(lengths))).epoch(0)
    return PackedCollator(boundaries=not torch.cuda.is_available())([[examples[place] for place in row]])


def plain_loop(model: RevisionForConditionalGeneration, dataset: ConversationDataset, arm: Arm, options: Any) -> float:
    """Samples a second of a bare training loop, its first step left out."""
    device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training.select_parts(model, ["projector"], bf16=frozen_dtype() == torch.bfloat16)
    on_cpu = SEGMENTS if arm.packed else "eager"  # on a CPU the faster ones, as the stage itself chooses
    model.set_attn_implementation("sdpa" if device.type == "cuda" else on_cpu)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=1e-3)
    pad = dataset.processor.tokenizer.pad_token_id
    started = 0.0
    for step, places in enumerate(steps_of(dataset, options.batch, options.steps + 1)):
        started = _seconds() if step == 1 else started
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value
                 for key, value in batch_of(dataset, places, arm, pad).items()}  # fmt: skip
        loss_of(model, batch, arm).backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(options.steps * options.batch / (_seconds() - started))


def _seconds() -> float:
    """The clock, once a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def trainer_loop(
    model: RevisionForConditionalGeneration, dataset: ConversationDataset, arm: Arm, options: Any
) -> float:
    """Samples a second of the stage, from its first step on."""
    if not arm.prefix:
        stage.shared_prefix = lambda *_: None
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "max_steps": options.steps + 1, "per_device_train_batch_size": options.batch, "bf16": "auto",
            "train_sampling_strategy": "group_by_length", "learning_rate": 1e-3, "lr_scheduler_type": "constant",
        }  # fmt: skip
        arguments = training.build_arguments(settings, output=Path(folder), seed=0)
        summary = training.train(
            model=model, processor=dataset.processor, dataset=dataset, parts=["projector"], arguments=arguments,
            output=Path(folder),
        )  # fmt: skip
        training.conclude(arguments)
    return summary["samples_per_second"]


def measure(arm: Arm, options: argparse.Namespace) -> dict[str, float]:
    """One arm in this process: samples a second, and the memory at its peak in GiB."""
    torch.manual_seed(0)
    model, processor = build_model(
        options.llm, chat_template=None, dtype=frozen_dtype(), seed=0, embed_dim=DIM,
        num_visual_tokens=options.slots if arm.slots else options.copies,
        visual_tokens="slots" if arm.slots else "repeat",
    )  # fmt: skip
    texts = [text.text for text in read_texts(options.texts)]
    samples = [
        Sample(row, [Message("user", "<image>"), Message("assistant", text)], row) for row, text in enumerate(texts)
    ]
    dataset = ConversationDataset(samples, RandomRows(DIM), processor, max_length=100_000)
    speed = trainer_loop(model, dataset, arm, options) if arm.trainer else plain_loop(model, dataset, arm, options)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"samples_per_second": speed, "memory_gib": peak / 2**30}


def in_a_process(name: str, words: Sequence[str]) -> dict[str, float]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *words, "--arm", name], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(names: Sequence[str], options: argparse.Namespace, words: Sequence[str]) -> bool:
    """All arms in turns; prints the table and says whether the aims are met."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.repeats):
        for name in names:
            runs[name].append(in_a_process(name, words))
    speeds, memories = (
        {name: statistics.median(run[number] for run in found) for name, found in runs.items()}
        for number in ("samples_per_second", "memory_gib")
    )
    say(
        f"{options.copies} copies or {options.slots} slots, batches of {options.batch}, "
        f"{torch.get_num_threads()} thread(s)"
    )
    say(f"{'arm':10}{'samples/s':>11}{'x naive':>9}{'x before':>10}{'GiB':>7}  what is new")
    before = first = speeds[names[0]]
    for name in names:
        speed = speeds[name]
        say(
            f"{name:10}{speed:11.2f}{speed / first:9.2f}{speed / before:10.2f}{memories[name]:7.2f}  {ARMS[name].title}"
        )
        before = speed
    if names[0] != "naive" or options.copies != COPIES:
        say("aims are for all copies, beside the naive loop: not held against them")
        return True
    met = True
    for name, aim in AIMS.items():
        if name in speeds:
            reached = speeds[name] / first
            met &= reached >= aim
            say(f"{name}: {reached:.2f} times the naive loop; aim {aim:g}: {'met' if reached >= aim else 'MISSED'}")
    for name, most in MOST_MEMORY.items():
        if name in memories:
            share = memories[name] / memories["naive"]
            met &= share <= most
            say(f"{name}: {share:.0%} of its memory; aim {most:.0%}: {'met' if share <= most else 'MISSED'}")
    return met


def main() -> int:
    """Measure on this machine's threads. Exit code 1: an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="data/nano/assets/llm", help="folder or hub name of a causal LM")
    parser.add_argument("--texts", type=Path, default=Path("data/nano/texts.jsonl"), help="records of captions")
    parser.add_argument("--copies", type=int, default=COPIES, help="positions that a repeated embedding takes")
    parser.add_argument("--slots", type=int, default=4, help="visual tokens of the default")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="that are timed; one more comes before")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.texts.is_file():
        parser.error(f"--texts {options.texts} is not there; `make run` makes it, or name records of your own")
    if options.arm is not None:
        sys.stdout.write("\n" + json.dumps(measure(ARMS[options.arm], options)) + "\n")
        return 0
    met = compare(options.arms, options, sys.argv[1:])
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
