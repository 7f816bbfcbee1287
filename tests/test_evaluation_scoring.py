"""Likelihoods of many continuations at once against one at a time, on a tiny multimodal model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_llm

from revision.data.conversation import encode
from revision.evaluation.reader import Reader
from revision.evaluation.scoring import Prompt, Trie
from revision.records import Message

ANSWERS = ["a red square", "a red star", "a", "the green circle lies left", "a red square on a table", "three"]


@pytest.fixture(scope="module")
def talkative_llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With tied embeddings a random LLM says its last token again and again; this one does not."""
    return str(build_tiny_llm(tmp_path_factory.mktemp("llm") / "untied", tied=False))


@pytest.fixture
def model(make_tiny_model: Callable[..., Any], talkative_llm: str) -> Any:
    return make_tiny_model(llm=talkative_llm).eval()


@pytest.fixture
def reader(model: Any, tiny_processor: Any) -> Reader:
    return Reader(model, tiny_processor, batch_size=3)


@pytest.fixture
def pictures() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(5, 16))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def one_by_one(model: Any, prompt: Prompt, continuation: list[int]) -> float:
    """Teacher forcing of a single sequence, without mask, padding or trie."""
    picture = None if prompt.picture is None else torch.tensor(prompt.picture[None], dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt.ids + continuation]), image_embeds=picture).logits[0].double()
    predicted = logits.log_softmax(-1)[len(prompt.ids) - 1 : -1]
    return float(predicted[range(len(continuation)), continuation].sum())


def test_trie_shares_beginnings_and_spares_last_tokens() -> None:
    trie = Trie.of([[5, 6, 7], [5, 6], [5, 8], [9], [5, 6, 7]])
    assert trie.tokens.tolist() == [5, 6, 7, 8, 9]
    assert trie.parents.tolist() == [-1, 0, 1, 0, -1]
    assert trie.inner.tolist() == [0, 1]  # 7, 8 and 9 predict nothing
    assert trie.visible.tolist() == [[True, False], [True, True]]
    assert trie.predicting_columns().tolist() == [0, 1, 2, 1, 0]
    values = torch.tensor([1.0, 10.0, 100.0, 1000.0, 0.5])
    assert trie.totals(values).tolist() == [111.0, 11.0, 1001.0, 0.5, 111.0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_equal_those_of_one_sequence_at_a_time(
    model: Any, tiny_processor: Any, pictures: np.ndarray, attention: str
) -> None:
    model.set_attn_implementation(attention)
    reader = Reader(model, tiny_processor, batch_size=3)
    turns = [
        "<image>",
        "<image>\nwhat do you see in the picture?",
        "how many <image> stars are there?",
        "<image>",
        "hi",
    ]
    prompts = [reader.prompt(turn, row) for turn, row in zip(turns[:4], pictures, strict=False)]
    prompts.append(reader.prompt(turns[4], None))  # with and without picture, of all lengths, in one batch
    continuations = [[reader.answer_ids(answer) for answer in ANSWERS[: 2 + i]] for i in range(5)]
    found = reader.log_probs(prompts, continuations, "test")
    for prompt, some, values in zip(prompts, continuations, found, strict=True):
        assert values.tolist() == pytest.approx([one_by_one(model, prompt, ids) for ids in some], abs=1e-4)
    assert np.ptp([values[0] for values in found]) > 0.1  # prompts matter, so the comparison means something
    (alone,) = reader.log_probs(prompts[1:2], continuations[1:2], "test")
    assert alone.tolist() == pytest.approx(found[1].tolist(), abs=1e-4)


def test_pictures_reach_their_own_prompts(reader: Reader, pictures: np.ndarray) -> None:
    prompts = [reader.prompt("<image>", row) for row in pictures]
    names = [reader.opening_ids(answer) for answer in ANSWERS]
    together = reader.log_probs(prompts, [names] * 5, "test")
    backwards = reader.log_probs(prompts[::-1], [names] * 5, "test")[::-1]
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    assert np.std([values[0] for values in together]) > 0.01


def test_answer_likelihood_is_the_training_loss(reader: Reader, model: Any, tiny_processor: Any) -> None:
    picture = np.ones(16, dtype=np.float32) / 4
    sample = encode(
        tiny_processor, [Message("user", "<image>\ndescribe."), Message("assistant", "a yellow sun")], name="sample"
    )
    with torch.no_grad():
        loss = model(
            input_ids=torch.tensor(sample.input_ids[None]),
            labels=torch.tensor(sample.labels[None]),
            image_embeds=torch.tensor(picture[None]),
        ).loss
    ids = reader.answer_ids("a yellow sun")
    (values,) = reader.log_probs([reader.prompt("<image>\ndescribe.", picture)], [[ids]], "test")
    assert -values[0] / len(ids) == pytest.approx(float(loss), abs=1e-5)


def test_prompts_and_answers_are_those_of_training(reader: Reader, tiny_processor: Any) -> None:
    tokenizer = tiny_processor.tokenizer
    prompt = tokenizer.decode(reader.prompt("<image>\nhow many?", np.ones(16)).ids)
    assert prompt.count("<image>") == 3
    assert prompt.endswith("<image>\nhow many?<|im_end|>\n<|im_start|>assistant\n")
    blind = reader.prompt("<image>\nhow many?", None)
    assert tokenizer.decode(blind.ids) == prompt.replace("<image><image><image>\n", "")
    assert blind.picture is None
    assert tokenizer.decode(reader.answer_ids("three.")) == "three.<|im_end|>"
    assert tokenizer.decode(reader.opening_ids("three.")) == "three."


def test_greedy_answers_do_not_depend_on_the_batch(
    reader: Reader, model: Any, tiny_processor: Any, pictures: np.ndarray
) -> None:
    prompts = [reader.prompt("<image>", row) for row in pictures] + [reader.prompt("how many stars are there?", None)]
    model.generation_config.repetition_penalty = 5.0  # an LLM's own habits are not to change what is greedy
    model.generation_config.do_sample = True
    found = reader.answers(prompts, 6, "test")
    assert len(set(found)) > 1
    for prompt, answer in zip(prompts, found, strict=True):
        ids: list[int] = list(prompt.ids)
        picture = None if prompt.picture is None else torch.tensor(prompt.picture[None], dtype=torch.float32)
        for _ in range(6):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), image_embeds=picture).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == tiny_processor.tokenizer.eos_token_id:
                break
        expected = tiny_processor.tokenizer.decode(ids[len(prompt.ids) :], skip_special_tokens=True)
        assert answer == expected.strip()


