"""Prefix sharing: what the samples of a batch begin with is computed once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llm_families import MODELS, build_llm
from tiny_training import K, Rows, make_dataset, make_model, pack, run, weights
from transformers import AutoTokenizer

from revision import training
from revision.data.collators import Collator
from revision.data.conversation import IGNORED, build_processor, common_prefix
from revision.data.dataset import ConversationDataset
from revision.data.samples import Sample
from revision.model.modeling_revision import CACHE
from revision.records import Message
from revision.training import prefix as prefixes
from revision.training.parts import select_parts
from revision.training.prefix import SharedPrefix, shared_prefix

IMAGE = 9
PARTS = {"stage 1": ["projector"], "stage 2": ["projector", "llm"]}


@pytest.fixture(autouse=True)
def little_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of these tests would not be spared enough."""
    monkeypatch.setattr(prefixes, "_LEAST", 1)


@pytest.fixture(scope="module")
def llm_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: build_llm(name, tmp_path_factory.mktemp("llm"))


def arguments(folder: Path, **settings: Any) -> Any:
    settings = {"learning_rate": 1e-2, "max_steps": 1, **settings}
    return training.build_arguments(settings, output=folder, seed=0, engine="ddp", engine_options={})


def prepared(llm: Path, parts: list[str]) -> Any:
    model = make_model(llm)
    select_parts(model, parts, bf16=False, masters=False)
    model.set_attn_implementation("eager")
    return model.train()


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 5, 6]], [1, 2]),
        ([[1, 2, 3, 4]], [1, 2, 3]),  # the last token predicts what comes
        ([[1, 2, 3], [1, 2]], [1]),
        ([[1, IMAGE, 3], [1, IMAGE, 3]], [1]),  # no picture is shared
        ([[1, 2], [2, 2]], []),
        ([[1], [1, 2]], []),
        ([], []),
    ],
)
def test_what_sequences_begin_with(sequences: list[list[int]], expected: list[int]) -> None:
    assert common_prefix(sequences, IMAGE) == expected


@pytest.mark.parametrize("stage", PARTS)
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_whole_sequences(
    name: str, stage: str, llm_of: Callable[[str], Path], tmp_path: Path
) -> None:
    llm = llm_of(name)
    model, dataset = prepared(llm, PARTS[stage]), make_dataset(llm)
    prefix = shared_prefix(model, dataset, arguments(tmp_path))
    assert prefix is not None
    batch = Collator(dataset.processor.tokenizer.pad_token_id)([dataset[place] for place in range(8)])
    cut = prefix.cut(batch)
    assert cut["input_ids"].shape[1] == batch["input_ids"].shape[1] - len(prefix.tokens)
    assert (cut["labels"] != IGNORED).sum() == (batch["labels"] != IGNORED).sum()
    found: list[tuple[float, dict[str, torch.Tensor]]] = []
    for one in (batch, cut):
        model.zero_grad()
        loss = model(**one).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (whole_loss, whole), (cut_loss, shared) = found
    assert whole.keys() == shared.keys()
    assert cut_loss == pytest.approx(whole_loss, rel=1e-5)
    for parameter, gradient in whole.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(shared[parameter], gradient, rtol=1e-3, atol=1e-5 * max(largest, 1e-3))


def test_a_batch_that_begins_otherwise_is_left_whole(tiny_llm: Path) -> None:
    dataset = make_dataset(tiny_llm)
    batch = Collator(0)([dataset[place] for place in range(4)])
    begun = batch["input_ids"][0, :2].tolist()
    assert SharedPrefix(begun).cut(batch)["prefix_ids"].tolist() == begun
    assert SharedPrefix([begun[0], begun[1] + 1]).cut(batch) is batch
    one_row, nothing = Collator(0)([dataset[0]]), Collator(0)([])  # nothing: the share of an idle process
    assert SharedPrefix(begun).cut(one_row) is one_row
    assert SharedPrefix(begun).cut(nothing) is nothing
    other = batch["input_ids"].clone()
    other[3, 1] += 1
    mixed = {**batch, "input_ids": other}
    assert SharedPrefix(begun).cut(mixed) is mixed


def test_a_batch_that_would_be_spared_little_is_left_whole(tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tiny_llm)
    batch = Collator(0)([dataset[place] for place in range(4)])
    prefix = SharedPrefix(batch["input_ids"][0, :2].tolist())  # the other three rows are spared two tokens each
    monkeypatch.setattr(prefixes, "_LEAST", 6)
    assert prefix.cut(batch) is not batch
    monkeypatch.setattr(prefixes, "_LEAST", 7)
    assert prefix.cut(batch) is batch


