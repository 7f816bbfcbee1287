"""LLM2CLIP (arXiv 2411.04997), the paper's own encoder: CLIP's image tower, and a language model that reads the texts.

Two models make one encoder. That of the pictures (microsoft/LLM2CLIP-Openai-L-14-336) holds the image tower, its
projection, and the adapter of the texts; the other (microsoft/LLM2CLIP-Llama-3-8B-Instruct-CC-Finetuned) is a Llama
that `llm2vec` makes a vector a text of. The adapter takes that vector at unit length into the space of the pictures:
four residual blocks x + W2 gelu(W1 norm(x)), twice as wide inside, a norm and a linear map (TextProj in the repository
microsoft/LLM2CLIP; 4096 -> 1280 dimensions, 274M of the 579M parameters that the hub states for the model).

Its repositories bring code of their own, written for transformers 4, which is not run: the towers are transformers'
own, and the adapter is below. They have no image processor either; the model card takes that of
openai/clip-vit-large-patch14-336, which is what `CLIPImageProcessor` does by default at the tower's size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection, LlamaModel

from revision.encoders.base import EncoderSource, TorchEncoder, length_batches, resolve_device, torch_dtype
from revision.encoders.huggingface import ProcessedPixels, read_pretrained, read_tokenizer
from revision.encoders.llm2vec import bidirectional_states, mean_pooled, padded, prompts, require_marks
from revision.encoders.sources import (
    architecture_sha256,
    find_folder,
    read_json,
    tokenizer_sha256,
    weight_files,
    weights_sha256,
)

MAX_LENGTH = 512  # of LLM2CLIP's model cards, and of ReVision v3, App. H.2
ADAPTER = "text_adapter.adaptor."


class _ImageTower(CLIPVisionModelWithProjection):
    """The other half of the file is the adapter, which is read by itself."""

    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale$"]  # noqa: RUF012  (transformers reads it here)


class _Block(nn.Module):
    """x + W2 gelu(W1 norm(x)). Names as in the checkpoint; `fn.2` there is a dropout."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(dim)
        self.fn = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Identity(), nn.Linear(inner, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, d] to [n, d]."""
        return x + self.fn(self.ln(x))


class TextAdapter(nn.Module):
    """From the language model's mean state to the space of the pictures; sizes are those of the weights.

    Args:
        weights: of the checkpoint, by their names behind `ADAPTER`.

    Raises:
        ValueError: they are not those of such an adapter.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        blocks = sorted({int(found[1]) for name in weights if (found := re.match(r"(\d+)\.fn\.0\.weight$", name))})
        last = f"{len(blocks) + 1}.weight"
        if not blocks or blocks != list(range(len(blocks))) or last not in weights or weights[last].ndim != 2:
            raise ValueError(f"its adapter is not LLM2CLIP's: it has {', '.join(sorted(weights)) or 'no weights'}")
        self.dim, width = weights[last].shape
        self.adaptor = nn.Sequential(
            *(_Block(width, len(weights[f"{block}.fn.0.weight"])) for block in blocks),
            nn.LayerNorm(width),
            nn.Linear(width, self.dim, bias=last.replace("weight", "bias") in weights),
        )
        try:
            self.adaptor.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ValueError(f"its adapter is not LLM2CLIP's: {' '.join(str(error).split())}") from error

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[n, width] -> [n, d]; the input is brought to unit length, which the residual blocks depend on."""
        return self.adaptor(nn.functional.normalize(states, dim=-1))


class LLM2ClipEncoder(TorchEncoder):
    """Both towers of LLM2CLIP. A tower is loaded when it is first needed: pictures alone do not need the large one.

    Args:
        folder: of the image tower and the adapter.
        text_folder: of the language model.
        max_length: tokens of a text and the turn around it.
        others: see `TorchEncoder`.
    """

    def __init__(self, *, folder: Path, text_folder: Path, max_length: int, **others: Any) -> None:
        super().__init__(**others)
        self._folder = folder
        self._text_folder = text_folder
        self.max_length = max_length
        self.tokenizer = read_tokenizer("encoder.text_model", text_folder)
        rows = int(read_json("encoder.text_model", text_folder / "config.json").get("vocab_size", 0))
        require_marks("encoder.text_model", self.tokenizer, rows)

    @cached_property
    def image_tower(self) -> nn.Module:
        """Pixels -> features."""
        # Published configurations name the size at their top, and in the part of the pictures another or none.
        size = read_json("encoder.model", self._folder / "config.json").get("projection_dim")
        known = {} if size is None else {"projection_dim": int(size)}
        return self._ready(
            read_pretrained(_ImageTower, "encoder.model", self._folder, self.dtype, self.device, **known)
        )

    @cached_property
    def adapter(self) -> TextAdapter:
        """Mean states -> features."""
        adapter = self._ready(_read_adapter(self._folder)).to(self.dtype)
        assert isinstance(adapter, TextAdapter)
        return adapter

    @cached_property
    def language_model(self) -> LlamaModel:
        """Token ids -> states."""
        model = read_pretrained(
            LlamaModel, "encoder.text_model", self._text_folder, self.dtype, self.device, attn_implementation="sdpa"
        )
        width = self.adapter.adaptor[-1].in_features
        if model.config.hidden_size != width:
            raise ValueError(
                f"encoder.text_model = {self._text_folder} is {model.config.hidden_size} wide, the adapter in "
                f"{self._folder} reads {width}: give the language model that belongs to it"
            )
        return self._ready(model)

    def _ready(self, module: Any) -> Any:
        return module.eval().requires_grad_(False).to(self.device)

    def token_batches(
        self, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[np.ndarray, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
        """Yields (positions in `texts`, what `llm2vec.padded` gives, on the device), shortest texts first."""
        turns = prompts(self.tokenizer, texts, self.max_length)
        self.cut_texts += sum(turn.cut for turn in turns)
        for positions in length_batches([len(turn.ids) for turn in turns], batch_size):
            ids, real, pooled = padded([turns[place] for place in positions])
            yield positions, (ids.to(self.device), real.to(self.device), pooled.to(self.device))

    def text_features(self, tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """See `TorchEncoder.text_features`. Pooled in float32."""
        ids, real, pooled = tokens
        return self.adapter(mean_pooled(bidirectional_states(self.language_model, ids, real), pooled).to(self.dtype))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `TorchEncoder.image_features`."""
        return self.image_tower(pixels.to(self.dtype)).image_embeds