def test_streamed_answer_is_the_greedy_one(reader: Reader, pictures: np.ndarray) -> None:
    prompt = reader.prompt("<image>", pictures[0])
    pieces: list[str] = []
    whole = reader.stream(prompt, pieces.append, max_new_tokens=8)
    assert [whole] == reader.answers([prompt], 8, "test")
    assert "".join(pieces).strip() == whole


def test_progress_goes_through_every_batch(model: Any, tiny_processor: Any) -> None:
    seen: list[tuple[str, int]] = []

    def track(batches: Any, title: str) -> Iterator[Any]:
        seen.append((title, len(batches)))
        yield from batches

    reader = Reader(model, tiny_processor, batch_size=2, track=track)
    prompts = [reader.prompt("hi", None)] * 5
    reader.log_probs(prompts, [[[7]]] * 5, "names")
    reader.answers(prompts, 1, "captions")
    assert seen == [("names", 3), ("captions", 1)]  # answers come in batches four times as large


def test_saved_model_scores_alike(
    model: Any, tiny_processor: Any, reader: Reader, pictures: np.ndarray, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    loaded = Reader.load(tmp_path / "model", device=torch.device("cpu"))
    asked = [reader.prompt("<image>", pictures[0])], [[reader.answer_ids("a red star")]], "test"
    assert loaded.embed_dim == 16
    assert loaded.log_probs(*asked)[0] == pytest.approx(reader.log_probs(*asked)[0], abs=1e-5)
    half = Reader.load(tmp_path / "model", device=torch.device("cpu"), dtype="bfloat16").log_probs(*asked)[0]
    assert half == pytest.approx(reader.log_probs(*asked)[0], rel=0.05)
    assert half != pytest.approx(reader.log_probs(*asked)[0], rel=1e-6)
    with pytest.raises(ValueError, match="cannot be read as a "):
        Reader.load(tmp_path, device=torch.device("cpu"))


def test_a_model_in_pieces_answers_as_a_whole_one(
    model: Any, reader: Reader, tiny_processor: Any, pictures: np.ndarray, tmp_path: Path
) -> None:
    """Of GPUs there are none here: a layer and the projector lie on the disk, and are brought in as they are needed."""
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    layers = {f"language_model.model.layers.{n}": "cpu" for n in range(len(model.language_model.model.layers))}
    rest = ("language_model.model.embed_tokens", "language_model.model.norm", "language_model.model.rotary_emb")
    pieces = {**layers, **dict.fromkeys((*rest, "language_model.lm_head"), "cpu"), "projector": "disk"}
    pieces["language_model.model.layers.0"] = "disk"
    parts = type(model).from_pretrained(tmp_path, device_map=pieces, offload_folder=tmp_path / "aside").eval()
    assert next(parts.projector.parameters()).device.type == "meta", "it is not in memory"
    prompts = [reader.prompt("<image>\nwhat is it", picture) for picture in pictures]
    choices = [[reader.answer_ids(answer) for answer in ANSWERS[:3]]] * len(prompts)
    in_parts = Reader(parts, tiny_processor, batch_size=3)
    for found, expected in zip(
        in_parts.log_probs(prompts, choices, ""), reader.log_probs(prompts, choices, ""), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert in_parts.answers(prompts, 5, "") == reader.answers(prompts, 5, "")
    assert parts._no_split_modules == {"LlamaDecoderLayer"}, "a device holds whole layers"


def test_spread_where_there_is_no_gpu_is_the_memory_of_the_host(
    model: Any, tiny_processor: Any, pictures: np.ndarray, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    spread, whole = (Reader.load(tmp_path, device=device) for device in (None, torch.device("cpu")))
    prompt = whole.prompt("<image>\nwhat is it", pictures[0])
    assert spread.answers([prompt], 4, "") == whole.answers([prompt], 4, "")
