"""Costs against what they stand for: real parameters, counted FLOPs, real optimizer states, saved tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from revision.costs import DEVICES, Counts, device_named, peak_flops, work_of
from revision.costs.flops import counts_of
from revision.costs.lengths import assumed, counter, measured, sampled
from revision.costs.memory import Batch, Footprint, Memory, Sharding, size_of
from revision.costs.setting import Setting, setting_of
from revision.costs.sketch import read_language, saved_bytes, sketch
from revision.costs.stage import cost, extent, footprint, remedy
from revision.data.collators import Collator
from revision.model import RevisionConfig, RevisionForConditionalGeneration
from revision.records import Message
from revision.schema import EngineKind
from revision.training import select_parts

SHAPE: dict[str, Any] = {
    "embed_dim": 16, "num_visual_tokens": 3, "visual_tokens": "slots", "projector_depth": 2,
    "projector_hidden_size": None, "input_scale": None, "output_norm": True,
}  # fmt: skip
PARTS = (["projector"], ["llm"], ["projector", "llm"])


def tiny_batch(llm: Path, size: int = 4) -> dict[str, torch.Tensor]:
    dataset = tiny_training.make_dataset(llm)
    return Collator(0)([dataset[place] for place in range(size)])


@pytest.mark.parametrize("parts", PARTS)
def test_a_sketch_has_the_parameters_of_the_real_model(tiny_llm: Path, parts: list[str]) -> None:
    real, drawn = tiny_training.make_model(tiny_llm, table_multiple=None), sketch(read_language(str(tiny_llm)), **SHAPE)
    for model in (real, drawn):
        select_parts(model, parts, bf16=True)
    shapes = [
        {name: (one.shape, one.dtype, one.requires_grad) for name, one in model.named_parameters()}
        for model in (real, drawn)
    ]
    assert shapes[0] == shapes[1]
    assert {one.device.type for one in drawn.parameters()} == {"meta"}
    size = size_of(real)
    assert size.total == sum(one.numel() for one in real.parameters())
    assert size.trains == sum(one.numel() for one in real.parameters() if one.requires_grad)


def test_an_llm_without_tokenizer_or_hub_is_planned_from_its_shape(tiny_llm: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_llm / "config.json").read_text())
    language = read_language(str(tmp_path))
    assert language.tokenizer is None and "no tokenizer" in language.remarks[0]
    known = read_language("meta-llama/Meta-Llama-3-8B-Instruct")
    llama = sketch(replace(known, tokenizer=None), **{**SHAPE, "embed_dim": 768}).language_model
    # 8,030,261,248 are those of the published model; the image token adds 64 rows to both tables.
    assert sum(one.numel() for one in llama.parameters()) == 8_030_261_248 + 2 * 4096
    with pytest.raises(ValueError, match=r"model\.llm = nowhere/at-all: its config\.json cannot be read .*; give"):
        read_language("nowhere/at-all")


def counted(model: Any, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Forward and backward FLOPs of one real step, as torch counts them while they happen."""
    with FlopCounterMode(display=False) as forward:
        loss = model(**batch).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("parts", [[], *PARTS])
@pytest.mark.parametrize("changes", [{}, {"visual_tokens": "repeat", "projector_depth": 3}])
def test_flops_are_those_that_torch_counts(tiny_llm: Path, parts: list[str], changes: dict[str, Any]) -> None:
    model = tiny_training.make_model(tiny_llm, **changes).train()
    model.set_attn_implementation("eager")  # its products are counted one by one; the fused one repeats some
    for name, one in model.named_parameters():
        one.requires_grad_(any(name.startswith({"llm": "language_model", "projector": "projector"}[p]) for p in parts))
    batch = tiny_batch(tiny_llm)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])  # real work is done on padding too
    counts = Counts(*counts_of(batch).tolist()[:4])
    expected = work_of(model).of(counts)
    if not parts:
        with FlopCounterMode(display=False) as forward:
            model(**batch)
        assert list(expected) == [forward.get_total_flops(), 0]
        return
    assert counted(model, batch) == pytest.approx(tuple(expected), rel=1e-9)


@pytest.mark.parametrize(
    "trained",
    ["mlp", "self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "(q|o)_proj", "(k|v)_proj",
     "input_layernorm", "post_attention_layernorm"],
)  # fmt: skip
def test_flops_of_a_layer_that_trains_in_part_are_those_that_torch_counts(tiny_llm: Path, trained: str) -> None:
    """In the lowest layer that trains, gradients come back to where something trains and no further."""
    model = tiny_training.make_model(tiny_llm, table_multiple=None).train()
    model.set_attn_implementation("eager")
    select_parts(model, [rf".*layers\.1\.(.*\.)?{trained}\..*"], bf16=False)
    batch = tiny_batch(tiny_llm)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    expected = work_of(model).of(Counts(*counts_of(batch).tolist()[:4]))
    assert counted(model, batch) == pytest.approx(tuple(expected), rel=1e-9)


