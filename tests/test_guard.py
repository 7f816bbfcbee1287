"""A loss that is no number, or a spike: stop, skip or roll back, on all processes alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import tiny_training
import torch
from transformers import Trainer

from revision.data.dataset import ConversationDataset
from revision.data.samples import Sample
from revision.records import Message
from revision.training.gate import UpdateGate
from revision.training.guard import Guard, LossWindow
from revision.training.trainer import StageTrainer

BAD = 7  # row whose embedding is no number


@pytest.fixture
def poisoned(tiny_llm: Path) -> ConversationDataset:
    dataset = tiny_training.make_dataset(tiny_llm)
    rows: Any = dataset.rows
    rows._rows[BAD] = torch.nan
    return dataset


def run(llm: Path, output: Path, guard: Guard, dataset: ConversationDataset | None = None, **changes: Any) -> Any:
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 8}
    return tiny_training.run(
        llm, output, guard=guard, dataset=dataset, **{"parts": ["projector"], **settings, **changes}
    )


def in_two_processes(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of the tests."""
    root = Path(__file__).parent.parent
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launcher, str(root / "tests" / program), *words],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def faults(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "faults.jsonl").read_text().splitlines()]


def test_stop_names_the_samples(tiny_llm: Path, tmp_path: Path, poisoned: ConversationDataset) -> None:
    why = r"the loss is nan after step \d, at samples .*s-7.*; guard\.policy=skip goes on .*faults\.jsonl"
    with pytest.raises(ValueError, match=why):
        run(tiny_llm, tmp_path, Guard(), poisoned)
    (row,) = faults(tmp_path)
    assert f"s-{BAD}" in row["ids"]
    assert len(row["ids"]) == 4, "the micro-batch, not all of the step"
    assert row["policy"] == "stop"


def test_skip_leaves_the_update_out(tiny_llm: Path, tmp_path: Path, poisoned: ConversationDataset) -> None:
    model, summary = run(tiny_llm, tmp_path, Guard("skip"), poisoned)
    assert summary["steps"] == 8
    found = faults(tmp_path)
    assert len(found) == 2, "once an epoch"
    assert [f"s-{BAD - epoch}" in row["ids"] for epoch, row in enumerate(found)] == [True, True], "rows move on by one"
    assert all(row["policy"] == "skip" for row in found)
    assert all(one.isfinite().all() for one in model.parameters())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(row["loss"] < 100 for row in rows), "the curve leaves it out too"


