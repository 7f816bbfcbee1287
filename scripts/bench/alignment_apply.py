"""What applying ReAlign costs, each number against its limit.

python scripts/bench/alignment_apply.py [--quick]

1  many rows on one core, as it is and compiled (needs numba: pip install -e '.[compiled]'), beside copying them
2  one row at a time in the data path of stage 1, as a share of a training step of a small LLM
3  on a GPU, where there is one, beside copying the rows there
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import conclude, report, seconds, unit_rows
from transformers import LlamaConfig

from revision import EmbeddingStore, ReAlign, RevisionForConditionalGeneration
from revision.alignment import Alignment
from revision.data.rows import Rows
from revision.embeddings import StoreWriter
from revision.model import RevisionConfig
from revision.precision import computing_dtype
from revision.progress import say

DIM = 1280
READ = 400  # rows
BATCH, LENGTH, TOKENS = 8, 32, 4  # samples a step, positions a sample, visual ones among them
# SmolLM2-135M, the LLM of experiment=nano: what a row costs matters most where the LLM costs least.
LLM: dict[str, Any] = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
       "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}  # fmt: skip


def many_rows(alignment: Alignment, count: int) -> None:
    """Rows a second and core, and the same for a copy, which reads and writes the same bytes."""
    torch.set_num_threads(1)
    rows = unit_rows(count, DIM, 0)
    target = np.empty_like(rows)
    copied = count / seconds(lambda: np.copyto(target, rows), repeats=4)
    mapped = count / seconds(lambda: alignment.apply(rows))
    alignment.compile().apply(rows[:1])  # two seconds once, whatever the number of rows
    compiled = count / seconds(lambda: alignment.apply(rows), repeats=4)
    say(f"{count:,} rows of {DIM} float16, one thread")
    report("rows mapped a second and core, compiled", compiled, "rows/s", least=min(1e6, copied))
    report("rows mapped a second and core, not compiled", mapped, "rows/s")
    report("rows copied a second and core", copied, "rows/s")


def store_of(folder: Path, count: int) -> EmbeddingStore:
    """A text store of made-up rows."""
    writer = StoreWriter(folder / "texts", kind="text", dim=DIM, encoder={"name": "made up"}, records_fingerprint="",
                         records=count, shard_size=count, reject_budget=0.0)  # fmt: skip
    ids = [str(number) for number in range(count)]
    rows = unit_rows(count, DIM, 0)
    writer.write(0, rows=rows, ids=ids, payloads=ids, lengths=[1] * count, rejected=[])
    writer.finish()
    return EmbeddingStore.open(folder / "texts")


def training_step(layers: int) -> float:
    """Seconds for forward and backward of stage 1 on one batch: the projector learns, the LLM is frozen."""
    text_config = LlamaConfig(**{**LLM, "num_hidden_layers": layers})
    config = RevisionConfig(text_config, embed_dim=DIM, num_visual_tokens=TOKENS, visual_tokens="slots",
                            projector_hidden_size=576, image_token_id=0, output_norm=True)  # fmt: skip
    model = RevisionForConditionalGeneration(config).train()
    model.language_model.to(computing_dtype(torch.bfloat16, torch.device("cpu"))).requires_grad_(False)
    model.set_attn_implementation("eager")
    ids = torch.randint(1, 1000, (BATCH, LENGTH))
    ids[:, :TOKENS] = 0
    labels = torch.where(torch.arange(LENGTH) < TOKENS, -100, ids)
    embeds = torch.nn.functional.normalize(torch.randn(BATCH, DIM), dim=1)

    def step() -> None:
        """Forward and backward."""
        found = model(input_ids=ids, image_embeds=embeds, labels=labels)
        assert found.loss is not None
        found.loss.backward()

    return seconds(step, repeats=3)


def read(rows: Rows) -> None:
    """As the data loader does."""
    for number in range(READ):
        rows[number]


def in_the_data_path(alignment: Alignment, layers: int) -> None:
    """What the alignment adds to reading the rows of a batch."""
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), 2000)
        raw, aligned = (Rows([store], embed_dim=DIM, alignment=one) for one in (None, alignment))
        of_raw, of_aligned = (seconds(partial(read, rows)) / READ for rows in (raw, aligned))
    step = training_step(layers)
    kind = str(computing_dtype(torch.bfloat16, torch.device("cpu"))).removeprefix("torch.")
    say(f"batches of {BATCH} x {LENGTH}, an LLM of {layers} layers, {kind}, {torch.get_num_threads()} thread(s)")
    report("one row, raw", 1e6 * of_raw, "us")
    report("one row, aligned", 1e6 * of_aligned, "us")
    report("a training step", step, "s")
    report("aligning, share of a step", 100 * BATCH * (of_aligned - of_raw) / step, "%", most=3)


def on_a_gpu(alignment: Alignment, count: int) -> None:
    """Rows a second beside a copy on the device."""
    if not torch.cuda.is_available():
        say("no GPU here: its copy bandwidth is not measured against")
        return
    rows = torch.from_numpy(unit_rows(count, DIM, 0)).cuda()

    def timed(work: object) -> float:
        """Seconds on the device."""
        assert callable(work)

        def done() -> None:
            """Waits for the device."""
            work()
            torch.cuda.synchronize()

        return seconds(done, repeats=5)

    copied, mapped = timed(rows.clone), timed(lambda: alignment.apply(rows))
    say(f"{count:,} rows of {DIM} float16 on {torch.cuda.get_device_name()}")
    report("rows mapped a second", count / mapped, "rows/s")
    report("share of the bandwidth of a copy", 100 * copied / mapped, "%")


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rows and a smaller LLM, which makes the share larger"
    )
    quick = parser.parse_args().quick
    sides = unit_rows(4000, DIM, 1), unit_rows(4000, DIM, 2)
    alignment = ReAlign().fit(*sides)
    many_rows(ReAlign().fit(*sides), 20_000 if quick else 400_000)
    in_the_data_path(alignment, 4 if quick else 30)
    on_a_gpu(alignment, 50_000 if quick else 1_000_000)


if __name__ == "__main__":
    main()
    conclude()
