"""What a stage learns as lines of a mapped file: the same samples, written once, read whole or written again."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_EMBED_DIM
from torch.utils.data import DataLoader, Dataset

from revision.data import contents
from revision.data.dataset import ConversationDataset
from revision.data.lines import Lines
from revision.data.rows import Rows
from revision.data.samples import KeptSamples, Sample, TextSamples, conversation_samples, pair_samples
from revision.records import Conversation, Message, Pair

Store = Callable[..., Any]
TALKS = [
    Conversation("a", "image-7", [Message("user", "<image> what?"), Message("assistant", "ein Käse \u2028 \n 🦆")]),
    Conversation("b", None, [Message("system", ""), Message("user", "1?"), Message("assistant", "2.")]),
    Conversation("c", "image-2", [Message("user", "hm? <image>"), Message("assistant", '"quoted" \\')]),
]


def unread() -> Iterator[Any]:
    """Records that must not be read."""
    for _ in range(1):
        raise AssertionError("read again")
    yield


def samples_of(store: Any, talks: list[Conversation] = TALKS) -> Iterator[Sample]:
    return conversation_samples(talks, Rows([store], embed_dim=TINY_EMBED_DIM))


def every(samples: Any) -> list[Sample]:
    return [samples[place] for place in range(len(samples))]


def test_kept_samples_are_those_of_the_records(tiny_store: Store, tmp_path: Path) -> None:
    store, path = tiny_store("image"), tmp_path / "deep" / "kept"
    expected = [Sample(talk.id, talk.messages, row) for talk, row in zip(TALKS, (7, None, 2), strict=True)]
    assert every(KeptSamples.at(path, samples_of(store))) == expected == list(samples_of(store))
    again = KeptSamples.at(path, unread())
    assert every(again) == expected
    assert again[-1] == expected[-1]
    with pytest.raises(IndexError):
        again[3]
    assert again.rows.tolist() == [7, -1, 2]


def test_pairs_are_kept_too(tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, prompts = Rows([tiny_store("image")], embed_dim=TINY_EMBED_DIM), ["<image>", "<image> what?"]
    pairs = [Pair(f"image-{20 - place}", Path("x.png"), f"a tree {place}") for place in range(20)]
    whole = list(pair_samples(pairs, rows, prompts, 0))
    assert [(one.row, one.messages[1].content) for one in whole] == [(20 - n, f"a tree {n}") for n in range(20)]
    monkeypatch.setattr("revision.data.samples._BLOCK", 3)  # of the ids that are looked up at once
    assert every(KeptSamples.at(tmp_path / "kept", pair_samples(pairs, rows, prompts, 0))) == whole


def test_the_fingerprint_is_that_of_a_list(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    """A run that is resumed knows its records, whichever way they are held."""
    store = tiny_store("image")
    rows = Rows([store], embed_dim=TINY_EMBED_DIM)
    kept = KeptSamples.at(tmp_path / "kept", samples_of(store))
    found = contents.contents(rows, kept, tiny_processor)
    assert found == contents.contents(rows, list(samples_of(store)), tiny_processor)
    other = KeptSamples.at(tmp_path / "other", samples_of(store, TALKS[:2]))
    assert contents.contents(rows, other, tiny_processor)["content of the records"] != found["content of the records"]


def test_kinds_are_counted_of_those_chosen(tiny_store: Store, tiny_processor: Any, tmp_path: Path) -> None:
    store = tiny_store("image")
    rows = Rows([store], embed_dim=TINY_EMBED_DIM)
    samples = KeptSamples.at(tmp_path / "kept", samples_of(store))
    dataset = ConversationDataset(samples, rows, tiny_processor, max_length=99)
    assert dataset.count_kinds() == {"text": 0, "image": 2, "none": 1}
    two = ConversationDataset(samples, rows, tiny_processor, max_length=99, limit=2, seed=1)
    held = ConversationDataset(list(samples_of(store)), rows, tiny_processor, max_length=99, limit=2, seed=1)
    assert two.count_kinds() == held.count_kinds()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("ending", [".jsonl", ".npy", "-rows.npy"])
def test_what_is_not_whole_is_written_again(
    ending: str, damage: Callable[[Path], None], tiny_store: Store, tmp_path: Path
) -> None:
    store = tiny_store("image")
    KeptSamples.at(tmp_path / "kept", samples_of(store))
    damage(tmp_path / f"kept{ending}")
    with pytest.raises(AssertionError, match="read again"):
        KeptSamples.at(tmp_path / "kept", unread())
    assert every(KeptSamples.at(tmp_path / "kept", samples_of(store))) == list(samples_of(store))


def test_nothing_is_left_of_records_that_break_off(tiny_store: Store, tmp_path: Path) -> None:
    """A mistake in the last record is one at the next start too, not a shorter corpus."""
    folder = tmp_path / "kept"
    for _ in range(2):
        with pytest.raises(ValueError, match="id 'image-99' has no embedding"):
            KeptSamples.at(folder / "x", samples_of(tiny_store("image"), [*TALKS, Conversation("d", "image-99", [])]))
    assert list(folder.iterdir()) == []


def test_no_records_are_none(tmp_path: Path) -> None:
    assert len(KeptSamples.at(tmp_path / "kept", [])) == 0


class Names(Dataset[str]):
    """What a data-loading process reads of samples."""

    def __init__(self, samples: KeptSamples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> str:
        return f"{self._samples[index].name} {self._samples[index].row}"


def test_data_loading_processes_read_it(tiny_store: Store, tmp_path: Path) -> None:
    samples = KeptSamples.at(tmp_path / "kept", samples_of(tiny_store("image")))
    assert samples[0].row == 7  # this process has read it before the others begin
    loader: Any = DataLoader(Names(samples), batch_size=2, num_workers=1, multiprocessing_context="fork")
    assert [name for batch in loader for name in batch] == ["a 7", "b None", "c 2"]
    sent = bytes(ForkingPickler.dumps(samples))  # to a process that is spawned
    assert b"quoted" not in sent
    assert every(ForkingPickler.loads(sent)) == every(samples)


def test_texts_of_a_store_are_kept(tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revision.data.samples._BLOCK", 7)
    store = tiny_store()
    expected = [(row, text) for row, text in enumerate(store.payload(slice(None)))]

    def texts(samples: Any) -> list[tuple[int | None, str]]:
        return [(sample.row, sample.messages[1].content) for sample in every(samples)]

    first = TextSamples(store, ["<image>"], 0, tmp_path / "kept")
    assert texts(first) == expected
    assert str(first[13].name) == "text-13"

    def read(*_: Any) -> None:
        raise AssertionError("a shard was unpacked for a text")

    monkeypatch.setattr(type(store), "payload", read)
    assert texts(TextSamples(store, ["<image>"], 0, tmp_path / "kept")) == expected


def test_a_process_holds_a_hundredth_of_a_list(tmp_path: Path) -> None:
    def made() -> Iterator[Sample]:
        for number in range(10_000):
            turns = [Message("user" if turn % 2 == 0 else "assistant", f"{number} {turn} " * 20) for turn in range(4)]
            yield Sample(f"talk-{number}", turns, number)

    def held(make: Callable[[], Any]) -> int:
        """Bytes that are still there when it is made."""
        tracemalloc.start()
        made_one = make()
        now, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(made_one) == 10_000
        return now

    KeptSamples.at(tmp_path / "kept", made())
    as_list, kept = held(lambda: list(made())), held(lambda: KeptSamples.at(tmp_path / "kept", unread()))
    assert as_list > 10_000 * 650  # the contents alone
    assert kept < as_list / 100


def test_writing_holds_eight_bytes_a_line(tmp_path: Path) -> None:
    text = "a red square " * 50
    tracemalloc.start()
    Lines.written(tmp_path / "kept", (text for _ in range(10_000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "kept.jsonl").stat().st_size > 6_500_000
    assert peak < 1_000_000


def test_lines_are_json(tmp_path: Path) -> None:
    Lines.written(tmp_path / "kept", ["a", ["b", 1]])
    assert [json.loads(line) for line in (tmp_path / "kept.jsonl").open()] == ["a", ["b", 1]]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("revision.data.lines.write_whole", full)
    with pytest.raises(ValueError, match=r"texts cannot be written: the disk is full; .* give the same command again"):
        Lines.written(tmp_path / "texts", ["a"])
