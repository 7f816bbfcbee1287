"""Settings that must train the same model: batch x accumulation, one process or two, an interruption or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_training
import torch

from revision.training.trainer import StageTrainer

BOTH = ["projector", "llm"]
ROOT = Path(__file__).resolve().parent.parent


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def reference(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of eight samples, in one batch each, on one process."""
    output = tmp_path_factory.mktemp("reference")
    tiny_training.run(tiny_llm, output, parts=BOTH, per_device_train_batch_size=8)
    assert len(losses(output)) == 4
    return output


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_batch_times_accumulation(
    tiny_llm: Path, tmp_path: Path, reference: Path, batch: int, accumulation: int
) -> None:
    tiny_training.run(
        tiny_llm,
        tmp_path,
        parts=BOTH,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    assert losses(tmp_path) == pytest.approx(losses(reference), abs=2e-6)
    got, expected = (safetensors.torch.load_file(one / "weights.safetensors") for one in (tmp_path, reference))
    start = tiny_training.weights(tiny_training.make_model(tiny_llm))
    assert largest_difference(start, expected) > 1e-2
    assert largest_difference(got, expected) < 2e-5


@pytest.fixture(scope="module")
def whole_epochs(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of all 32 samples, padded."""
    output = tmp_path_factory.mktemp("epochs")
    tiny_training.run(
        tiny_llm, output, parts=BOTH, per_device_train_batch_size=8, gradient_accumulation_steps=4
    )  # fmt: skip
    return output


def rows_of(llm: Path, tokens: int) -> int:
    return len(tiny_training.pack(tiny_training.make_dataset(llm), tokens))


@pytest.mark.parametrize("tokens", [100, 400, 2000])
def test_packed_rows_train_what_padded_ones_do(tiny_llm: Path, tmp_path: Path, whole_epochs: Path, tokens: int) -> None:
    """Whatever the rows hold, a step over all of them is a step over all samples."""
    rows = rows_of(tiny_llm, tokens)
    tiny_training.run(tiny_llm, tmp_path, parts=BOTH, pack_tokens=tokens, gradient_accumulation_steps=rows)
    assert losses(tmp_path) == pytest.approx(losses(whole_epochs), abs=2e-6)
    got, expected = (safetensors.torch.load_file(one / "weights.safetensors") for one in (tmp_path, whole_epochs))
    assert largest_difference(got, expected) < 2e-5


def test_two_processes_train_packed_rows_as_one_does(tiny_llm: Path, tmp_path: Path, whole_epochs: Path) -> None:
    """With an odd number of rows, so that one process has one too few."""
    rows = rows_of(tiny_llm, 400)
    assert rows % 2 == 1
    done = launch(tiny_llm, tmp_path, "400", str((rows + 1) // 2))
    assert f"32 samples in {rows} rows of up to 400 tokens" in done.stdout
    assert losses(tmp_path) == pytest.approx(losses(whole_epochs), abs=1e-5)
    got, expected = (safetensors.torch.load_file(one / "weights.safetensors") for one in (tmp_path, whole_epochs))
    assert largest_difference(got, expected) < 5e-5


def test_the_loss_is_the_mean_over_all_labels_of_a_step(tiny_llm: Path, tmp_path: Path) -> None:
    """By hand, on the untrained model: a mean of means would weigh short answers more."""
    tiny_training.run(
        tiny_llm,
        tmp_path,
        parts=["projector"],
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
    )
    dataset, model = tiny_training.make_dataset(tiny_llm), tiny_training.make_model(tiny_llm).eval()
    total, count, means = 0.0, 0, []
    for place in range(len(dataset)):
        example = dataset[place]
        embeds = None if example["image_embed"] is None else example["image_embed"][None]
        ids = torch.from_numpy(example["input_ids"])
        logits = model(input_ids=ids[None], image_embeds=embeds).logits[0, :-1]
        labels = torch.from_numpy(example["labels"])[1:]
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100]
        total, count = total + nll.sum().item(), count + len(nll)
        means.append(nll.mean().item())
    assert losses(tmp_path) == pytest.approx([total / count], abs=1e-5)
    assert abs(total / count - sum(means) / len(means)) > 1e-3


def launch(llm: Path, output: Path, *words: str) -> Any:
    """`tiny_training` on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(Path(tiny_training.__file__)), str(llm), str(output), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_train_what_one_does(tiny_llm: Path, tmp_path: Path, reference: Path) -> None:
    done = launch(tiny_llm, tmp_path)
    assert "on 2 processes" in done.stdout
    assert "DistributedDataParallel" in done.stdout
    assert done.stdout.count("What trains") == 1
    assert losses(tmp_path) == pytest.approx(losses(reference), abs=1e-5)
    got, expected = (safetensors.torch.load_file(one / "weights.safetensors") for one in (tmp_path, reference))
    assert largest_difference(got, expected) < 5e-5


@pytest.mark.parametrize("sampling", ["random", "group_by_length", "packed"])
def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(
    tiny_llm: Path, tmp_path: Path, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interruption is in the second epoch, after a checkpoint; the same call goes on from there."""
    options: dict[str, Any] = {
        "parts": BOTH, "per_device_train_batch_size": 8, "max_steps": 7, "save_strategy": "steps", "save_steps": 2,
        "lr_scheduler_type": "cosine",
    }  # fmt: skip
    options |= {"pack_tokens": 400} if sampling == "packed" else {"train_sampling_strategy": sampling}
    tiny_training.run(tiny_llm, tmp_path / "whole", **options)
    whole = StageTrainer.training_step

    def failing(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", failing)
        with pytest.raises(KeyboardInterrupt):
            tiny_training.run(tiny_llm, tmp_path / "cut", **options)
    assert len(losses(tmp_path / "cut")) == 6
    (tmp_path / "cut" / "log.jsonl").open("a").write(json.dumps({"step": 7, "loss": 0.0}) + "\n")  # lost with the kill
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-6").is_dir()
    tiny_training.run(tiny_llm, tmp_path / "cut", **options)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    cut, uncut = (safetensors.torch.load_file(tmp_path / one / "weights.safetensors") for one in ("cut", "whole"))
    assert largest_difference(cut, uncut) == 0
    assert not (tmp_path / "cut" / "checkpoints").exists(), "optimizer states are of no use after the last step"
