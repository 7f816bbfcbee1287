"""The commands `pretrain` and `instruct` on tiny parts: what they leave behind, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from revision import building, records, rules
from revision.alignment import load_alignment
from revision.commands import align, instruct, pretrain
from revision.data.conversation import encode
from revision.data.dataset import ConversationDataset
from revision.embeddings import EmbeddingStore
from revision.interrupts import Interrupted
from revision.records import Message
from revision.runs import rundir
from revision.schema import (
    AlignmentConfig,
    Config,
    DataConfig,
    EncoderConfig,
    GuardPolicy,
    Modality,
    ModelConfig,
    Packing,
    ProjectorConfig,
    SourceConfig,
    StageConfig,
    StageInput,
    Unfit,
)
from revision.stages import learning, starting
from revision.training.trainer import StageTrainer

Store = Callable[..., Any]
TRAINER = {"learning_rate": 1e-2, "max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4}


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def config(tmp_path: Path, tiny_store: Store, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A corpus of embedded texts, statistics and conversations, aligned already."""
    monkeypatch.chdir(tmp_path)
    tiny_store(name="tiny/texts", shift=0.3)
    tiny_store("image", name="tiny/statistics", shift=-0.3, seed=1)
    talks = [
        {
            "id": f"talk-{row}",
            "image": f"image-{row}",
            "messages": [
                {"role": "user", "content": "<image> what?"},
                {"role": "assistant", "content": f"a tree {row}"},
            ],
        }
        for row in range(6)
    ]
    talks.append({"id": "plain", "messages": turns("1?", "2.")})
    Path("talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    pairs = [{"id": f"image-{row}", "image": "x.png", "text": f"a red square {row}"} for row in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = Config(
        name="run",
        data=DataConfig(
            name="tiny",
            folder="data",
            stores="stores",
            sources={
                "texts": SourceConfig(Modality.text, "texts.jsonl"),
                "statistics": SourceConfig(Modality.image, "statistics.jsonl"),
            },
            conversations="talks.jsonl",
            conversation_sources=["statistics"],
            pairs="pairs.jsonl",
        ),
        encoder=EncoderConfig(name="tiny", model="local-dir:none"),
        model=ModelConfig(llm=str(tiny_llm), num_visual_tokens=2),
        trainer=dict(TRAINER),
        pretrain=StageConfig(prompts=["<image>"], train=["projector"], max_length=99),
        instruct=StageConfig(init="pretrain", train=["projector", "llm"], max_length=99),
    )
    align.run(config)
    return config


def model_folder(config: Config, command: str) -> Path:
    return rundir.folder(config, command) / "model"


def first_layer(config: Config, command: str) -> torch.Tensor:
    model: Any = building.read_model(model_folder(config, command))[0]
    weight: torch.Tensor = model.projector.layers[0].weight
    return weight


def test_both_stages_in_order(config: Config, tiny_llm: Path) -> None:
    pretrain.run(config)
    first, processor = building.read_model(model_folder(config, "pretrain"))
    fresh, _ = building.build_model(
        str(tiny_llm), chat_template=None, dtype=torch.float32, seed=0, embed_dim=16, num_visual_tokens=2,
        visual_tokens="slots",
    )  # fmt: skip
    for name, one in fresh.named_parameters():
        same = torch.equal(one, first.get_parameter(name))
        assert same == name.startswith("language_model."), name
    lineage = first.config.alignment
    assert lineage is not None
    assert lineage["method"] == "realign"
    facts = json.loads((rundir.folder(config, "align") / "alignment.json").read_text())
    assert (lineage["text"], lineage["image"]) == (facts["text"]["fingerprint"], facts["image"]["fingerprint"])
    marks = json.loads((rundir.folder(config, "pretrain") / "finished.json").read_text())
    assert marks["facts"]["steps"] == 2

    instruct.run(config)
    second, again = building.read_model(model_folder(config, "instruct"))
    for name in ("projector.layers.0.weight", "language_model.model.embed_tokens.weight"):
        assert not torch.equal(second.get_parameter(name), first.get_parameter(name))
    assert second.config.alignment == lineage
    talk = [Message("user", "<image> hm?"), Message("assistant", "yes")]
    ours, theirs = (encode(one, talk, name="x") for one in (processor, again))
    assert ours.input_ids.tolist() == theirs.input_ids.tolist()
    assert ours.labels.tolist() == theirs.labels.tolist()
    left = {file.name for command in ("pretrain", "instruct") for file in rundir.folder(config, command).iterdir()}
    assert left == {"model", "log.jsonl", "config.yaml", "provenance.json", "finished.json"}


