"""What trains and what does not, what is refused, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made_training import MadeRows, made_samples, run

from revision import building, training
from revision.dataset import ConversationDataset
from revision.records import Message


def build(llm: Path, **changes: object) -> tuple[object, object]:
    shape = {"embed_dim": 16, "num_visual_tokens": 3, "visual_tokens": "slots", **changes}
    return building.build_model(str(llm), chat_template=None, dtype=torch.float32, seed=0, **shape)


def test_only_the_named_parts_move(tiny_llm: Path, tmp_path: Path) -> None:
    fresh, _ = build(tiny_llm)
    untouched = training.fingerprints(fresh)
    stage_one = training.fingerprints(run(str(tiny_llm), tmp_path / "one"))
    stage_two = training.fingerprints(run(str(tiny_llm), tmp_path / "two", parts=("projector", "llm")))
    assert stage_one["llm"] == untouched["llm"] and stage_one["projector"] != untouched["projector"]
    assert stage_two["llm"] != untouched["llm"] and stage_two["projector"] != untouched["projector"]


def test_the_log_holds_each_step_and_learning_happens(tiny_llm: Path, tmp_path: Path) -> None:
    run(str(tiny_llm), tmp_path, max_steps=40, lr_scheduler_type="constant", parts=("projector", "llm"))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert all(row["tokens_per_second"] > 0 and row["samples_per_second"] > 0 for row in rows)


def test_nothing_pickled_is_left(tiny_llm: Path, tmp_path: Path) -> None:
    run(str(tiny_llm), tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_frozen_parts_are_bfloat16_under_mixed_precision_and_trained_ones_float32(tiny_llm: Path) -> None:
    model, _ = build(tiny_llm)
    training.select_parts(model, ["projector"], bf16=True)
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.projector.parameters()} == {torch.float32}
    model, _ = build(tiny_llm)
    training.select_parts(model, ["projector", "llm"], bf16=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("parts", "message"),
    [([], "leaves nothing to learn"), (["projector", "vision"], "'vision' is no part of the model")],
)
def test_unknown_parts_are_refused(parts: list[str], message: str, tiny_llm: Path) -> None:
    with pytest.raises(ValueError, match=message):
        training.select_parts(build(tiny_llm)[0], parts, bf16=False)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"learning_rat": 1}, "did you mean learning_rate"),
        ({"output_dir": "x"}, "set by the stage itself"),
        ({"save_strategy": "sometimes"}, "refuses these values"),
    ],
)
def test_trainer_fields_are_checked(mapping: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        training.build_arguments(mapping, output=tmp_path, seed=0)


def test_another_number_of_processes_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"engine.processes=2, but the trainer runs on 1"):
        run(str(tiny_llm), tmp_path, processes=2)


def test_a_loss_that_is_no_number_stops_the_run(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step"):
        run(str(tiny_llm), tmp_path, learning_rate=1e38, max_grad_norm=0.0, parts=("projector", "llm"))


def test_a_sample_that_is_too_long_is_named(tiny_llm: Path) -> None:
    _, processor = build(tiny_llm)
    dataset = ConversationDataset(made_samples(), MadeRows(), processor, max_length=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample 0 has .* tokens, above max_length=5"):
        dataset[0]


def test_resume_equals_the_uninterrupted_run(tiny_llm: Path, tmp_path: Path) -> None:
    whole = run(str(tiny_llm), tmp_path / "whole")
    run(str(tiny_llm), tmp_path / "cut", save_strategy="steps", save_steps=2)
    checkpoints = tmp_path / "cut" / "checkpoints"
    for late in ("checkpoint-4", "checkpoint-6"):
        (checkpoints / late).rename(tmp_path / late)
    resumed = run(str(tiny_llm), tmp_path / "cut", save_strategy="steps", save_steps=2)
    assert training.fingerprints(resumed) == training.fingerprints(whole)


def test_a_saved_model_comes_back_whole(tiny_llm: Path, tmp_path: Path) -> None:
    model, processor = build(tiny_llm)
    building.save_model(model, processor, tmp_path / "model", alignment={"method": "realign"})
    again, again_processor = building.read_model(tmp_path / "model", dtype=torch.float32)
    assert training.fingerprints(again) == training.fingerprints(model)
    assert again.config.alignment == {"method": "realign"}
    assert again_processor.chat_template == processor.chat_template
    assert Message("user", "x").role == "user" and again_processor.num_visual_tokens == 3


def test_a_missing_weight_or_folder_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match="cannot be read as a ReVision model"):
        building.read_model(tmp_path / "nowhere", dtype=torch.float32)
    model, processor = build(tiny_llm)
    building.save_model(model, processor, tmp_path / "model", alignment=None)
    weights = tmp_path / "model/model.safetensors"
    tensors = load_file(weights)
    tensors.pop("projector.layers.0.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks the weights"):
        building.read_model(tmp_path / "model", dtype=torch.float32)


def test_another_projector_shape_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    model, _ = build(tiny_llm)
    building.require_shape(model, tmp_path, {"num_visual_tokens": 3, "projector_hidden_size": None})
    with pytest.raises(ValueError, match="has num_visual_tokens=3, but this run asks for 4"):
        building.require_shape(model, tmp_path, {"num_visual_tokens": 4})


def test_an_unreadable_llm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be read"):
        build(tmp_path)
