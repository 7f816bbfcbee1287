"""Samples a second and the share of the device's peak that both stages reach, with the largest Llama that fits.

python scripts/bench/stages.py                     on a GPU: each stage with the largest shape that fits, in bfloat16
python scripts/bench/stages.py --shape 1b --pack 8192 --peak-tflops 989
python scripts/bench/stages.py --quick             a Llama of two layers, on any machine: whether it runs

Weights are random, of the published shapes, and texts are random letters, as many as a caption or a conversation has
tokens: what they say changes no speed, and nothing has to be at hand. Both stages go through the Trainer as the
commands have it, the LLM frozen in stage 1 and all of it trained in stage 2, each in a process of its own, the first
steps left out. Activations are checkpointed where they do not fit otherwise. FLOPs are those of the model as it is
frozen (`revision/costs/flops.py`): about 4 for each weight and token where the LLM is frozen, 6 where it trains, none
for what checkpointing computes again. The aims are for an H100 or better, that of samples a second for 8B.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RandomRows, conclude, frozen_dtype, report
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from revision import training
from revision.costs.memory import GIB, Batch, Memory, Sharding
from revision.costs.sketch import Language, sketch
from revision.data.conversation import build_processor
from revision.data.dataset import ConversationDataset
from revision.data.lengths import settle_lengths
from revision.data.packing import PackedDataset
from revision.data.samples import Sample
from revision.model import RevisionConfig, RevisionForConditionalGeneration, RevisionProcessor
from revision.progress import say
from revision.records import Message
from revision.training.parts import select_parts

DIM = 1280  # of LLM2CLIP's embeddings
RESERVE = 4 * GIB  # of a GPU, for its driver, fragments of memory and what the plan does not know


def _llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, groups: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, tie_word_embeddings=tied, max_position_embeddings=8192,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip


# From config.json of Llama-3-8B, Llama-3.2-3B and -1B, and SmolLM2-135M; from the largest to the smallest.
SHAPES = {
    "8b": _llama(128256, 4096, 14336, 32, 32, 8, tied=False),
    "3b": _llama(128256, 3072, 8192, 28, 24, 8, tied=True),
    "1b": _llama(128256, 2048, 8192, 16, 32, 8, tied=True),
    "135m": _llama(49152, 576, 1536, 30, 9, 3, tied=True),
    "tiny": _llama(2048, 64, 128, 2, 4, 2, tied=True),
}


@dataclass(frozen=True)
class Stage:
    """One stage: what trains, and how long its answers are in tokens: median, and spread of the logarithm.

    least_samples: a second on one GPU at 8B, the aim; None: none is stated.
    """

    parts: tuple[str, ...]
    median: int
    spread: float
    least_samples: float | None = None


STAGES = {
    "pretrain": Stage(("projector",), median=60, spread=0.4, least_samples=64.0),
    "instruct": Stage(("projector", "llm"), median=180, spread=0.6),
}
LONGEST = 768  # tokens of an answer, at most
LEAST_MFU = 0.5


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    alphabet = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({byte: place for place, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def make_dataset(stage: Stage, count: int, processor: RevisionProcessor) -> ConversationDataset:
    """Samples about a picture each, whose answers are of random lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(stage.median * np.exp(stage.spread * rng.standard_normal(count)), 8, LONGEST).astype(int)
    samples = []
    for row, length in enumerate(lengths.tolist()):
        answer = "".join(map(chr, rng.integers(97, 123, size=length)))
        samples.append(Sample(f"s{row}", [Message("user", "<image>"), Message("assistant", answer)], row))
    return ConversationDataset(samples, RandomRows(DIM), processor, max_length=LONGEST + 640)