def test_both_stages_on_packed_rows(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.pretrain = replace(config.pretrain, packing=Packing.packed)
    config.instruct = replace(config.instruct, packing=Packing.packed, pack_tokens=120, unfit=Unfit.cut_turns)
    pretrain.run(config)
    assert "24 samples in" in capsys.readouterr().out
    instruct.run(config)
    shown = capsys.readouterr().out
    assert "7 samples in" in shown
    assert "rows of up to 120 tokens" in shown
    assert len(list(Path("runs/.lengths").glob("*.npy"))) == 2
    for command in ("pretrain", "instruct"):
        marks = json.loads((rundir.folder(config, command) / "finished.json").read_text())
        assert marks["facts"]["steps"] == 2
        assert not (rundir.folder(config, command) / "unfit.jsonl").exists()


def test_records_are_read_once_and_a_changed_one_is_noticed(
    config: Config, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[str]] = []
    reads: list[str] = []

    def learned(*_: Any, samples: Any, **__: Any) -> None:
        found.append([samples[place].messages[-1].content for place in range(len(samples))])

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def records_of(*arguments: Any) -> Any:
            for one in read(*arguments):
                reads.append(one.id)
                yield one

        return records_of

    monkeypatch.setattr(learning, "train_and_save", learned)
    monkeypatch.setattr(starting, "model_of", lambda *_: (None, None))
    for name in ("read_pairs", "read_conversations"):
        monkeypatch.setattr(records, name, counted(getattr(records, name)))
    config.instruct.init = None
    config.pretrain.input = StageInput.pairs
    for command, file, old, new in (
        (pretrain, Path("pairs.jsonl"), "square 4", "circle 4"),
        (instruct, Path("talks.jsonl"), "a tree 4", "a bird 4"),
    ):
        found.clear()
        reads.clear()
        command.run(config)
        command.run(config)
        assert found[0] == found[1]
        assert len(reads) == len(found[0]) > 6
        file.write_text(file.read_text().replace(old, new))
        command.run(config)
        assert [one.replace(old, new) for one in found[0]] == found[2] != found[0]
        assert len(reads) == 2 * len(found[0])
    shutil.rmtree("stores/tiny/statistics")
    tiny_store("image", name="tiny/statistics", shift=-0.3, seed=2)  # embedded anew: rows may be others
    instruct.run(config)
    assert len(reads) == 3 * len(found[0])


def test_samples_that_do_not_fit_are_dropped_without_packing_too(config: Config) -> None:
    long = {"id": "long", "messages": turns("1?", "2 " * 99)}
    with Path("talks.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    config.instruct = replace(config.instruct, init=None)
    whole = {**TRAINER, "per_device_train_batch_size": 8, "max_steps": 1}
    config.instruct.trainer = whole
    with pytest.raises(ValueError, match="sample long has .* above max_length=99"):
        instruct.run(config)
    config.instruct = replace(config.instruct, unfit=Unfit.drop, reject_budget=0.2)
    instruct.run(config)
    (row,) = (rundir.folder(config, "instruct") / "unfit.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "long"


def reject(source: str, *ids: str) -> None:
    """As if `embed` had rejected pictures of a store, within its budget."""
    folder = Path("stores/tiny", source)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "rejected": len(ids)}))
    rows = [json.dumps({"id": one, "reason": "truncated picture"}) + "\n" for one in ids]
    (folder / "rejected.jsonl").write_text("".join(rows))


