"""What the part of a dual encoder that trains receives: features of locked towers, kept on disk, or pixels and tokens.

A locked tower gives the same features for the same file or text in every epoch, and for every setting of the heads. So
they are computed once, and a sweep over temperatures, learning rates or seeds reads them back. What is trained is the
same function as the whole model: the features are what open_clip's own heads receive, caught at their door.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from open_clip import CustomTextCLIP
from safetensors import SafetensorError, safe_open
from torch import nn

from revision.decoding import read_pixel_batches
from revision.encoders import OpenClipEncoder
from revision.encoders.openclip_folder import head_parameters, state_sha256
from revision.files import write_tensors


@dataclass(frozen=True)
class PairInputs:
    """What the part that trains receives for a set of pairs; each distinct picture and text is held once.

    Attributes:
        images: float32 [pictures, ...]: features of the image tower before its head, or, where the tower trains too,
            preprocessed pixels.
        texts: float32 [texts, width], pooled features of the text tower before its projection, or token ids int64
            [texts, context_length].
        image_of: int64 [pairs], which picture a pair has.
        text_of: int64 [pairs], which text.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_of: torch.Tensor
    text_of: torch.Tensor

    def __len__(self) -> int:
        return len(self.image_of)


class TowerInputs(NamedTuple):
    """Features or inputs of distinct pictures and texts, and how many of the texts the encoder cut to read them."""

    images: torch.Tensor
    texts: torch.Tensor
    cut: int


def distinct(values: Iterable[str]) -> tuple[list[str], torch.Tensor]:
    """The distinct values in order of first appearance, and for each value its number there, int64 [n]."""
    numbers: dict[str, int] = {}
    which = [numbers.setdefault(value, len(numbers)) for value in values]
    return list(numbers), torch.tensor(which, dtype=torch.int64)


def towers_sha256(model: CustomTextCLIP) -> str:
    """sha256 of all weights and statistics but those of the heads and the temperature."""
    heads = head_parameters(model).keys() | {"logit_scale"}
    return state_sha256({name: value for name, value in model.state_dict().items() if name not in heads})


@torch.no_grad()
def head_inputs(head: nn.Module, encode: Callable[[torch.Tensor], object], batch: torch.Tensor) -> torch.Tensor:
    """What a head receives while the whole model encodes a batch: float32 [n, ...] on the model's device."""
    caught: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        encode(batch)
    finally:
        hook.remove()
    (features,) = caught
    return features.float()


def tower_features(
    encoder: OpenClipEncoder,
    model: CustomTextCLIP,
    *,
    files: Sequence[Path],
    texts: Sequence[str],
    batch_size: int,
    workers: int,
    advance: Callable[[int], object],
) -> TowerInputs:
    """The locked towers' features of pictures and texts.

    Args:
        model: the network of `encoder`, locked.
        batch_size: pictures, or texts, at once.
        workers: processes that decode pictures; 0: this one.
        advance: called with the number of pictures or texts of each batch when it is done.

    Returns:
        Features of the pictures, float32 [pictures, ...], and of the texts, float32 [texts, width], contiguous and in
        the order given.

    Raises:
        ValueError: a picture that cannot be read.
    """
    before = encoder.cut_texts
    images: list[torch.Tensor] = []
    for pixels in _pixels(encoder, files, batch_size, workers):
        images.append(head_inputs(model.visual.head, model.encode_image, pixels.to(encoder.device)))
        advance(len(pixels))
    rows: list[torch.Tensor] = []
    places: list[np.ndarray] = []
    for positions, ids in encoder.token_batches(texts, batch_size):
        rows.append(head_inputs(model.text.proj, model.encode_text, ids))
        places.append(positions)
        advance(len(positions))
    order = torch.argsort(torch.from_numpy(np.concatenate(places))).to(encoder.device)
    # Contiguous, as they come back from disk: another layout in memory may mean another order of summation.
    return TowerInputs(torch.cat(images).contiguous(), torch.cat(rows)[order], encoder.cut_texts - before)


def whole_inputs(
    encoder: OpenClipEncoder,
    *,
    files: Sequence[Path],
    texts: Sequence[str],
    batch_size: int,
    workers: int,
    advance: Callable[[int], object],
) -> TowerInputs:
    """Pixels and token ids for a model whose towers train too; arguments and errors as for `tower_features`.

    All pictures are held in memory, 4 bytes a value: right for the small pictures that a small model is trained on.

    Returns:
        float32 [pictures, 3, height, width] and int64 [texts, context_length], on the encoder's device.
    """
    images: list[torch.Tensor] = []
    for pixels in _pixels(encoder, files, batch_size, workers):
        images.append(pixels)
        advance(len(pixels))
    ids = encoder.tokenizer(list(texts))
    advance(len(ids))
    return TowerInputs(torch.cat(images).to(encoder.device), ids.to(encoder.device), encoder.count_cut(texts, ids))


def _pixels(encoder: OpenClipEncoder, files: Sequence[Path], batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    for pixels in read_pixel_batches(batches, encoder.preprocess, workers=workers):
        for problem in filter(None, pixels.problems):
            raise ValueError(f"{problem}; mend the file or leave its pairs out")
        yield pixels.tensor


def pictures_fingerprint(files: Sequence[Path], texts: Sequence[str], towers: Mapping[str, object]) -> str:
    """sha256 of what features depend on.

    Args:
        files: pictures; each counts with path, size and time of modification. One that is missing counts as empty.
        texts: in full.
        towers: what identifies towers, preprocessing and arithmetic; plain values.
    """
    stats = [(str(file), *_size_and_time(file)) for file in files]
    return hashlib.sha256(json.dumps([stats, list(texts), towers], sort_keys=True).encode()).hexdigest()


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:  # it will be refused, with its reason, when it is read
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def load_or_compute(
    file: Path, fingerprint: str, device: torch.device, compute: Callable[[], TowerInputs]
) -> tuple[TowerInputs, bool]:
    """Features of pictures and texts from a file, or computed and written there.

    Args:
        file: safetensors with the fingerprint in its header. One that is missing, damaged or has another fingerprint is
            replaced, atomically.
        device: where the features are put.
        compute: gives them where the file does not.

    Returns:
        The features of pictures and texts, and whether they came from the file.
    """
    try:
        with safe_open(file, framework="pt", device=str(device)) as content:
            known = content.metadata() or {}
            if known.get("fingerprint") == fingerprint and "cut" in known:
                images, texts = content.get_tensor("images"), content.get_tensor("texts")
                return TowerInputs(images, texts, int(known["cut"])), True
    except (FileNotFoundError, SafetensorError):
        pass  # nothing to be read back: computed as if it had never been there
    images, texts, cut = found = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"images": images.cpu(), "texts": texts.cpu()}
    write_tensors(file, tensors, fingerprint=fingerprint, cut=str(cut))
    return found, False
