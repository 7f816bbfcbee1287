"""LoRA, DoRA and QLoRA on the LLM: what trains, that merging changes nothing, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import tiny_training
import torch

from revision import training
from revision.training.adapters import Adapter
from revision.training.merging import merged
from revision.training.trainer import StageTrainer

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def attach(model: Any, output: Path, *, method: str = "lora", bf16: bool = False, **options: Any) -> Adapter:
    arguments = training.build_arguments({"bf16": bf16}, output=output, seed=0)
    settings: dict[str, Any] = {"rank": 2, "alpha": 8.0, "dropout": 0.0, "targets": ["all-linear"], **options}
    return Adapter(model, method=method, arguments=arguments, **settings)


def trained(
    llm: Path, output: Path, *, method: str = "lora", parts: list[str] | None = None, bf16: bool = False, **options: Any
) -> tuple[Any, Adapter]:
    """The tiny model after a few steps with an adapter on it, in evaluation mode."""
    model: Any = tiny_training.make_model(llm, dtype=torch.bfloat16 if bf16 else torch.float32)
    adapter = attach(model, output, method=method, bf16=bf16)
    settings = {"per_device_train_batch_size": 8, "max_steps": 4, **options}
    tiny_training.run(llm, output, parts=parts or ["projector", "adapter"], model=model, bf16=bf16, **settings)
    return model.eval(), adapter


def logits(model: Any) -> torch.Tensor:
    image = model.config.image_token_id
    ids = torch.tensor([[5, *[image] * tiny_training.K, 7, 8, 9]])
    embeds = torch.nn.functional.normalize(torch.arange(tiny_training.DIM).float()[None], dim=-1)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, image_embeds=embeds).logits.float()
    return found


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_trains_and_is_merged(
    tiny_llm: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tiny_training.make_model(tiny_llm)
    model, adapter = trained(tiny_llm, tmp_path, method=method)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " adapter " in line]
    added = sum(one.numel() for name, one in model.named_parameters() if ".lora_" in name)
    assert "trains" in line and f"{added:,}" in line
    for name, one in start.named_parameters():
        moved = not torch.equal(one, dict(model.named_parameters())[_under(name, model)])
        assert moved == name.startswith("projector."), name
    before = logits(model)
    assert (before - logits(start.eval())).abs().max() > 0.05
    adapter.merge()
    assert torch.allclose(logits(model), before, atol=1e-5)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in start.named_parameters()}
    changed = {
        name.split(".")[-2]
        for name, one in start.named_parameters()
        if name.startswith("language_model.") and not torch.equal(one, model.get_parameter(name))
    }
    assert changed == set(LAYERS)


def _under(name: str, model: Any) -> str:
    """The name of a parameter once an adapter lies over its layer."""
    layer, _, last = name.rpartition(".")
    over = f"{layer}.base_layer.{last}"
    return over if over in dict(model.named_parameters()) else name


def test_in_bfloat16_the_base_is_half_and_the_adapter_is_not(tiny_llm: Path, tmp_path: Path) -> None:
    model, adapter = trained(tiny_llm, tmp_path, bf16=True)
    for name, one in model.named_parameters():
        full = ".lora_" in name or name.startswith("projector.")
        assert one.dtype == (torch.float32 if full else torch.bfloat16), name
    layer = model.language_model.model.layers[0].mlp.up_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (8.0 / 2)
    exact = (layer.base_layer.weight.float() + product).to(torch.bfloat16)
    adapter.merge()
    assert torch.equal(model.language_model.model.layers[0].mlp.up_proj.weight, exact), "rounded once"


def test_the_adapter_alone_makes_the_same_model_of_its_base(tiny_llm: Path, tmp_path: Path) -> None:
    model, adapter = trained(tiny_llm, tmp_path)
    adapter.save(tmp_path / "adapter", base="base", projector=True)
    adapter.merge()
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    base = tiny_training.make_model(tiny_llm).eval()
    again: Any = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert torch.allclose(logits(again), logits(model), atol=1e-5)
    merged = again.merge_and_unload()
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)


def test_the_adapter_alone_may_train(tiny_llm: Path, tmp_path: Path) -> None:
    """Checkpointed, where no input of a layer needs a gradient by itself."""
    model, _ = trained(tiny_llm, tmp_path, parts=["adapter"], gradient_checkpointing=True)
    other, _ = trained(tiny_llm, tmp_path / "plain", parts=["adapter"])
    first, second = (tiny_training.weights(one) for one in (model, other))
    assert any(first[name].any() for name in first if ".lora_B." in name)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_an_interrupted_adapter_goes_on(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"adapter": {"learning_rate": 2e-2, "weight_decay": 0.1}, "projector": {"learning_rate": 3e-3}}
    options: dict[str, Any] = {"save_steps": 2, "rates": rates, "lr_scheduler_type": "cosine"}
    trained(tiny_llm, tmp_path / "whole", **options)
    step = StageTrainer.training_step

    def failing(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", failing)
        with pytest.raises(KeyboardInterrupt):
            trained(tiny_llm, tmp_path / "cut", **options)
    checkpoint = tmp_path / "cut" / "checkpoints" / "checkpoint-2"
    names = set(safetensors.torch.load_file(checkpoint / "weights.safetensors"))
    assert all(name.startswith("projector.") or ".lora_" in name for name in names), "what trains, and no more"
    groups = json.loads((checkpoint / "state.json").read_text())["optimizer"]["groups"]
    assert {group["initial_lr"] for group in groups} == {2e-2, 3e-3} and len(groups) > 2
    trained(tiny_llm, tmp_path / "cut", **options)
    cut, whole = (safetensors.torch.load_file(tmp_path / one / "weights.safetensors") for one in ("cut", "whole"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_what_an_engine_kept_exactly_is_merged(tiny_model: Any, tmp_path: Path) -> None:
    """DeepSpeed computes with bfloat16 copies; its float32 ones take their place before anything is saved."""
    adapter = attach(tiny_model, tmp_path)
    training.select_parts(tiny_model, ["projector", "adapter"], bf16=True, masters=True)
    assert {one.dtype for one in tiny_model.parameters()} == {torch.bfloat16}
    exact = {name: torch.randn(one.shape) for name, one in tiny_model.named_parameters() if one.requires_grad}
    layer = tiny_model.language_model.model.layers[1].self_attn.v_proj
    name = "language_model.model.layers.1.self_attn.v_proj.lora_{}.default.weight"
    product = exact[name.format("B")] @ exact[name.format("A")] * (8.0 / 2)
    expected = (layer.base_layer.weight.float() + product).to(torch.bfloat16)
    found = adapter.merge({**tiny_model.state_dict(), **exact})
    assert found is not None
    assert torch.equal(found["language_model.model.layers.1.self_attn.v_proj.weight"], expected)
    assert torch.equal(found["projector.layers.0.weight"], exact["projector.layers.0.weight"])
    assert {*found} == {*tiny_model.state_dict()}, "the names of the plain model"


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_weights_by_name_are_merged_as_peft_merges_layers(tiny_llm: Path, tmp_path: Path, method: str) -> None:
    model, adapter = trained(tiny_llm, tmp_path, method=method)
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    adapter.save(tmp_path / "held", base="base", projector=True)
    adapter.save(tmp_path / "given", base="base", projector=True, weights=weights)
    held, given = (
        safetensors.torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("held", "given")
    )
    assert held.keys() == given.keys() and all(torch.equal(held[name], given[name]) for name in held)
    by_name = merged(model, weights, "default")
    adapter.merge()
    plain = model.state_dict()
    assert by_name.keys() == plain.keys()
    for name, one in plain.items():
        torch.testing.assert_close(by_name[name], one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (["q_proj", "v_proj"], 4),
        ([r"language_model\.model\.layers\.1\..*"], 7),
        (["layers.0.mlp.up_proj"], 1),
        (["all-linear"], 14),
    ],
)
def test_targets(tiny_model: Any, tmp_path: Path, targets: list[str], layers: int) -> None:
    attach(tiny_model, tmp_path, targets=targets)
    assert sum(".lora_A." in name for name, _ in tiny_model.named_parameters()) == layers


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        (["q_proj", "qproj"], r"adapter\.targets = qproj: matches no linear layer of the LLM \(did you mean 'q_proj'"
         r"\?\); there are down_proj, .* as in language_model\.model\.layers\.0\.self_attn\.q_proj, and all"),
        (["lm_head"], "adapter.targets = lm_head: matches no linear layer"),
        (["projector.layers.0"], "matches no linear layer"),
        (["(q"], r"adapter\.targets = \(q: is no regular expression"),
    ],
)  # fmt: skip
def test_targets_that_match_nothing(tiny_model: Any, tmp_path: Path, targets: list[str], why: str) -> None:
    before = [name for name, _ in tiny_model.named_parameters()]
    with pytest.raises(ValueError, match=why) as caught:
        attach(tiny_model, tmp_path, targets=targets)
    assert "\n" not in str(caught.value)
    assert [name for name, _ in tiny_model.named_parameters()] == before


def test_a_layer_under_an_adapter_cannot_train_itself(tiny_model: Any, tmp_path: Path) -> None:
    attach(tiny_model, tmp_path, targets=["q_proj"])
    with pytest.raises(
        ValueError, match=r"matches language_model\.model\.layers\.0\.self_attn\.q_proj\.weight, which an"
    ):
        training.select_parts(tiny_model, ["adapter", r".*layers\.0\..*"], bf16=False)
    chosen = training.select_parts(tiny_model, ["adapter", r".*k_proj\.weight"], bf16=False)
    assert len(chosen[r".*k_proj\.weight"]) == 2


def test_an_engine_that_splits_weights_is_refused(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("revision.training.adapters.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"adapter\.method = dora: does not work under engine\.kind=zero3"):
        attach(tiny_model, tmp_path, method="dora")


def test_qlora_without_bitsandbytes_is_one_sentence(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"adapter\.method = qlora: needs bitsandbytes, which is not installed"):
        attach(tiny_model, tmp_path, method="qlora")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_qlora_trains_on_four_bits_and_is_merged_into_full_weights(tiny_llm: Path, tmp_path: Path) -> None:
    model, adapter = trained(tiny_llm, tmp_path, method="qlora")
    layers = [layer.base_layer for layer in model.modules() if isinstance(layer, peft.tuners.lora.LoraLayer)]
    assert len(layers) == 14
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    model.train()  # in evaluation, bitsandbytes repacks the weights on a CPU, and cannot for layers as narrow as these
    before = logits(model)
    adapter.merge()
    assert torch.allclose(logits(model), before, atol=1e-4)
    fresh = tiny_training.make_model(tiny_llm)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in fresh.named_parameters()}
    assert {one.dtype for one in model.parameters()} == {torch.float32}
