"""Costs of adapters and of the loss: against real adapters, real tensors, and arithmetic done here."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_training
import torch
from test_costs import LENGTHS, SETTING, SHAPE, Peak, counted, llama, tiny_batch

from revision import training
from revision.costs.devices import DEVICES
from revision.costs.flops import Counts, counts_of, work_of
from revision.costs.memory import Batch, Memory, Sharding, four_bit_bytes, size_of
from revision.costs.sketch import read_language, saved_bytes, sketch
from revision.costs.stage import Part, plan_stage, remedy
from revision.model import loss_revision
from revision.model.loss_revision import Shaping, output_loss
from revision.training import select_parts
from revision.training.adapters import Adapter, sketch_adapter
from revision.training.parts import part_of

H, MLP, KV, LAYERS = 32, 64, 16, 2  # of the tiny LLM
# Inputs and outputs of the linear layers of one of its layers: q, k, v, o, gate, up, down.
LINEAR = [(H, H), (H, KV), (H, KV), (H, H), (H, MLP), (H, MLP), (MLP, H)]


def sketched(llm: Path, method: str, parts: list[str], *, bf16: bool, **options: Any) -> tuple[Any, list[Any]]:
    drawn = sketch(read_language(str(llm)), **SHAPE)
    packed = sketch_adapter(drawn, **{"method": method, "rank": 2, "targets": ["all-linear"], **options})
    select_parts(drawn, parts, bf16=bf16)
    return drawn, packed


def attached(llm: Path, output: Path, method: str, parts: list[str], *, bf16: bool, **options: Any) -> Any:
    real = tiny_training.make_model(llm, table_multiple=None)
    arguments = training.build_arguments({"bf16": bf16}, output=output, seed=0)
    settings: dict[str, Any] = {"rank": 2, "alpha": 8.0, "dropout": 0.0, "targets": ["all-linear"], **options}
    Adapter(real, method=method, arguments=arguments, **settings)
    select_parts(real, parts, bf16=bf16)
    return real


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("parts", [["adapter"], ["projector", "adapter"]])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_sketched_adapter_has_the_parameters_of_a_real_one(
    tiny_llm: Path, tmp_path: Path, method: str, parts: list[str], bf16: bool
) -> None:
    for targets in (["all-linear"], ["q_proj", ".*up_proj"]):
        drawn, packed = sketched(tiny_llm, method, parts, bf16=bf16, targets=targets)
        real = attached(tiny_llm, tmp_path, method, parts, bf16=bf16, targets=targets)
        found = [
            {name: (one.shape, one.dtype, one.requires_grad) for name, one in model.named_parameters()}
            for model in (drawn, real)
        ]
        assert found[0] == found[1]
        assert packed == [] and {one.device.type for one in drawn.parameters()} == {"meta"}
        assert size_of(drawn).total_bytes == sum(one.nbytes for one in real.parameters())


@pytest.mark.parametrize("rank", [2, 5])
def test_the_parameters_of_adapters_by_arithmetic(tiny_llm: Path, rank: int) -> None:
    expected = {
        "lora": LAYERS * sum(rank * (inputs + outputs) for inputs, outputs in LINEAR),
        "dora": LAYERS * sum(rank * (inputs + outputs) + outputs for inputs, outputs in LINEAR),
    }
    for method in ("lora", "dora", "qlora"):
        drawn, packed = sketched(tiny_llm, method, ["adapter"], bf16=True, rank=rank)
        members = [one for name, one in drawn.named_parameters() if part_of(name) == "adapter"]
        part = Part.of("adapter", members, packed)
        count = expected["dora" if method == "dora" else "lora"]
        assert (part.parameters, part.trained, part.state) == (count, count, "trains")
        memory = Memory(drawn, half=True, four_bit=packed)
        found = memory.footprint(Sharding.zero0, gpus=1, batch=Batch(1, 8, 4), checkpointing=True)
        assert (found.gradients, found.optimizer) == (4 * count, 8 * count), "float32, and two moments of AdamW"
        zero2 = memory.footprint(Sharding.zero2, gpus=4, batch=Batch(1, 8, 4), checkpointing=True)
        assert (zero2.gradients, zero2.optimizer) == (2 * count / 4, 12 * count / 4)


def test_weights_in_four_bits_by_arithmetic(tiny_llm: Path) -> None:
    drawn, packed = sketched(tiny_llm, "qlora", ["projector", "adapter"], bf16=True, targets=["q_proj"])
    numbers = [inputs * outputs for inputs, outputs in LINEAR] * LAYERS
    assert sorted(one.numel() for one in packed) == sorted(numbers), "all linear layers, whatever the targets"
    # Half a byte each, a byte for 64, four for each 256 of those, and tables of 16 + 256 + 1 numbers.
    small = sum(n // 2 + n // 64 + 4 * -(-n // 64 // 256) + 4 * 273 for n in numbers)
    rest = sum(one.nbytes for one in drawn.parameters()) - 2 * sum(numbers)
    batch = Batch(1, 8, 4)
    memory = Memory(drawn, half=True, four_bit=packed)
    found = memory.footprint(Sharding.zero0, gpus=1, batch=batch, checkpointing=False)
    assert found.weights == small + rest
    plain = Memory(drawn, half=True).footprint(Sharding.zero0, gpus=1, batch=batch, checkpointing=False)
    assert plain.weights - found.weights == 2 * sum(numbers) - small
    assert found.layer - plain.layer == 2 * max(numbers), "one matrix at a time is made whole, in bfloat16"
    assert replace(found, weights=plain.weights, layer=plain.layer) == plain
    zero2 = memory.footprint(Sharding.zero2, gpus=4, batch=batch, checkpointing=False)
    everything = sum(one.numel() for one in drawn.parameters())
    assert zero2.weights == 2 * (everything - sum(numbers)) + small
    assert four_bit_bytes(4096 * 4096) * 8 / 4096**2 == pytest.approx(4 + 0.127, abs=1e-3), "2305.14314, Sec. 3"
    llm = [one for name, one in drawn.named_parameters() if part_of(name) == "llm"]
    assert Part.of("llm", llm, packed).state == f"frozen, {sum(numbers):,} in 4 bits"


def test_weights_in_four_bits_are_multiplied_in_full(tiny_llm: Path) -> None:
    """bitsandbytes keeps two numbers in a byte of [n / 2, 1], and the shape beside them."""
    model: Any = tiny_training.make_model(tiny_llm)
    select_parts(model, ["projector"], bf16=False)
    whole = work_of(model)
    for layer in model.get_decoder().layers:
        for linear in (one for one in layer.modules() if isinstance(one, torch.nn.Linear)):
            shape = linear.weight.shape
            packed: Any = torch.nn.Parameter(torch.zeros(shape.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
            packed.quant_state = SimpleNamespace(shape=shape)
            linear.weight = packed
    assert work_of(model) == whole


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_optimizer_and_gradients_of_an_adapter_are_real_tensors(tiny_llm: Path, tmp_path: Path, method: str) -> None:
    parts = ["projector", "adapter"]
    real = attached(tiny_llm, tmp_path, method, parts, bf16=False).train()
    trained = [one for one in real.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    real(**tiny_batch(tiny_llm)).loss.backward()
    optimizer.step()
    states = [one for state in optimizer.state.values() for one in state.values() if one.ndim > 0]
    drawn, _ = sketched(tiny_llm, method, parts, bf16=False)
    found = Memory(drawn, half=False).footprint(Sharding.zero0, gpus=1, batch=Batch(1, 8, 4), checkpointing=False)
    assert found.weights == sum(one.nbytes for one in real.parameters())
    assert found.gradients == sum(one.grad.nbytes for one in trained if one.grad is not None)
    assert found.optimizer == sum(one.nbytes for one in states)


@pytest.mark.parametrize("parts", [["adapter"], ["projector", "adapter"]])
@pytest.mark.parametrize("targets", [["all-linear"], ["v_proj"], ["o_proj", "up_proj"]])
def test_flops_of_lora_are_those_that_torch_counts(
    tiny_llm: Path, tmp_path: Path, parts: list[str], targets: list[str]
) -> None:
    real = attached(tiny_llm, tmp_path, "lora", parts, bf16=False, targets=targets).train()
    real.set_attn_implementation("eager")
    batch = tiny_batch(tiny_llm)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    expected = work_of(real).of(Counts(*counts_of(batch).tolist()[:4]))
    assert counted(real, batch) == pytest.approx(tuple(expected), rel=1e-9)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_real_step_with_an_adapter_is_what_is_planned(method: str, checkpointing: bool) -> None:
    drawn: Any = llama(layers=8)
    config = copy.deepcopy(drawn.config)
    options: dict[str, Any] = {"rank": 4, "targets": ["all-linear"]}
    sketch_adapter(drawn, method=method, **options)
    select_parts(drawn, ["projector", "adapter"], bf16=False)
    sequences, length, labels = 4, 128, 8
    batch = Batch(sequences, sequences * length, sequences * labels)
    found = Memory(drawn, half=False).footprint(Sharding.zero0, gpus=1, batch=batch, checkpointing=checkpointing)
    real: Any = type(drawn)(config).train()
    with torch.device("cpu"):
        sketch_adapter_on_cpu(real, method, options)
    real.set_attn_implementation("sdpa")
    select_parts(real, ["projector", "adapter"], bf16=False)
    if checkpointing:
        real.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(200, (sequences, length))
    ids[:, :4] = real.config.image_token_id = 255
    targets = ids.clone()
    targets[:, :-labels] = -100
    with Peak() as peak:
        real(input_ids=ids, image_embeds=torch.randn(sequences, 16), labels=targets).loss.backward()
    planned = found.total - found.weights - found.optimizer - found.buffers
    # Of DoRA's layer more is counted than is there at once.
    assert (0.65 if method == "dora" else 0.75) < peak.most / planned < 1.05


def sketch_adapter_on_cpu(model: Any, method: str, options: dict[str, Any]) -> None:
    """The same matrices with weights."""
    import peft
    from peft.tuners.lora import LoraModel

    names = [name for name, one in model.get_decoder().named_modules() if isinstance(one, torch.nn.Linear)]
    settings = peft.LoraConfig(
        r=options["rank"], target_modules=[f"language_model.model.{name}" for name in names], use_dora=method == "dora"
    )
    LoraModel(model, settings, "default")


N, V, WIDTH = 300, 997, 24


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_memory_of_logits_is_what_their_loss_takes(
    trains: bool, half: bool, cap: float | None, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss alone, forwards and backwards, every tensor that it makes counted while it lives."""
    monkeypatch.setattr(loss_revision, "MOST_LOGITS", 40 * V if chunked else 2**27)
    shaping, dtype = Shaping(cap=cap), torch.bfloat16 if half else torch.float32
    head = torch.nn.Linear(WIDTH, V, bias=False).to(dtype).requires_grad_(trains)
    hidden = torch.randn(N, WIDTH, dtype=dtype).requires_grad_()
    with Peak() as peak:
        loss, logits = output_loss(head, hidden, torch.randint(V, (N,)), shaping)
        loss.backward()
    assert (logits is None) == chunked, "and else they are held, as by who trains"
    found = planned_logits(head, shaping, half=half)
    given = head.weight.nbytes + hidden.nbytes  # which the operations see views of
    assert 0.75 < (peak.most - given) / found < 1.1
    if chunked and not trains:
        rows = 20 if cap else 40
        assert found == max(rows * V * (4 * (2 if cap else 1) + 2 * half) + 4 * N * WIDTH, 8 * N * WIDTH)
    if not chunked:
        assert found == N * V * (20 if cap else 16)