def shape_of(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of the projector."""
    return {
        "embed_dim": DIM, "num_visual_tokens": options.visual, "visual_tokens": "repeat" if options.copies else "slots",
        "projector_depth": 2, "projector_hidden_size": None, "input_scale": DIM**0.5, "output_norm": True,
    }  # fmt: skip


def needed(name: str, stage: str, options: argparse.Namespace, *, checkpointing: bool) -> float:
    """Bytes of one GPU at the peak, as `revision plan` counts them."""
    model = sketch(Language(SHAPES[name], None, ()), **shape_of(options))
    select_parts(model, list(STAGES[stage].parts), bf16=True)
    tokens = options.pack or options.batch * (LONGEST + options.visual)
    batch = Batch(options.batch, tokens, tokens)
    memory = Memory(model, half=True, optimizer="adamw_torch_fused")
    return memory.footprint(Sharding.zero0, gpus=1, batch=batch, checkpointing=checkpointing).total


def checkpointing_of(name: str, stage: str, options: argparse.Namespace) -> bool | None:
    """Whether a stage of a shape has to checkpoint its activations; None: it fits in neither way. A CPU takes all."""
    if not torch.cuda.is_available():
        return False
    room = torch.cuda.get_device_properties(0).total_memory - RESERVE
    ways = (way for way in (False, True) if needed(name, stage, options, checkpointing=way) <= room)
    return next(ways, None)


def largest(stage: str, options: argparse.Namespace) -> str:
    """The largest shape of which a stage fits; on a CPU the one that nano has."""
    if not torch.cuda.is_available():
        return "135m"
    for name in SHAPES:
        if checkpointing_of(name, stage, options) is not None:
            return name
    raise SystemExit(f"{stage}: none of {', '.join(SHAPES)} fits on this GPU; lower --batch or --pack")


def make_model(name: str, options: argparse.Namespace, image_token_id: int) -> RevisionForConditionalGeneration:
    """Random weights of a shape, made where they are needed."""
    shape = {**shape_of(options), "projector_hidden_size": SHAPES[name].hidden_size}
    config = RevisionConfig(
        text_config=SHAPES[name], output_std=0.02, image_token_id=image_token_id, dtype=frozen_dtype(), **shape
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = RevisionForConditionalGeneration(config)
    model.language_model.to(frozen_dtype())
    return model


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One stage in this process: means of what its log says of the steps behind the first few."""
    stage = STAGES[options.stage]
    processor = build_processor(make_tokenizer(), num_visual_tokens=options.visual)
    model = make_model(name, options, processor.image_token_id)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "max_steps": options.warm + options.steps, "per_device_train_batch_size": options.batch, "bf16": "auto",
            "learning_rate": 1e-5, "lr_scheduler_type": "constant", "logging_steps": 1,
            **({"gradient_checkpointing": True} if checkpointing_of(name, options.stage, options) else {}),
            "train_sampling_strategy": "random" if options.pack else "group_by_length",
        }  # fmt: skip
        arguments = training.build_arguments(settings, output=Path(folder), seed=0)
        held = options.batch if not options.pack else math.ceil(options.pack / stage.median)
        dataset: Any = make_dataset(stage, held * (options.warm + options.steps + 1), processor)
        if options.pack:
            settle_lengths(
                dataset,
                Path(folder) / "lengths",
                drop=False,
                reject_budget=0.0,
                listing=Path(folder) / "unfit",
                main=True,
            )
            dataset = PackedDataset(dataset, tokens=options.pack)
        training.train(
            model=model, processor=processor, dataset=dataset, parts=list(stage.parts), arguments=arguments,
            output=Path(folder), peak_tflops=options.peak_tflops,
        )  # fmt: skip
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        training.conclude(arguments)
    timed = [row for row in rows if row["step"] > options.warm]
    means = {key: float(np.mean([row[key] for row in timed])) for key in timed[0] if key not in ("step", "loss")}
    return {**means, "memory_gib": timed[-1]["memory_gib"]}


def in_a_process(name: str, stage: str, words: Sequence[str]) -> dict[str, float]:
    """The same in a process of its own, which begins with the device's memory empty."""
    command = [sys.executable, __file__, *words, "--shape", name, "--stage", stage]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(name: str, stage: str, found: dict[str, float], options: argparse.Namespace) -> None:
    """What a stage reached, against the aims where they are meant."""
    aimed = torch.cuda.is_available()
    least = STAGES[stage].least_samples if aimed and name == "8b" else None
    report(f"{stage}: samples", found["samples_per_second"], "/s", least=least)
    report(f"{stage}: tokens", found["tokens_per_second"], "/s")
    report(f"{stage}: arithmetic", found["flops_per_second"] / 1e12, "TFLOP/s")
    if "mfu" in found:
        report(f"{stage}: share of the device's peak", found["mfu"], "", least=LEAST_MFU if aimed else None)
    else:
        say(f"{stage}: the peak of this device is not known; --peak-tflops states it")
    report(f"{stage}: of the time waiting for data", found["data_wait"], "")
    report(f"{stage}: memory at its peak", found["memory_gib"], "GiB")


def main() -> None:
    """Measure on this machine. Exit code 1: an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), help="of the LLM; default: the largest that fits")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--batch", type=int, default=32, help="samples of a padded batch")
    parser.add_argument("--pack", type=int, help="tokens of a packed row, in place of padded batches")
    parser.add_argument("--visual", type=int, default=4, help="visual tokens of a picture")
    parser.add_argument("--copies", action="store_true", help="they are copies of one, as in the authors' code")
    parser.add_argument("--steps", type=int, default=8, help="that are timed")
    parser.add_argument("--warm", type=int, default=4, help="steps before them")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where its name does not say it")
    parser.add_argument("--quick", action="store_true", help="a Llama of two layers and few steps; says little")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.shape, options.batch, options.steps, options.warm = "tiny", 2, 2, 1
    shortest = LONGEST + options.visual + 64  # the template's own
    if options.pack is not None and options.pack < shortest:
        parser.error(f"--pack {options.pack}: a row must hold the longest sample, {shortest} tokens or fewer")
    if options.stage is not None:
        sys.stdout.write("\n" + json.dumps(measure(options.shape, options)) + "\n")
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} thread(s)"
    how = f"rows of {options.pack} tokens" if options.pack else f"batches of {options.batch}"
    for stage in options.stages:
        name = options.shape or largest(stage, options)
        say(f"{stage}: {name} on {device}, {how}, {options.visual} visual tokens")
        show(name, stage, in_a_process(name, stage, sys.argv[1:]), options)
    conclude()


if __name__ == "__main__":
    main()
