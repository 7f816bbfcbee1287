"""Token lengths on disk, and samples that do not fit: refused, dropped, or cut between turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_EMBED_DIM

from revision.data import dataset as dataset_module
from revision.data import lengths as lengths_module
from revision.data.conversation import IGNORED
from revision.data.dataset import ConversationDataset
from revision.data.lengths import settle_lengths
from revision.data.packing import PackedDataset
from revision.data.rows import Rows
from revision.data.samples import KeptSamples, TextSamples, conversation_samples
from revision.records import Conversation, Message

Store = Callable[..., Any]
LONG = "a red square on a white table " * 20


def talk(name: str, *contents: str, image: str | None = None) -> Conversation:
    """Turns of user and assistant by turns."""
    roles: Any = ("user", "assistant")
    turns = [Message(roles[place % 2], content) for place, content in enumerate(contents)]
    return Conversation(name, image, turns)


def make(store: Any, processor: Any, talks: list[Conversation], **options: Any) -> ConversationDataset:
    rows = Rows([store], embed_dim=TINY_EMBED_DIM)
    return ConversationDataset(
        list(conversation_samples(talks, rows)), rows, processor, **{"max_length": 100, "seed": 0, **options}
    )


def settle(dataset: ConversationDataset, folder: Path, **options: Any) -> None:
    settings: dict[str, Any] = {"drop": True, "reject_budget": 0.7, "listing": folder / "unfit.jsonl", **options}
    settle_lengths(dataset, folder / "lengths", **settings)


def listed(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "unfit.jsonl").read_text().splitlines()]


TALKS = [
    talk("short", "<image> what?", "a bird", image="image-3"),
    talk("long", "what?", LONG),
    talk("many", "<image> what?", "a tree", "and?", LONG, "and?", LONG, image="image-5"),
    talk("late", "what?", "a tree", "<image> and?", LONG, image="image-6"),
    talk("blank", "what?", "a sun", "and?"),
]


def test_lengths_are_those_of_the_samples(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    dataset = make(tiny_store("image"), tiny_processor, [TALKS[0], TALKS[4]])
    settle(dataset, tmp_path)
    assert dataset.tokens is not None
    assert dataset.tokens.tolist() == [len(dataset[place]["input_ids"]) for place in range(2)] == dataset.lengths()
    assert isinstance(dataset.tokens, np.memmap)
    assert not (tmp_path / "unfit.jsonl").exists()


def test_a_damaged_file_is_counted_again(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    first = make(tiny_store("image"), tiny_processor, TALKS)
    settle(first, tmp_path)
    (array,) = (tmp_path / "lengths").glob("*.npy")
    content = array.read_bytes()
    for damage in (content[:-8], content[:20], b"", b"nonsense"):
        array.write_bytes(damage)
        again = make(first.rows.stores[0], tiny_processor, TALKS)
        settle(again, tmp_path)
        assert again.lengths() == first.lengths() and array.read_bytes() == content
    array.with_suffix(".jsonl").unlink()
    settle(make(first.rows.stores[0], tiny_processor, TALKS), tmp_path)
    assert listed(tmp_path)


def test_they_are_counted_once(
    tiny_store: Store, tiny_processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_store("image")
    first = make(store, tiny_processor, TALKS)
    settle(first, tmp_path)
    listing = listed(tmp_path)
    (tmp_path / "unfit.jsonl").unlink()

    def counted(*_: Any, **__: Any) -> None:
        raise AssertionError("counted again")

    for name in ("encode", "encode_what_fits"):
        monkeypatch.setattr(dataset_module, name, counted)
    again = make(store, tiny_processor, TALKS)
    settle(again, tmp_path)
    assert again.lengths() == first.lengths()
    assert listed(tmp_path) == listing
    for change in (
        make(store, tiny_processor, TALKS[:4]),
        make(store, tiny_processor, TALKS, max_length=99),
        make(store, tiny_processor, TALKS, cut_turns=True),
        make(store, tiny_processor, TALKS, limit=3),
        make(store, tiny_processor, [*TALKS[:4], talk("blank", "what?", "a moon", "and?")]),
    ):
        with pytest.raises(AssertionError, match="counted again"):
            settle(change, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="counted again"):
        patch.setattr(lengths_module, "_COUNTING", lengths_module._COUNTING + 1)
        settle(make(store, tiny_processor, TALKS), tmp_path)
    version = lengths_module.version
    for library in ("tokenizers", "transformers"):
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="counted again"):
            patch.setattr(lengths_module, "version", lambda name, it=library: "9" if name == it else version(name))
            settle(make(store, tiny_processor, TALKS), tmp_path)
    settle(make(store, tiny_processor, TALKS), tmp_path)
    tiny_processor.num_visual_tokens = 5
    with pytest.raises(AssertionError, match="counted again"):
        settle(make(store, tiny_processor, TALKS), tmp_path)


def test_a_pack_whose_samples_have_other_tokens_than_planned_is_refused(
    tiny_store: Store, tiny_processor: Any, tmp_path: Path
) -> None:
    """As after a change of the code that the name of the file does not know of."""
    store, talks = tiny_store("image"), [TALKS[0], TALKS[4]]
    first = make(store, tiny_processor, talks)
    settle(first, tmp_path)
    assert len(PackedDataset(first, tokens=200)[0]) == 2
    (array,) = (tmp_path / "lengths").glob("*.npy")
    real = first.lengths()
    np.save(array, np.array([real[0], real[1] + 1], dtype=np.int32))
    stale = make(store, tiny_processor, talks)
    settle(stale, tmp_path)
    with pytest.raises(ValueError) as caught:
        PackedDataset(stale, tokens=200)[0]
    assert str(caught.value) == (
        f"sample blank has {real[1]} tokens, but its row is planned with {real[1] + 1}; delete {array}, so that they "
        "are counted anew"
    )
    array.unlink()
    again = make(store, tiny_processor, talks)
    settle(again, tmp_path)
    assert len(PackedDataset(again, tokens=200)[0]) == 2


def test_texts_of_a_store_are_known_by_its_fingerprint(
    tiny_store: Store, tiny_processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts(store: Any, prompts: list[str], seed: int = 0, **options: Any) -> str:
        rows = Rows([store], embed_dim=TINY_EMBED_DIM)
        samples = TextSamples(store, prompts, seed)
        return lengths_module._key(
            ConversationDataset(samples, rows, tiny_processor, **{"max_length": 100, **options}), False
        )

    store, two = tiny_store(), ["<image>", "<image> what?"]
    assert texts(store, ["<image>"]) == texts(store, ["<image>"], seed=1)
    names = {texts(store, ["<image>"]), texts(store, two), texts(store, two, seed=1), texts(store, two, limit=3)}
    names.add(texts(tiny_store(name="other", n=25), ["<image>"]))
    names.add(texts(store, two, limit=3, seed=1))
    assert len(names) == 6


def test_kept_samples_are_known_by_their_fingerprint(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    rows = Rows([tiny_store("image")], embed_dim=TINY_EMBED_DIM)

    def kept(talks: list[Conversation], **options: Any) -> ConversationDataset:
        samples = KeptSamples.at(tmp_path / str(len(talks)), conversation_samples(talks, rows))
        return ConversationDataset(samples, rows, tiny_processor, **{"max_length": 100, "seed": 0, **options})

    held, ours = make(rows.stores[0], tiny_processor, TALKS), kept(TALKS)
    settle(held, tmp_path / "held")
    settle(ours, tmp_path / "ours")
    assert ours.lengths() == held.lengths()
    assert listed(tmp_path / "ours") == listed(tmp_path / "held")
    assert ours.count_kinds() == held.count_kinds()
    names = {
        lengths_module._key(one, True)
        for one in (kept(TALKS), kept(TALKS), kept(TALKS[:4]), kept(TALKS, limit=3), kept(TALKS, limit=3, seed=1))
    }
    assert len(names) == 4


def test_a_sample_that_does_not_fit_is_an_error(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    dataset = make(tiny_store("image"), tiny_processor, TALKS)
    with pytest.raises(ValueError, match=r"^sample long has \d+ tokens, above max_length=100"):
        settle(dataset, tmp_path, drop=False)
    assert not list(tmp_path.glob("lengths/*")), "nothing half-written"


def test_dropped_samples_are_listed(
    tiny_store: Store, tiny_processor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = talk("empty", "what?", "  ")  # still has its end-of-turn token to learn
    dataset = make(tiny_store("image"), tiny_processor, [*TALKS, blank])
    settle(dataset, tmp_path)
    assert len(dataset) == 3
    assert [str(dataset.sample(place).name) for place in range(3)] == ["short", "blank", "empty"]
    assert dataset.lengths() == [len(dataset[place]["input_ids"]) for place in range(3)]
    assert [(row["id"], row["action"]) for row in listed(tmp_path)] == [
        ("long", "dropped"), ("many", "dropped"), ("late", "dropped"),
    ]  # fmt: skip
    assert "above max_length=100" in listed(tmp_path)[0]["reason"]
    assert "of 6 samples 3 are left out and 0 cut" in capsys.readouterr().out


def test_a_sample_without_a_label_is_dropped_by_name(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    """What a template marks decides: here, only answers about birds."""
    own = tiny_processor.chat_template
    start = own.index("{%- elif message['role'] == 'assistant' -%}")
    tiny_processor.chat_template = (
        own[:start]
        + "{%- elif message['role'] == 'assistant' and 'bird' not in message['content'] -%}"
        + "{{- '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' -}}"
        + own[start:]
    )
    talks = [TALKS[0], TALKS[4]]
    with pytest.raises(ValueError, match="sample blank has no label"):
        settle(make(tiny_store("image"), tiny_processor, talks), tmp_path, drop=False)
    dataset = make(tiny_store("image"), tiny_processor, talks)
    settle(dataset, tmp_path)
    assert [str(dataset.sample(0).name), len(dataset)] == ["short", 1]
    assert "has no label" in listed(tmp_path)[0]["reason"]


def test_turns_are_cut_at_the_end_and_never_within_an_answer(
    tiny_store: Store, tiny_processor: Any, tmp_path: Path
) -> None:
    dataset = make(tiny_store("image"), tiny_processor, TALKS, cut_turns=True)
    settle(dataset, tmp_path)
    assert [str(dataset.sample(place).name) for place in range(len(dataset))] == ["short", "many", "blank"]
    assert [(row["id"], row["action"]) for row in listed(tmp_path)] == [
        ("long", "dropped"), ("many", "cut"), ("late", "dropped"),
    ]  # fmt: skip
    assert listed(tmp_path)[1]["reason"] == "2 of 6 turns fit into max_length=100"
    cut = dataset[1]
    learned = tiny_processor.tokenizer.decode(cut["labels"][cut["labels"] != IGNORED])
    assert learned == "a tree<|im_end|>"
    assert cut["image_embed"] is not None
    assert dataset.lengths() == [len(dataset[place]["input_ids"]) for place in range(3)]


def test_as_few_turns_are_cut_as_will_do(tiny_store: Store, tiny_processor: Any) -> None:
    many = talk("many", "what?", "a tree", "and?", "a bird", "and?", "a sun", "and?", LONG)
    dataset = make(tiny_store("image"), tiny_processor, [many], cut_turns=True, max_length=200)
    assert dataset.fit(dataset.sample(0))[1] == 6


def test_more_than_the_budget_is_an_error(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    dataset = make(tiny_store("image"), tiny_processor, TALKS)
    with pytest.raises(ValueError, match=r"3 of 5 samples cannot be learned, more than reject_budget=0.5 allows; the "
                       r"first: sample long has .*unfit\.jsonl"):  # fmt: skip
        settle(dataset, tmp_path, reject_budget=0.5)
    assert len(listed(tmp_path)) == 3
    settle(make(tiny_store("image"), tiny_processor, TALKS), tmp_path, reject_budget=0.6)
    with pytest.raises(ValueError, match="no record is left to train on"):
        settle(make(tiny_store("image"), tiny_processor, TALKS[1:2]), tmp_path, reject_budget=1.0)


def test_several_processes_count_what_one_does(
    tiny_store: Store, tiny_processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths_module, "_BLOCK", 2)
    store, found = tiny_store("image"), []
    for workers in (0, 2):
        dataset = make(store, tiny_processor, TALKS, cut_turns=True)
        settle(dataset, tmp_path / str(workers), workers=workers)
        found.append((dataset.lengths(), listed(tmp_path / str(workers))))
    assert found[0] == found[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_record_that_is_wrong_is_one_sentence_from_any_process(
    tiny_store: Store, tiny_processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(lengths_module, "_BLOCK", 2)
    wrong = talk("wrong", "what?", "a <image> tree", image="image-3")
    dataset = make(tiny_store("image"), tiny_processor, [wrong, *TALKS[:1]])
    with pytest.raises(ValueError) as alone:
        dataset[0]
    with pytest.raises(ValueError) as caught:
        settle(dataset, tmp_path, drop=False, workers=workers)
    assert str(caught.value) == str(alone.value)
    assert "sample wrong" in str(caught.value)


def test_a_limit_is_counted_as_far_as_it_goes(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    rows = Rows([tiny_store()], embed_dim=TINY_EMBED_DIM)
    samples = TextSamples(rows.stores[0], ["<image>"], 0)
    dataset = ConversationDataset(samples, rows, tiny_processor, max_length=100, limit=5, seed=2)
    settle(dataset, tmp_path)
    assert dataset.lengths() == [len(dataset[place]["input_ids"]) for place in range(5)]