def load(source: EncoderSource) -> LLM2ClipEncoder:
    """Finds both models of LLM2CLIP, and holds that their files are there.

    Args:
        source: `model` and `text_model` are folders or `owner/name[@revision]` of the hub; `max_length` None is 512.

    Raises:
        ValueError: a folder, file or hub that is not there, or models that are not LLM2CLIP's.
    """
    assert source.text_model is not None, "held by the kind"
    folder = find_folder("encoder.model", source.model)
    text_folder = find_folder("encoder.text_model", source.text_model)
    config = read_json("encoder.model", folder / "config.json")
    text_config = read_json("encoder.text_model", text_folder / "config.json")
    if text_config.get("model_type") != "llama":
        raise ValueError(
            f"encoder.text_model = {source.text_model} is a {text_config.get('model_type')} model: LLM2CLIP's are llama"
        )
    files, text_files = weight_files("encoder.model", folder), weight_files("encoder.text_model", text_folder)
    size = int(config.get("vision_config", {}).get("image_size", 224))
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    max_length = source.max_length or MAX_LENGTH
    described = {
        "name": source.name, "kind": "llm2clip", "dtype": source.dtype, "model": "LLM2CLIP",
        "architecture": architecture_sha256({"image": config, "text": text_config}),
        "tokenizer": tokenizer_sha256("encoder.text_model", text_folder),
        "preprocessing": json.dumps(processor.to_dict(), sort_keys=True, default=str),
        "text": f"at most {max_length} tokens of a user's turn, mean over text and end",
    }  # fmt: skip
    return LLM2ClipEncoder(
        folder=folder, text_folder=text_folder, max_length=max_length, name=source.name, dim=_dim(folder, files),
        preprocess=ProcessedPixels(processor), dtype=torch_dtype(source.dtype), device=resolve_device(source.device),
        description=partial(_describe, described, files, text_files),
    )  # fmt: skip


def _describe(described: dict[str, str], files: list[Path], text_files: list[Path]) -> dict[str, str]:
    return {**described, "weights": weights_sha256(files), "text_weights": weights_sha256(text_files)}


def _adapter_weights(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Yields the names of the adapter's weights behind `ADAPTER`, and how to read each one."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118  (it is no mapping)
                    if name.startswith(ADAPTER):
                        yield name.removeprefix(ADAPTER), content.get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"encoder.model: {file} is damaged ({error}); fetch it again") from error


def _dim(folder: Path, files: Sequence[Path]) -> int:
    """Rows of the adapter's last map, from the files' headers."""
    matrices = {name: part.get_shape() for name, part in _adapter_weights(files)}
    last = max((name for name, shape in matrices.items() if re.fullmatch(r"\d+\.weight", name) and len(shape) == 2),
               key=lambda name: int(name.split(".")[0]), default=None)  # fmt: skip
    if last is None:
        raise ValueError(
            f"encoder.model: {folder} has no text adapter ({ADAPTER}*), so it is no LLM2CLIP model; use the kind "
            "transformers or open_clip for others"
        )
    return int(matrices[last][0])


def _read_adapter(folder: Path) -> TextAdapter:
    files = weight_files("encoder.model", folder)
    try:
        return TextAdapter({name: part[:].float() for name, part in _adapter_weights(files)})
    except ValueError as error:
        raise ValueError(f"encoder.model: {folder} cannot be read: {error}") from error
