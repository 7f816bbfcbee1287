"""`revision contrast`: the fixed-frame trace of a run, and whole models trained from random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip import ClipLoss
from tiny_encoder import PREPROCESS_CFG, WORDS, make_encoder_folder
from tiny_pairs import pairs_config

from revision import rules
from revision.commands import contrast
from revision.contrastive import ContrastSettings, PairInputs, Snapshot, learning_rate_at, train, whole
from revision.encoders import load_encoder
from revision.encoders.openclip_folder import build_open_clip_model, read_weights
from revision.geometry import frame
from revision.runs import rundir
from revision.schema import Config, ContrastConfig, ContrastPart

ARCHITECTURE: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": PREPROCESS_CFG,
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    contrast = ContrastConfig(
        train=ContrastPart.all, architecture=ARCHITECTURE, device="cpu", epochs=4, batch_size=8, probe_interval=2,
        logit_scale=10.0, learn_logit_scale=True, warmup=0.25,
    )  # fmt: skip
    return pairs_config(
        tmp_path, {"train": 24, "validation": 12},
        lambda number, count: f"{WORDS[number % 8]} {WORDS[number // 8]} {WORDS[count % 7]}", name="test",
        contrast=contrast,
    )  # fmt: skip


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_model_from_random_weights(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contrast.run(config)
    folder = tmp_path / "runs/test/contrast"
    before, after = read_weights(folder / "initial"), read_weights(folder / "encoder")
    assert before.keys() == after.keys() and not any(torch.equal(before[name], after[name]) for name in before)
    count = sum(value.numel() for value in after.values()) - 1
    printed = capsys.readouterr().out
    assert f"trains: {count:,} parameters of the model\n" in printed and "locked: 0 parameters" in printed
    assert "temperature: learned" in printed and not (tmp_path / "stores").exists(), "pixels are not kept"
    assert rundir.is_finished(config, "contrast")

    # The last line of the trace, from the encoder as `embed` would load it, with the frame of the first line's step.
    encoder = load_encoder(
        kind="open_clip", model=config.encoder.model, pretrained=None, dtype="float32", device="cpu", name="tiny"
    )
    texts = encoder.encode_texts([row["text"] for row in lines(tmp_path / "validation.jsonl")]).astype(np.float64)
    log, trace = lines(folder / "log.jsonl"), lines(folder / "trace.jsonl")
    assert [line["step"] for line in log] == [0, 2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in trace] == [4, 6, 8, 10, 12], "a quarter of twelve steps is warm-up"
    assert log[-1]["trace_text"] == pytest.approx(1 - np.square(texts.mean(axis=0)).sum(), abs=1e-6)
    for line, measured in zip(trace, log[2:], strict=True):
        assert line["gap"] == pytest.approx(measured["gap"], rel=1e-5)
        assert line["gap"] ** 2 == pytest.approx(line["beta"] ** 2 + line["gamma"] ** 2)
    assert trace[0]["drift"] == 0 < trace[-1]["drift"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["frame"] == trace[-1] and metrics["trained_parameters"] == count
    assert (folder / "frame.png").read_bytes()[:4] == b"\x89PNG"


def test_the_seed_makes_the_model(config: Config, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("one", 1), ("same", 1), ("two", 2)):
        config.name, config.seed = name, seed
        contrast.run(config)
        weights.append(read_weights(tmp_path / "runs" / name / "contrast/encoder")["visual.conv1.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_heads_have_a_trace_too(config: Config, tmp_path: Path) -> None:
    config.contrast.train, config.contrast.architecture = ContrastPart.heads, {}
    config.contrast.init = str(make_encoder_folder(tmp_path / "towers"))
    config.contrast.frame_step, config.contrast.frame_energy = 0, 0.6
    contrast.run(config)
    log, trace = (lines(tmp_path / f"runs/test/contrast/{name}.jsonl") for name in ("log", "trace"))
    assert [line["step"] for line in trace] == [line["step"] for line in log]
    assert [line["gap"] for line in trace] == pytest.approx([line["gap"] for line in log], rel=1e-5)
    assert trace[0]["rank"] < 7 and trace[0]["energy"] >= 0.6


def test_all_parameters_of_a_given_model(config: Config, tmp_path: Path) -> None:
    config.contrast.architecture, config.contrast.init = {}, str(make_encoder_folder(tmp_path / "towers"))
    contrast.run(config)
    before, after = read_weights(tmp_path / "towers"), read_weights(tmp_path / "runs/test/contrast/encoder")
    assert not torch.equal(before["visual.trunk.conv_stem.weight"], after["visual.trunk.conv_stem.weight"])


def inputs(count: int) -> PairInputs:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 400, (count, 8), generator=generator)
    return PairInputs(torch.randn(count, 3, 32, 32, generator=generator), ids, torch.arange(count), torch.arange(count))


def test_training_all_is_a_plain_loop() -> None:
    """Weights after two steps against the loop written out; the snapshots are the model's own embeddings.

    In float64, since a bias of keys has a gradient of zero but for rounding, which Adam would bring to full size.
    """
    torch.manual_seed(0)
    model, other = (build_open_clip_model(ARCHITECTURE["model_cfg"]).double() for _ in range(2))
    other.load_state_dict(model.state_dict())
    pairs = replace(inputs(4), images=inputs(4).images.double())
    settings = ContrastSettings(epochs=2, batch_size=4, learning_rate=1e-2, weight_decay=0.1, warmup=0.5,
                                logit_scale=10.0, learn_logit_scale=True, probe_interval=1, seed=0)  # fmt: skip
    seen: list[Snapshot] = []
    train(whole(model), pairs=pairs, validation=pairs, settings=settings, report=lambda _: None,
          advance=lambda *_: None, observe=seen.append)  # fmt: skip

    with torch.no_grad():
        other.logit_scale.fill_(np.log(10.0))
    matrices = [value for value in other.parameters() if value.ndim >= 2]
    vectors = [value for value in other.parameters() if value.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  betas=(0.9, 0.98), eps=1e-6)  # fmt: skip
    for step in range(2):
        with torch.no_grad():
            images = other.eval().encode_image(pairs.images, normalize=True)
        torch.testing.assert_close(seen[step].images, images, atol=1e-9, rtol=1e-9)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps=2, warmup=0.5, peak=1e-2)
        images, texts, scale = other.train()(pairs.images, pairs.texts)
        optimizer.zero_grad()
        ClipLoss()(images, texts, scale).backward()
        optimizer.step()
    assert [now.step for now in seen] == [0, 1, 2] and seen[2].steps == 2
    assert seen[2].logit_scale == pytest.approx(float(other.logit_scale.detach().exp())) != pytest.approx(10.0)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, dict(other.named_parameters())[name], atol=1e-9, rtol=1e-6)


def test_gradients_of_the_trace_are_those_that_reach_the_embeddings() -> None:
    """What `frame.contrastive_gradients` says of a snapshot is what backward leaves at the unit vectors."""
    torch.manual_seed(0)
    model, pairs = build_open_clip_model(ARCHITECTURE["model_cfg"]), inputs(6)
    images, texts, _ = model(pairs.images, pairs.texts)
    images.retain_grad()
    texts.retain_grad()
    ClipLoss()(images, texts, 20.0).backward()
    found = frame.contrastive_gradients(images.detach().numpy(), texts.detach().numpy(), 20.0)
    for side, gradient in zip((images, texts), found, strict=True):
        assert side.grad is not None
        np.testing.assert_allclose(gradient, side.grad.numpy(), atol=1e-5)


def test_a_frame_that_never_comes(config: Config) -> None:
    config.contrast.frame_step = 13
    with pytest.raises(ValueError, match=r"contrast.frame_step = 13: must be at most the 12 steps of this training"):
        contrast.run(config)


def test_one_validation_pair(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    file.write_text(file.read_text().splitlines()[0])
    with pytest.raises(ValueError, match=r"validation pairs: contrast needs at least two that differ in picture"):
        contrast.run(config)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ({"model_cfg": ARCHITECTURE["model_cfg"]}, "KeyError: 'preprocess_cfg'"),
        ({**ARCHITECTURE, "model_cfg": {**ARCHITECTURE["model_cfg"], "depth": 3}}, "TypeError: .*'depth'"),
    ],
)
def test_an_architecture_that_is_none(config: Config, architecture: dict[str, Any], reason: str) -> None:
    config.contrast.architecture = architecture
    with pytest.raises(ValueError, match=rf"contrast.architecture cannot be built \({reason}\); give it model_cfg"):
        contrast.run(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": ContrastPart.heads}, "contrast.train = heads: must be all where contrast.architecture is set"),
        ({"heads": "h.safetensors"}, "contrast.heads = h.safetensors: must be null where contrast.train is all"),
        ({"init": "folder"}, "contrast.init = folder: must be null where contrast.architecture gives a model"),
        ({"frame_energy": 0.0}, "contrast.frame_energy = 0.0: must be greater than 0"),
        ({"frame_energy": 1.5}, "contrast.frame_energy = 1.5: must be at most 1"),
        ({"frame_step": -1}, "contrast.frame_step = -1: must be at least 0"),
    ],
)
def test_rules(config: Config, changes: dict[str, Any], sentence: str) -> None:
    for name, value in changes.items():
        setattr(config.contrast, name, value)
    with pytest.raises(ValueError, match=sentence):
        rules.check(config)


def test_a_model_of_another_class() -> None:
    with pytest.raises(ValueError, match=r"contrast.init holds a Linear; contrast.train=all needs an open_clip Custom"):
        whole(torch.nn.Linear(2, 2))
