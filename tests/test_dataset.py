"""Examples of both stages: the right embedding under the right text, and clear words when one is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from revision.alignment import C3, MeanShift
from revision.conversation import IGNORED
from revision.dataset import (
    Collator,
    ConversationDataset,
    Rows,
    Sample,
    TextSamples,
    conversation_samples,
    pair_samples,
)
from revision.embeddings import EmbeddingStore, StoreWriter
from revision.records import Conversation, Message, Pair

DIM = 16
ENCODER = {"name": "made", "weights": "0"}


def unit_rows(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, DIM)) + 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def make_store(path: Path, ids: list[str], rows: np.ndarray, kind: str, encoder: dict[str, str] = ENCODER) -> EmbeddingStore:
    writer = StoreWriter(
        path, kind=kind, dim=rows.shape[1], encoder=encoder, records_fingerprint="0" * 64, records=len(ids),
        shard_size=5, reject_budget=0.0,
    )  # fmt: skip
    for shard in writer.missing():
        where = list(writer.positions(shard))
        writer.write(
            shard, ids=[ids[i] for i in where], payloads=[f"text of {ids[i]}" for i in where],
            lengths=[1 for _ in where], rows=rows[where], rejected=[],
        )  # fmt: skip
    writer.finish()
    return EmbeddingStore.open(path)


@pytest.fixture
def texts(tmp_path: Path) -> EmbeddingStore:
    return make_store(tmp_path / "texts", [f"t{i}" for i in range(12)], unit_rows(12, 0), "text")


def test_a_text_is_the_answer_to_its_own_embedding(texts: EmbeddingStore, tiny_processor: Any) -> None:
    dataset = ConversationDataset(
        TextSamples(texts, ["<image>"], seed=0), Rows([texts], embed_dim=DIM), tiny_processor, max_length=99
    )
    for index in (0, 7, 11):
        example = dataset[index]
        answer = tiny_processor.tokenizer.decode(example["labels"][example["labels"] != IGNORED])
        assert answer.startswith(f"text of t{index}")
        np.testing.assert_array_equal(example["image_embed"].numpy(), texts.rows(np.array([index]))[0].astype(np.float32))
        assert (example["input_ids"] == tiny_processor.image_token_id).sum() == tiny_processor.num_visual_tokens


def test_alignment_is_applied_on_the_fly(texts: EmbeddingStore) -> None:
    image = unit_rows(30, 5)
    alignment = MeanShift().fit(texts.rows(slice(None)), image)
    vector = Rows([texts], embed_dim=DIM, alignment=alignment)[3].numpy().astype(np.float64)
    raw, shifted = (texts.rows(slice(None)).astype(np.float64), image.astype(np.float64))
    raw, shifted = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (raw, shifted))
    expected = raw[3] - raw.mean(0) + shifted.mean(0)
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_noise_is_a_function_of_epoch_and_row(texts: EmbeddingStore) -> None:
    rows = Rows([texts], embed_dim=DIM, alignment=C3(seed=3).fit(texts.rows(slice(None)), unit_rows(30, 5)))
    first, again = rows[3], rows[3]
    rows.epoch = 1
    assert torch.equal(first, again)
    assert not torch.allclose(first, rows[3], atol=1e-3)


def test_rows_are_found_across_stores(tmp_path: Path) -> None:
    left = make_store(tmp_path / "left", ["a", "b"], unit_rows(2, 1), "image")
    right = make_store(tmp_path / "right", ["c", "d", "e"], unit_rows(3, 2), "image")
    rows = Rows([left, right], embed_dim=DIM)
    found = rows.find(["d", "a"])
    np.testing.assert_array_equal(rows[found[0]].numpy(), right.rows(np.array([1]))[0].astype(np.float32))
    np.testing.assert_array_equal(rows[found[1]].numpy(), left.rows(np.array([0]))[0].astype(np.float32))
    with pytest.raises(ValueError, match="'z' has no embedding"):
        rows.find(["a", "z"])


def test_pairs_and_conversations_point_at_their_pictures(tmp_path: Path) -> None:
    store = make_store(tmp_path / "images", ["p", "q"], unit_rows(2, 3), "image")
    rows = Rows([store], embed_dim=DIM)
    (pair,) = pair_samples([Pair("q", tmp_path / "q.png", "a tree")], rows, ["<image>"], seed=0)
    assert pair.row == 1 and pair.messages[-1].content == "a tree"
    talk = [Message("user", "<image>\nWhat?"), Message("assistant", "A sun.")]
    chat = [Message("user", "Hello."), Message("assistant", "Hi.")]
    seen, blind = conversation_samples([Conversation("1", "p", talk), Conversation("2", None, chat)], rows)
    assert (seen.row, blind.row) == (0, None)


def test_stores_of_two_encoders_and_a_wrong_dimension_are_refused(tmp_path: Path) -> None:
    one = make_store(tmp_path / "one", ["a"], unit_rows(1, 1), "image")
    two = make_store(tmp_path / "two", ["b"], unit_rows(1, 2), "image", {"name": "other", "weights": "1"})
    with pytest.raises(ValueError, match="two encoders"):
        Rows([one, two], embed_dim=DIM)
    with pytest.raises(ValueError, match="dimension 16, but the model reads 8"):
        Rows([one], embed_dim=8)


def test_prompts_need_one_picture(texts: EmbeddingStore) -> None:
    with pytest.raises(ValueError, match="exactly one <image>"):
        TextSamples(texts, ["Describe it."], seed=0)


def test_limit_is_a_seeded_subset(texts: EmbeddingStore, tiny_processor: Any) -> None:
    def chosen(limit: int, seed: int) -> list[bytes]:
        rows = Rows([texts], embed_dim=DIM)
        dataset = ConversationDataset(
            TextSamples(texts, ["<image>"], seed=0), rows, tiny_processor, max_length=99, limit=limit, seed=seed
        )
        return [dataset[i]["image_embed"].numpy().tobytes() for i in range(len(dataset))]

    assert chosen(4, 1) == chosen(8, 1)[:4]
    assert chosen(4, 1) != chosen(4, 2)


def test_an_empty_data_set_is_refused(texts: EmbeddingStore, tiny_processor: Any) -> None:
    with pytest.raises(ValueError, match="no record to train on"):
        ConversationDataset([], Rows([texts], embed_dim=DIM), tiny_processor, max_length=9)


def test_batches_are_padded_on_the_right_and_keep_picture_order(texts: EmbeddingStore, tiny_processor: Any) -> None:
    rows = Rows([texts], embed_dim=DIM)
    ask = Message("user", "<image>")
    samples = [
        Sample("0", (ask, Message("assistant", "a long answer about a red square")), 4),
        Sample("1", (Message("user", "Hello."), Message("assistant", "Hi.")), None),
        Sample("2", (ask, Message("assistant", "a sun")), 9),
    ]
    dataset = ConversationDataset(samples, rows, tiny_processor, max_length=99)
    batch = Collator(tiny_processor.tokenizer.pad_token_id)([dataset[i] for i in range(3)])
    assert torch.equal(batch["image_embeds"], torch.stack([rows[4], rows[9]]))
    for row in range(3):
        length = len(dataset[row]["input_ids"])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["labels"][row, length:].eq(IGNORED).all()