@pytest.mark.parametrize("packing", list(Packing))
def test_samples_about_rejected_pictures_are_left_out(config: Config, packing: Packing) -> None:
    reject("statistics", "lost")
    talk = {"id": "about it", "image": "lost", "messages": turns("<image> what?", "a tree")}
    with Path("talks.jsonl").open("a") as file:
        file.write(json.dumps(talk) + "\n")
    config.instruct = replace(config.instruct, init=None, packing=packing, trainer={**TRAINER, "max_steps": 1})
    with pytest.raises(ValueError, match=r"1 of 8 samples, the first is 'about it', .* by instruct\.unfit=drop"):
        instruct.run(config)
    config.instruct = replace(config.instruct, unfit=Unfit.drop, reject_budget=0.1)
    with pytest.raises(ValueError, match=r"1 of 8 samples cannot be learned, .* the first: sample about it has no emb"):
        instruct.run(config)
    config.instruct = replace(config.instruct, reject_budget=0.2)
    instruct.run(config)
    (row,) = (rundir.folder(config, "instruct") / "unfit.jsonl").read_text().splitlines()
    assert json.loads(row)["id"] == "about it"
    marks = json.loads((rundir.folder(config, "instruct") / "finished.json").read_text())
    assert (marks["facts"]["samples"], marks["facts"]["about_pictures"]) == (7, 6)


def test_pairs_of_rejected_pictures_are_left_out(config: Config) -> None:
    reject("statistics", "lost")
    with Path("pairs.jsonl").open("a") as file:
        file.write(json.dumps({"id": "lost", "image": "x.png", "text": "a tree"}) + "\n")
    config.pretrain = replace(config.pretrain, input=StageInput.pairs, unfit=Unfit.drop, reject_budget=0.2)
    pretrain.run(config)
    marks = json.loads((rundir.folder(config, "pretrain") / "finished.json").read_text())
    assert marks["facts"]["samples"] == 8


def test_a_picture_that_no_store_knows_is_an_error_all_the_same(config: Config) -> None:
    reject("statistics", "lost")
    with Path("talks.jsonl").open("a") as file:
        file.write(json.dumps({"id": "x", "image": "nobody", "messages": turns("<image> what?", "a tree")}) + "\n")
    config.instruct = replace(config.instruct, init=None, unfit=Unfit.drop, reject_budget=0.9)
    with pytest.raises(ValueError, match="id 'nobody' has no embedding in .*1 of 7 ids have none"):
        instruct.run(config)
    Path("stores/tiny/statistics/rejected.jsonl").unlink()
    with pytest.raises(ValueError, match="rejected.jsonl is missing or damaged, and should name 1 rejected records"):
        instruct.run(config)


def test_the_alignment_reaches_the_projector(config: Config) -> None:
    pretrain.run(config)
    raw = replace(config, name="raw", alignment=AlignmentConfig(method="none"))
    align.run(raw)
    pretrain.run(raw)
    first, second = (first_layer(one, "pretrain") for one in (config, raw))
    assert not torch.equal(first, second)


def test_unicorn_moves_the_pictures_of_stage_2_too(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, name="unicorn", alignment=AlignmentConfig(method="unicorn"))
    align.run(config)
    pretrain.run(config)
    seen: list[Any] = []
    kept = ConversationDataset.__getitem__

    def spy(self: ConversationDataset, index: int) -> Any:
        example = kept(self, index)
        seen.append((self.sample(index).row, example["image_embed"]))
        return example

    monkeypatch.setattr(ConversationDataset, "__getitem__", spy)
    instruct.run(config)
    unicorn = load_alignment(rundir.folder(config, "align"))
    images = EmbeddingStore.open(Path("stores/tiny/statistics"))
    pictured = [(row, found) for row, found in seen if row is not None]
    assert pictured
    for row, found in pictured:
        raw = images.rows(row).astype("float32")
        torch.testing.assert_close(found, torch.from_numpy(unicorn.apply_to_images(raw)[0]))
        assert (found - torch.from_numpy(raw[0])).abs().max() > 0.05
    for command in ("pretrain", "instruct"):
        saved = building.read_image_alignment(model_folder(config, command))
        assert saved is not None and saved.facts() == unicorn.facts()


def test_a_model_of_another_alignment_takes_pictures_as_they_are(config: Config) -> None:
    pretrain.run(config)
    assert building.read_image_alignment(model_folder(config, "pretrain")) is None
    assert not (model_folder(config, "pretrain") / building.IMAGE_ALIGNMENT).exists()


