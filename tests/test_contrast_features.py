"""Features of locked towers on disk: computed once for all settings of the heads, and anew when they would differ."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import WORDS, make_encoder_folder, make_picture
from tiny_pairs import pairs_config, write_lines

from revision.commands import contrast
from revision.contrastive import features
from revision.encoders.openclip_folder import read_config, read_weights, save_open_clip_folder
from revision.schema import Config, ContrastConfig, ContrastPart


@pytest.fixture
def config(tmp_path: Path) -> Config:
    init = str(make_encoder_folder(tmp_path / "towers"))
    contrast = ContrastConfig(init=init, device="cpu", epochs=2, batch_size=4)
    return pairs_config(
        tmp_path, {"train": 12, "validation": 4}, lambda number, _: f"{WORDS[number % 8]} {WORDS[1 + number // 8]}",
        name="first", contrast=contrast,
    )  # fmt: skip


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures went through a tower, one number for each call that computes features."""
    counts: list[int] = []
    real = features.tower_features

    def counting(*arguments: Any, files: list[Path], **rest: Any) -> Any:
        counts.append(len(files))
        return real(*arguments, files=files, **rest)

    monkeypatch.setattr("revision.contrastive.tower_features", counting)
    yield counts


def trained(config: Config, name: str, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights of one more run under a name of its own."""
    config.name = name
    for field, value in changes.items():
        setattr(config.contrast, field, value)
    contrast.run(config)
    return read_weights(Path(config.runs) / name / "contrast" / "encoder")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_sweep_computes_once_and_changes_no_bit(config: Config, computed: list[int], tmp_path: Path) -> None:
    first = trained(config, "first")
    assert computed == [12, 4]
    folder = tmp_path / "stores/tiny/contrast-features"
    assert sorted(file.name for file in folder.iterdir()) == ["training.safetensors", "validation.safetensors"]
    assert load_file(folder / "training.safetensors")["images"].shape[0] == 12
    again = trained(config, "again")
    other = trained(config, "other", logit_scale=20.0, learning_rate=3e-3, epochs=3)
    assert computed == [12, 4]
    assert equal(first, again) and not equal(first, other)
    for file in folder.iterdir():
        file.unlink()
    assert equal(trained(config, "without"), other) and computed == [12, 4, 12, 4]


def test_a_changed_picture_or_text_is_seen(config: Config, computed: list[int], tmp_path: Path) -> None:
    before = trained(config, "before")
    picture = tmp_path / "train/3.png"
    make_picture(picture, seed=99)
    after = trained(config, "after")
    assert computed == [12, 4, 12] and not equal(before, after)
    stamp = picture.stat().st_mtime_ns + 1
    os.utime(picture, ns=(stamp, stamp))
    assert equal(trained(config, "touched"), after) and computed == [12, 4, 12, 12]
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "validation.jsonl", [{**rows[0], "text": "house"}, *rows[1:]])
    trained(config, "text")
    assert computed == [12, 4, 12, 12, 4]


def test_other_towers_or_preprocessing_are_seen(config: Config, computed: list[int], tmp_path: Path) -> None:
    trained(config, "before")
    folder = Path(str(config.contrast.init))
    model_cfg, preprocess_cfg = read_config(folder)
    weights = read_weights(folder)
    save_open_clip_folder(
        tmp_path / "other-heads", model_cfg=model_cfg, preprocess_cfg=preprocess_cfg, text_tower=folder,
        state_dict={name: value + 1 if name.startswith("visual.head") else value for name, value in weights.items()},
    )  # fmt: skip
    trained(config, "heads", init=str(tmp_path / "other-heads"))
    assert computed == [12, 4], "the heads have no part in it"
    save_open_clip_folder(
        tmp_path / "pixels", model_cfg=model_cfg, preprocess_cfg={**preprocess_cfg, "mean": [0.0] * 3},
        state_dict=weights, text_tower=folder,
    )  # fmt: skip
    trained(config, "pixels", init=str(tmp_path / "pixels"))
    assert computed == [12, 4] * 2
    trained(config, "towers", init=str(make_encoder_folder(tmp_path / "seed1", seed=1)))
    assert computed == [12, 4] * 3
    config.encoder.batch_size = 3
    trained(config, "batch")
    assert computed == [12, 4] * 4


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"no safetensors at all"])
def test_a_damaged_file_is_replaced(config: Config, computed: list[int], tmp_path: Path, content: bytes) -> None:
    first = trained(config, "first")
    file = tmp_path / "stores/tiny/contrast-features/training.safetensors"
    file.write_bytes(content)
    assert equal(trained(config, "second"), first) and computed == [12, 4, 12]
    assert equal(trained(config, "third"), first) and computed == [12, 4, 12]


def test_a_picture_that_is_missing(config: Config, tmp_path: Path) -> None:
    (tmp_path / "train/3.png").unlink()
    with pytest.raises(ValueError, match=r"training pairs: .*3\.png does not exist; mend the file or leave its pairs"):
        contrast.run(config)
    assert not (tmp_path / "stores/tiny/contrast-features/training.safetensors").exists()


@pytest.mark.parametrize("part", ["heads", "all"])
def test_texts_that_are_cut_are_counted(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    """Also where the features come from disk."""
    config.contrast.train = ContrastPart[part]
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    long = " ".join(WORDS * 50)
    write_lines(
        tmp_path / "train.jsonl", [{**rows[0], "text": long}, *rows[1:3], {**rows[3], "text": long + " x"}, *rows[4:]]
    )
    for name in ("first", "again"):
        trained(config, name)
        said = " ".join(capsys.readouterr().out.split())
        assert "training pairs: 2 of 12 texts are longer than the encoder reads, and are cut" in said
        assert "validation pairs: 0" not in said and "of 4 texts are longer" not in said
