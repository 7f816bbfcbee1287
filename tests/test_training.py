"""What trains and what does not, arguments, the log, and the ways a run is refused."""

from __future__ import annotations

import errno
import importlib.util
import inspect
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from revision import building, training
from revision.data.dataset import ConversationDataset
from revision.fields import argument_names


def build(output: Path, **mapping: Any) -> Any:
    return training.build_arguments(mapping, output=output, seed=3)


@pytest.mark.parametrize("parts", [["projector"], ["llm"], ["projector", "llm"]])
def test_parts_named_move_and_others_stay(tiny_llm: Path, tmp_path: Path, parts: list[str]) -> None:
    before = tiny_training.weights(tiny_training.make_model(tiny_llm))
    model, _ = tiny_training.run(tiny_llm, tmp_path, parts=parts, max_steps=1)
    prefixes = tuple(f"{training.PARTS[part]}." for part in parts)
    after = tiny_training.weights(model)
    for name in before:
        moved = not torch.equal(before[name], after[name])
        assert moved == name.startswith(prefixes), name
        assert model.get_parameter(name).requires_grad == name.startswith(prefixes)


def test_a_frozen_llm_computes_in_bfloat16_and_the_projector_in_float32(tiny_llm: Path, tmp_path: Path) -> None:
    model, summary = tiny_training.run(tiny_llm, tmp_path, parts=["projector"], bf16=True)
    assert {one.dtype for one in model.language_model.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in model.projector.parameters()} == {torch.float32}
    exact, expected = tiny_training.run(tiny_llm, tmp_path / "exact", parts=["projector"])
    assert {one.dtype for one in exact.language_model.parameters()} == {torch.float32}
    assert summary["loss"] == pytest.approx(expected["loss"], rel=0.02)


def test_what_trains_in_mixed_precision_keeps_float32_weights(tiny_llm: Path, tmp_path: Path) -> None:
    model, summary = tiny_training.run(tiny_llm, tmp_path, parts=["projector", "llm"], bf16=True)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert summary["steps"] == 4


def test_training_learns(tiny_llm: Path, tmp_path: Path) -> None:
    tiny_training.run(tiny_llm, tmp_path, parts=["projector", "llm"], max_steps=25, per_device_train_batch_size=8)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] / 3
    assert [row["step"] for row in rows] == list(range(1, 26))
    rates = {"samples_per_second", "tokens_per_second", "flops_per_second", "data_wait", "memory_gib"}
    assert set(rows[0]) == {"step", "loss", "learning_rate", "grad_norm", *rates}


def test_the_summary_counts_real_tokens(tiny_llm: Path, tmp_path: Path) -> None:
    _, summary = tiny_training.run(tiny_llm, tmp_path, parts=["projector"], max_steps=1, per_device_train_batch_size=32)
    dataset = tiny_training.make_dataset(tiny_llm)
    tokens = sum(len(dataset[place]["input_ids"]) for place in range(len(dataset)))
    assert summary["tokens_per_second"] / summary["samples_per_second"] == pytest.approx(tokens / len(dataset))
    assert summary["steps"] == 1


def test_the_summary_counts_the_samples_of_packed_rows(tiny_llm: Path, tmp_path: Path) -> None:
    _, summary = tiny_training.run(
        tiny_llm, tmp_path, parts=["projector"], pack_tokens=64, max_steps=-1, num_train_epochs=1
    )
    dataset = tiny_training.make_dataset(tiny_llm)
    tokens = sum(len(dataset[place]["input_ids"]) for place in range(len(dataset)))
    assert summary["tokens_per_second"] / summary["samples_per_second"] == pytest.approx(tokens / len(dataset))


