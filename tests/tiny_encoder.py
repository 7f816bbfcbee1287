"""A real dual encoder of open_clip with random weights, a few thousand parameters and eight words, made in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BertConfig, BertTokenizer

from revision.encoders.openclip_folder import build_open_clip_model, save_open_clip_folder

WORDS = ["a", "red", "green", "blue", "cat", "dog", "house", "tree"]
DIM = 8
SIZE = 32

MODEL_CFG: dict[str, Any] = {
    "embed_dim": DIM,
    "vision_cfg": {
        "timm_model_name": "test_efficientnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "image_size": SIZE,
    },
    "text_cfg": {
        "hf_model_name": "text-tower",
        "hf_tokenizer_name": "text-tower",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "context_length": 16,
    },
}
PREPROCESS_CFG: dict[str, Any] = {
    "size": SIZE,
    "mode": "RGB",
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "longest",
    "fill_color": 255,
}


def make_text_tower(folder: Path) -> Path:
    """A BERT configuration and a word-piece tokenizer, without weights."""
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder


def make_encoder_folder(folder: Path, seed: int = 0) -> Path:
    """An open_clip folder; the same seed gives the same weights."""
    tower = make_text_tower(folder.with_name(f"{folder.name}-tower"))
    torch.manual_seed(seed)
    model = build_open_clip_model(MODEL_CFG, text_tower=tower)
    save_open_clip_folder(
        folder, model_cfg=MODEL_CFG, preprocess_cfg=PREPROCESS_CFG, state_dict=model.state_dict(), text_tower=tower
    )
    return folder


def make_picture(path: Path, seed: int, size: tuple[int, int] = (20, 28)) -> Path:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
