"""Checkpoints of several processes: all go on from the same one, and stop together where one sees other files."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from revision import folders
from revision.training import checkpoints, ranks
from revision.training.checkpoints import Checkpoints

WORLD = 2
NOT_SHARED = r"process \d does not see .*{}, which another one does; let `runs` lie on storage that all processes share"


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], list[Any]]:
    """Calls a function as each of two processes at once; one that waits for another in vain breaks the barrier."""
    rank, barrier, given = threading.local(), threading.Barrier(WORLD, timeout=5), [None] * WORLD

    def gather(value: Any) -> list[Any]:
        given[rank.number] = value
        barrier.wait()
        values = list(given)
        barrier.wait()
        return values

    monkeypatch.setattr(ranks, "together", lambda: True)
    monkeypatch.setattr(ranks, "world", lambda: WORLD)
    monkeypatch.setattr(ranks, "rank", lambda: rank.number)
    monkeypatch.setattr(ranks, "gather", gather)
    monkeypatch.setattr(checkpoints, "_PATIENCE", 0.0)

    def call(act: Callable[[int], Any]) -> list[Any]:
        def as_rank(number: int) -> Any:
            rank.number = number
            try:
                return act(number)
            except ValueError as error:
                return error

        with ThreadPoolExecutor(WORLD) as pool:
            return list(pool.map(as_rank, range(WORLD)))

    return call


def test_the_main_process_goes_first(together: Callable[[Callable[[int], Any]], list[Any]]) -> None:
    order: list[int] = []

    def act(number: int) -> None:
        with ranks.main_first():
            order.append(number)

    assert together(act) == [None, None] and order == [0, 1]


def test_what_the_main_process_fails_at_ends_the_others_too(
    together: Callable[[Callable[[int], Any]], list[Any]],
) -> None:
    def act(number: int) -> None:
        with ranks.main_first():
            assert number == 0, "the others never begin"
            raise ValueError("the file is damaged")

    assert [str(error) for error in together(act)] == ["the file is damaged"] * WORLD


def save(folder: Path) -> None:
    """Each process writes a file of its own, as sharded engines do."""
    (folder / f"shard-{ranks.rank()}").write_text("x" * 9)


def refused(answers: list[Any], file: str) -> None:
    """All processes stop with the same sentence."""
    assert all(isinstance(answer, ValueError) for answer in answers), answers
    assert len({str(answer) for answer in answers}) == 1
    with pytest.raises(ValueError, match=NOT_SHARED.format(file)):
        raise answers[0]


def test_a_checkpoint_of_all_is_listed_in_full_and_found_by_all(together: Any, tmp_path: Path) -> None:
    def act(rank: int) -> tuple[Path | None, Path | None]:
        ours = Checkpoints(tmp_path, every=2)
        assert ours.open({}) is None
        ours.write(2, save, alone=True)
        ours.write(3, save, alone=True)
        return ours.open({}), ours.regular()

    assert together(act) == [(tmp_path / "checkpoint-3", tmp_path / "checkpoint-2")] * WORLD
    manifest = json.loads((tmp_path / "checkpoint-3" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["identity.json", "shard-0", "shard-1"]


def alone(folder: Path, **identity: object) -> Checkpoints:
    """A run with a regular checkpoint after step 2."""
    ours = Checkpoints(folder, every=2)
    assert ours.open(identity) is None
    ours.write(2, lambda aside: (aside / "weights").write_text("w"), alone=False)
    return ours


def test_each_checkpoint_knows_whose_it_is(tmp_path: Path) -> None:
    alone(tmp_path, rate=1)
    (tmp_path / "identity.json").write_text("")
    assert Checkpoints(tmp_path).open({"rate": 1}) == tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match=r"holds checkpoints of a run that differs in rate: 1 -> 2; restore it"):
        Checkpoints(tmp_path).open({"rate": 2})


def test_one_that_does_not_say_whose_it_is_is_refused(tmp_path: Path) -> None:
    alone(tmp_path, rate=1)
    names = folders.names_of(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "identity.json").unlink()
    names.remove("identity.json")
    folders.write_manifest(tmp_path / "checkpoint-2", folders.record(tmp_path / "checkpoint-2", names))
    assert Checkpoints(tmp_path).open({"rate": 1}) == tmp_path / "checkpoint-2", "as older versions leave them"
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(ValueError, match=r"holds checkpoints, but no identity.json that can be read and says of what"):
        Checkpoints(tmp_path).open({"rate": 1})


def test_nobody_returns_to_a_damaged_checkpoint(tmp_path: Path) -> None:
    ours = alone(tmp_path)
    assert ours.regular() == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / "weights").write_text("v")
    with pytest.raises(ValueError, match=r"checkpoint-2, .* is damaged \(weights has been altered\); the same command"):
        ours.regular()


def test_a_full_disk_is_called_one_whatever_an_engine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = alone(tmp_path)

    def fail(aside: Path) -> None:
        raise RuntimeError("unexpected pos 191872 vs 191760")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        ours.write(4, fail, alone=False)
    with pytest.raises(ValueError, match=r"cannot be written to .*: unexpected pos 191872 vs 191760; checkpoint-2 is"):
        ours.write(4, fail, alone=True)

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"cannot be written to .*: the disk is full; checkpoint-2 is whole"):
        ours.write(4, fail, alone=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-2", "identity.json"]


def test_a_folder_that_is_not_shared_is_refused_at_the_start(together: Any, tmp_path: Path) -> None:
    refused(together(lambda rank: Checkpoints(tmp_path / str(rank)).open({})), "identity.json")


def test_processes_that_see_other_checkpoints_are_refused(together: Any, tmp_path: Path) -> None:
    """Here they share nothing, and each found what it wrote by itself."""
    for rank, step in ((0, 4), (0, 2), (1, 2)):
        folder = tmp_path / str(rank) / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder.parent / "identity.json").write_text("{}")
    refused(together(lambda rank: Checkpoints(tmp_path / str(rank)).open({})), "checkpoint-4/manifest.json")
    assert not list(tmp_path.rglob("damaged-*")), "nothing is set aside for what another process does not see"
    refused(together(lambda rank: Checkpoints(tmp_path / str(rank), every=4).regular()), "checkpoint-4/manifest.json")


def test_a_checkpoint_is_never_of_a_part_of_the_files(together: Any, tmp_path: Path) -> None:
    def act(rank: int) -> Path:
        (tmp_path / str(rank) / ".checkpoint-2.part").mkdir(parents=True)
        return Checkpoints(tmp_path / str(rank)).write(2, save, alone=True)

    refused(together(act), "shard-1")
    assert not list(tmp_path.rglob("checkpoint-2"))


def test_files_that_a_process_lists_late_are_in_the_manifest(
    together: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached listing of a folder lacks what another machine has just written, which can be opened all the same."""
    original = checkpoints.folders.names_of

    def names_of(folder: Path) -> list[str]:
        return [name for name in original(folder) if name == f"shard-{ranks.rank()}"]

    monkeypatch.setattr(checkpoints.folders, "names_of", names_of)
    together(lambda rank: Checkpoints(tmp_path).write(2, save, alone=True))
    manifest = json.loads((tmp_path / "checkpoint-2" / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["shard-0", "shard-1"]