def planned_logits(head: torch.nn.Linear, shaping: Shaping, *, half: bool) -> float:
    """As of a model with this output layer."""
    memory: Any = object.__new__(Memory)
    memory._shaping, memory._head, memory._half = shaping, head.weight, half
    memory._vocabulary, memory._hidden = V, WIDTH
    found: float = memory._logits(float(N), Sharding.zero0)
    return found


def test_chunks_bound_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    select_parts(model, ["projector"], bf16=True)
    memory = Memory(model, half=True)
    vocabulary = model.config.text_config.vocab_size
    monkeypatch.setattr(loss_revision, "MOST_LOGITS", 100 * vocabulary)

    def logits(sharding: Sharding, labels: int) -> float:
        batch = Batch(1, labels, labels)
        return memory.footprint(sharding, gpus=2, batch=batch, checkpointing=True).logits

    assert logits(Sharding.zero0, 100) == 16 * 100 * vocabulary, "few are computed at once"
    assert logits(Sharding.zero3, 100) < 16 * 100 * vocabulary, "its layer is never called"
    for sharding in Sharding:
        grown = logits(sharding, 5000) - logits(sharding, 3000)
        assert grown < 2000 * 16 * vocabulary / 4 and logits(sharding, 3000) < 16 * 3000 * vocabulary


