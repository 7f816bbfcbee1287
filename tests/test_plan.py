"""The command `plan`: what it reads, prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import COUNT, make_corpus, make_groups

from revision.cli import main
from revision.costs.flops import Counts, work_of
from revision.data.conversation import encode
from revision.records import Message
from revision.training import select_parts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    return make_corpus(tmp_path_factory.mktemp("plan") / "corpus", tiny_llm)


@pytest.fixture
def arguments(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    groups = make_groups(tmp_path / "configs", corpus)
    return [
        "experiment=nano", "data=tiny", "encoder=tiny", "model.llm=${data.folder}/assets/llm",
        "model.chat_template=null", "model.table_multiple=null",
        "pretrain.trainer.max_steps=-1", "pretrain.trainer.per_device_train_batch_size=1",
        "--config-dir", str(groups),
    ]  # fmt: skip


def plan(arguments: list[str], *more: str, name: str = "nano") -> tuple[int, dict[str, Any]]:
    code = main(["plan", *arguments, *more])
    path = Path("runs", name, "plan", "plan.json")
    return code, json.loads(path.read_text()) if path.is_file() else {}


def test_numbers_are_those_of_the_real_model_and_records(
    arguments: list[str], tiny_llm: Path, tiny_processor: Any, make_tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(arguments, "plan.gpu=a100-40", "model.num_visual_tokens=3", "model.projector.hidden_size=null")
    assert code == 0
    model = make_tiny_model(embed_dim=8)  # of the tiny encoder
    for stage, parts in (("pretrain", ["projector"]), ("instruct", ["projector", "llm"])):
        listed = {part["name"]: part for part in found["stages"][stage]["parts"]}
        for part, module in (("projector", model.projector), ("llm", model.language_model)):
            total = sum(one.numel() for one in module.parameters())
            assert (listed[part]["parameters"], listed[part]["trained"]) == (total, total if part in parts else 0)
    stage = found["stages"]["pretrain"]
    assert stage["lengths"]["records"] == COUNT
    assert stage["extent"]["steps"] == COUNT
    select_parts(model, ["projector"], bf16=True)
    counts = Counts(*(stage["lengths"][name] for name in ("tokens", "pairs", "labels", "pictures")))
    flops = stage["cost"]["model"]
    assert flops["forward"] + flops["backward"] == pytest.approx(work_of(model).of(counts).total * COUNT)
    assert stage["lengths"]["source"] == f"{COUNT} of {COUNT} records tokenized"
    shown = capsys.readouterr().out
    assert f"{listed['llm']['parameters']:,}" in shown and "A100 40 GB" in shown and "which fits into" in shown


def test_tokens_are_those_that_training_reads(arguments: list[str], corpus: Path, tiny_processor: Any) -> None:
    _, found = plan(arguments, "model.num_visual_tokens=3")
    talks = [json.loads(line) for line in (corpus / "texts.jsonl").read_text().splitlines()]
    encoded = [
        encode(tiny_processor, [Message("user", "<image>"), Message("assistant", talk["text"])], name="x")
        for talk in talks
    ]
    lengths = found["stages"]["pretrain"]["lengths"]
    assert lengths["tokens"] == pytest.approx(sum(len(one.input_ids) for one in encoded) / len(encoded))
    assert lengths["labels"] == pytest.approx(sum((one.labels != -100).sum() for one in encoded) / len(encoded))
    assert lengths["longest"] == max(len(one.input_ids) for one in encoded)


def test_what_does_not_fit_is_refused_with_a_remedy(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # A reserve that leaves next to nothing of the card makes any model too large.
    code, found = plan(arguments, "plan.gpu=rtx4090", "plan.reserve_gib=22.9999")
    assert code == 1 and not found["stages"]["instruct"]["fits"]
    error = capsys.readouterr().err
    assert "GiB on each GPU in its worst step, but GeForce RTX 4090 has 23 less plan.reserve_gib = 22.9999" in error
    assert error.count("\n") == 1 and ("set " in error or "take more or larger GPUs" in error)


def test_the_papers_run_is_planned_without_its_data_and_its_llm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, found = plan(["experiment=revision_8b", "plan.gpu=h200"], name="revision_8b")
    assert code == 0
    assert "cannot be read here: its published shape" in capsys.readouterr().out
    first, second = found["stages"]["pretrain"], found["stages"]["instruct"]
    assert (first["extent"]["steps"], second["extent"]["steps"]) == (3907, 4688)  # 1M and 1.2M by 256, as 8 GPUs round
    assert first["setting"]["sharding"] == "zero2" and first["setting"]["checkpointing"]
    # 4 N a token for the frozen LLM, 6 N for the trained one, N without both tables; attention is 3 % at most.
    n = 8_030_261_248 - 2 * 128_256 * 4096
    for stage, factor in ((first, 4), (second, 6)):
        flops = stage["cost"]["model"]["forward"] + stage["cost"]["model"]["backward"]
        assert factor * n < flops / stage["extent"]["tokens"] < 1.07 * factor * n
    hours = first["cost"]["hours"] + second["cost"]["hours"]
    assert 5 < hours < 12, "ReVision v3, App. H.2: 12 hours on 8 H200"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("run.steps=[embed]", r"run\.steps = \['embed'\]: `plan` needs one of pretrain, instruct among them"),
        ("plan.gpu=h10", r"plan\.gpu = h10: must be one of h100"),
        ("model.llm=nowhere/at-all", r"model\.llm = nowhere/at-all: its config\.json cannot be read"),
        (
            "data.sources.texts.records=none.jsonl",
            r"data\.sources\.texts\.records = none\.jsonl: .* plan\.pretrain\.rec",
        ),
        ("data.conversations=null", r"data\.conversations = null: .* state plan\.instruct\.records"),
    ],
)
def test_what_is_missing_is_one_sentence(
    arguments: list[str], change: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    code, _ = plan(arguments, change)
    error = capsys.readouterr().err
    assert code == 1 and error.count("\n") == 1
    assert re.search(why, error), error


def test_stated_numbers_take_the_place_of_records(arguments: list[str]) -> None:
    stated = [
        f"plan.{stage}.{value}" for stage in ("pretrain", "instruct") for value in ("records=640", "text_tokens=20")
    ]
    stated += ["plan.pretrain.label_tokens=12", "pretrain.limit=64", "plan.gpus=8"]
    code, found = plan(arguments, *stated)
    assert code == 0
    counted = [found["stages"][stage]["lengths"] for stage in ("pretrain", "instruct")]
    assert all("stated" not in lengths["source"] and lengths["records"] != 640 for lengths in counted), "they are there"
    gone = ["data.sources.texts.records=none.jsonl", "data.conversations=none.jsonl"]
    code, found = plan(arguments, *stated, *gone)
    assert code == 0
    first = found["stages"]["pretrain"]
    assert (first["lengths"]["records"], first["lengths"]["labels"], first["extent"]["steps"]) == (64, 12, 8)
    assert found["stages"]["instruct"]["lengths"]["records"] == 640


def test_packing_and_engine_are_planned_as_set(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more = ("instruct.packing=packed", "instruct.trainer.train_sampling_strategy=random", "engine=zero2")
    code, found = plan(arguments, *more, "instruct.pack_tokens=4096", "engine.processes=2")
    assert code == 0
    stage = found["stages"]["instruct"]
    assert (stage["setting"]["sharding"], stage["setting"]["row"], stage["lengths"]["padding"]) == ("zero2", 4096, 0)
    assert stage["peak"] == stage["memory"]["zero2"]["plain"]
    assert "steps of 4,096 tokens x" in capsys.readouterr().out


def test_records_are_read_from_whatever_training_reads(arguments: list[str], corpus: Path) -> None:
    """A folder of shards, and samples that are left out."""
    lines = (corpus / "texts.jsonl").read_text().splitlines(keepends=True)
    folder = Path("shards")
    folder.mkdir()
    for number in (0, 1):
        (folder / f"{number}.jsonl").write_text("".join(lines[number::2]).replace('"text"', '"caption"'))
    renamed = (f"data.sources.texts.records={folder}", "data.sources.texts.fields={text: caption}")
    _, whole = plan(arguments)
    _, shards = plan(arguments, *renamed)
    assert shards["stages"]["pretrain"]["lengths"] == whole["stages"]["pretrain"]["lengths"]
    longest = whole["stages"]["pretrain"]["lengths"]["longest"]
    _, shorter = plan(
        arguments, f"pretrain.max_length={longest - 1}", "pretrain.unfit=drop", "pretrain.reject_budget=1"
    )
    lengths = shorter["stages"]["pretrain"]["lengths"]
    assert lengths["longest"] < longest and lengths["records"] < COUNT


def test_an_encoder_without_a_known_dimension_wants_it_stated(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = ("encoder.kind=transformers", "encoder.pretrained=null")
    assert plan(arguments, *other)[0] == 1
    assert "encoder.kind = transformers: its dimension is known only once it is loaded" in capsys.readouterr().err
    assert plan(arguments, *other, "plan.embed_dim=8")[0] == 0


def test_a_plan_says_what_is_text_and_what_is_picture(
    arguments: list[str], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *arguments,
        "plan.gpu=h100",
        f"data.sources={{captions: {{kind: text, records: {corpus}/pairs.jsonl}}}}",
    ]
    _, found = plan(arguments, "data.conversation_sources=[captions,pictures]")
    assert found["stages"]["pretrain"]["embeddings"] == {"text": ["texts"], "image": []}
    assert found["stages"]["instruct"]["embeddings"] == {"text": ["captions"], "image": ["pictures"]}
    assert "embeddings of texts (captions), moved by realign; pictures (pictures)\n" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_an_adapter_is_counted(
    arguments: list[str], tiny_llm: Path, make_tiny_model: Any, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(arguments, f"adapter={method}", "adapter.rank=4", "model.num_visual_tokens=3")
    assert code == 0
    stage = found["stages"]["instruct"]
    parts = {part["name"]: part for part in stage["parts"]}
    outputs, both = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32), 2 * (64 + 48 + 48 + 64 + 96 + 96 + 96)
    added = 4 * both + (outputs if method == "dora" else 0)
    assert (parts["adapter"]["parameters"], parts["adapter"]["trained"]) == (added, added)
    assert parts["llm"]["parameters"] == sum(one.numel() for one in make_tiny_model().language_model.parameters())
    assert parts["llm"]["trained"] == 0
    assert (parts["llm"]["four_bit"] > 0) is (method == "qlora")
    assert ("zero3" in stage["memory"]) is (method == "lora") and "zero3" in found["stages"]["pretrain"]["memory"]
    trained = added + parts["projector"]["trained"]
    assert stage["peak"]["optimizer"] == 8 * trained
    assert "adapter" in capsys.readouterr().out
