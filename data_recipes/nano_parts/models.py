"""The models of `nano`: an open_clip dual encoder from two pinned towers and heads, and the LLM as a folder."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from revision.encoders.openclip_folder import build_open_clip_model, load_heads, save_open_clip_folder

from .drawing import PICTURE
from .packages import IMAGE_TOWER, LLM, TEXT_TOWER, find

EMBED_DIM = 256
LOGIT_SCALE = 100.0  # as CLIP's own training ends

MODEL: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "timm_drop": 0.5,  # between the two layers of the head; without it the heads know their pictures by heart
        "image_size": PICTURE,
    },
    "text_cfg": {
        "hf_model_name": "",
        "hf_tokenizer_name": "",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "context_length": 64,
    },
}
# The tower's own preprocessing: pad to a square, bicubic, (x - 127) / 128.
PREPROCESS: dict[str, Any] = {
    "size": PICTURE,
    "mode": "RGB",
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "longest",
    "fill_color": 255,
}


def save_encoder(folder: Path, heads: Path | None, seed: int = 0) -> None:
    """Assemble the dual encoder as an ordinary open_clip folder.

    Args:
        folder: where it goes.
        heads: safetensors file of trained heads; None: fresh ones, drawn with `seed`, for `revision contrast`.
    """
    torch.manual_seed(seed)
    text_tower = find(*TEXT_TOWER).parent
    model = build_open_clip_model(MODEL, text_tower=text_tower)
    _load_image_tower(model.visual.trunk)
    _load_text_tower(model.text.transformer, text_tower)
    if heads is not None:
        load_heads(model, heads)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(LOGIT_SCALE))
    save_open_clip_folder(
        folder, model_cfg=MODEL, preprocess_cfg=PREPROCESS, state_dict=model.state_dict(), text_tower=text_tower
    )


def _load_image_tower(trunk: torch.nn.Module) -> None:
    """The checkpoint holds timm's trunk under other names, in the same order, and a classifier after it."""
    source = torch.load(find(*IMAGE_TOWER), weights_only=True, map_location="cpu")
    tensors = [tensor for name, tensor in source.items() if "classifier" not in name and "_fc" not in name]
    target = trunk.state_dict()
    assert [t.shape for t in tensors] == [t.shape for t in target.values()], "the checkpoint is not EfficientNet-Lite0"
    trunk.load_state_dict(dict(zip(target, tensors, strict=True)))


def _load_text_tower(transformer: torch.nn.Module, folder: Path) -> None:
    from transformers import AutoModel

    source = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    transformer.load_state_dict(source.state_dict())


def save_llm(folder: Path) -> None:
    """Unpack the LLM from its GGUF file into a Hugging Face folder, bfloat16 as published models are.

    The folder is there whole or not at all: whether it is there is how a recipe knows that it is done.
    """
    gguf = find(*LLM)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = packed.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