@pytest.mark.parametrize(("method", "more"), [("lora", ["zero3"]), ("dora", []), ("qlora", [])])
def test_an_adapter_is_planned_for_the_engines_that_train_it(method: str, more: list[str]) -> None:
    model = llama()
    sketch_adapter(model, method=method, rank=2, targets=["all-linear"])
    select_parts(model, ["adapter"], bf16=True)
    memory, setting = Memory(model, half=True), replace(SETTING, adapter=method)
    plan = plan_stage(
        setting, LENGTHS, parts=[], work=work_of(model), memory=memory, device=DEVICES["h100"], mfu=0.4, reserve_gib=4
    )
    assert list(plan.memory) == ["zero0", "zero1", "zero2", *more]
    if not more:
        assert "zero3" not in str(remedy(setting, LENGTHS, memory, plan.least))


def test_what_a_graph_drops_at_once_is_not_kept() -> None:
    """DoRA's norms are made of B A on an identity matrix, which is larger than all else here and gone at once."""
    lora, dora = llama(), llama()
    for model, method in ((lora, "lora"), (dora, "dora")):
        sketch_adapter(model, method=method, rank=2, targets=["all-linear"])
        select_parts(model, ["projector", "adapter"], bf16=False)
    assert saved_bytes(dora, half=False).casts < 64 * 160 * 4, "less than one matrix of those made for the norms"
    assert saved_bytes(lora, half=False).casts == pytest.approx(0, abs=1e5)
