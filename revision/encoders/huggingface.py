"""Dual encoders of transformers: CLIP, SigLIP, SigLIP 2, ALIGN and whatever else has the two feature methods.

Texts and pictures are prepared by the tokenizer and the image processor that were saved with the model. No code from
the hub is run: a model that needs its own comes as a package with an entry point (`revision.encoders.kinds`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.siglip2 import Siglip2Model

from revision.encoders.base import EncoderSource, TorchEncoder, length_batches, resolve_device, torch_dtype
from revision.encoders.sources import (
    architecture_sha256,
    find_folder,
    read_json,
    tokenizer_sha256,
    weight_files,
    weights_sha256,
)
from revision.pictures import Preprocess

# What transformers and the loaders below it raise when files let them down.
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)

# SigLIP pools its last position, padding or not, and was trained without a mask on lowercased texts that were padded on
# the right to 64 tokens (arXiv 2303.15343, 2502.14786; transformers' documentation of both). Any other padding gives
# other vectors without complaint.
_SIGLIP = ("siglip", "siglip2")


@runtime_checkable
class TwoTowers(Protocol):
    """What makes a model of transformers a dual encoder."""

    def get_text_features(self, input_ids: torch.Tensor) -> Any:
        """Features of texts, or an output whose `pooler_output` they are."""

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        """Features of pictures, likewise."""


class ProcessedPixels:
    """A picture through an image processor of transformers: float32 [3, height, width]."""

    def __init__(self, processor: Callable[..., Any]) -> None:
        self.processor = processor

    def __call__(self, picture: Image) -> torch.Tensor:
        return self.processor(images=picture, return_tensors="pt")["pixel_values"][0]


class ProcessedPatches:
    """A picture in its own aspect ratio (SigLIP 2 NaFlex) as one tensor, float32 [patches, 3 * p * p + 3].

    A row is a patch; its last three values are whether it is one (0: padding), and the grid's height and width.
    """

    def __init__(self, processor: Callable[..., Any]) -> None:
        self.processor = processor

    def __call__(self, picture: Image) -> torch.Tensor:
        found = self.processor(images=picture, return_tensors="pt")
        patches = found["pixel_values"][0].float()
        real = found["pixel_attention_mask"][0].float()[:, None]
        grid = found["spatial_shapes"][0].float().expand(len(patches), 2)
        return torch.cat([patches, real, grid], dim=1)


class TransformersEncoder(TorchEncoder):
    """A model of transformers with `get_text_features` and `get_image_features`.

    Args:
        model: evaluation is switched on, gradients off.
        tokenizer: the one saved with it.
        context: tokens that a text is cut to, the special ones included, which are kept.
        siglip: prepare texts as SigLIP was trained: lowercased, no mask, padded to exactly `context`.
        others: see `TorchEncoder`.
    """

    def __init__(
        self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int, siglip: bool, **others: Any
    ) -> None:
        super().__init__(**others)
        assert _has_two_towers(model)
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.context = context
        self.siglip = siglip
        if siglip:
            tokenizer.padding_side = "right"

    def token_batches(
        self, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """Yields (positions in `texts`, the tower's inputs [<= batch_size, length]), shortest texts first."""
        if self.siglip and self.tokenizer.init_kwargs.get("do_lower_case", True):
            texts = [text.lower() for text in texts]
        masked = not self.siglip
        tokens = dict(self.tokenizer(list(texts), truncation=False, return_attention_mask=masked, verbose=False))
        over = [place for place, ids in enumerate(tokens["input_ids"]) if len(ids) > self.context]
        if over:
            cut = self.tokenizer(
                [texts[place] for place in over], truncation=True, max_length=self.context,
                return_attention_mask=masked,
            )  # fmt: skip
            for name, column in tokens.items():
                for place, row in zip(over, cut[name], strict=True):
                    column[place] = row
            self.cut_texts += len(over)
        for positions in length_batches([len(ids) for ids in tokens["input_ids"]], batch_size):
            batch = self.tokenizer.pad(
                {name: [column[place] for place in positions] for name, column in tokens.items()},
                padding="max_length" if self.siglip else "longest", max_length=self.context if self.siglip else None,
                return_attention_mask=masked, return_tensors="pt",
            )  # fmt: skip
            yield positions, {name: batch[name].to(self.device) for name in tokens}

    def text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `TorchEncoder.text_features`."""
        return _pooled(self.model.get_text_features(**tokens))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `TorchEncoder.image_features`."""
        if not isinstance(self.model, Siglip2Model):
            return _pooled(self.model.get_image_features(pixels.to(self.dtype)))
        return _pooled(
            self.model.get_image_features(
                pixel_values=pixels[..., :-3].to(self.dtype),
                pixel_attention_mask=pixels[..., -3].long(),
                spatial_shapes=pixels[:, 0, -2:].long(),
            )
        )


def _has_two_towers(model: object) -> bool:
    return isinstance(model, TwoTowers)


def _pooled(output: Any) -> torch.Tensor:
    """transformers 5 returns an output with the projected features as `pooler_output`, before it the features alone."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def load(source: EncoderSource) -> TransformersEncoder:
    """Loads a dual encoder of transformers.

    Args:
        source: `model` is a folder or `owner/name[@revision]` of the hub; `max_length` cuts texts earlier than the
            text tower needs.

    Raises:
        ValueError: a folder, file or hub that is not there; weights that are missing; a model that is no dual encoder
            or needs code of its own; more tokens than its text tower reads.
    """
    dtype, device = torch_dtype(source.dtype), resolve_device(source.device)
    folder = find_folder("encoder.model", source.model)
    config = read_json("encoder.model", folder / "config.json")
    files = weight_files("encoder.model", folder)
    tokenizer_hash = tokenizer_sha256("encoder.model", folder)
    model: Any = read_pretrained(AutoModel, "encoder.model", folder, dtype, device)
    if not _has_two_towers(model):
        raise ValueError(f"encoder.model = {source.model}: {type(model).__name__} is no dual encoder; choose another")
    tokenizer, processor = read_tokenizer("encoder.model", folder), _read_processor(folder)
    siglip = config.get("model_type") in _SIGLIP
    context = _context(source, model, tokenizer, siglip)
    preprocess: Preprocess = (ProcessedPatches if isinstance(model, Siglip2Model) else ProcessedPixels)(processor)
    described = {
        "name": source.name, "kind": "transformers", "dtype": source.dtype, "model": type(model).__name__,
        "architecture": architecture_sha256(config), "tokenizer": tokenizer_hash,
        "preprocessing": json.dumps(processor.to_dict(), sort_keys=True, default=str),
        "text": f"at most {context} tokens" + (", lowercased, padded to all of them without a mask" if siglip else ""),
    }  # fmt: skip
    encoder = TransformersEncoder(
        model=model, tokenizer=tokenizer, context=context, siglip=siglip, name=source.name, dim=0,
        preprocess=preprocess, dtype=dtype, device=device, description=partial(_describe, described, files),
    )  # fmt: skip
    encoder.dim = _dimension(encoder)
    return encoder


def _describe(described: dict[str, str], files: list[Path]) -> dict[str, str]:
    return {**described, "weights": weights_sha256(files)}


@torch.inference_mode()
def _dimension(encoder: TransformersEncoder) -> int:
    """Configurations name the shared dimension in many ways, and some not at all; a text tells it."""
    (_, tokens), *_ = encoder.token_batches(["a"], 1)
    return encoder.text_features(tokens).shape[-1]


def read_pretrained(
    family: Any, field: str, folder: Path, dtype: torch.dtype, device: torch.device, **settings: Any
) -> PreTrainedModel:
    """A model of transformers from a folder, whole.

    Args:
        family: a class with `from_pretrained`.
        device: where it is put, tensor by tensor: eight processes need not hold eight models in the machine's memory.
        settings: further ones of `from_pretrained`.

    Raises:
        ValueError: it cannot be read, needs code of its own, or lacks a weight, which transformers would make up.
    """
    try:
        model, info = family.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **settings,
        )  # fmt: skip
    except LOADING_ERRORS as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it needs code from the hub, which is never run; install it as a package with an entry point"
        raise ValueError(f"{field}: {folder} cannot be read: {reason}") from error
    lost = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if lost:
        raise ValueError(
            f"{field}: {folder} lacks {len(lost)} weights of a {type(model).__name__}, {lost[0]} the first; they would "
            "be random: choose a model whose weights are whole"
        )
    return model


def read_tokenizer(field: str, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises ValueError where it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ValueError(f"{field}: the tokenizer in {folder} cannot be read: {error}") from error


def _read_processor(folder: Path) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ValueError(f"encoder.model: the image processor in {folder} cannot be read: {error}") from error


def _context(source: EncoderSource, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, siglip: bool) -> int:
    """Tokens that the text tower reads."""
    positions = model.config.get_text_config().to_dict().get("max_position_embeddings")
    if positions is not None:
        positions -= _first_position(model)
    context = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    asked = source.max_length
    if asked is not None and siglip:
        raise ValueError(f"encoder.max_length = {asked}: must be null for SigLIP, which reads {context} tokens always")
    if asked is not None and asked > context:
        raise ValueError(f"encoder.max_length = {asked}: must be at most {context}, which {source.model} reads")
    if context > 10**6 and asked is None:  # how a tokenizer says that it knows no limit
        raise ValueError(f"encoder.max_length = null: must be set, since {source.model} states no limit of its texts")
    return asked or context


def _first_position(model: PreTrainedModel) -> int:
    """Position of the first token: 0, but for towers of the RoBERTa class, whose texts begin behind the padding."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = (table.padding_idx for table in tables if isinstance(table, nn.Embedding))
    return next((place + 1 for place in padding if place is not None), 0)