def test_what_is_watched_agrees_with_itself(tiny_llm: Path, tmp_path: Path) -> None:
    """On a CPU there is a utilisation where its peak is given. Checked against counts of FLOPs of its own."""
    _, summary = tiny_training.run(
        tiny_llm, tmp_path, parts=["projector"], max_steps=2, per_device_train_batch_size=32, peak_tflops=0.5
    )
    model: Any = tiny_training.make_model(tiny_llm)
    dataset = tiny_training.make_dataset(tiny_llm)
    n = sum(one.numel() for layer in model.get_decoder().layers for one in layer.parameters() if one.ndim == 2)
    lengths = [len(dataset[place]["input_ids"]) for place in range(len(dataset))]
    labels = sum(int((dataset[place]["labels"] != -100).sum()) for place in range(len(dataset)))
    pictures = sum(dataset[place]["image_embed"] is not None for place in range(len(dataset)))
    first, second = (one.numel() for one in model.projector.layers.parameters() if one.ndim == 2)
    head = model.get_output_embeddings().weight.numel()
    flops = 4 * n * sum(lengths) + 12 * 2 * 32 * sum(length**2 for length in lengths)
    flops += 4 * head * labels + (4 * first + 6 * second) * pictures
    an_epoch = summary["samples_per_second"] / len(dataset)
    assert summary["flops_per_second"] == pytest.approx(flops * an_epoch)
    assert summary["mfu"] == pytest.approx(summary["flops_per_second"] / 0.5e12)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for row in rows:
        assert 0 < row["data_wait"] < 1
        assert row["mfu"] == pytest.approx(row["flops_per_second"] / 0.5e12)
        assert 0.05 < row["memory_gib"] < 100