def spoil(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Has the loss of one step come out as no number."""
    original = Trainer.training_step

    def training_step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(self, *args, **kwargs)
        return loss * torch.nan if self.state.global_step == step else loss

    monkeypatch.setattr(Trainer, "training_step", training_step)


def test_a_skipped_step_changes_nothing(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without, _ = run(tiny_llm, tmp_path / "without", Guard(), max_steps=2)
    spoil(monkeypatch, 2)
    with_it, _ = run(tiny_llm, tmp_path / "with", Guard("skip"), max_steps=3)
    assert all(torch.equal(one, with_it.get_parameter(name)) for name, one in without.named_parameters())


def test_a_run_that_stopped_goes_on_with_another_policy(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first bad step policies are the same; from then on they are not."""
    with monkeypatch.context() as patch:
        spoil(patch, 5)
        whole, _ = run(tiny_llm, tmp_path / "whole", Guard("skip"))
        with pytest.raises(ValueError, match="the loss is nan after step 5"):
            run(tiny_llm, tmp_path / "left", Guard(), save_steps=2)
        spoil(patch, 7)
        with pytest.raises(ValueError, match=r"more than guard\.limit=1 steps were bad"):
            run(tiny_llm, tmp_path / "left", Guard("skip", limit=1), save_steps=2)
    with pytest.raises(ValueError, match=r"guard\.policy=stop, but guard\.policy=skip has dealt with 1 bad step"):
        run(tiny_llm, tmp_path / "left", Guard(), save_steps=2)
    again, summary = run(tiny_llm, tmp_path / "left", Guard("skip", limit=2), save_steps=2)
    assert (summary["steps"], summary["bad_steps"]) == (8, 1)
    assert all(torch.equal(one, again.get_parameter(name)) for name, one in whole.named_parameters())


def test_too_many_bad_steps_stop_the_run(tiny_llm: Path, tmp_path: Path, poisoned: ConversationDataset) -> None:
    with pytest.raises(ValueError, match=r"and more than guard\.limit=1 steps were bad; a higher guard\.limit goes on"):
        run(tiny_llm, tmp_path, Guard("skip", limit=1), poisoned)


@pytest.mark.parametrize(("bad", "back"), [(1, 0), (3, 2)])
def test_roll_back_puts_weights_and_optimizer_back(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, back: int
) -> None:
    seen: dict[str, Any] = {}
    original = StageTrainer.roll_back

    def roll_back(self: StageTrainer) -> str:
        name = original(self)
        seen[name] = tiny_training.weights(self.model), list(self.optimizer.state_dict()["state"])
        return name

    monkeypatch.setattr(StageTrainer, "roll_back", roll_back)
    short = tiny_training.weights(tiny_training.make_model(tiny_llm))
    if back:
        short = tiny_training.weights(run(tiny_llm, tmp_path / "short", Guard(), max_steps=back)[0])
    spoil(monkeypatch, bad)
    _, summary = run(tiny_llm, tmp_path, Guard("roll_back"), save_steps=2, save_total_limit=1)
    weights, moments = seen[f"checkpoint-{back}"]
    assert all(torch.equal(weights[name], one) for name, one in short.items())
    assert bool(moments) == bool(back)
    assert summary["steps"] == 8, "and on with the data"
    assert [row["step"] for row in faults(tmp_path)] == [bad]


def test_a_spike_is_far_above_the_median() -> None:
    window = LossWindow(size=20, spike=6.0)
    for place in range(20):
        assert window.ceiling() == float("inf")
        window.add(2.0 + 0.1 * (place % 3))
    assert window.ceiling() == pytest.approx(2.1 + 6 * 1.4826 * 0.1)
    for _ in range(20):
        window.add(2.0)
    assert window.ceiling() == pytest.approx(2.0 * 1.06), "losses that hardly differ leave some room"
    assert LossWindow(size=10, spike=None).ceiling() == float("inf")


def test_a_spike_is_dealt_with(tiny_llm: Path, tmp_path: Path) -> None:
    dataset = tiny_training.make_dataset(tiny_llm)
    sample = dataset.sample

    class Talk:
        """One record says something that the model has not heard before."""

        def __call__(self, index: int) -> Any:
            found = sample(index)
            if index != 3:
                return found
            return Sample(found.name, [found.messages[0], Message("assistant", "ZQXJ" * 20)], found.row)

    dataset.sample = Talk()  # type: ignore[method-assign]
    settings: dict[str, Any] = {"max_steps": 24, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    settings["parts"] = ["projector", "llm"]
    guard = Guard("skip", spike=4.0, window=10)
    run(tiny_llm, tmp_path, guard, dataset, train_sampling_strategy="sequential", **settings)
    found = faults(tmp_path)
    assert [row["step"] for row in found] == [17], (
        "samples 2 and 3 in the second epoch; in the first there is no window"
    )
    assert found[0]["ids"] == ["s-2", "s-3"]
    assert "which makes it a spike" in found[0]["reason"]


@pytest.mark.parametrize(
    ("policy", "settings", "why"),
    [
        ("skip", {"fp16": True}, "guard.policy=skip cannot be had with trainer.fp16"),
        ("roll_back", {"fp16": True}, "guard.policy=roll_back cannot be had with trainer.fp16"),
        ("roll_back", {}, "set trainer.save_steps"),
        (
            "roll_back",
            {"save_strategy": "steps", "save_steps": 0.25},
            "save_steps=0.25 is a share of the run",
        ),
    ],
)
def test_a_policy_that_cannot_be_had_is_refused(
    tmp_path: Path, policy: Any, settings: dict[str, Any], why: str
) -> None:
    class Arguments:
        """As much of TrainingArguments as is asked for."""

        fp16 = settings.get("fp16", False)
        save_strategy, save_steps = settings.get("save_strategy", "no"), settings.get("save_steps", 500)

    with pytest.raises(ValueError, match=why):
        Guard(policy).require_possible(Arguments())  # type: ignore[arg-type]


def test_an_optimizer_that_cannot_leave_an_update_out_is_refused() -> None:
    engine = SimpleNamespace(optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)]))
    with pytest.raises(ValueError, match=r"DeepSpeed's SGD out; set engine\.kind to zero1, zero2 or zero3, or guard"):
        UpdateGate(engine, lambda bad: True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_deepspeed_leaves_bad_updates_out(tiny_llm: Path, tmp_path: Path, engine: str) -> None:
    """Two processes, one of which meets a loss that is no number: weights and moments are those of the steps before."""
    pieces = {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if engine.startswith("zero3") else {}
    shared: dict[str, Any] = {
        "llm": str(tiny_llm), "engine": engine, "parts": ["projector", "llm"], "options": pieces
    }  # fmt: skip
    runs = {
        "short": {**shared, "max_steps": 2},
        "skip": {**shared, "max_steps": 3, "guard": "skip", "spoiled": 2},
        "longer": {**shared, "max_steps": 4, "guard": "skip", "spoiled": 1},
        "back": {**shared, "max_steps": 4, "guard": "roll_back", "spoiled": 3, "save_steps": 2},
        "further": {**shared, "max_steps": 5, "guard": "roll_back", "spoiled": 3, "save_steps": 2},
        "short in half": {**shared, "max_steps": 2, "bf16": True},
        "skip in half": {**shared, "max_steps": 3, "bf16": True, "guard": "skip", "spoiled": 2},
        "rate": {**shared, "max_steps": 4, "guard": "skip", "spoiled": 2, "lr_scheduler_type": "linear"},
    }  # fmt: skip
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    done = in_two_processes("tiny_engines.py", str(tmp_path / "runs.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: safetensors.torch.load_file(tmp_path / name / "model" / "model.safetensors") for name in runs}
    for name, one in found["short"].items():
        assert torch.equal(one, found["skip"][name]) and torch.equal(one, found["back"][name]), name
        assert torch.equal(found["short in half"][name], found["skip in half"][name]), name
    for other in (found["longer"], found["further"]):
        assert all(one.isfinite().all() for one in other.values())
        assert any(not torch.equal(one, other[name]) for name, one in found["short"].items()), "it goes on"
    assert [row["step"] for name in ("skip", "longer", "back") for row in faults(tmp_path / name)] == [2, 1, 3]
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "rate" / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3]), "the schedule goes on"


@pytest.mark.slow
def test_fsdp_leaves_bad_updates_out(tiny_llm: Path, tmp_path: Path) -> None:
    """`begun` returns to its beginning, whose moments PyTorch cannot save without making a step of its own up."""
    shared: dict[str, Any] = {"llm": str(tiny_llm), "engine": "fsdp2", "parts": ["projector", "llm"]}
    back = {**shared, "guard": "roll_back"}
    runs = {
        "short": {**shared, "max_steps": 2},
        "skip": {**shared, "max_steps": 3, "guard": "skip", "spoiled": 2},
        "back": {**back, "max_steps": 4, "spoiled": 3, "save_steps": 2},
        "further": {**back, "max_steps": 5, "spoiled": 3, "save_steps": 2},
        "missed": {**shared, "max_steps": 4, "guard": "skip", "spoiled": 0},
        "begun": {**back, "max_steps": 4, "spoiled": 0, "save_steps": 4},
        "untouched": {**back, "max_steps": 2, "save_steps": 2},
        "rate": {**back, "max_steps": 4, "spoiled": 2, "save_steps": 2, "lr_scheduler_type": "linear"},
    }
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    done = in_two_processes("tiny_engines.py", str(tmp_path / "runs.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: safetensors.torch.load_file(tmp_path / name / "model" / "model.safetensors") for name in runs}
    for name, one in found["short"].items():
        assert all(torch.equal(one, found[other][name]) for other in ("skip", "back", "untouched")), name
        assert torch.equal(found["missed"][name], found["begun"][name]), name
    assert all(one.isfinite().all() for one in found["further"].values())
    assert any(not torch.equal(one, found["further"][name]) for name, one in found["short"].items()), "it goes on"
    assert {name: [row["step"] for row in faults(tmp_path / name)] for name in ("skip", "back", "begun")} == {
        "skip": [2], "back": [3], "begun": [0]
    }  # fmt: skip
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "rate" / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3]), "the schedule goes on"


@pytest.mark.slow
def test_a_bad_loss_on_one_process_stops_all(tiny_llm: Path, tmp_path: Path) -> None:
    done = in_two_processes("bad_rank.py", str(tiny_llm), str(tmp_path))
    said = [(tmp_path / f"said-{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1], done.stderr
    assert "the loss is nan after step 1, at samples" in said[0]
    (row,) = faults(tmp_path)
    assert len(row["ids"]) == 2, "those of the process and micro-batch alone"
