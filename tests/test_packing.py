"""The plan of an epoch, packed batches against padded ones, and attention that keeps samples apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_training
import torch
from conftest import build_tiny_tokenizer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Phi3Config, Qwen3Config

from revision.data.collators import Collator, PackedCollator
from revision.data.conversation import IGNORED
from revision.data.dataset import Example
from revision.data.packing import PackedDataset, PackPlan, budget_for, pack_lengths
from revision.training import packed, segments
from revision.training.packed import SeparationCheck, prepare_packing
from revision.training.segments import SEGMENTS, segment_attention
from revision.training.trainer import StageTrainer

# Tokens of the nano texts under SmolLM2's tokenizer with four visual tokens, and how many texts have them.
NANO_TEXTS = {
    39: 387, 40: 2894, 41: 4118, 42: 2416, 43: 1238, 44: 526, 45: 212, 46: 78, 47: 40, 48: 37, 49: 17, 50: 11, 51: 10,
    52: 9, 53: 6, 55: 1,
}  # fmt: skip


def lengths_of(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    match name:
        case "nano texts":
            return np.repeat(list(NANO_TEXTS), list(NANO_TEXTS.values()))
        case "captions":
            return np.clip(rng.lognormal(np.log(60), 0.6, 8000).astype(int), 8, 2048)
        case "conversations":
            return np.clip(rng.lognormal(np.log(350), 0.8, 8000).astype(int), 20, 2048)
        case _:
            return rng.integers(1, 9, 500)


CORPORA = ["nano texts", "captions", "conversations"]


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("batch", [8, 32, None])
def test_rows_are_full(corpus: str, batch: int | None) -> None:
    lengths = lengths_of(corpus)
    tokens = 4096 if batch is None else budget_for(lengths, batch)
    plan = PackPlan(lengths, tokens, seed=1)
    assert plan.fill >= 0.97
    assert plan.fill == pytest.approx(lengths.sum() / (len(plan.epoch(0)) * tokens))


@pytest.mark.parametrize("corpus", [*CORPORA, "short"])
def test_every_sample_is_in_one_pack_of_an_epoch(corpus: str) -> None:
    lengths = lengths_of(corpus)
    tokens = max(300, int(lengths.max()))
    plan = PackPlan(lengths, tokens)
    for epoch in (0, 1):
        packs = plan.epoch(epoch)
        assert len(packs) == len(plan)
        assert np.array_equal(np.sort(np.concatenate(packs)), np.arange(len(lengths)))
        assert max(lengths[pack].sum() for pack in packs) <= tokens
        assert min(map(len, packs)) >= 1


def test_the_plan_is_a_function_of_lengths_budget_seed_and_epoch() -> None:
    lengths = lengths_of("captions")

    def packs(seed: int, epoch: int) -> list[list[int]]:
        return [pack.tolist() for pack in PackPlan(lengths, 2048, seed=seed).epoch(epoch)]

    again = PackPlan(lengths, 2048, seed=3)
    again.epoch(0)  # epochs may be asked for in any order
    assert [pack.tolist() for pack in again.epoch(1)] == packs(3, 1)
    assert packs(3, 1) != packs(3, 0)
    assert packs(3, 1) != packs(4, 1)
    together = [{frozenset(pack) for pack in packs(3, epoch)} for epoch in (0, 1)]
    assert not together[0] & together[1], "samples keep the same company"


def test_rows_mix_lengths_as_the_corpus_does() -> None:
    """Sorted rows would make steps of long samples and steps of short ones."""
    lengths = lengths_of("captions")
    means = [np.mean(shape) for shape in pack_lengths(lengths, 4096)]
    sizes = len(lengths) / len(means)
    assert np.std(means) < 1.5 * lengths.std() / np.sqrt(sizes)


@pytest.mark.parametrize("lengths", [[1], [5], [5, 5], [1, 2, 3, 4, 5], [3, 3, 3], [1] * 11])
def test_small_cases(lengths: list[int]) -> None:
    rows = pack_lengths(np.array(lengths), 5)
    assert sorted(length for row in rows for length in row) == sorted(lengths)
    assert all(0 < sum(row) <= 5 for row in rows)
    assert len(rows) == {(1,): 1, (5,): 1, (5, 5): 2, (1, 2, 3, 4, 5): 3, (3, 3, 3): 3}.get(tuple(lengths), 3)


def test_a_sample_above_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 9 tokens cannot hold a sample of 10"):
        PackPlan(np.array([3, 10]), 9)


def packed_dataset(llm: Path, tokens: int | None = 120, **options: Any) -> PackedDataset:
    dataset = tiny_training.make_dataset(llm)
    dataset.keep(np.array([len(dataset[place]["input_ids"]) for place in range(len(dataset))], dtype=np.int32))
    return PackedDataset(dataset, tokens=tokens, **options)


def test_a_step_has_the_same_samples_however_many_processes_share_it(tiny_llm: Path) -> None:
    """Eight packs a step: process r of w takes packs r, r + w, ... of it, 8 / w of them."""

    def steps(processes: int) -> list[list[int]]:
        dataset = packed_dataset(tiny_llm, processes=processes)
        assert len(dataset) % processes == 0
        found = []
        for start in range(0, len(dataset), 8):
            step = range(start, min(start + 8, len(dataset)))
            shares = [[pack for pack in step if pack % processes == rank] for rank in range(processes)]
            assert len({len(share) for share in shares}) == 1, "one process waits for another"
            found.append(sorted(member for share in shares for pack in share for member in dataset.members(pack)))
        return found

    alone = steps(1)
    assert sorted(member for step in alone for member in step) == list(range(tiny_training.SAMPLES))
    assert len(alone) > 1
    assert steps(2) == steps(8) == alone


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 6), (2, 3), (6, 1)])
def test_drop_last_leaves_out_the_same_rows_however_many_processes(
    tiny_llm: Path, processes: int, accumulation: int
) -> None:
    """Rows that fill up a round must not make a batch whole that is none with fewer processes."""
    learned: list[int] = []
    for rank in range(processes):
        dataset = packed_dataset(tiny_llm, processes=processes)
        assert len(dataset.plan) % 6, "six processes fill it up"
        arguments = SimpleNamespace(
            gradient_accumulation_steps=accumulation, world_size=processes, process_index=rank, seed=0,
            dataloader_drop_last=True,
        )  # fmt: skip
        trainer: Any = SimpleNamespace(args=arguments, train_dataset=dataset, _train_batch_size=1)
        learned += [row for (row,) in StageTrainer._make_batches(trainer)]
    assert sorted(learned) == list(range(len(dataset.plan) // 6 * 6))


def test_drop_last_that_leaves_nothing_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "dataloader_drop_last": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 9,
    }
    with pytest.raises(ValueError, match="32 samples or packed rows fill no global batch of 36; leave it out"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"], **settings)


def test_the_last_round_is_filled_up_with_a_sample_that_teaches_nothing(tiny_llm: Path) -> None:
    alone, shared = packed_dataset(tiny_llm), packed_dataset(tiny_llm, processes=7)
    assert len(alone) % 7 != 0
    (silent,) = shared[len(shared) - 1]
    assert (silent["labels"] == IGNORED).all()
    assert len(silent["input_ids"]) == alone.dataset.tokens.min()  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        shared[len(shared)]


def test_without_a_budget_a_row_holds_a_batch_on_average(tiny_llm: Path) -> None:
    dataset = packed_dataset(tiny_llm, tokens=None, batch=8)
    assert len(dataset.dataset) / len(dataset) == pytest.approx(8, rel=0.3)
    assert packed_dataset(tiny_llm, tokens=None, batch=1).plan.tokens == dataset.dataset.tokens.max()  # type: ignore[union-attr]


def test_workers_that_live_on_pack_each_epoch_anew(tiny_llm: Path) -> None:
    dataset = packed_dataset(tiny_llm)
    loader: Any = torch.utils.data.DataLoader(
        dataset, batch_size=1, num_workers=1, persistent_workers=True, collate_fn=PackedCollator()
    )
    first = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        first.append(next(iter(loader))["input_ids"])
        assert torch.equal(first[-1], PackedCollator()([dataset[0]])["input_ids"])
    assert not torch.equal(first[0], first[1])


def test_a_packed_batch(tiny_llm: Path) -> None:
    dataset = tiny_training.make_dataset(tiny_llm)
    examples = [dataset[place] for place in (1, 0, 3)]
    for example in examples:
        example["labels"] = example["input_ids"].copy()  # learned from the first token on
    sizes = [len(example["input_ids"]) for example in examples]
    batch = PackedCollator(boundaries=True)([examples[:2], examples[2:]])
    assert set(batch) == {
        "input_ids", "position_ids", "labels", "image_embeds",
        "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
    }  # fmt: skip
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, sum(sizes))
    assert batch["position_ids"][0].tolist() == [place for size in sizes for place in range(size)]
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    ignored = (batch["labels"][0] == IGNORED).nonzero().flatten().tolist()
    assert ignored == starts, "no sample predicts the first token of the next"
    assert batch["cu_seq_lens_q"].tolist() == [*starts, sum(sizes)]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_k"] == max(sizes)
    embeds = [example["image_embed"] for example in examples if example["image_embed"] is not None]
    assert torch.equal(batch["image_embeds"], torch.stack(embeds))
    assert examples[0]["labels"][0] != IGNORED, "the examples themselves are left alone"
    assert set(PackedCollator()([examples])) == {"input_ids", "position_ids", "labels", "image_embeds"}
    assert "image_embeds" not in PackedCollator()([[examples[1]]])


SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
OTHERS = {
    "qwen3": lambda words: Qwen3Config(vocab_size=words, head_dim=8, **SHAPE),
    "gemma3": lambda words: Gemma3TextConfig(  # one layer of two sees six tokens back only
        vocab_size=words, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"], **SHAPE
    ),
    "phi3": lambda words: Phi3Config(vocab_size=words, pad_token_id=0, **SHAPE),
}


@pytest.fixture(scope="session")
def llm_of(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Callable[[str], Path]:
    """Folders of tiny LLMs of other classes."""

    def make(name: str) -> Path:
        if name == "llama":
            return tiny_llm
        folder = tmp_path_factory.mktemp(name)
        tokenizer = build_tiny_tokenizer()
        torch.manual_seed(0)
        llm = AutoModelForCausalLM.from_config(OTHERS[name](len(tokenizer)))
        with torch.no_grad():
            for parameter in llm.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4.0)
        llm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def losses_and_gradients(model: Any, batch: dict[str, Any], labels: int) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=labels).loss
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa", SEGMENTS])
@pytest.mark.parametrize("llm", ["llama", "qwen3", "gemma3", "phi3"])
def test_a_packed_batch_has_the_loss_and_gradients_of_the_padded_one(
    llm_of: Callable[[str], Path], llm: str, attention: str
) -> None:
    folder = llm_of(llm)
    dataset = tiny_training.make_dataset(folder)
    examples: list[Example] = [dataset[place] for place in (0, 1, 2, 3, 5, 7)]  # 0 and 5 have no picture
    assert [example["image_embed"] is None for example in examples] == [True, False, False, False, True, False]
    labels = sum(int((example["labels"] != IGNORED).sum()) for example in examples)
    model: Any = tiny_training.make_model(folder).train()
    model.set_attn_implementation("eager")
    loss, gradients = losses_and_gradients(model, Collator(3)(examples), labels)
    model.set_attn_implementation(attention)
    packed_loss, packed_gradients = losses_and_gradients(
        model, PackedCollator(boundaries=attention == SEGMENTS)([examples]), labels
    )
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    assert packed_gradients.keys() == gradients.keys()
    assert any(name.startswith("projector") for name in gradients)
    for name, one in gradients.items():
        torch.testing.assert_close(packed_gradients[name], one, rtol=1e-5, atol=1e-5 * float(one.abs().max()), msg=name)
    order = [examples[place] for place in (3, 1, 2)]
    other, _ = losses_and_gradients(model, PackedCollator(boundaries=attention == SEGMENTS)([order]), labels)
    assert other != pytest.approx(loss, rel=1e-3), "the comparison sees a difference"


def test_segments_soften_scores_and_drop_weights_as_eager_attention_does() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    module = torch.nn.Module().eval()
    out, none = segment_attention(
        module, query, key, value, None, softcap=0.7, dropout=0.5, cu_seq_lens_q=torch.tensor([0, 4, 9])
    )
    assert none is None
    scores = 0.7 * torch.tanh(query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 8**-0.5 / 0.7)
    place = torch.arange(9)
    sample = (place >= 4).long()
    seen = (place[:, None] >= place) & (sample[:, None] == sample)
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    dropped, _ = segment_attention(module.train(), query, key, value, None, dropout=0.5)
    assert not torch.allclose(dropped, segment_attention(module.eval(), query, key, value, None)[0])


def arguments(tmp_path: Path) -> Any:
    return tiny_training.training.build_arguments({"max_steps": 1}, output=tmp_path, seed=0)


def test_on_a_cpu_attention_goes_sample_by_sample(tiny_model: Any, tmp_path: Path) -> None:
    given = arguments(tmp_path)
    collator = prepare_packing(tiny_model, given)
    assert tiny_model.config.text_config._attn_implementation == SEGMENTS
    assert collator.boundaries
    assert given.train_batch_size == 1
    assert given.include_num_input_tokens_seen == "no", "each batch would wait for the device"
    tiny_model.save_pretrained(tmp_path / "model")
    assert SEGMENTS not in (tmp_path / "model" / "config.json").read_text()


def test_attention_that_is_not_plain_keeps_its_dense_mask(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An LLM with attention sinks, say, whose weights do not sum to one."""

    def with_sinks(*inputs: Any, **options: Any) -> tuple[torch.Tensor, None]:
        return 0.5 * segment_attention(*inputs, **options)[0], None

    monkeypatch.setitem(segments.AttentionInterface._global_mapping, SEGMENTS, with_sinks)
    collator = prepare_packing(tiny_model, arguments(tmp_path))
    assert tiny_model.config.text_config._attn_implementation == "eager"
    assert not collator.boundaries
    assert "packed rows of T tokens cost T^2" in capsys.readouterr().out


