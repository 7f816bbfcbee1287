"""What every dual encoder is, and what those on torch have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL.Image import Image

from revision.pictures import Picture, Preprocess, open_picture, preprocessed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EncoderSource:
    """What an encoder is loaded from: the fields of `encoder` in the configuration, and a device.

    Attributes:
        name: what its stores are called.
        model: what the family understands by it: an architecture, a folder, a name on the hub.
        pretrained: weights, where `model` names an architecture without any.
        text_model: the text tower, where it is a model of its own.
        max_length: tokens of a text beyond which it is cut; None: as many as the text tower reads.
        dtype: "float32", "bfloat16" or "float16", of weights and arithmetic; the unit rows come out as float32.
        device: see `resolve_device`.
        options: anything more, for families of other packages.
    """

    name: str
    model: str
    pretrained: str | None = None
    text_model: str | None = None
    max_length: int | None = None
    dtype: str = "float32"
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class DualEncoder(Protocol):
    """A contrastive encoder of texts and of something else, nearly always pictures: that other side is called images.

    `open_file` alone decides what a file of that side is; `embed` and `chat` read files by it.

    Attributes:
        dim: coordinates of the shared space.
        open_file: reads a file of the image side, in any process; raises ValueError with the reason where it cannot.
        preprocess: what `open_file` gave -> float32, the same shape for every file ([3, height, width] for most);
            runs in any process, so it must be picklable.
        cut_texts: how many texts so far were longer than the encoder reads, and were cut at their end.
    """

    dim: int
    open_file: Callable[[Picture], Any]
    preprocess: Preprocess
    cut_texts: int

    def encode_texts(
        self, texts: Sequence[str], batch_size: int = 64, on_batch: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Unit rows, float32 [n, d], of texts, in their order.

        A text beyond the encoder's context is cut at its end and counted in `cut_texts`. `on_batch` is called with the
        number of texts of each batch when it is done.
        """

    def encode_images(self, images: Sequence[Any], batch_size: int = 64) -> np.ndarray:
        """Unit rows, float32 [n, d], of opened files, such as RGB pictures."""

    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """Unit rows, float32 [n, d], of one batch of preprocessed files [n, ...]."""

    def describe(self) -> dict[str, str]:
        """What the vectors depend on; two encoders with equal descriptions give equal vectors."""


EncoderLoader = Callable[[EncoderSource], DualEncoder]


class TorchEncoder(ABC):
    """The loops over batches that all our families share; a family says how tokens and features come about.

    A batch depends on the texts and `batch_size` alone, and a row on the other rows of its batch no more than rounding
    allows: about 1e-6 in float32, 1e-2 in the 16-bit types.
    """

    open_file: Callable[[Picture], Any] = staticmethod(open_picture)

    def __init__(
        self,
        *,
        name: str,
        dim: int,
        preprocess: Preprocess,
        dtype: torch.dtype,
        device: torch.device,
        description: Callable[[], dict[str, str]],
    ) -> None:
        self.name = name
        self.dim = dim
        self.preprocess = preprocess
        self.dtype = dtype
        self.device = device
        self.cut_texts = 0
        self._describe = cache(description)  # it hashes weights, and not everyone asks

    @abstractmethod
    def token_batches(self, texts: Sequence[str], batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields (positions in `texts`, their tokens on the device); counts the texts that it cuts."""

    @abstractmethod
    def text_features(self, tokens: Any) -> torch.Tensor:
        """Features [n, d] of one batch of `token_batches`."""

    @abstractmethod
    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features [n, d] of one batch of preprocessed pictures, float32 on the device."""

    def describe(self) -> dict[str, str]:
        """See `DualEncoder.describe`."""
        return dict(self._describe())

    @torch.inference_mode()
    def encode_texts(
        self, texts: Sequence[str], batch_size: int = 64, on_batch: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """See `DualEncoder.encode_texts`."""
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for positions, tokens in self.token_batches(texts, batch_size) if texts else ():
            rows[positions] = self._unit(self.text_features(tokens), "text")
            if on_batch is not None:
                on_batch(len(positions))
        return rows

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """See `DualEncoder.encode_pixels`."""
        return self._unit(self.image_features(pixels.to(self.device)), "image")

    def encode_images(self, images: Sequence[Image], batch_size: int = 64) -> np.ndarray:
        """See `DualEncoder.encode_images`."""
        rows = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            rows[start : start + len(batch)] = self.encode_pixels(
                torch.stack([preprocessed(one, self.preprocess) for one in batch])
            )
        return rows

    def _unit(self, features: torch.Tensor, side: str) -> np.ndarray:
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"encoder {self.name} gives {side} features of shape {list(features.shape)} where one "
                f"vector of {self.dim} dimensions a record is wanted: its two sides share no space; choose a "
                "contrastive dual encoder"
            )
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Yields positions in batches of texts of like length, the shortest first; equal ones keep their order."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name. Raises ValueError for one that is not in `DTYPES`."""
    if name not in DTYPES:
        raise ValueError(f"encoder.dtype is {name!r}; known are {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_device(device: str) -> torch.device:
    """The device of a name; "auto" is this process's GPU (LOCAL_RANK of a launcher), or the CPU where there is none.

    Raises:
        ValueError: not a device, or a GPU that this machine does not have.
    """
    if device == "auto":
        gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return gpu if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: this machine has {torch.cuda.device_count()} GPU(s); use auto or cpu"
        )
    return resolved