def test_slow_data_is_seen_in_the_log(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = ConversationDataset.__getitem__

    def slowly(self: ConversationDataset, index: int) -> Any:
        time.sleep(0.3)
        return get(self, index)

    monkeypatch.setattr(ConversationDataset, "__getitem__", slowly)
    tiny_training.run(tiny_llm, tmp_path, parts=["projector"], max_steps=2, per_device_train_batch_size=8)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert min(row["data_wait"] for row in rows) > 0.5


def test_what_trains_is_printed(tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = tiny_training.run(tiny_llm, tmp_path, parts=["projector"], per_device_train_batch_size=4)
    shown = capsys.readouterr().out
    for part, state in (("projector", "trains"), ("llm", "frozen")):
        count = sum(one.numel() for one in model.get_submodule(training.PARTS[part]).parameters())
        (line,) = [line for line in shown.splitlines() if f" {part} " in line]
        assert state in line
        assert f"{count:,}" in line
    assert "32 samples on 1 process (cpu, RevisionForConditionalGeneration)" in shown
    assert "8 batches of 4 each" in shown
    assert "'loss'" not in shown, "the Trainer prints its logs"


def test_nothing_pickled_is_left(tiny_llm: Path, tmp_path: Path) -> None:
    tiny_training.run(tiny_llm, tmp_path, parts=["projector"], save_strategy="steps", save_steps=2)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"log.jsonl", "weights.safetensors"}


def test_names_known_without_transformers_are_its_own() -> None:
    assert argument_names() == {*inspect.signature(TrainingArguments.__init__).parameters} - {"self"}


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        ({"learnig_rate": 1.0}, r"trainer\.learnig_rate is no argument .* did you mean trainer\.learning_rate\?"),
        ({"evaluation_strategy": "no"}, r"trainer\.evaluation_strategy is no argument"),
        ({"output_dir": "x"}, r"trainer\.output_dir='x' is set by the stage itself"),
        ({"disable_tqdm": False}, r"trainer\.disable_tqdm=False is set by the stage itself"),
        ({"label_smoothing_factor": 0.1}, r"trainer\.label_smoothing_factor=0\.1 is set by the stage itself"),
        ({"ignore_data_skip": True}, r"trainer\.ignore_data_skip=True is set by the stage itself"),
        ({"train_sampling_strategy": "batch_rebalance"}, "must be one of random, sequential, group_by_length"),
        ({"save_total_limit": 0}, r"trainer\.save_total_limit=0: must be at least 1"),
        ({"lr_scheduler_type": "wavy"}, "refuses its values: .*wavy"),
        ({"save_strategy": "sometimes"}, "refuses its values: .*sometimes"),
        ({"eval_strategy": "steps"}, r"trainer\.eval_strategy='steps': a stage has no data .* run `revision evaluate`"),
        ({"eval_on_start": True}, r"trainer\.eval_on_start=True: a stage has no data to evaluate on"),
        ({"save_strategy": "best"}, r"trainer\.save_strategy='best': nothing is evaluated .* choose steps or epoch"),
        ({"max_steps": 0}, r"trainer\.max_steps=0: must be at least 1, or left out, so that trainer\.num_train_epochs"),
        ({"num_train_epochs": 0}, r"trainer\.num_train_epochs=0: must be above 0 where trainer\.max_steps is not set"),
        (
            {"use_liger_kernel": True},
            r"trainer\.use_liger_kernel=True: Liger knows no model .* leave it out: .* itself",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path: Path, mapping: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        build(tmp_path, **mapping)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "module", "package"),
    [
        ("galore_adamw", "galore_torch", "galore-torch"),
        ("galore_adafactor_layerwise", "galore_torch", "galore-torch"),
        ("schedule_free_adamw", "schedulefree", "schedulefree"),
        ("stable_adamw", "optimi", "torch-optimi"),
        ("adamw_8bit", "bitsandbytes", "bitsandbytes"),
    ],
)
def test_an_optimizer_that_is_not_installed_is_refused(
    tmp_path: Path, optimizer: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    with pytest.raises(ValueError) as caught:
        build(tmp_path, optim=optimizer)
    assert str(caught.value) == (
        f"trainer.optim={optimizer}: needs {module}, which is not installed; `pip install {package}`, or leave "
        "optim out"
    )


def test_every_optimizer_can_be_had_or_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    """Also those that a later transformers adds: none is found missing after the model is loaded."""
    model = tiny_training.make_model(tiny_llm)
    for optimizer in OptimizerNames:
        try:
            arguments = build(tmp_path, optim=optimizer.value, optim_target_modules=["mlp"])
        except ValueError as error:
            assert "which is not installed" in str(error)
        else:
            Trainer(model=model, args=arguments).create_optimizer()


def test_arguments_keep_what_the_mapping_says(tmp_path: Path) -> None:
    arguments = build(tmp_path, learning_rate=3e-4, per_device_train_batch_size=5, max_steps=7)
    assert (arguments.learning_rate, arguments.per_device_train_batch_size, arguments.max_steps) == (3e-4, 5, 7)
    assert arguments.seed == 3
    assert arguments.save_strategy == arguments.include_num_input_tokens_seen == "no"
    assert build(tmp_path, save_steps=5).save_strategy == "steps", "or save_steps would say nothing"
    assert Path(str(arguments.output_dir)) == tmp_path / "checkpoints"
    assert arguments.use_cpu is not torch.cuda.is_available()


@pytest.mark.parametrize("parts", [[], ["encoder"]])
def test_an_unknown_part_is_refused(tiny_model: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no part of the model; choose one or more of projector, llm"):
        training.select_parts(tiny_model, parts, bf16=False)


def test_another_number_of_processes_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"engine\.processes=2, but 1 are running"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"], processes=2)


def test_several_gpus_for_one_process_are_refused(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 2)
    with pytest.raises(ValueError, match=r"engine\.processes=1, but 2 GPUs are visible"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"])


def test_a_part_that_cannot_move_is_an_error(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="projector trains, but has not moved in 4 step"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"], learning_rate=0.0)


def test_a_loss_that_is_no_number_stops_the_run(tiny_llm: Path, tmp_path: Path) -> None:
    model: Any = tiny_training.make_model(tiny_llm)
    with torch.no_grad():
        model.projector.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the loss is nan after step 0, at samples s-.*; guard.policy=skip goes on"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"], model=model, per_device_train_batch_size=32)


@pytest.mark.parametrize(
    ("identity", "why"),
    [('{"name": "before"}', "differs in name: before -> now; weights at the start: null -> "),
     ('"hash"', "of an older version"), (None, "no identity.json")],
)  # fmt: skip
def test_checkpoints_of_other_settings_are_refused(
    tiny_llm: Path, tmp_path: Path, identity: str | None, why: str
) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-2").mkdir(parents=True)
    if identity is not None:
        (checkpoints / "identity.json").write_text(identity)
    with pytest.raises(ValueError, match=f"holds checkpoints.*{why}"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"], identity={"name": "now"})
    assert (checkpoints / "checkpoint-2").is_dir()


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"tracker = trackio: it is not installed; `pip install 'revision-mllm\[trac"):
        training.build_arguments({}, output=tmp_path, seed=0, tracker="trackio")


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_trackers_write_below_the_stage(
    tiny_llm: Path, tmp_path: Path, tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(tracker) is None:  # not imported: trackio reads its folder from the environment then
        pytest.skip(f"{tracker} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = training.build_arguments(
        {"max_steps": 2, "logging_steps": 1, "lr_scheduler_type": "constant"},
        output=tmp_path, seed=0, tracker=tracker, run_name="tiny/pretrain",
    )  # fmt: skip
    dataset = tiny_training.make_dataset(tiny_llm)
    training.train(
        model=tiny_training.make_model(tiny_llm), processor=dataset.processor, dataset=dataset, parts=["projector"],
        arguments=arguments, output=tmp_path,
    )  # fmt: skip
    training.conclude(arguments)
    pattern = {"tensorboard": "*tfevents*", "wandb": "*.wandb", "trackio": "*.db"}[tracker]
    file = next((tmp_path / tracker).rglob(pattern), None)
    assert file is not None
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(file.parent)).Reload()
        logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        for name in ("flops_per_second", "data_wait", "memory_gib", "tokens_per_second"):
            shown = [event.value for event in found.Scalars(f"train/{name}")]
            assert shown == pytest.approx([row[name] for row in logged])


def wandb_run(output: Path, *, tracker: str = "wandb") -> tuple[str | None, str | None]:
    """What the environment tells wandb of the run, once the arguments of a stage are built."""
    training.build_arguments({}, output=output, seed=0, tracker=tracker)
    return os.environ.get("WANDB_RUN_ID"), os.environ.get("WANDB_RESUME")


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of a run of wandb; what a stage says is undone."""
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_run_that_goes_on_is_the_same_in_wandb(tmp_path: Path, unnamed: None) -> None:
    assert wandb_run(tmp_path, tracker="none") == (None, None)
    first, resume = wandb_run(tmp_path)
    assert first is not None and resume == "allow"
    anew, _ = wandb_run(tmp_path)
    assert anew != first, "killed before its first checkpoint"
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert wandb_run(tmp_path) == wandb_run(tmp_path) == (anew, "allow")
    assert wandb_run(tmp_path / "other")[0] not in (anew, first)
    (tmp_path / "checkpoints" / "checkpoint-2").rename(tmp_path / "checkpoints" / "damaged-checkpoint-2")
    assert wandb_run(tmp_path) == (anew, "allow"), "none is whole, which mends where one is restored"
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    assert wandb_run(tmp_path)[0] not in (anew, None), "it was finished, and begins anew"


@pytest.mark.parametrize(("name", "value"), [("WANDB_RUN_ID", "mine"), ("WANDB_RESUME", "never")])
def test_what_the_environment_says_of_a_wandb_run_stays(
    tmp_path: Path, name: str, value: str, unnamed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert wandb_run(tmp_path) == tuple(value if one == name else None for one in ("WANDB_RUN_ID", "WANDB_RESUME"))
    assert not (tmp_path / "wandb_run.txt").exists()


def refuse(error: Exception) -> Any:
    """A function that raises, in place of one that writes."""

    def write(*_: Any, **__: Any) -> None:
        raise error

    return write


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_cannot_be_written_is_a_sentence(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the step after, and after the last one, which has none."""
    monkeypatch.setattr("revision.training.curve.append", refuse(FULL))
    for steps in (1, 3):
        with pytest.raises(ValueError, match=r"log\.jsonl cannot be written: the disk is full; mend the cause"):
            tiny_training.run(tiny_llm, tmp_path / str(steps), parts=["projector"], max_steps=steps)


def test_a_bad_step_that_cannot_be_written_down_is_a_sentence(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("revision.training.sync.append", refuse(FULL))
    model: Any = tiny_training.make_model(tiny_llm)
    with torch.no_grad():
        model.projector.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"faults\.jsonl cannot be written: the disk is full; mend the cause"):
        tiny_training.run(tiny_llm, tmp_path, parts=["projector"], model=model)


def test_a_model_is_saved_whole_or_not_at_all(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape: dict[str, Any] = {"embed_dim": 16, "num_visual_tokens": 3, "visual_tokens": "slots"}
    model, processor = building.build_model(str(tiny_llm), chat_template=None, dtype=torch.float32, seed=0, **shape)
    assert processor.tokenizer.eos_token_id in model.generation_config.eos_token_id
    building.save_model(model, processor, tmp_path / "model", alignment={"method": "c3"}, dtype=torch.bfloat16)
    again, _ = building.read_model(tmp_path / "model")
    assert again.dtype == torch.bfloat16
    assert again.config.alignment == {"method": "c3"}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]

    for error, reason in (
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError("Permission denied"), "Permission denied"),
    ):
        monkeypatch.setattr(type(processor), "save_pretrained", refuse(error))
        with pytest.raises(ValueError) as caught:
            building.save_model(model, processor, tmp_path / "model", alignment=None)
        assert str(caught.value) == (
            f"{tmp_path / 'model'} cannot be written: {reason}; mend the cause, and the same command goes on from its "
            "last checkpoint, if there is one"
        )
        assert [file.name for file in tmp_path.iterdir()] == ["model"], "half of one would keep the disk full"
    assert building.read_model(tmp_path / "model")[0].config.alignment == {"method": "c3"}


def test_another_projector_is_refused_by_name(tiny_model: Any) -> None:
    same: dict[str, Any] = {
        "embed_dim": 16, "num_visual_tokens": 3, "visual_tokens": "slots", "projector_depth": 2,
        "projector_hidden_size": None, "input_scale": None, "output_norm": True,
    }  # fmt: skip
    building.require_shape(tiny_model, Path("m"), same)
    building.require_shape(tiny_model, Path("m"), {**same, "projector_hidden_size": 32, "input_scale": 4.0})
    for name, value, field in (
        ("num_visual_tokens", 5, r"model\.num_visual_tokens"),
        ("visual_tokens", "repeat", r"model\.visual_tokens"),
        ("projector_depth", 1, r"model\.projector\.depth"),
        ("projector_hidden_size", 64, r"model\.projector\.hidden_size"),
        ("input_scale", 1.0, r"model\.projector\.input_scale"),
        ("output_norm", False, r"model\.projector\.output_norm"),
        ("embed_dim", 20, "the encoder"),
    ):
        with pytest.raises(ValueError, match=f"model in m has {name}=.*, but {field} asks for {value};"):
            building.require_shape(tiny_model, Path("m"), {**same, name: value})


def test_a_folder_that_is_no_model_is_refused(
    tmp_path: Path, tiny_llm: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    for read in (building.read_model, building.read_config):
        with pytest.raises(ValueError, match="there is no folder .*none; give one that a training stage wrote"):
            read(tmp_path / "none")
        with pytest.raises(ValueError, match=r"cannot be read as a trained model .*model_type='llama'"):
            read(tiny_llm)
    whole = tmp_path / "whole"
    state = {name: one for name, one in tiny_model.state_dict().items() if name != "projector.norm.weight"}
    tiny_model.save_pretrained(whole, state_dict=state)
    tiny_processor.save_pretrained(whole)
    with pytest.raises(ValueError, match=r"lacks or has too many of the weights projector\.norm\.weight"):
        building.read_model(whole)