def test_flex_attention_on_a_cpu_is_refused(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny_model.config.text_config), "_attn_implementation", "flex_attention")
    with pytest.raises(ValueError, match="flex attention has no backward pass on a CPU; load the LLM with eager"):
        prepare_packing(tiny_model, arguments(tmp_path))


class _Trainer:
    """What the check asks of a trainer."""

    def __init__(self, model: Any) -> None:
        self.model = self.model_wrapped = model

    def _prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    def compute_loss_context_manager(self) -> Any:
        return nullcontext()


@pytest.mark.parametrize("llm", ["llama", "gemma3"])
def test_an_llm_that_mixes_the_samples_of_a_row_is_refused(
    llm_of: Callable[[str], Path], llm: str, tmp_path: Path
) -> None:
    class Masked(PackedCollator):
        """With a mask, transformers takes the row for one sample."""

        def __call__(self, packs: Any) -> dict[str, Any]:
            batch = super().__call__(packs)
            return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}

    model = tiny_training.make_model(llm_of(llm))
    state: Any = None
    given = arguments(tmp_path)
    SeparationCheck(_Trainer(model), PackedCollator()).on_train_begin(given, state, state)
    with pytest.raises(ValueError, match="lets the samples of a packed row see each other: the loss of one changed by"):
        SeparationCheck(_Trainer(model), Masked()).on_train_begin(given, state, state)


def test_probe_tokens_are_no_pictures(tiny_model: Any) -> None:
    tiny_model.config.image_token_id = 5
    tiny_model.config.text_config.vocab_size = 12
    words = packed._words(tiny_model, 500, seed=0)
    assert set(words.tolist()) == set(range(12)) - {5}
