"""Random dual encoders of transformers and of LLM2CLIP, with tokenizers, saved to folders as the hub holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_encoder import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    AltCLIPConfig,
    AltCLIPModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    EfficientNetImageProcessor,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

SIZE = 32
DIM = 8
TEXT: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "patch_size": 16}
LETTERS = [chr(code) for code in range(33, 127)]
MARKS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def word_tokenizer(special: list[str], start: str | None, end: str | None, **settings: Any) -> PreTrainedTokenizerFast:
    """Words and single characters, any capital a word of its own, between a start and an end token."""
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, "\n\n", *WORDS, *LETTERS]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    around = " ".join(part for part in (start, "$A", end) if part)
    marks = [(name, vocabulary[name]) for name in {start, end} - {None} if name is not None]
    words.post_processor = processors.TemplateProcessing(single=around, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=special[0], **settings)


def _save(model: Any, folder: Path, *parts: Any) -> Path:
    with torch.no_grad():  # livelier than the default initialisation, so that vectors differ between texts
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3.0)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def clip_folder(folder: Path, seed: int = 0) -> Path:
    """CLIP: pools at the end token, context of 10."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(
        ["<unk>", "<pad>", "<start>", "<end>"], "<start>", "<end>", pad_token="<pad>", eos_token="<end>",
        bos_token="<start>", model_max_length=10,
    )  # fmt: skip
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 10, "eos_token_id": 3, "bos_token_id": 2,
            "pad_token_id": 1}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config={**VISION, "image_size": SIZE}, projection_dim=DIM)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return _save(CLIPModel(config), folder, tokenizer, processor)


def altclip_folder(folder: Path, seed: int = 0) -> Path:
    """AltCLIP: a text tower of the RoBERTa class, whose positions begin behind the padding's; no limit is stated."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(["<unk>", "<pad>", "<start>", "<end>"], "<start>", "<end>", pad_token="<pad>")
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 14, "pad_token_id": 1, "project_dim": DIM}
    config = AltCLIPConfig(text_config=text, vision_config={**VISION, "image_size": SIZE}, projection_dim=DIM)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return _save(AltCLIPModel(config), folder, tokenizer, processor)


def _siglip_tokenizer() -> PreTrainedTokenizerFast:
    # Saved padding on the wrong side and asking for a mask, as some checkpoints are.
    return word_tokenizer(
        ["<unk>", "</s>"], None, "</s>", pad_token="</s>", eos_token="</s>", model_max_length=64, padding_side="left"
    )


def siglip_folder(folder: Path, seed: int = 0) -> Path:
    """SigLIP: pools the last of 64 positions, without a mask."""
    torch.manual_seed(seed)
    tokenizer = _siglip_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = SiglipConfig(text_config=text, vision_config={**VISION, "image_size": SIZE})
    return _save(SiglipModel(config), folder, tokenizer, SiglipImageProcessor(size={"height": SIZE, "width": SIZE}))


def naflex_folder(folder: Path, seed: int = 0) -> Path:
    """SigLIP 2 NaFlex: pictures in their own aspect ratio, at most 6 patches; texts letter by letter."""
    torch.manual_seed(seed)
    known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{code:02X}>" for code in range(256)), "▁", *LETTERS]
    tokenizer = Siglip2Tokenizer(
        vocab={piece: number for number, piece in enumerate(known)}, merges=[], add_bos_token=False, add_eos_token=True,
        padding_side="left", model_max_length=64,
    )  # fmt: skip
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = Siglip2Config(text_config=text, vision_config={**VISION, "num_patches": 4})
    return _save(Siglip2Model(config), folder, tokenizer, Siglip2ImageProcessor(patch_size=16, max_num_patches=6))


def align_folder(folder: Path, seed: int = 0) -> Path:
    """ALIGN: BERT and an EfficientNet; pools the first token, under a mask."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(
        ["<unk>", "<pad>", "<start>", "<end>"], "<start>", "<end>", pad_token="<pad>", model_max_length=12
    )
    config = AlignConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "pad_token_id": 1},
        vision_config={
            "image_size": SIZE, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 16,
            "in_channels": [8, 8], "out_channels": [8, 16], "kernel_sizes": [3, 3], "strides": [1, 2],
            "num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": [],
        },
        projection_dim=DIM,
    )  # fmt: skip
    return _save(
        AlignModel(config), folder, tokenizer, EfficientNetImageProcessor(size={"height": SIZE, "width": SIZE})
    )


def llama_folder(folder: Path, seed: int = 0, width: int = 16) -> Path:
    """LLM2CLIP's language model, and a tokenizer with the marks of Llama 3."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(["<unk>", *MARKS], MARKS[0], None, pad_token=MARKS[3], eos_token=MARKS[3])
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    remote: dict[str, Any] = {"auto_map": {"AutoModel": "modeling.Remote"}}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=600, **remote,
    )  # fmt: skip
    return _save(LlamaModel(config), folder, tokenizer)


def llm2clip_folder(folder: Path, seed: int = 0, width: int = 16) -> Path:
    """LLM2CLIP's image tower and adapter, in two files with an index; the configuration asks for code of its own."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(**{**VISION, "image_size": SIZE, "projection_dim": DIM})
    _save(CLIPVisionModelWithProjection(config), folder)
    vision = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    adapter: dict[str, torch.Tensor] = {}
    for block in range(4):
        shapes = {"ln.weight": (width,), "ln.bias": (width,), "fn.0.weight": (2 * width, width),
                  "fn.0.bias": (2 * width,), "fn.3.weight": (width, 2 * width), "fn.3.bias": (width,)}  # fmt: skip
        adapter |= {f"{block}.{name}": torch.randn(shape) / 3 for name, shape in shapes.items()}
    adapter |= {"4.weight": torch.randn(width), "4.bias": torch.randn(width)}
    adapter |= {"5.weight": torch.randn(DIM, width), "5.bias": torch.randn(DIM)}
    rest = {f"text_adapter.adaptor.{name}": value for name, value in adapter.items()} | {"logit_scale": torch.ones(())}
    save_file(vision, folder / "model-1.safetensors", metadata={"format": "pt"})
    save_file(rest, folder / "model-2.safetensors", metadata={"format": "pt"})
    where = dict.fromkeys(vision, "model-1.safetensors") | dict.fromkeys(rest, "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    # As published: the size that counts is the one at the top.
    whole = {"model_type": "clip", "architectures": ["LLM2CLIPModel"], "auto_map": {"AutoModel": "modeling.Remote"},
             "projection_dim": DIM, "vision_config": {**config.to_dict(), "projection_dim": 512}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(whole))
    return folder