def test_a_stage_that_is_refused_costs_no_finished_one(config: Config) -> None:
    pretrain.run(config)
    config.engine.processes = 2
    for command, stage in (("pretrain", pretrain), ("instruct", instruct)):
        rundir.start(config, command)
        rundir.finish(config, command)
        with pytest.raises(ValueError, match=r"engine.processes=2, but 1 are running"):
            stage.run(config)
        assert rundir.is_finished(config, command), command


def test_input_noise_reaches_the_projector(config: Config) -> None:
    pretrain.run(config)
    noisy = replace(config, name="noisy", pretrain=replace(config.pretrain, noise_std=0.1))
    align.run(noisy)
    pretrain.run(noisy)
    first, second = (first_layer(one, "pretrain") for one in (config, noisy))
    assert not torch.equal(first, second)


def test_mixed_precision_is_saved_in_bfloat16(config: Config) -> None:
    config.trainer["bf16"] = True
    pretrain.run(config)
    instruct.run(config)
    for command in ("pretrain", "instruct"):
        model, _ = building.read_model(model_folder(config, command))
        assert model.dtype == torch.bfloat16
        assert first_layer(config, command).dtype == torch.float32


@pytest.mark.parametrize(("there", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_auto_goes_by_the_device(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("revision.precision.has_bfloat16", lambda device: there)
    config.trainer["bf16"] = "auto"
    pretrain.run(config)
    model, _ = building.read_model(model_folder(config, "pretrain"))
    assert model.dtype == dtype
    kept = json.loads((rundir.folder(config, "pretrain") / "finished.json").read_text())
    assert kept["facts"]["precision"] == str(dtype).removeprefix("torch.")
    assert ("no bfloat16 arithmetic, so training is in float32" in capsys.readouterr().out) is not there


def test_pairs_take_the_place_of_texts(config: Config) -> None:
    pairs = replace(config, name="pairs", pretrain=replace(config.pretrain, input=StageInput.pairs))
    pretrain.run(pairs)
    assert building.read_model(model_folder(pairs, "pretrain"))[0].config.alignment is None


def test_stage_2_without_stage_1_and_from_a_folder(config: Config) -> None:
    alone = replace(config, name="alone", instruct=replace(config.instruct, init=None))
    instruct.run(alone)
    folder = replace(config, name="again", instruct=replace(config.instruct, init=str(model_folder(alone, "instruct"))))
    instruct.run(folder)
    moved = (first_layer(alone, "instruct") - first_layer(folder, "instruct")).abs().max()
    assert 0 < moved < 0.1


def test_an_unfinished_or_missing_stage_1_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"`pretrain` never ran there"):
        instruct.run(config)
    rundir.start(config, "pretrain")
    with pytest.raises(ValueError, match=r"`pretrain` did not finish there"):
        instruct.run(config)
    assert not model_folder(config, "instruct").exists()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"num_visual_tokens": 5}, r"has num_visual_tokens=2, but model\.num_visual_tokens asks for 5; set it to"),
        ({"projector": ProjectorConfig(depth=3)}, r"has projector_depth=2, but model\.projector\.depth asks for 3"),
    ],
)
def test_a_stage_1_of_another_shape_is_refused(config: Config, model: dict[str, Any], why: str) -> None:
    pretrain.run(config)
    other = replace(config, model=replace(config.model, **model))
    with pytest.raises(ValueError, match=r"`pretrain` ran there with other settings \(model\..*is now"):
        instruct.run(other)
    folder = str(model_folder(config, "pretrain"))
    with pytest.raises(ValueError, match=why):
        instruct.run(replace(other, instruct=replace(config.instruct, init=folder)))


def test_a_model_for_another_encoder_is_refused(config: Config, tiny_store: Store) -> None:
    pretrain.run(config)
    folder = str(model_folder(config, "pretrain"))
    tiny_store("image", name="wide/statistics", dim=20)
    wide = replace(config, encoder=replace(config.encoder, name="wide"), instruct=replace(config.instruct, init=folder))
    with pytest.raises(ValueError, match="has embed_dim=16, but the encoder asks for 20"):
        instruct.run(wide)


