"""Records that cannot be learned from, met while training: one sentence, on all processes, and no update."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_training
import torch

from revision.data.collators import Collator, PackedCollator
from revision.data.dataset import ConversationDataset
from revision.training import states
from revision.training.refusals import REFUSED, Refusal, RefusingCollator, RefusingDataset

SENTENCE = "sample s-5 cannot be learned from; mend it"


class Spoilt(ConversationDataset):
    """A sample of it cannot be learned from once lengths have been counted, or at once."""

    late = False

    def __getitem__(self, index: int) -> Any:
        if index == 5 and (not self.late or self.tokens is not None):
            raise ValueError(SENTENCE)
        return super().__getitem__(index)


def spoilt(llm: Path, *, late: bool = False) -> Spoilt:
    plain = tiny_training.make_dataset(llm)
    dataset = Spoilt(plain.samples, plain.rows, plain.processor, max_length=plain.max_length)
    dataset.late = late
    return dataset


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "dataloader_num_workers": 2},
        {"pack_tokens": 64},
    ],
    ids=["alone", "by workers", "packed"],
)
def test_a_bad_record_is_one_sentence_and_no_update(tiny_llm: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    dataset = spoilt(tiny_llm, late="pack_tokens" in settings)
    model = tiny_training.make_model(tiny_llm)
    with pytest.raises(ValueError) as caught:
        tiny_training.run(
            tiny_llm, tmp_path, parts=["projector"], dataset=dataset, model=model, max_steps=-1, num_train_epochs=1,
            **settings,
        )  # fmt: skip
    assert str(caught.value) == SENTENCE
    assert all(one.isfinite().all() for one in model.parameters()), "a step without a label has no gradient"
    assert not (tmp_path / "faults.jsonl").exists()


@pytest.mark.parametrize("collator", [Collator(0), PackedCollator(boundaries=True)], ids=["padded", "packed"])
def test_a_refusal_takes_the_place_of_its_batch(tiny_llm: Path, collator: Any) -> None:
    items = RefusingDataset(spoilt(tiny_llm))
    assert len(items) == tiny_training.SAMPLES and items[5] == Refusal(SENTENCE)
    whole, refused = items[4], items[5]
    if isinstance(collator, PackedCollator):
        whole = [whole]
    batch = RefusingCollator(collator)([whole, refused])
    assert batch.pop(REFUSED) == SENTENCE
    assert batch["input_ids"].shape == (1, 1) and batch["labels"].tolist() == [[-100]]
    model: Any = tiny_training.make_model(tiny_llm)
    assert model(**batch, num_items_in_batch=torch.tensor(7)).loss.item() == 0
    assert REFUSED not in RefusingCollator(collator)([whole])


def test_what_no_checkpoint_can_hold_is_refused_on_every_process(tmp_path: Path) -> None:
    """Rank 0 alone writes; had it alone refused, the others would wait for it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    optimizer.param_groups[0]["kept"] = object()
    for writes in (True, False):
        trainer: Any = SimpleNamespace(
            _tr_loss=0.0, _globalstep_last_logged=0, sync=SimpleNamespace(state=dict), is_deepspeed_enabled=False,
            is_fsdp_enabled=False, args=SimpleNamespace(should_save=writes), optimizer=optimizer,
            accelerator=SimpleNamespace(scaler=None), lr_scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
        )  # fmt: skip
        with pytest.raises(ValueError, match="keeps a object, which no checkpoint of ours can hold; choose another"):
            states.save(trainer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "sentence"),
    [("record", "this record cannot be learned from"), ("log", "log.jsonl cannot be written: the disk is full")],
)
def test_what_stops_one_process_stops_all(tiny_llm: Path, tmp_path: Path, what: str, sentence: str) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [*words, str(root / "tests" / "bad_rank.py"), str(tiny_llm), str(tmp_path), what],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    said = [tmp_path / f"said-{rank}.txt" for rank in range(2)]
    assert all(file.is_file() for file in said), done.stderr
    assert said[0].read_text() == said[1].read_text()
    assert sentence in said[0].read_text()
