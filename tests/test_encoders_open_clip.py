"""Families of open_clip beside CLIP itself, and its hub's snapshots: ours gives what open_clip gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_encoder import SIZE, make_encoder_folder, make_picture, make_text_tower

from revision.encoders import OpenClipEncoder, load_encoder

TEXTS = ["a red cat", "a green tree a house and a dog", "blue", "a red cat"]
CONTEXT = 10
COCA: dict[str, Any] = {
    "embed_dim": 16, "custom_text": True,
    "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 64, "patch_size": 16, "attentional_pool": True,
                   "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
                 "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
                       "attn_pooler_heads": 2},
}  # fmt: skip


def siglip(tokenizer: Path) -> dict[str, Any]:
    """As the SigLIP models of open_clip: a tower of timm that pools by attention, and a text tower that sees both ways,
    reads its last position and takes a tokenizer of transformers."""
    return {
        "embed_dim": 64, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {"image_size": SIZE, "timm_model_name": "test_vit", "timm_model_pretrained": False,
                       "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 64, "hf_tokenizer_name": str(tokenizer), "width": 64,
                     "heads": 2, "layers": 1, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
                     "tokenizer_kwargs": {"clean": "canonicalize"}, "norm_kwargs": {"eps": 1e-6}},
    }  # fmt: skip


@pytest.fixture(scope="module", params=["coca", "siglip"])
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An architecture that open_clip has come to know, and a file of random weights for it."""
    place, name = tmp_path_factory.mktemp(request.param), f"revision-tiny-{request.param}"
    config = COCA if request.param == "coca" else siglip(make_text_tower(place / "tokenizer"))
    (place / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(place / f"{name}.json")
    torch.manual_seed(0)
    state = open_clip.create_model(name).state_dict()
    save_file({key: one.contiguous().clone() for key, one in state.items()}, place / "weights.safetensors")
    return name, place / "weights.safetensors"


def load(model: str, pretrained: Path | None = None) -> OpenClipEncoder:
    encoder = load_encoder(
        kind="open_clip", model=model, pretrained=None if pretrained is None else str(pretrained), dtype="float32",
        device="cpu", name="tiny",
    )  # fmt: skip
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


def test_unit_vectors_equal_those_of_open_clip(architecture: tuple[str, Path], tmp_path: Path) -> None:
    name, weights = architecture
    encoder = load(name, weights)
    model, preprocess = open_clip.create_model_from_pretrained(name, str(weights))
    model.eval()
    pictures = [Image.open(make_picture(tmp_path / f"{seed}.png", seed)).convert("RGB") for seed in range(3)]
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        pixels = torch.stack([preprocess(one) for one in pictures])
        images = model.encode_image(pixels, normalize=True)
    for batch in (1, 3):
        np.testing.assert_allclose(encoder.encode_texts(TEXTS, batch_size=batch), texts.numpy(), atol=1e-6)
        np.testing.assert_allclose(encoder.encode_images(pictures, batch_size=batch), images.numpy(), atol=1e-6)
    assert encoder.dim == texts.shape[1] == images.shape[1]


def test_long_texts_are_counted(architecture: tuple[str, Path]) -> None:
    encoder = load(*architecture)
    encoder.encode_texts([TEXTS[0], "a cat " * CONTEXT])
    assert encoder.cut_texts == 1


def test_snapshot_of_the_hub_is_what_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that lies in the hub's cache is found without the hub."""
    folder = make_encoder_folder(tmp_path / "folder")
    commit = "0" * 40
    kept = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(folder, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
    (kept / "snapshots" / commit / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    ours, there = load("hf-hub:someone/tiny"), load(f"local-dir:{folder}")
    np.testing.assert_array_equal(ours.encode_texts(TEXTS), there.encode_texts(TEXTS))
    assert ours.describe()["model"] == "hf-hub:someone/tiny" and ours.dim == there.dim