def test_an_alignment_of_another_store_is_refused(config: Config, tiny_store: Store, tmp_path: Path) -> None:
    store = tmp_path / "stores" / "tiny" / "texts"
    store.rename(store.with_name("before"))
    tiny_store(name="tiny/texts", seed=7)
    with pytest.raises(ValueError, match="was fitted on another text store than .*run `revision align` again"):
        pretrain.run(config)


def test_a_resumed_stage_notices_what_has_changed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(config, instruct=replace(config.instruct, init=None))
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="saved after step 1 of 2 in"):
        patch.setattr(StageTrainer, "training_step", training_step)
        instruct.run(alone)
    faster = replace(alone, trainer={**TRAINER, "learning_rate": 2e-2})
    with pytest.raises(ValueError, match=r"differs in instruct\.trainer\.learning_rate: 0\.01 -> 0\.02; restore it"):
        instruct.run(faster)
    talks = Path("talks.jsonl").read_text()
    Path("talks.jsonl").write_text(talks.replace("a tree 3", "a bush 3"))
    with pytest.raises(ValueError, match=r"differs in content of the records: \w+ -> \w+; restore it"):
        instruct.run(alone)
    Path("talks.jsonl").write_text(talks)
    elsewhere = replace(alone, trainer={**TRAINER, "bf16": True})
    with pytest.raises(ValueError, match=r"differs in .*precision: float32 -> bfloat16; restore it"):
        instruct.run(elsewhere)
    shared = {**TRAINER, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 1}
    instruct.run(replace(alone, trainer=shared))
    assert rundir.is_finished(alone, "instruct"), "the same global batch, shared out in another way"


def test_a_stage_that_stopped_at_a_bad_step_leaves_it_out_when_asked(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without stage 1 again, which met none."""
    config.trainer = {**TRAINER, "max_steps": 3, "save_steps": 1}
    pretrain.run(config)
    original = Trainer.training_step

    def training_step(self: Trainer, *args: Any) -> torch.Tensor:
        loss = original(self, *args)
        return loss * torch.nan if self.state.global_step == 1 else loss

    monkeypatch.setattr(Trainer, "training_step", training_step)
    with pytest.raises(ValueError, match=r"the loss is nan after step 1, .*; guard\.policy=skip goes on from the last"):
        instruct.run(config)
    config.guard.policy = GuardPolicy.skip
    instruct.run(config)
    assert "checkpoint-1" in capsys.readouterr().out.split("resuming from ")[1].split("samples")[0]
    mark = json.loads((rundir.folder(config, "instruct") / "finished.json").read_text())
    assert (mark["facts"]["steps"], mark["facts"]["bad_steps"], mark["guarded"]) == (3, 1, True)
    config.guard.policy = GuardPolicy.stop
    assert rundir.is_finished(config, "pretrain") and not rundir.is_finished(config, "instruct")


def test_an_unreadable_llm_and_bad_arguments_are_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"model\.llm=nowhere cannot be read"):
        pretrain.run(replace(config, model=replace(config.model, llm="nowhere")))
    with pytest.raises(ValueError, match=r"trainer\.max_step is no argument .* trainer\.max_steps\?"):
        pretrain.run(replace(config, model=replace(config.model, llm="nowhere"), trainer={"max_step": 1}))


def test_a_corpus_without_conversations_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"corpus tiny has no data\.conversations"):
        instruct.run(replace(config, data=replace(config.data, conversations=None)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"pack_tokens": 98}, r"instruct\.pack_tokens = 98: must be at least instruct\.max_length = 99"),
        (
            {"trainer": {"train_sampling_strategy": "group_by_length"}},
            r"instruct\.trainer\.train_sampling_strategy = group_by_length: must be random where instruct\.packing",
        ),
    ],
)
def test_packing_has_rules(config: Config, changes: dict[str, Any], why: str) -> None:
    rules.check(replace(config, instruct=replace(config.instruct, packing=Packing.packed)))
    with pytest.raises(ValueError, match=why):
        rules.check(replace(config, instruct=replace(config.instruct, packing=Packing.packed, **changes)))
