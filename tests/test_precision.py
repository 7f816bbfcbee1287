"""bfloat16 where the device has arithmetic for it, float32 elsewhere, and what is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from revision import precision, training
from revision.evaluation.reader import Reader
from revision.precision import computing_dtype, has_bfloat16, settle

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    """A CPU that has these and nothing else."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16"])
def test_a_cpu_is_asked_for_its_instructions(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, **{name: True, "avx2": True})
    assert has_bfloat16(CPU)
    pretend(monkeypatch, **{name: False, "avx2": True})
    assert not has_bfloat16(CPU)


def test_the_instructions_go_by_the_names_that_torch_knows() -> None:
    known = set(torch.cpu.get_capabilities())
    assert known & {"amx_bf16", "avx512_bf16", "bf16"}, "none of the names is one of torch's"


def test_a_gpu_that_imitates_bfloat16_has_it_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not has_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert has_bfloat16(torch.device("cuda"))
    assert not has_bfloat16(torch.device("meta"))


def test_only_a_bfloat16_that_is_not_there_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert computing_dtype(torch.bfloat16, CPU) == torch.float32
    assert computing_dtype(torch.float16, CPU) == torch.float16
    pretend(monkeypatch, avx512_bf16=True)
    assert computing_dtype(torch.bfloat16, CPU) == torch.bfloat16


@pytest.mark.parametrize(("asked", "there", "found"), [
    ("auto", True, True), ("auto", False, False), (True, False, True), (False, True, False),
])  # fmt: skip
def test_auto_is_settled_when_arguments_are_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: Any, there: bool, found: bool
) -> None:
    pretend(monkeypatch, avx512_bf16=there)
    arguments = training.build_arguments({"bf16": asked, "use_cpu": True}, output=tmp_path, seed=0)
    assert arguments.bf16 is found


def test_what_is_said_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert precision.remark("auto", CPU) == "bf16=auto: this CPU has no bfloat16 arithmetic, so training is in float32"
    assert precision.remark(True, CPU) == (
        "bf16=True: this CPU has no bfloat16 arithmetic, and imitates it many times slower than float32; set bf16 to "
        "auto or false"
    )
    assert precision.remark(None, CPU) is precision.remark(False, CPU) is None
    pretend(monkeypatch, amx_bf16=True)
    assert precision.remark("auto", CPU) is precision.remark(True, CPU) is None


def test_a_model_saved_in_bfloat16_is_read_in_what_the_device_has(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tiny_processor: Any, tmp_path: Path
) -> None:
    tiny_model.language_model.to(torch.bfloat16)
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    picture = np.eye(16, dtype=np.float32)[0]
    scores = {}
    for there in (True, False):
        pretend(monkeypatch, avx512_bf16=there)
        reader = Reader.load(tmp_path / "model", device=CPU)
        asked = [reader.prompt("<image>", picture)], [[reader.answer_ids("a red star")]], "test"
        scores[there] = reader.log_probs(*asked)[0]
    exact = Reader.load(tmp_path / "model", device=CPU, dtype="float32").log_probs(*asked)[0]
    assert scores[False] == pytest.approx(exact, abs=1e-6)
    assert scores[True] != pytest.approx(exact, rel=1e-6)
    assert scores[True] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("asked", ["no", "atuo", "true", 1])
def test_a_word_is_not_taken_for_true(asked: Any) -> None:
    with pytest.raises(ValueError, match=f"trainer.bf16 = {asked}: must be true, false or auto"):
        settle(asked, torch.device("cpu"))
