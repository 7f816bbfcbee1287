"""The dual encoder as revision reads it: a `DualEncoder` whose image side is SVG files.

A folder holds it: `text/`, a locked text tower of transformers with its tokenizer, and `heads.safetensors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from revision.encoders import EncoderSource, TorchEncoder, resolve_device
from revision.encoders.base import DTYPES, length_batches

from .network import DIM, Heads
from .program import FEATURES, SEGMENTS, read_program, to_tensor

HEADS = "heads.safetensors"
TEXT = "text"
CONTEXT = 64  # tokens of a text that are read


class TextTower:
    """A locked encoder of transformers and its tokenizer; a text is the mean over its tokens' last states."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder, dtype=dtype, add_pooling_layer=False)
        self.model.eval().requires_grad_(False).to(device)
        self.width: int = self.model.config.hidden_size
        self.device = device

    def token_batches(
        self, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor], int]]:
        """Yields (positions in `texts`, their tokens, how many of them were cut), texts of like length together."""
        lengths = [len(ids) for ids in self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
        for positions in length_batches(lengths, batch_size):
            batch = self.tokenizer([texts[place] for place in positions], truncation=True, max_length=CONTEXT,
                                   padding=True, return_tensors="pt").to(self.device)  # fmt: skip
            yield positions, dict(batch), sum(lengths[place] > CONTEXT for place in positions)

    @torch.inference_mode()
    def features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """[n, width]."""
        states = self.model(**tokens).last_hidden_state
        real = tokens["attention_mask"][..., None].to(states.dtype)
        pooled: torch.Tensor = (states * real).sum(dim=1) / real.sum(dim=1)
        return pooled

    def save(self, folder: Path) -> None:
        """Weights and tokenizer, as transformers keeps them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class DrawingEncoder(TorchEncoder):
    """SVG programs and texts. The loops over batches are revision's own; `open_file` is what makes it another modality.

    Args:
        text: the text tower.
        heads: on the same device, of the same type.
        others: see `TorchEncoder`.
    """

    open_file = staticmethod(read_program)

    def __init__(self, *, text: TextTower, heads: Heads, **others: Any) -> None:
        super().__init__(dim=DIM, preprocess=to_tensor, **others)
        self.text = text
        self.heads = heads.eval().requires_grad_(False)

    def token_batches(
        self, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """See `TorchEncoder.token_batches`."""
        for positions, tokens, cut in self.text.token_batches(texts, batch_size):
            self.cut_texts += cut
            yield positions, tokens

    def text_features(self, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """See `TorchEncoder.text_features`."""
        features: torch.Tensor = self.heads.text(self.text.features(tokens))
        return features

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, DIM] of programs [n, SEGMENTS, FEATURES]: no pixels, whatever the name of the argument says."""
        features: torch.Tensor = self.heads.program(pixels.to(self.dtype))
        return features


def load(source: EncoderSource) -> DrawingEncoder:
    """What the entry point names: the encoder in the folder `source.model`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = Path(source.model)
    if not (folder / HEADS).is_file():
        raise ValueError(
            f"encoder.model = {source.model}: it holds no {HEADS}; train it with python -m revision_drawings.train"
        )
    device, dtype = resolve_device(source.device), DTYPES[source.dtype]
    try:
        text = TextTower(folder / TEXT, dtype, device)
        heads = Heads(text.width)
        heads.load_state_dict(load_file(folder / HEADS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"encoder.model = {source.model} is damaged ({error}); train it again") from error
    return DrawingEncoder(
        text=text, heads=heads.to(device, dtype), name=source.name, dtype=dtype, device=device,
        description=lambda: {"name": source.name, "kind": "svg_program", "dtype": source.dtype,
                             "weights": _sha256(folder), "preprocess": f"{SEGMENTS} segments of {FEATURES} values"},
    )  # fmt: skip


def save(folder: Path, text: TextTower, heads: Heads) -> None:
    """Writes what `load` reads; the heads come last, so that a folder with heads is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HEADS).unlink(missing_ok=True)
    text.save(folder / TEXT)
    aside = folder / f"{HEADS}.partial"
    save_file(heads.state_dict(), aside)
    aside.replace(folder / HEADS)


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (HEADS, f"{TEXT}/model.safetensors", f"{TEXT}/tokenizer.json"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
