"""Kills at any instant, signals, damaged files and full disks: the weights come out as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import defaultdict
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import tiny_training
import torch
from transformers import Trainer

from revision.interrupts import Interrupted
from revision.training import resharding, sync
from revision.training.checkpoints import Checkpoints
from revision.training.guard import Guard
from revision.training.trainer import StageTrainer

TESTS = Path(__file__).parent
STEPS_AN_EPOCH = tiny_training.SAMPLES // 8
TRAINER: dict[str, Any] = {
    "max_steps": 2 * STEPS_AN_EPOCH + 2, "save_steps": 3, "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1,
}  # fmt: skip


def outlive(llm: Path, folder: Path, kills: int, *, epoch: int = STEPS_AN_EPOCH, **plan: Any) -> None:
    """Runs `killed_training`, and holds the samples that its lives learned from against those of a whole life.

    epoch: its steps.
    """
    trainer = {**TRAINER, **plan.pop("trainer", {})}
    asked = {"llm": str(llm), "folder": str(folder), "kills": kills, "trainer": trainer, **plan}
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, str(TESTS / "killed_training.py"), json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    said = "".join(file.read_text()[-3000:] for file in folder.glob("killed-*/said-*.txt"))
    assert done.returncode == 0, done.stderr + said
    report = json.loads((folder / "report.json").read_text())
    assert sum(-signal.SIGKILL in life for life in report["lives"]) == kills
    for place in range(report["rounds"]):
        samples = learned(folder / f"killed-{place}")
        assert samples == learned(folder / "whole")
        for steps in (range(epoch), range(epoch, 2 * epoch)):
            assert sorted(one for step in steps for one in samples[step]) == list(range(tiny_training.SAMPLES))
        assert not (folder / f"killed-{place}" / "checkpoints").exists(), "nothing is left"


def learned(folder: Path) -> dict[int, list[int]]:
    """The samples of each step, over all processes, in the life that had the last word on it."""
    by_life: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file in folder.glob("samples-*.jsonl"):
        for line in file.read_text().splitlines():
            life, step, samples = json.loads(line)
            by_life[step][life] += samples
    return {step: sorted(lives[max(lives)]) for step, lives in by_life.items()}


def farthest(folder: Path) -> float:
    """The largest difference between the weights of the whole life and of the others."""
    whole = safetensors.torch.load_file(folder / "whole" / "weights.safetensors")
    others = [safetensors.torch.load_file(file) for file in folder.glob("killed-*/weights.safetensors")]
    assert others and all(set(other) == set(whole) for other in others)
    return max(float((whole[name] - other[name]).abs().max()) for other in others for name in whole)


def test_kills_leave_no_trace(tiny_llm: Path, tmp_path: Path) -> None:
    outlive(tiny_llm, tmp_path, 5, workers=[0, 0, 1, 0])
    assert farthest(tmp_path) == 0
    rows = [(tmp_path / one / "log.jsonl").read_text().splitlines() for one in ("whole", "killed-0")]
    whole, again = ([[json.loads(row)[key] for key in ("step", "loss", "grad_norm")] for row in one] for one in rows)
    assert whole == again


@pytest.mark.slow
@pytest.mark.parametrize("training", ["random", "group_by_length", "packed", "adapter"])
def test_many_kills_leave_no_trace(tiny_llm: Path, tmp_path: Path, training: str) -> None:
    epoch, plan = STEPS_AN_EPOCH, dict[str, Any]()
    settings: dict[str, Any] = {}
    if training == "packed":
        rows = len(tiny_training.pack(tiny_training.make_dataset(tiny_llm), 150))
        epoch, plan = -(-rows // TRAINER["gradient_accumulation_steps"]), {"pack_tokens": 150}
    elif training == "adapter":
        plan = {"rank": 2}
    else:
        settings = {"train_sampling_strategy": training}
    settings |= {"max_steps": 3 * epoch, "save_steps": 1}
    outlive(tiny_llm, tmp_path, 20, epoch=epoch, seed=1, workers=[0, 2, 0], trainer=settings, **plan)
    assert farthest(tmp_path) == 0


@pytest.mark.slow
def test_kills_of_one_of_two_processes_leave_no_trace(tiny_llm: Path, tmp_path: Path) -> None:
    outlive(tiny_llm, tmp_path, 20, seed=2, processes=[2], trainer={"save_steps": 1})
    assert farthest(tmp_path) == 0


PIECES = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # so small a model would be kept whole


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_another_number_of_processes_learns_from_the_same_batches(tiny_llm: Path, tmp_path: Path, engine: str) -> None:
    options = PIECES if engine == "zero3" else {}
    trainer = {"save_steps": 1}
    outlive(tiny_llm, tmp_path, 4, seed=3, processes=[1, 2, 1, 2], engine=engine, options=options, trainer=trainer)
    assert farthest(tmp_path) < 1e-5, "but for the order of sums"


@pytest.mark.slow
def test_another_number_of_processes_begins_anew_where_nothing_was_learned(tiny_llm: Path, tmp_path: Path) -> None:
    # roll_back keeps the beginning, in which DeepSpeed has no state of an optimizer that could be taken apart.
    plan: dict[str, Any] = {"policy": "roll_back", "trainer": {"save_steps": 4}}
    outlive(tiny_llm, tmp_path, 3, seed=5, processes=[1, 2, 1, 2], engine="zero3", options=PIECES, **plan)
    assert farthest(tmp_path) < 1e-5


def test_shards_that_cannot_be_taken_apart_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3" / "engine").mkdir(parents=True)
    said = resharding._take_apart(tmp_path / "checkpoint-3" / "engine", tmp_path / ".aside" / "universal")
    assert said is not None and "cannot be taken apart for another number of processes" in said
    assert "resume with as many as wrote them" in said and said.count("\n") == 0


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kills"), [("zero2", 20), ("zero3", 20), ("fsdp2", 6)])
def test_kills_under_engines_leave_no_trace(tiny_llm: Path, tmp_path: Path, engine: str, kills: int) -> None:
    pieces = PIECES if engine == "zero3" else {}
    outlive(tiny_llm, tmp_path, kills, seed=2, processes=[2], engine=engine, options=pieces, trainer={"save_steps": 1})
    assert farthest(tmp_path) == 0


def run(llm: Path, output: Path, **changes: Any) -> Any:
    settings = {"parts": ["projector"], "per_device_train_batch_size": 4, **TRAINER, **changes}
    return tiny_training.run(llm, output, **settings)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Has something done in the first micro-batch of a step."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == step and not self.losses:
            act()
        return original(self, *args)

    monkeypatch.setattr(StageTrainer, "training_step", training_step)


def spoil(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Has the loss of one step come out as no number."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any) -> torch.Tensor:
        loss = original(self, *args)
        if self.state.global_step == step:
            self.losses[-1] = loss * torch.nan
        return loss

    monkeypatch.setattr(StageTrainer, "training_step", training_step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves(
    tiny_llm: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(tiny_llm, tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        at_step(patch, 4, lambda: os.kill(os.getpid(), number))
        run(tiny_llm, tmp_path / "left")
    checkpoint = tmp_path / "left" / "checkpoints" / "checkpoint-5"
    assert str(caught.value) == (
        f"{number.name}: saved after step 5 of 10 in {checkpoint}; the same command goes on from there"
    )
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert {file.name for file in checkpoint.iterdir()} == {
        "manifest.json", "identity.json", "weights.safetensors", "optimizer.safetensors", "state.json",
        "trainer_state.json",
    }  # fmt: skip
    trained = safetensors.torch.load_file(checkpoint / "weights.safetensors")
    assert {name.split(".")[0] for name in trained} == {"projector"}, "the frozen LLM is not written"
    again, summary = run(tiny_llm, tmp_path / "left")
    assert summary["steps"] == 10
    assert all(torch.equal(one, again.get_parameter(name)) for name, one in whole.named_parameters())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_saves_too(
    tiny_llm: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun, `kill -- -PGID` and schedulers send it: to the data-loading processes as well."""
    workers = {"dataloader_num_workers": 2}
    met = []

    def to_all() -> None:
        met.extend(multiprocessing.active_children())
        for child in met:
            assert child.pid is not None
            os.kill(child.pid, number)
        os.kill(os.getpid(), number)

    whole, _ = run(tiny_llm, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        at_step(patch, 4, to_all)
        run(tiny_llm, tmp_path / "left", **workers)
    assert len(met) == 2 and caught.value.exit_code == 128 + number
    again, summary = run(tiny_llm, tmp_path / "left", **workers)
    assert summary["steps"] == 10
    assert all(torch.equal(one, again.get_parameter(name)) for name, one in whole.named_parameters())


def test_a_resumed_epoch_is_named_to_the_batches(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the Trainer does, which in some versions names it to a loader that a resumed epoch is not read through."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, STEPS_AN_EPOCH + 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(tiny_llm, tmp_path)
    named = []
    original = Trainer._run_epoch

    def noted(self: StageTrainer, *args: Any, **kwargs: Any) -> None:
        named.append((kwargs["epoch"], self.batches._epoch))
        original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_run_epoch", noted)
    run(tiny_llm, tmp_path)
    assert named == [(1, 1), (2, 2)]


def test_a_signal_at_the_last_step_finishes(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(tiny_llm, tmp_path)[1]["steps"] == 10


def test_a_resumed_run_may_have_no_update_left(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moved before it was left counts, and a part that never moves is still found."""
    leave(tiny_llm, tmp_path / "bad", monkeypatch, after=9)
    with monkeypatch.context() as patch:
        spoil(patch, 9)
        assert run(tiny_llm, tmp_path / "bad", guard=Guard("skip"))[1]["steps"] == 10
    assert (tmp_path / "bad" / "faults.jsonl").is_file()
    leave(tiny_llm, tmp_path / "still", monkeypatch, after=9, learning_rate=0.0)
    with pytest.raises(ValueError, match=r"projector trains, but has not moved in 10 step\(s\)"):
        run(tiny_llm, tmp_path / "still", learning_rate=0.0)


def leave(llm: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *, after: int, **changes: Any) -> Path:
    """A run that was left after a step; returns the folder of its checkpoints."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, after - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(llm, output, **changes)
    return output / "checkpoints"


def test_the_newest_few_are_kept(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leave(tiny_llm, tmp_path, monkeypatch, after=8, save_steps=2, save_total_limit=3)
    assert [one.name for one in Checkpoints(folder).all()] == ["checkpoint-8", "checkpoint-6", "checkpoint-4"]
    assert {one.name for one in folder.iterdir() if one.is_file()} == {"identity.json"}


def test_checkpoints_come_by_the_clock(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delitem(TRAINER, "save_steps")
        patch.setattr(
            sync, "time", SimpleNamespace(monotonic=count().__next__)
        )  # saving takes a second, as a step does
        folder = leave(tiny_llm, tmp_path / "far", monkeypatch, after=4, minutes=1e-9, save_total_limit=9)
        assert [one.name for one in Checkpoints(folder).all()] == ["checkpoint-4", "checkpoint-1"]
        patch.setattr(sync, "_AT_LEAST", 0)
        folder = leave(tiny_llm, tmp_path / "often", monkeypatch, after=4, minutes=1e-9, save_total_limit=9)
        assert [one.name for one in Checkpoints(folder).all()] == [f"checkpoint-{step}" for step in (4, 3, 2, 1)]
        folder = leave(tiny_llm, tmp_path / "never", monkeypatch, after=4, minutes=60.0)
        assert [one.name for one in Checkpoints(folder).all()] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "has .* bytes, not"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"), "has been altered"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tiny_llm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    harm: Any,
    why: str,
) -> None:
    whole, _ = run(tiny_llm, tmp_path / "whole")
    folder = leave(tiny_llm, tmp_path / "left", monkeypatch, after=7)
    harm(folder / "checkpoint-7" / "optimizer.safetensors")
    half = folder / ".checkpoint-8.part"
    half.mkdir()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(tiny_llm, tmp_path / "left")
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if " is damaged (" in line]
    assert f"checkpoint-7 is damaged (optimizer.safetensors {why.split(' ')[0]}" in line
    assert "set aside as damaged-checkpoint-7; the one before it is checkpoint-6" in line
    assert f"resuming from {folder / 'checkpoint-6'}" in said
    assert (folder / "damaged-checkpoint-7").is_dir()
    assert not half.exists()
    again, _ = run(tiny_llm, tmp_path / "left")
    assert all(torch.equal(one, again.get_parameter(name)) for name, one in whole.named_parameters())


def test_a_run_without_a_whole_checkpoint_does_not_start_over(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leave(tiny_llm, tmp_path, monkeypatch, after=4)
    for one in Checkpoints(folder).all():
        (one / "state.json").unlink()
    log = (tmp_path / "log.jsonl").read_text()
    why = r"no checkpoint in .* is whole \(2 are damaged\); restore one as checkpoint-<step>, or delete the folder"
    for identity in (None, None, {"trainer.learning_rate": 0.02}):
        with pytest.raises(ValueError, match=why):
            run(tiny_llm, tmp_path, identity=identity)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_changed_run_is_refused_with_the_difference(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"trainer.learning_rate": 0.01, "content of s": "a", "same": None}
    folder = leave(tiny_llm, tmp_path, monkeypatch, after=4, identity=known)
    changed = {"trainer.learning_rate": 0.02, "content of s": "b", "same": None}
    with pytest.raises(ValueError) as caught:
        run(tiny_llm, tmp_path, identity=changed)
    assert str(caught.value) == (
        f"{folder} holds checkpoints of a run that differs in content of s: a -> b; trainer.learning_rate: 0.01 -> "
        "0.02; restore it to resume the run, or delete the folder to start anew"
    )
    with pytest.raises(ValueError, match="differs in weights at the start: .* -> "):
        other = tiny_training.make_model(tiny_llm)
        with torch.no_grad():
            other.language_model.model.norm.weight[0] += 1  # in the frozen part
        run(tiny_llm, tmp_path, identity=known, model=other)
    assert run(tiny_llm, tmp_path, identity=known)[1]["steps"] == 10


@pytest.mark.parametrize("where", ["write", "sync"])
def test_a_full_disk_is_a_sentence_and_costs_no_checkpoint(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    whole, _ = run(tiny_llm, tmp_path / "whole")

    def full_file(_tensors: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        target = (safetensors.torch, "save_file", full_file) if where == "write" else (os, "fsync", full_disk)
        patch.setattr(*target)

    with monkeypatch.context() as patch, pytest.raises(ValueError) as caught:
        at_step(patch, 4, fill)
        run(tiny_llm, tmp_path / "full")
    folder = tmp_path / "full" / "checkpoints"
    assert str(caught.value) == (
        f"the checkpoint after step 6 cannot be written to {folder}: the disk is full; checkpoint-3 is whole: mend the "
        "cause, and the same command goes on from there"
    )
    assert {one.name for one in folder.iterdir()} == {"checkpoint-3", "identity.json"}
    again, _ = run(tiny_llm, tmp_path / "full")
    assert all(torch.equal(one, again.get_parameter(name)) for name, one in whole.named_parameters())


def test_a_line_of_the_log_that_was_cut_off_is_left_out(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tiny_llm, tmp_path, monkeypatch, after=4)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run(tiny_llm, tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 11))
