"""What trains in detail: regular expressions, rates of parts, precision, checkpointed and compiled gradients."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_training
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from revision import training
from revision.training import groups, stage
from revision.training.parts import plain_name

BOTH = ["projector", "llm"]
SECOND_LAYER = r"language_model\.model\.layers\.1\..*"
STILL = {
    "max_grad_norm": 0.0,
    "optim": "sgd",
    "max_steps": 1,
    "per_device_train_batch_size": 32,
}  # p -= rate * gradient


def moves(tiny_llm: Path, output: Path, **options: Any) -> dict[str, torch.Tensor]:
    """By how much each parameter moved."""
    before = tiny_training.weights(tiny_training.make_model(tiny_llm))
    model, _ = tiny_training.run(tiny_llm, output, **{"parts": BOTH, **options})
    return {name: one - before[name] for name, one in tiny_training.weights(model).items()}


def test_a_regular_expression_trains_what_it_matches(tiny_llm: Path, tmp_path: Path) -> None:
    entries = ["projector", SECOND_LAYER, r".*model\.norm\.weight"]
    for name, move in moves(tiny_llm, tmp_path, parts=entries, max_steps=1).items():
        named = name.startswith(("projector.", "language_model.model.layers.1.", "language_model.model.norm."))
        assert bool(move.any()) == named, name


def test_the_rest_of_the_llm_is_frozen_in_bfloat16(
    tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, summary = tiny_training.run(tiny_llm, tmp_path, parts=["projector", SECOND_LAYER], bf16=True)
    for name, one in model.named_parameters():
        trains = name.startswith(("projector.", "language_model.model.layers.1."))
        assert one.dtype == (torch.float32 if trains else torch.bfloat16), name
    exact = tiny_training.run(tiny_llm, tmp_path / "exact", parts=["projector", SECOND_LAYER])[1]
    assert summary["loss"] == pytest.approx(exact["loss"], rel=0.03)
    llm, second = (list(part.parameters()) for part in (model.language_model, model.language_model.model.layers[1]))
    trained, all_of_it = (sum(one.numel() for one in some) for some in (second, llm))
    (line, _) = [line for line in capsys.readouterr().out.splitlines() if " llm " in line]
    assert "trains in part" in line
    assert f"{trained:,} of {all_of_it:,}" in line


def test_buffers_keep_their_precision(tiny_llm: Path) -> None:
    """Rotary frequencies in bfloat16 are off by a thousandth, which is many radians at the end of a long context."""
    model: Any = tiny_training.make_model(tiny_llm, dtype=torch.bfloat16)
    before = {name: one.clone() for name, one in model.named_buffers()}
    training.select_parts(model, ["projector"], bf16=True)
    assert any("inv_freq" in name for name in before)
    for name, one in model.named_buffers():
        assert one.dtype == before[name].dtype and torch.equal(one, before[name]), name


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (r"language_model\.model\.layer\.1.*", r"the nearest are .*language_model\.model\.layers\.1\."),
        (r"projector\.layers\.9\.weight", r"the nearest are projector\.layers\."),
        ("adapter", "train names adapter, but the model has none; set adapter.method"),
        ("(", r"train='\(' is no regular expression"),
    ],
)
def test_an_entry_that_names_nothing_is_refused(tiny_model: Any, entry: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        training.select_parts(tiny_model, ["projector", entry], bf16=False)
    assert "\n" not in str(caught.value)


def test_an_entry_that_does_not_move_is_named(tiny_llm: Path, tmp_path: Path) -> None:
    """Of all that trains, one expression has a rate of nothing."""
    rates = {"llm": {"learning_rate": 0.0}}
    with pytest.raises(ValueError, match=r"model\\.norm\\.weight trains, but has not moved in 1 step"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector", r".*model\.norm\.weight"], rates=rates, max_steps=1)


def test_names_without_what_engines_add() -> None:
    assert plain_name("module._orig_mod.language_model.q_proj.base_layer.weight") == "language_model.q_proj.weight"


def test_parts_move_at_their_own_rates(tiny_llm: Path, tmp_path: Path) -> None:
    common = moves(tiny_llm, tmp_path / "common", learning_rate=1.0, **STILL)
    rates = {"projector": {"learning_rate": 4.0}, "llm": {"learning_rate": 0.5}}
    own = moves(tiny_llm, tmp_path / "own", learning_rate=1.0, rates=rates, **STILL)
    for name, move in common.items():
        factor = 4.0 if name.startswith("projector.") else 0.5
        assert torch.allclose(own[name], factor * move, rtol=1e-3, atol=1e-6), name
    assert max(move.abs().max() for move in common.values()) > 1e-3
    (row,) = [json.loads(line) for line in (tmp_path / "own" / "log.jsonl").read_text().splitlines()]
    assert row["learning_rate"] == 4.0


def test_a_schedule_scales_every_rate(tiny_llm: Path, tmp_path: Path) -> None:
    """Linear to zero over four steps: factors of 1, 3/4, 1/2 and 1/4. Adam moves a rate a step at first."""
    rates = {"projector": {"learning_rate": 1e-4}, "llm": {"learning_rate": 1e-5}}
    schedule = {"lr_scheduler_type": "linear", "max_grad_norm": 0.0, "max_steps": 4, "per_device_train_batch_size": 32}
    move = moves(tiny_llm, tmp_path, rates=rates, **schedule)
    for name, rate in (("projector.layers.0.weight", 1e-4), ("language_model.model.layers.0.mlp.up_proj.weight", 1e-5)):
        assert move[name].abs().max().item() == pytest.approx(2.5 * rate, rel=0.02)


def test_weight_decay_of_a_part_leaves_norms_and_biases_alone(tiny_llm: Path, tmp_path: Path) -> None:
    """One step of AdamW shrinks a weight by rate * decay of it, besides what its gradient does."""
    steps = {"learning_rate": 1e-2, "max_steps": 1, "per_device_train_batch_size": 32}
    plain = moves(tiny_llm, tmp_path / "plain", **steps)
    decayed = moves(tiny_llm, tmp_path / "decayed", rates={"llm": {"weight_decay": 0.5}}, **steps)
    start = tiny_training.weights(tiny_training.make_model(tiny_llm))
    for name, move in plain.items():
        shrinks = name.startswith("language_model.") and "norm" not in name
        expected = move - 1e-2 * 0.5 * start[name] if shrinks else move
        assert torch.allclose(decayed[name], expected, atol=1e-6), name


def test_a_rate_for_what_does_not_train_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    rates = {"llm": {"learning_rate": 1e-3, "weight_decay": None}}
    with pytest.raises(ValueError, match=r"parts\.llm\.learning_rate=0\.001 is for a part of which nothing trains"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"], rates=rates)


def test_optimizers_that_cannot_keep_parts_apart_are_refused(tiny_model: Any) -> None:
    rates = {"llm": {"learning_rate": 1e-3}}
    theirs: Any = SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config={"optimizer": {"type": "AdamW"}}))
    with pytest.raises(ValueError, match=r"engine\.options has an optimizer of its own, which knows no rates of parts"):
        stage._require_own_optimizer(rates, theirs)
    stage._require_own_optimizer({"llm": {"learning_rate": None}}, theirs)
    layerwise = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=r"trainer\.optim: SGD groups parameters in a way of its own"):
        groups.split(layerwise, rates, named=tiny_model.named_parameters(), decayed=set())


@pytest.mark.parametrize(
    ("parts", "reentrant"), [(["projector"], False), (BOTH, False), ([SECOND_LAYER], False), ([SECOND_LAYER], True)]
)
def test_checkpointed_gradients_are_the_same(
    tiny_llm: Path, tmp_path: Path, parts: list[str], reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer runs twice, and no gradient is lost: not where the LLM is frozen, nor where its input is."""
    runs: list[int] = []
    forward = LlamaMLP.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    monkeypatch.setattr(stage, "shared_prefix", lambda *_: None)  # a prefix passes through them by itself
    expected = moves(tiny_llm, tmp_path / "plain", parts=parts, learning_rate=1.0, **STILL)
    once = len(runs)
    asked = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    got = moves(tiny_llm, tmp_path / "checkpointed", parts=parts, learning_rate=1.0, **STILL, **asked)
    assert once == 2 and len(runs) == 3 * once, "two layers, run again backwards"
    for name, move in expected.items():
        assert torch.allclose(got[name], move, atol=1e-7), name


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(tiny_llm: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 8}
    expected = moves(tiny_llm, tmp_path / "plain", **options)
    got = moves(tiny_llm, tmp_path / "compiled", torch_compile=True, torch_compile_backend="aot_eager", **options)
    for name, move in expected.items():
        assert torch.allclose(got[name], move, atol=2e-4), name


def test_a_missing_compiler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"trainer\.torch_compile=True: needs a compiler, and neither \S+ nor clang"):
        training.build_arguments({"torch_compile": True}, output=tmp_path, seed=0)
