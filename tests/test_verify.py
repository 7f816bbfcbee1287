"""`verify`: what is whole is called whole, and each kind of damage is named, with exit code 1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from revision import ReAlign, building, folders
from revision.cli import main
from revision.training.checkpoints import Checkpoints
from revision.verification import Finding, verify


@pytest.fixture
def run(tmp_path: Path, tiny_llm: Path, tiny_store: Callable[..., Any]) -> Path:
    """A folder with one of each kind."""
    shape: dict[str, Any] = {"embed_dim": 16, "num_visual_tokens": 3, "visual_tokens": "slots"}
    model, processor = building.build_model(str(tiny_llm), chat_template=None, dtype=torch.float32, seed=0, **shape)
    building.save_model(model, processor, tmp_path / "run" / "pretrain" / "model", alignment=None)
    checkpoints = Checkpoints(tmp_path / "run" / "instruct" / "checkpoints")
    checkpoints.folder.mkdir(parents=True)
    checkpoints.write(5, lambda folder: (folder / "state.json").write_text("{}"), alone=False)
    rows = np.eye(8, dtype=np.float32)
    ReAlign().fit(rows, rows[::-1].copy() * -1).save(tmp_path / "run" / "align")
    tiny_store()
    (tmp_path / "stores").rename(tmp_path / "run" / "stores")
    return tmp_path / "run"


def found(path: Path) -> dict[str, Finding]:
    return {one.kind: one for one in verify(path)}


def test_whole_things_are_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {kind: one.fault for kind, one in found(run).items()} == {
        "alignment": None, "checkpoint": None, "model": None, "store": None
    }  # fmt: skip
    assert main(["verify", f"verify.path={run}"]) == 0
    assert "all 4 are whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "file", "why"),
    [
        ("model", "pretrain/model/model.safetensors", "model.safetensors has been altered"),
        ("model", "pretrain/model/tokenizer.json", "tokenizer.json has been altered"),
        ("checkpoint", "instruct/checkpoints/checkpoint-5/state.json", "state.json has been altered"),
        ("store", "stores/text/shard-00001.npy", "shard-00001.npy is missing or altered"),
        ("store", "stores/text/index-rows.npy", "index-rows.npy is missing or altered"),
        ("alignment", "align/alignment.safetensors", "are of two saves"),
    ],
)
def test_a_changed_byte_is_found(run: Path, kind: str, file: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((run / file).read_bytes())
    content[-1] ^= 1
    (run / file).write_bytes(content)
    faults = {one.kind: one.fault for one in verify(run) if one.fault is not None}
    assert list(faults) == [kind]
    assert why in str(faults[kind])
    assert main(["verify", f"verify.path={run}"]) == 1
    out, err = capsys.readouterr()
    assert f"BROKEN: {faults[kind]}" in out
    assert f"1 of 4 are broken, the first is the {kind} " in err
    assert err.count("\n") == 1


def test_a_lost_file_and_a_lost_manifest_are_found(run: Path) -> None:
    model, checkpoint = run / "pretrain" / "model", run / "instruct" / "checkpoints" / "checkpoint-5"
    (model / "config.json").rename(model / "config.bak")
    (checkpoint / "manifest.json").unlink()
    assert found(checkpoint)["checkpoint"].fault == "manifest.json is missing"
    assert folders.faults(model, folders.read_manifest(model)) == ["config.json is missing"]
    (run / "stores" / "text" / "manifest.json").unlink()
    assert "there is no embedding store" in str(found(run / "stores")["store"].fault)


def test_a_model_of_another_program_is_read_as_far_as_it_goes(tiny_llm: Path, tmp_path: Path) -> None:
    one = found(tiny_llm)["model"]
    assert one.fault is None
    assert "headers and sizes only" in one.remark
    copy = tmp_path / "cut"
    copy.mkdir()
    for file in tiny_llm.iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[: -1 if file.suffix == ".safetensors" else None])
    assert found(copy)["model"].fault is not None


def test_leftovers_are_no_damage(run: Path) -> None:
    (run / "instruct" / "checkpoints" / ".checkpoint-7.part").mkdir()
    assert found(run)["leftover"].fault is None


def test_a_folder_needs_no_name_of_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "alignment=none,seed=0"):  # as jobs of a sweep are called
        Path(folder).mkdir()
        assert main(["verify", folder]) == 1
        assert f"there is no checkpoint, model, store or alignment in {folder}" in capsys.readouterr().err
    assert main(["verify", "here", "alignment=none,seed=0"]) == 2
    assert "verify.path is one path: 'here' or 'alignment=none,seed=0'?" in capsys.readouterr().err
    assert main(["verify", "no=where"]) == 2
    assert "the configuration has no field 'no'" in capsys.readouterr().err
    long = "x" * 300  # more than a file system takes for a name
    assert main(["verify", f"verify.path={long}", "no=where"]) == 2
    assert "the configuration has no field 'no'" in capsys.readouterr().err
    assert main(["align", "here"]) == 2
    assert "'here' on the command line is not an override" in capsys.readouterr().err


def test_nothing_to_verify_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", f"verify.path={tmp_path / 'none'}"]) == 1
    assert "is no folder; name a checkpoint" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["verify", f"verify.path={tmp_path / 'empty'}"]) == 1
    assert "there is no checkpoint, model, store or alignment in" in capsys.readouterr().err


def test_without_a_path_it_is_the_run_and_its_stores(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["verify", "name=run", f"runs={tmp_path}", f"data.stores={tmp_path / 'elsewhere'}", "encoder.name=tiny"]
    (tmp_path / "elsewhere" / "tiny").mkdir(parents=True)
    (run / "stores" / "text").rename(tmp_path / "elsewhere" / "tiny" / "texts")
    assert main(words) == 0
    assert "all 4 are whole" in capsys.readouterr().out


def test_models_that_a_run_reads_are_among_what_it_verifies(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["verify", "name=other", f"runs={tmp_path}", f"data.stores={tmp_path / 'elsewhere'}"]
    begun = ["instruct.init=run/pretrain/model", "evaluate.models=[run/pretrain/model,instruct]"]
    assert main([*words, *begun]) == 0
    assert "all 1 are whole" in capsys.readouterr().out
    (run / "pretrain" / "model" / "tokenizer.json").write_text("{}")
    assert main([*words, *begun]) == 1
    assert "BROKEN: tokenizer.json has 2 bytes, not" in capsys.readouterr().out


def test_a_manifest_lists_every_file(run: Path) -> None:
    model = run / "pretrain" / "model"
    listed = json.loads((model / "manifest.json").read_text())
    assert listed["kind"] == "model"
    assert set(listed["files"]) == {file.name for file in model.iterdir()} - {"manifest.json"}
    size = (model / "config.json").stat().st_size
    assert listed["files"]["config.json"]["bytes"] == size