def test_flops_of_other_layers_that_train_in_part(tiny_llm: Path) -> None:
    """Norms of queries and keys, norms around the MLP, and matrices that make several things at once."""
    from transformers import Gemma3TextConfig, Phi3Config

    shape: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    families: list[tuple[Any, list[str]]] = [
        (Gemma3TextConfig(**shape, head_dim=8), ["q_norm", "v_proj", "o_proj", "pre_feedforward_layernorm"]),
        (Phi3Config(**shape), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    ]
    ids = torch.randint(299, (3, 20), generator=torch.Generator().manual_seed(0))
    ids[:, :3] = 299
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 299, -100), "image_embeds": torch.randn(3, 16)}
    for text, trained in families:
        config = RevisionConfig(
            text_config=text, embed_dim=16, num_visual_tokens=3, projector_hidden_size=8, image_token_id=299
        )
        for one in trained:
            model = RevisionForConditionalGeneration(config).train()
            model.set_attn_implementation("eager")
            select_parts(model, [rf".*layers\.1\.(.*\.)?{one}\..*"], bf16=False)
            expected = work_of(model).of(Counts(*counts_of(batch).tolist()[:4]))
            assert counted(model, batch) == pytest.approx(tuple(expected), rel=1e-9), one


def test_a_frozen_llm_costs_four_n_and_a_trained_one_six(tiny_llm: Path) -> None:
    model: Any = tiny_training.make_model(tiny_llm, table_multiple=None)
    products = [one for layer in model.get_decoder().layers for one in layer.parameters() if one.ndim == 2]
    n = sum(one.numel() for one in products)
    for parts, factor in ((["projector"], 4), (["llm"], 6), (["projector", "llm"], 6)):
        select_parts(model, parts, bf16=False)
        assert work_of(model).token.total == factor * n
    select_parts(model, ["projector"], bf16=False)
    model.requires_grad_(False)
    assert work_of(model).token == (2 * n, 0)
    assert work_of(model).pair.total == 4 * 2 * 32, "two layers of width 32, forwards only"


def test_only_the_experts_that_a_token_visits_count() -> None:
    from transformers import MixtralConfig

    text = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = RevisionForConditionalGeneration(
            RevisionConfig(text_config=text, embed_dim=16, projector_hidden_size=8)
        )
    model.requires_grad_(False)
    attention, router, expert = 4 * 32 * 32, 32 * 8, 3 * 32 * 48
    assert work_of(model).token.forward == 2 * (attention + router + 2 * expert)


def test_counts_leave_padding_out_and_tell_packed_samples_apart(tiny_llm: Path) -> None:
    dataset = tiny_training.make_dataset(tiny_llm)
    examples = [dataset[place] for place in range(6)]
    lengths = [len(one["input_ids"]) for one in examples]
    expected = [
        sum(lengths), sum(length**2 for length in lengths), sum(int((one["labels"] != -100).sum()) for one in examples),
        sum(one["image_embed"] is not None for one in examples), 6,
    ]  # fmt: skip
    assert counts_of(Collator(0)(examples)).tolist() == expected
    packed = {
        "input_ids": torch.cat([torch.from_numpy(one["input_ids"]) for one in examples])[None],
        "labels": torch.cat([torch.from_numpy(one["labels"]) for one in examples])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "image_embeds": torch.zeros(expected[3], 16),
    }
    assert counts_of(packed).tolist() == expected
    packed["labels"][0, : lengths[0]] = -100
    assert counts_of(packed).tolist()[4] == expected[4] - 1, "what teaches nothing is no sample"
    assert counts_of(Collator(0)([])).tolist()[4] == 0


def llama(layers: int = 3) -> RevisionForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return RevisionForConditionalGeneration(
            RevisionConfig(text_config=text, embed_dim=16, num_visual_tokens=4, projector_hidden_size=32)
        )


