"""Examples of both stages: which text meets which embedding, and what a batch looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_EMBED_DIM, TINY_VISUAL_TOKENS

from revision.alignment import C3, ReAlign
from revision.data.collators import Collator
from revision.data.conversation import IGNORED
from revision.data.dataset import ConversationDataset
from revision.data.rows import Rows
from revision.data.samples import Sample, TextSamples, conversation_samples, pair_samples
from revision.records import Conversation, Message, Pair

DIM = TINY_EMBED_DIM
Store = Callable[..., Any]


def text_dataset(store: Any, processor: Any, *, alignment: Any = None, **options: Any) -> ConversationDataset:
    rows = Rows([store], embed_dim=DIM, alignment=alignment)
    prompts = options.pop("prompts", ["<image>"])
    return ConversationDataset(TextSamples(store, prompts, 0), rows, processor, **{"max_length": 200, **options})


def answers(dataset: ConversationDataset) -> list[str]:
    """What each example learns, as text."""
    labels = [dataset[place]["labels"] for place in range(len(dataset))]
    texts = [dataset.processor.tokenizer.decode(one[one != IGNORED]) for one in labels]
    return [text.removesuffix("<|im_end|>") for text in texts]


def test_stage_1_answers_each_text_embedding_with_its_own_text(tiny_store: Store, tiny_processor: Any) -> None:
    store = tiny_store()
    dataset = text_dataset(store, tiny_processor)
    assert answers(dataset) == store.payload(slice(None))
    for row in (0, 11, 23):
        assert np.array_equal(dataset[row]["image_embed"].numpy(), store.rows(row)[0].astype(np.float32))


def test_the_alignment_is_applied_on_the_fly(tiny_store: Store, tiny_processor: Any) -> None:
    text, image = tiny_store(shift=0.3), tiny_store("image", shift=-0.4, seed=1)
    alignment = ReAlign().fit(text, image)
    dataset = text_dataset(text, tiny_processor, alignment=alignment)
    expected = alignment.apply(text.rows(slice(None)).astype(np.float32))
    got = torch.stack([dataset[row]["image_embed"] for row in range(len(dataset))])
    torch.testing.assert_close(got, torch.from_numpy(expected))
    assert not np.allclose(got[0], text.rows(0)[0], atol=0.01)


def test_noise_is_fresh_in_each_epoch_and_the_same_in_each_process(tiny_store: Store, tiny_processor: Any) -> None:
    text, image = tiny_store(), tiny_store("image", seed=1)
    dataset = text_dataset(text, tiny_processor, alignment=C3(noise_std=0.1, seed=3).fit(text, image))
    first = dataset[4]["image_embed"]
    assert torch.equal(dataset[4]["image_embed"], first)
    dataset.set_epoch(1)
    second = dataset[4]["image_embed"]
    assert not torch.equal(second, first)
    dataset.set_epoch(0)
    assert torch.equal(dataset[4]["image_embed"], first)


def test_input_noise_is_a_function_of_seed_epoch_and_row(tiny_store: Store) -> None:
    store = tiny_store()
    plain, noisy = (Rows([store], embed_dim=DIM, noise_std=std, seed=3) for std in (0.0, 0.05))
    first, later = noisy[7], noisy[8]
    noisy.set_epoch(1)
    second = noisy[7]
    noisy.set_epoch(0)
    assert torch.equal(noisy[8], later) and torch.equal(noisy[7], first)  # whatever the order of asking
    for other in (second, later, plain[7], Rows([store], embed_dim=DIM, noise_std=0.05, seed=4)[7]):
        assert not torch.allclose(first, other, atol=1e-3)
    assert torch.equal(plain[7], torch.from_numpy(store.rows(7)[0].astype(np.float32)))


def test_many_rows_are_what_each_alone_is(tiny_store: Store) -> None:
    """Of two stores in any order, twice over, with the noise of an alignment and our own."""
    text, image = tiny_store(), tiny_store("image", seed=1)
    alignment = C3(noise_std=0.1, seed=3).fit(text, image)
    rows = Rows([text, image], embed_dim=DIM, alignment=alignment, noise_std=0.05, seed=2)
    rows.set_epoch(4)
    wanted = [len(text) + 3, 0, 7, len(text), 0, len(text) - 1]
    torch.testing.assert_close(rows.many(wanted), torch.stack([rows[row] for row in wanted]), rtol=0, atol=1e-6)
    assert rows.many([]).shape == (0, DIM)


def test_input_noise_has_the_size_asked_for_and_keeps_rows_on_the_sphere(tiny_store: Store) -> None:
    store, std = tiny_store(n=400), 0.2
    noisy = Rows([store], embed_dim=DIM, noise_std=std)
    got = torch.stack([noisy[row] for row in range(len(store))]).double().numpy()
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    own = store.rows(slice(None)).astype(np.float64)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    cosine = (got * own).sum(axis=1)
    # x + s e, with e split into its part a along x and the rest of squared length r: the tangent of the angle.
    random = np.random.default_rng(0)
    along, rest = random.normal(size=200_000), random.chisquare(DIM - 1, size=200_000)
    expected = (1 + std * along) / np.sqrt((1 + std * along) ** 2 + std**2 * rest)
    assert cosine.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / np.sqrt(len(store)))


def test_workers_that_live_on_see_the_epoch_change(tiny_store: Store, tiny_processor: Any) -> None:
    text, image = tiny_store(n=8), tiny_store("image", seed=1)
    dataset = text_dataset(text, tiny_processor, alignment=C3(noise_std=0.1, seed=3).fit(text, image))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=8, num_workers=1, persistent_workers=True, collate_fn=Collator(0)
    )
    seen = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        seen.append(next(iter(loader))["image_embeds"])
        torch.testing.assert_close(seen[-1], torch.stack([dataset[row]["image_embed"] for row in range(8)]))
    assert not torch.equal(*seen)


def test_prompts_are_drawn_by_seed_and_row(tiny_store: Store) -> None:
    store, prompts = tiny_store(n=40), ["<image>", "<image>\nDescribe the picture."]

    def drawn(seed: int) -> list[str]:
        samples = TextSamples(store, prompts, seed)
        return [samples[row].messages[0].content for row in range(len(samples))]

    assert drawn(0) == drawn(0) != drawn(1)
    assert 8 < drawn(0).count(prompts[0]) < 32


@pytest.mark.parametrize("prompts", [[], ["Describe it."], ["<image>", "<image><image>"]])
def test_prompts_have_one_mark(tiny_store: Store, prompts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"pretrain\.prompts=.*exactly one <image>"):
        TextSamples(tiny_store(), prompts, 0)


def test_texts_of_a_large_store_are_read_one_by_one(
    tiny_store: Store, tiny_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_store()
    at_once = answers(text_dataset(store, tiny_processor))
    monkeypatch.setattr("revision.data.samples._TEXTS_IN_MEMORY", 5)
    assert answers(text_dataset(store, tiny_processor)) == at_once


def test_limit_is_the_beginning_of_a_seeded_shuffle(tiny_store: Store, tiny_processor: Any) -> None:
    store = tiny_store()
    five, nine = (answers(text_dataset(store, tiny_processor, limit=limit, seed=2)) for limit in (5, 9))
    other = answers(text_dataset(store, tiny_processor, limit=9, seed=3))
    assert len(five) == 5
    assert five == nine[:5]
    assert nine != other
    assert nine != store.payload(slice(None))[:9]
    picked = text_dataset(store, tiny_processor, limit=5, seed=2)
    row = store.payload(slice(None)).index(five[0])
    assert np.array_equal(picked[0]["image_embed"].numpy(), store.rows(row)[0].astype(np.float32))


def test_pairs_answer_a_picture_with_its_caption(tiny_store: Store, tiny_processor: Any) -> None:
    stores = [tiny_store("image", name="a", n=12), tiny_store("image", name="b", n=24, seed=5)]
    rows = Rows(stores, embed_dim=DIM)
    pairs = [Pair("image-20", Path("x.png"), "a sun"), Pair("image-3", Path("y.png"), "a tree")]
    dataset = ConversationDataset(list(pair_samples(pairs, rows, ["<image>"], 0)), rows, tiny_processor, max_length=99)
    assert answers(dataset) == ["a sun", "a tree"]
    assert np.array_equal(dataset[0]["image_embed"].numpy(), stores[1].rows(20)[0].astype(np.float32))
    assert np.array_equal(dataset[1]["image_embed"].numpy(), stores[0].rows(3)[0].astype(np.float32))


def conversation(number: int, image: str | None) -> Conversation:
    question = Message("user", f"{'' if image is None else '<image> '}what is {number}?")
    return Conversation(f"talk-{number}", image, [question, Message("assistant", "a number")])


def test_stage_2_mixes_pictures_and_text(tiny_store: Store, tiny_processor: Any) -> None:
    store = tiny_store("image")
    rows = Rows([store], embed_dim=DIM)
    talks = [conversation(0, "image-7"), conversation(1, None), conversation(2, "image-2")]
    dataset = ConversationDataset(list(conversation_samples(talks, rows)), rows, tiny_processor, max_length=99)
    batch = Collator(0)([dataset[place] for place in range(3)])
    assert batch["image_embeds"].dtype == torch.float32
    assert np.array_equal(batch["image_embeds"].numpy(), store.rows(np.array([7, 2])).astype(np.float32))
    images = (batch["input_ids"] == tiny_processor.image_token_id).sum(dim=1).tolist()
    assert images == [TINY_VISUAL_TOKENS, 0, TINY_VISUAL_TOKENS]
    lengths = [len(dataset[place]["input_ids"]) for place in range(3)]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"].shape == (3, max(lengths))
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert "image_embeds" not in Collator(0)([dataset[1]])


def test_lengths_tell_long_from_short(tiny_store: Store, tiny_processor: Any) -> None:
    dataset = text_dataset(tiny_store(payloads=["one word", "a" * 90, "two"], n=3), tiny_processor)
    assert dataset.lengths() == [15, 97, 10]


def test_an_id_without_an_embedding_is_named(tiny_store: Store) -> None:
    one, two = tiny_store("image", name="a"), tiny_store("image", name="b")
    for stores in ([one], [one, two]):
        rows = Rows(stores, embed_dim=DIM)
        with pytest.raises(ValueError, match="id 'image-99' has no embedding"):
            list(conversation_samples([conversation(0, "image-1"), conversation(1, "image-99")], rows))


def test_rows_that_do_not_fit_are_refused(tiny_store: Store) -> None:
    store = tiny_store("image", name="a")
    with pytest.raises(ValueError, match=f"rows of dimension {DIM}, but the model reads 12"):
        Rows([store], embed_dim=12)
    with pytest.raises(ValueError, match="come from two encoders"):
        Rows([store, tiny_store("image", name="b", encoder={"name": "other"})], embed_dim=DIM)
    narrow = tiny_store(name="narrow", dim=8), tiny_store("image", name="narrow-image", dim=8)
    with pytest.raises(ValueError, match="the alignment is of dimension 8"):
        Rows([store], embed_dim=DIM, alignment=ReAlign().fit(*narrow))


def test_stage_1_wants_texts(tiny_store: Store) -> None:
    with pytest.raises(ValueError, match=r"holds images; set data\.texts"):
        TextSamples(tiny_store("image"), ["<image>"], 0)


def test_nothing_to_train_on_is_an_error(tiny_store: Store, tiny_processor: Any) -> None:
    with pytest.raises(ValueError, match="no record to train on"):
        ConversationDataset([], Rows([tiny_store()], embed_dim=DIM), tiny_processor, max_length=9)


def test_a_bad_row_is_named_by_its_id(tiny_store: Store, tiny_processor: Any) -> None:
    dataset = text_dataset(tiny_store(payloads=["fine", "a word " * 90, "an <image> here"], n=3), tiny_processor)
    with pytest.raises(ValueError, match="sample text-1 has .* above max_length=200"):
        dataset[1]
    with pytest.raises(ValueError, match="sample text-2 has <image>"):
        dataset[2]


def test_a_sample_may_be_text_alone(tiny_store: Store, tiny_processor: Any) -> None:
    rows = Rows([tiny_store()], embed_dim=DIM)
    talk = Sample("x", [Message("user", "how many?"), Message("assistant", "three.")], None)
    dataset = ConversationDataset([talk], rows, tiny_processor, max_length=99)
    assert dataset[0]["image_embed"] is None