def test_the_prefix_ends_before_what_predicts_a_label(tiny_llm: Path, tmp_path: Path) -> None:
    processor = build_processor(AutoTokenizer.from_pretrained(tiny_llm), num_visual_tokens=K)
    turns = [Message("user", "what?"), Message("assistant", "a dog")]
    dataset = ConversationDataset([Sample(f"s-{i}", turns, None) for i in range(3)], Rows(), processor, max_length=200)
    model = prepared(tiny_llm, PARTS["stage 2"])
    prefix = shared_prefix(model, dataset, arguments(tmp_path))
    assert prefix is not None
    batch = Collator(0)([dataset[0], dataset[1]])
    assert len(prefix.tokens) == int((batch["labels"][0] != IGNORED).int().argmax()) - 1
    assert model(**prefix.cut(batch)).loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_a_sample_that_does_not_fit_is_for_training_to_refuse(tiny_llm: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tiny_llm)
    dataset.max_length = min(len(dataset[place]["input_ids"]) for place in range(len(dataset)))
    assert shared_prefix(prepared(tiny_llm, ["projector"]), dataset, arguments(tmp_path)) is not None


@pytest.mark.parametrize(
    "reason", ["checkpointing", "compiled", "sharded", "packed", "attention", "dropout", "state", "kinds"]
)
def test_where_nothing_is_shared(reason: str, tiny_llm: Path, tmp_path: Path) -> None:
    model, dataset = prepared(tiny_llm, ["projector"]), make_dataset(tiny_llm)
    settings, llm = arguments(tmp_path), model.language_model
    learned: Any = dataset
    assert shared_prefix(model, learned, settings) is not None
    if reason == "checkpointing":
        settings.gradient_checkpointing = True
    elif reason == "compiled":
        settings.torch_compile = True
    elif reason == "sharded":
        settings.fsdp = True
    elif reason == "packed":
        learned = pack(dataset, 120)
    elif reason == "attention":
        llm.config._attn_implementation = "flex_attention"
    elif reason == "dropout":
        next(module for module in llm.modules() if hasattr(module, "attention_dropout")).attention_dropout = 0.1
    elif reason == "state":
        llm._is_stateful = True
    else:
        llm.config.layer_types = ["full_attention", "linear_attention"]
    assert shared_prefix(model, learned, settings) is None


def test_a_cache_takes_part_where_there_are_labels(tiny_llm: Path) -> None:
    model, dataset = prepared(tiny_llm, ["projector"]), make_dataset(tiny_llm)
    batch = Collator(0)([dataset[1]])
    with torch.no_grad():
        cache = model(input_ids=batch["input_ids"][:, :2], use_cache=True)[CACHE]
    rest = {**batch, "input_ids": batch["input_ids"][:, 2:], "labels": batch["labels"][:, 2:]}
    assert model(**rest, **{CACHE: cache}).loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_a_prefix_stands_before_each_row_without_labels_too(tiny_llm: Path) -> None:
    model, dataset = prepared(tiny_llm, ["projector"]), make_dataset(tiny_llm)
    batch = Collator(0)([dataset[1], dataset[2]])
    prefix = batch["input_ids"][0, :2]
    whole = {name: batch[name] for name in ("input_ids", "attention_mask", "image_embeds")}
    rest = {**whole, "input_ids": batch["input_ids"][:, 2:], "prefix_ids": prefix}
    torch.testing.assert_close(model(**rest).logits, model(**whole).logits[:, 2:], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="prefix_ids or earlier keys and values, not both"):
        model(**rest, **{CACHE: model(input_ids=prefix[None], use_cache=True)[CACHE]})


@pytest.mark.parametrize("stage", PARTS)
def test_a_run_learns_the_same(stage: str, tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, shared = [], []
    plain = SharedPrefix.cut
    for whole in (True, False):

        def cut(self: SharedPrefix, batch: dict[str, Any], whole: bool = whole) -> dict[str, Any]:
            shorter = plain(self, batch)
            shared.append(not whole and shorter is not batch)
            return batch if whole else shorter

        monkeypatch.setattr(SharedPrefix, "cut", cut)
        output = tmp_path / str(whole)
        model, _ = run(tiny_llm, output, parts=PARTS[stage], per_device_train_batch_size=4, learning_rate=1e-3)
        found.append(weights(model))
    assert any(shared)
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, rtol=1e-3, atol=1e-4)