def test_saved_bytes_are_what_a_real_pass_saves() -> None:
    """A real model, sequences of another length, and autograd's own records."""
    drawn = llama()
    select_parts(drawn, ["projector", "llm"], bf16=False)
    real = LlamaForCausalLM(drawn.language_model.config)
    own = {one.untyped_storage().data_ptr() for one in real.parameters()}
    saved: dict[int, tuple[int, Any]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    inputs = torch.randn(5, 40, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = real.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    expected = saved_bytes(drawn, half=False)
    assert 5 * 40 * expected.token == pytest.approx(sum(size for size, _ in saved.values()), rel=0.02)


def test_a_frozen_llm_saves_less_and_bfloat16_half() -> None:
    frozen, trained = llama(), llama()
    select_parts(frozen, ["projector"], bf16=False)
    select_parts(trained, ["projector", "llm"], bf16=False)
    assert saved_bytes(frozen, half=False).token < saved_bytes(trained, half=False).token
    mixed = saved_bytes(trained, half=True)
    matrices = sum(one.numel() for one in trained.get_decoder().parameters() if one.ndim == 2) - 256 * 64
    assert mixed.casts == pytest.approx(2 * matrices, rel=0.05), "autocast keeps each matrix in bfloat16"
    assert mixed.token < saved_bytes(trained, half=False).token


class Peak(TorchDispatchMode):
    """Bytes of the tensors that are made and alive under it, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: dict[int, int] = {}

    def _drop(self, key: int) -> None:
        self.now -= self._alive.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in self._alive:
                storage = one.untyped_storage()
                self._alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return made


@pytest.mark.parametrize("parts", [["projector"], ["projector", "llm"]])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("labels", [8, 100])
def test_the_peak_of_a_real_step_is_what_is_planned(parts: list[str], checkpointing: bool, labels: int) -> None:
    """Forward and backward pass of a real model, every tensor that it makes counted while it lives."""
    drawn = llama(layers=8)
    sequences, length = 4, 128
    select_parts(drawn, parts, bf16=False)
    batch = Batch(sequences, sequences * length, sequences * labels)
    found = Memory(drawn, half=False).footprint(Sharding.zero0, gpus=1, batch=batch, checkpointing=checkpointing)
    config: Any = drawn.config
    real = RevisionForConditionalGeneration(config).train()
    real.set_attn_implementation("sdpa")
    select_parts(real, parts, bf16=False)
    if checkpointing:
        real.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(200, (sequences, length))
    ids[:, :4] = real.config.image_token_id = 255
    targets = ids.clone()
    targets[:, :-labels] = -100
    with Peak() as peak:
        real(input_ids=ids, image_embeds=torch.randn(sequences, 16), labels=targets).loss.backward()
    assert 0.75 < peak.most / (found.total - found.weights - found.optimizer - found.buffers) < 1.05


def test_weights_gradients_and_optimizer_are_real_tensors(tiny_llm: Path) -> None:
    model = tiny_training.make_model(tiny_llm, table_multiple=None).train()
    select_parts(model, ["projector", "llm"], bf16=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(**tiny_batch(tiny_llm)).loss.backward()
    optimizer.step()
    states = [one for state in optimizer.state.values() for one in state.values() if one.ndim > 0]
    drawn = sketch(read_language(str(tiny_llm)), **SHAPE)
    select_parts(drawn, ["projector", "llm"], bf16=False)
    found = Memory(drawn, half=False).footprint(Sharding.zero0, gpus=1, batch=Batch(1, 8, 4), checkpointing=False)
    assert found.weights == sum(one.nbytes for one in model.parameters())
    assert found.gradients == sum(one.grad.nbytes for one in model.parameters() if one.grad is not None)
    assert found.optimizer == sum(one.nbytes for one in states)


def test_sharding_follows_the_zero_paper() -> None:
    """Rajbhandari et al. 2020, Fig. 1: a model of P parameters in mixed precision, 16 P bytes in all, on n GPUs."""
    model, n = llama(), 8
    select_parts(model, ["projector", "llm"], bf16=True)
    memory, p = Memory(model, half=True), size_of(model).total

    def states(sharding: Sharding) -> float:
        found = memory.footprint(sharding, gpus=n, batch=Batch(1, 8, 4), checkpointing=True)
        return (found.weights + found.gradients + found.optimizer) / p

    assert states(Sharding.zero0) == 16
    assert states(Sharding.zero1) == pytest.approx(2 + 2 + 12 / n)
    assert states(Sharding.zero2) == pytest.approx(2 + (2 + 12) / n)
    assert states(Sharding.zero3) == pytest.approx((2 + 2 + 12) / n)
    assert states(Sharding.fsdp) == pytest.approx(16 / n)


def test_checkpointing_and_offload_take_their_share() -> None:
    model = llama()
    select_parts(model, ["projector", "llm"], bf16=True)
    memory = Memory(model, half=True)
    batch = Batch(2, 200, 50)
    plain, checkpointed = (
        memory.footprint(Sharding.zero2, gpus=2, batch=batch, checkpointing=value) for value in (False, True)
    )
    inputs = 200 * 3 * 64 * 2  # of each layer, in bfloat16
    assert checkpointed.activations < plain.activations
    assert checkpointed.activations == pytest.approx(inputs, rel=0.01)
    assert plain.layer == pytest.approx(plain.activations / 3, rel=0.01), "one of the three"
    assert checkpointed.layer == pytest.approx(2 * plain.layer), "computed again, and its gradients"
    away = memory.footprint(Sharding.zero2, gpus=2, batch=batch, checkpointing=True, offload=True)
    assert (away.optimizer, away.weights) == (0, checkpointed.weights)
    assert (
        Memory(model, half=True, optimizer="adamw_bnb_8bit")
        .footprint(Sharding.zero0, gpus=1, batch=batch, checkpointing=True)
        .optimizer
        == 2 * size_of(model).total
    )


SETTING = Setting(gpus=4, sharding=Sharding.zero0, batch=8, accumulation=2, checkpointing=False)
LENGTHS = assumed(records=1000, text=50, labels=30, visual=14, longest=100, source="a test")


@pytest.mark.parametrize(
    ("changes", "steps", "records"),
    [({}, 16, 1000), ({"epochs": 3}, 48, 3000), ({"max_steps": 5}, 5, 5 * 64), ({"gpus": 1}, 63, 1000)],
)
def test_steps_and_samples(changes: dict[str, Any], steps: int, records: int) -> None:
    found = extent(replace(SETTING, **changes), records=LENGTHS.records, tokens=LENGTHS.tokens)
    assert (found.steps, found.records, found.tokens) == (steps, records, records * 64)


def test_hours_follow_from_flops_peak_and_utilisation() -> None:
    model = llama()
    select_parts(model, ["projector"], bf16=True)
    work, device = work_of(model), DEVICES["a100-40"]
    plain = cost(SETTING, LENGTHS, work, device, mfu=0.5)
    one = work.token.total * 64 + work.pair.total * 64**2 + work.label.total * 30 + work.picture.total
    assert plain.model.total == pytest.approx(1000 * one)
    assert plain.hours * 3600 == pytest.approx(1000 * one / (4 * 312e12 * 0.5))
    again = cost(replace(SETTING, checkpointing=True), LENGTHS, work, device, mfu=0.5)
    assert again.model == plain.model
    assert again.hardware - plain.hardware == pytest.approx(
        1000 * (work.token.forward * 64 + work.pair.forward * 64**2)
    )
    padded = cost(SETTING, replace(LENGTHS, padding=0.5), work, device, mfu=0.5)
    assert padded.hardware - plain.hardware == pytest.approx(
        1000 * (work.token.total * 32 + work.pair.total * 64**2 * 1.25)
    )


def test_the_nearest_remedy_changes_the_fewest_things() -> None:
    model = llama()
    select_parts(model, ["projector", "llm"], bf16=True)
    memory = Memory(model, half=True)

    def peak(**changes: Any) -> Footprint:
        return footprint(replace(SETTING, **changes), LENGTHS, memory)

    higher = min(peak(sharding=one).total for one in (Sharding.zero1, Sharding.zero2, Sharding.zero3))
    assert "engine.kind=zero" in str(remedy(SETTING, LENGTHS, memory, higher))
    assert remedy(SETTING, LENGTHS, memory, peak(checkpointing=True).total) is not None
    alone = replace(SETTING, gpus=1, batch=1)
    found = remedy(alone, LENGTHS, memory, peak(gpus=1, batch=1, checkpointing=True).total)
    assert found == "trainer.gradient_checkpointing=true"
    smaller = replace(SETTING, gpus=1, checkpointing=True)
    found = remedy(smaller, LENGTHS, memory, peak(gpus=1, checkpointing=True, batch=2, accumulation=8).total)
    assert found == "per_device_train_batch_size=2 with gradient_accumulation_steps=8"
    assert remedy(SETTING, LENGTHS, memory, 1.0) is None


def test_settings_come_from_the_trainer_mapping_and_the_engine() -> None:
    assert setting_of({}, 2) == Setting(2, Sharding.zero0, 8, 1, False, epochs=3.0)
    found = setting_of({"gradient_checkpointing": True, "max_steps": 7}, 8, engine="zero3_offload")
    assert (found.sharding, found.offload, found.checkpointing, found.max_steps) == (Sharding.zero3, True, True, 7)
    assert setting_of({"activation_checkpointing": True}, 2).checkpointing
    assert not setting_of({"activation_checkpointing": False, "gradient_checkpointing": True}, 2).checkpointing
    kinds = {kind.value: setting_of({}, 2, engine=kind.value).sharding.value for kind in EngineKind}
    assert kinds == {
        "ddp": "zero0", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3", "zero3_offload": "zero3", "fsdp2": "fsdp"
    }  # fmt: skip
    away = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert setting_of({}, 2, engine="zero2", options=away).offload
    assert not setting_of({}, 2, engine="zero2", options={"zero_optimization": {"offload_optimizer": None}}).offload


def test_packed_rows_hold_as_many_records_as_fit_and_no_padding() -> None:
    packed = replace(SETTING, batch=1, row=640)  # of ten records of 64 tokens
    shape: dict[str, Any] = {"records": LENGTHS.records, "tokens": LENGTHS.tokens}
    assert extent(packed, **shape).steps == 13  # 100 rows over 4 GPUs and 2 micro-batches
    assert extent(replace(packed, max_steps=5), **shape).records == 5 * 10 * 4 * 2
    model = llama()
    select_parts(model, ["projector", "llm"], bf16=True)
    memory = Memory(model, half=True)
    even = replace(LENGTHS, longest=64, longest_labels=30)
    assert footprint(packed, even, memory) == footprint(replace(SETTING, batch=10), even, memory)
    sample = [(10, 5, True)] * 50 + [(30, 5, True)] * 50
    assert measured(sample, records=100, batch=None, grouped=False, seed=0, source="a test").padding == 0


def test_lengths_are_measured_on_a_fair_sample(tiny_llm: Path) -> None:
    kept, count = sampled(iter(range(500)), 50, seed=1)
    assert (len(set(kept)), count) == (50, 500)
    assert max(kept) > 400 and min(kept) < 100
    assert sampled(iter(range(3)), 50, seed=1) == ([0, 1, 2], 3)
    dataset = tiny_training.make_dataset(tiny_llm)
    count_one = counter(dataset.processor.tokenizer, None, visual=3, max_length=99)
    for place in (0, 1):
        example = dataset[place]
        expected = (len(example["input_ids"]), int((example["labels"] != -100).sum()), place == 1)
        assert count_one(dataset.sample(place).messages) == expected
    with pytest.raises(ValueError, match="above max_length=5"):
        counter(dataset.processor.tokenizer, None, visual=3, max_length=5)(dataset.sample(1).messages)
    guess: Callable[..., Any] = counter(None, None, visual=3, max_length=9)
    shorter: Callable[..., Any] = counter(dataset.processor.tokenizer, None, visual=3, max_length=99, cut_turns=True)
    talk = [*dataset.sample(1).messages, Message("user", "and then? " * 99), Message("assistant", "No more.")]
    assert shorter(talk) == count_one(dataset.sample(1).messages), "as training cuts its turns"
    with pytest.raises(ValueError, match="above max_length=99"):
        count_one(talk)
    assert guess([Message("user", "<image> abc"), Message("assistant", "12345678")]) == (3 + 3, 2, True)


def test_padding_is_what_batches_of_the_sample_have() -> None:
    sample = [(10, 5, True)] * 50 + [(30, 5, True)] * 50
    settings: dict[str, Any] = {"records": 100, "seed": 0, "source": "a test"}
    loose, grouped, single = (
        measured(sample, batch=batch, grouped=value, **settings)
        for batch, value in ((10, False), (10, True), (1, False))
    )
    assert (loose.tokens, loose.pairs, loose.longest) == (20, 500, 30)
    assert (grouped.padding, single.padding) == (0, 0)
    assert 0.4 < loose.padding < 0.6, "nearly every batch is padded to 30"


def test_devices_are_found_by_what_the_driver_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-40GB": "a100-40", "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA A100 80GB PCIe": "a100-80",
        "NVIDIA L40S": "l40s", "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA B200": "b200",
        "AMD Instinct MI300X": "mi300x",
    }  # fmt: skip
    cuda = torch.device("cuda")
    for name, key in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        assert peak_flops(cuda, half=True) == DEVICES[key].tflops * 1e12
    assert peak_flops(cuda, half=False) is None, "the table holds bfloat16 only"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA GeForce GTX 970")
    assert peak_flops(cuda, half=True) is None
    assert peak_flops(torch.device("cpu"), half=True) is None
    assert peak_flops(torch.device("cpu"), half=False, tflops=2) == 2e12
    with pytest.raises(ValueError, match=r"plan\.gpu = h10: must be one of h100, .* \(did you mean 'h100'\?\)"):
        device_named("h10")
