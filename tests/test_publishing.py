"""What comes out of the stages: one folder that needs transformers alone, with its card, and its way to the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors
import torch
import yaml
from test_stages import config, model_folder  # noqa: F401
from transformers import LlamaConfig

from revision import building, model_card, publishing
from revision.commands import instruct, pretrain, push
from revision.evaluation.reader import Reader
from revision.runs import rundir
from revision.schema import (
    AdapterConfig,
    AdapterMethod,
    Config,
    PartConfig,
    PartsConfig,
    PushConfig,
    StageConfig,
)

FRESH = """
import json, pathlib, sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
folder, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
embeds = torch.nn.functional.normalize(torch.arange(16.0)[None], dim=-1)
turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
inputs = processor.apply_chat_template(
    turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    processor_kwargs={"image_embeds": embeds},
)
ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
processor.attach(lambda images: embeds.expand(len(images), -1).numpy())
pipe = pipeline("image-text-to-text", model=model, processor=processor)
turns[0]["content"][0]["image"] = Image.new("RGB", (4, 4), "red")
said = pipe(text=turns, max_new_tokens=5, do_sample=False)[0]["generated_text"][-1]["content"]
direct = processor.decode(ids, skip_special_tokens=True)
pathlib.Path(out).write_text(json.dumps({"ids": ids.tolist(), "pipeline": said, "direct": direct}))
assert not any(name == "revision" or name.startswith("revision.") for name in sys.modules), "the package was imported"
"""


@pytest.fixture
def with_adapter(config: Config) -> Config:  # noqa: F811
    """Both stages, the second with LoRA."""
    stage = StageConfig(
        init="pretrain",
        train=["projector", "adapter"],
        parts=PartsConfig(adapter=PartConfig(learning_rate=5e-2)),
        max_length=99,
    )
    adapter = AdapterConfig(method=AdapterMethod.lora, rank=2, keep=True)
    return replace(config, instruct=stage, adapter=adapter, push=PushConfig(repo="me/tiny"))


def test_an_adapter_ends_in_one_plain_folder(
    with_adapter: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.run(with_adapter)
    instruct.run(with_adapter)
    folder = model_folder(with_adapter, "instruct")
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names and not [name for name in names if "lora" in name or "base_layer" in name]
    first, second = (building.read_model(model_folder(with_adapter, one))[0] for one in ("pretrain", "instruct"))
    query = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first.get_parameter(query), second.get_parameter(query))
    norm = "language_model.model.norm.weight"
    assert torch.equal(first.get_parameter(norm), second.get_parameter(norm))

    reader = Reader.load(folder, device=torch.device("cpu"))
    embed = torch.nn.functional.normalize(torch.arange(16.0), dim=-1).numpy()
    (said,) = reader.answers([reader.prompt("<image>\nWhat is it?", embed)], 5, "")
    words = [sys.executable, "-c", FRESH, str(folder), "made.json"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["direct"].strip() == made["pipeline"].strip() == said.strip()

    base: Any = building.read_model(model_folder(with_adapter, "pretrain"))[0]
    kept = rundir.folder(with_adapter, "instruct") / "adapter"
    assert (
        json.loads((kept / "adapter_config.json").read_text())["base_model_name_or_path"] == "runs/run/pretrain/model"
    )
    again = peft.PeftModel.from_pretrained(base, str(kept)).merge_and_unload()
    for name, one in second.named_parameters():
        assert torch.allclose(again.get_parameter(name), one, atol=1e-6), name

    capsys.readouterr()
    push.run(with_adapter)
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "me/tiny" in shown
    assert "licence: none yet" in shown and "nothing was uploaded; push.upload=true does it" in shown


def test_the_card_tells_where_a_model_comes_from(config: Config) -> None:  # noqa: F811
    pretrain.run(config)
    instruct.run(config)
    folder = model_folder(config, "instruct")
    first, second = model_card.read_history(folder)
    assert (first["stage"], second["stage"]) == ("run/pretrain", "run/instruct")
    assert (first["facts"]["samples"], second["facts"]["samples"]) == (24, 7)
    assert first["settings"]["alignment.method"] == "realign"
    assert second["settings"]["instruct.trainer.learning_rate"] == 1e-2
    assert second["packages"]["transformers"] is not None
    card = (folder / "README.md").read_text()
    fields = yaml.safe_load(card.split("---")[1])
    assert fields["pipeline_tag"] == "image-text-to-text" and "license" not in fields
    for told in (
        "24 samples", "7 samples", "texts.jsonl", "talks.jsonl", "`realign`", "| `instruct.train` |", "2 steps",
        "transformers 5", "Not chosen yet",
    ):  # fmt: skip
        assert told in card, told
    for text in (card, (folder / "training.json").read_text(), (folder / "config.json").read_text()):
        assert str(Path.cwd()) not in text and config.model.llm not in text, "a folder of this machine"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/data/texts.jsonl", "texts.jsonl"),
        ("local-dir:/home/me/clip", "local-dir:clip"),
        ("data/texts.jsonl", "data/texts.jsonl"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct"),
        (["/a/b", "c"], ["b", "c"]),
        ("/my photos/a b.jsonl", "a b.jsonl"),
        ("hf://owner/name?split=train", "hf://owner/name?split=train"),
        ("https://x.org/a/b.json", "https://x.org/a/b.json"),
        (
            "data_recipes/bunny.py --out /scratch/me/bunny --keep=/x/y 3/4",
            "data_recipes/bunny.py --out bunny --keep=y 3/4",
        ),
        (3, 3),
        (None, None),
    ],
)
def test_settings_without_folders_of_this_machine(value: Any, shown: Any) -> None:
    assert model_card.public(value) == shown


def test_stage_one_may_train_the_llm_too_and_start_from_a_folder(
    config: Config,  # noqa: F811
) -> None:
    whole = replace(config, pretrain=replace(config.pretrain, train=["projector", "llm"]))
    pretrain.run(whole)
    first, _ = building.read_model(model_folder(whole, "pretrain"))
    fresh: Any = building.build_model(
        config.model.llm, chat_template=None, dtype=torch.float32, seed=0, embed_dim=16, num_visual_tokens=2,
        visual_tokens="slots",
    )[0]  # fmt: skip
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(fresh.get_parameter(name), first.get_parameter(name))
    folder = str(model_folder(whole, "pretrain"))
    on = replace(config, name="on", pretrain=replace(config.pretrain, init=folder))
    shutil.copytree("runs/run/align", "runs/on/align")
    pretrain.run(on)
    second, _ = building.read_model(model_folder(on, "pretrain"))
    assert torch.equal(second.get_parameter(name), first.get_parameter(name)), "the frozen LLM is that of the folder"
    assert [entry["stage"] for entry in model_card.read_history(model_folder(on, "pretrain"))] == [
        "run/pretrain",
        "on/pretrain",
    ]


def test_a_stage_1_of_another_llm_is_refused(config: Config, tmp_path: Path) -> None:  # noqa: F811
    pretrain.run(config)
    folder = model_folder(config, "pretrain")
    LlamaConfig(hidden_size=64, num_hidden_layers=2).save_pretrained(tmp_path / "wider")
    other = replace(
        config,
        model=replace(config.model, llm=str(tmp_path / "wider")),
        instruct=replace(config.instruct, init=str(folder)),
    )
    with pytest.raises(ValueError, match=r"the LLM of the model in .* has hidden_size=32, but model\.llm=.* has 64"):
        instruct.run(other)
    model, _ = building.read_model(folder)
    assert building.require_llm(model, folder, config.model.llm) is True
    assert building.require_llm(model, folder, "nobody/knows-it") is False


class Hub:
    """Notes what is asked of it."""

    def __init__(self, fails: bool = False) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails

    def create_repo(self, repo_id: str, **options: Any) -> str:
        """As of HfApi."""
        if self.fails:
            raise OSError("401: who are you?\nmore")
        self.calls.append(("create", {"repo": repo_id, **options}))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        """As of HfApi."""
        self.calls.append(("upload", options))


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> Path:
    entry = {
        "stage": "tiny/pretrain",
        "facts": {"samples": 3, "steps": 2},
        "settings": {"model.llm": "tiny", "encoder.name": "tiny", "pretrain.train": ["projector"]},
        "git": None, "python": "3", "packages": {}, "hardware": {}, "time": "now",
    }  # fmt: skip
    building.save_model(tiny_model, tiny_processor, tmp_path / "model", alignment=None, history=[entry])
    return tmp_path / "model"


def test_weights_that_an_engine_hands_over_are_saved_as_those_of_the_model(
    folder: Path, tiny_model: Any, tiny_processor: Any, tmp_path: Path
) -> None:
    """Tied ones under both of their names, of which transformers takes one out of what it is given."""
    history = json.loads((folder / "training.json").read_text())["stages"]
    weights = dict(tiny_model.state_dict(keep_vars=True))
    building.save_model(
        tiny_model, tiny_processor, tmp_path / "pieces", alignment=None, weights=weights, history=history
    )
    of_both = [(place / "model.safetensors").read_bytes() for place in (folder, tmp_path / "pieces")]
    assert of_both[0] == of_both[1]


def test_a_folder_is_uploaded_only_when_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", lambda: hub)
    settings = PushConfig(model=str(folder), repo="me/tiny")
    push.run(Config(name="tiny", push=settings))
    assert hub.calls == []
    with pytest.raises(ValueError, match=r"README\.md names no licence; choose one with push\.license"):
        push.run(Config(name="tiny", push=replace(settings, upload=True)))
    assert hub.calls == []
    push.run(Config(name="tiny", push=replace(settings, upload=True, license="apache-2.0")))
    assert [name for name, _ in hub.calls] == ["create", "upload"]
    assert hub.calls[0][1] == {"repo": "me/tiny", "repo_type": "model", "private": True, "exist_ok": True}
    assert hub.calls[1][1]["folder_path"] == folder
    assert "uploaded to https://hub/me/tiny" in capsys.readouterr().out
    fields = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert fields["license"] == "apache-2.0" and fields["library_name"] == "transformers"
    push.run(Config(name="tiny", push=replace(settings, license="mit")))
    assert (folder / "README.md").read_text().count("\nlicense: ") == 1
    assert model_card.licence_of(folder) == "mit"


def test_what_the_hub_refuses_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "HfApi", lambda: Hub(fails=True))
    card = folder / "README.md"
    card.write_text(model_card.with_licence(card.read_text(), "mit"))
    with pytest.raises(ValueError, match=r"the hub does not take me/tiny \(401: who are you\?\); log in") as caught:
        publishing.upload(folder, "me/tiny", private=True, message="m")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"push\.repo is null"):
        push.run(Config(name="tiny", push=PushConfig(model=str(folder), upload=True)))


@pytest.mark.parametrize("broken", ["no folder", "no card", "cut weights", "an altered file", "a pickle"])
def test_an_unfit_folder_is_not_published(folder: Path, broken: str) -> None:
    assert "model.safetensors" in dict(publishing.check_folder(folder))
    weights = folder / "model.safetensors"
    match broken:
        case "no folder":
            shutil.rmtree(folder)
        case "no card":
            (folder / "README.md").unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "an altered file":
            (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        case "a pickle":
            (folder / "optimizer.pt").touch()
    why = {
        "no folder": "is no folder", "no card": r"lacks README\.md", "cut weights": "is cut off",
        "an altered file": r"is not what was written: config\.json has", "a pickle": "pickle",
    }[broken]  # fmt: skip
    with pytest.raises(ValueError, match=why):
        publishing.check_folder(folder)
