"""Dual encoders: texts or pictures to unit vectors of one shared space."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import open_clip
import safetensors
import torch
from open_clip.hf_model import HFTextEncoder
from PIL.Image import Image

from revision.embeddings.layout import file_sha256
from revision.openclip_folder import WEIGHTS, read_config, state_sha256
from revision.pictures import Preprocess, open_picture

__all__ = ["DualEncoder", "OpenClipEncoder", "load_encoder", "open_picture", "resolve_device"]

_LOCAL_DIR = "local-dir:"
_HUB = "hf-hub:"
_PRECISION = {  # our names -> open_clip's and torch's
    "float32": ("fp32", torch.float32),
    "bfloat16": ("pure_bf16", torch.bfloat16),
    "float16": ("pure_fp16", torch.float16),
}
# What open_clip and the loaders below it raise when weights, a hub or a configuration let them down.
_LOADING_ERRORS = (RuntimeError, OSError, ValueError, TypeError, KeyError, pickle.UnpicklingError,
                   safetensors.SafetensorError)  # fmt: skip

OpenClipModel: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP

logger = logging.getLogger(__name__)


class DualEncoder(Protocol):
    """A contrastive encoder of two modalities.

    Attributes:
        dim: coordinates of the shared space.
        preprocess: RGB picture -> float32 [3, height, width], the same shape for every picture; runs in any process.
    """

    dim: int
    preprocess: Preprocess

    def encode_texts(
        self, texts: Sequence[str], batch_size: int = 64, on_batch: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Unit rows, float32 [n, d], of texts; longer ones than the encoder's context are cut.

        `on_batch` is called with the number of texts of each batch when it is done.
        """

    def encode_images(self, images: Sequence[Image], batch_size: int = 64) -> np.ndarray:
        """Unit rows, float32 [n, d], of RGB pictures."""

    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """Unit rows, float32 [n, d], of one batch of preprocessed pictures [n, 3, height, width]."""

    def describe(self) -> dict[str, str]:
        """What the vectors depend on; two encoders with equal descriptions give equal vectors."""


class OpenClipEncoder:
    """A model of open_clip, of any architecture.

    Args:
        model: evaluation is switched on, gradients off.
        tokenizer: texts -> int64 [n, context_length].
        description: see `DualEncoder.describe`.
    """

    def __init__(
        self,
        *,
        model: OpenClipModel,
        preprocess: Preprocess,
        tokenizer: Callable[[list[str]], torch.Tensor],
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        description: dict[str, str],
    ) -> None:
        # Channels last: twice the speed of a convolutional tower on a CPU, and what tensor cores want.
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.dim = dim
        self.dtype = dtype
        self.device = device
        self._description = description

    def describe(self) -> dict[str, str]:
        """See `DualEncoder.describe`."""
        return dict(self._description)

    def token_batches(self, texts: Sequence[str], batch_size: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yields (positions in `texts`, ids [<= batch_size, length]) on the device, shortest texts first.

        Padding behind the longest text of a batch is cut off where the tower masks it: for a Hugging Face tower. Other
        towers read their whole context, and get it, in the order of the texts.
        """
        ids = self.tokenizer(list(texts))
        lengths = torch.full((len(ids),), ids.shape[1])
        tower = self.model.text if isinstance(self.model, open_clip.CustomTextCLIP) else None
        if isinstance(tower, HFTextEncoder):
            places = torch.arange(1, ids.shape[1] + 1)
            lengths = ((ids != tower.config.pad_token_id) * places).amax(dim=1).clamp(min=1)
        order = torch.argsort(lengths, stable=True)
        for positions in order.split(batch_size):
            yield positions.numpy(), ids[positions, : int(lengths[positions].max())].to(self.device)

    @torch.inference_mode()
    def encode_texts(
        self, texts: Sequence[str], batch_size: int = 64, on_batch: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """See `DualEncoder.encode_texts`. Batches depend on the texts and `batch_size` alone."""
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for positions, ids in self.token_batches(texts, batch_size) if texts else ():
            rows[positions] = _unit(self.model.encode_text(ids))
            if on_batch is not None:
                on_batch(len(positions))
        return rows

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """See `DualEncoder.encode_pixels`."""
        return _unit(self.model.encode_image(pixels.to(self.device, self.dtype)))

    def encode_images(self, images: Sequence[Image], batch_size: int = 64) -> np.ndarray:
        """See `DualEncoder.encode_images`."""
        rows = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            rows[start : start + len(batch)] = self.encode_pixels(torch.stack([self.preprocess(one) for one in batch]))
        return rows


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


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


def embed_dim(model: str, pretrained: str | None) -> int:
    """Dimension of an encoder's sphere, read from its configuration; no weights are loaded.

    Args:
        model, pretrained: as `load_encoder` takes them.

    Raises:
        ValueError: it has no configuration here.
    """
    if model.startswith(_LOCAL_DIR):
        return int(read_config(Path(model.removeprefix(_LOCAL_DIR)))[0]["embed_dim"])
    if not model.startswith(_HUB):
        _require_architecture(model, pretrained)
    try:
        return int(open_clip.get_model_config(model)["embed_dim"])
    except _LOADING_ERRORS as error:
        raise ValueError(_loading_problem(model, pretrained, error)) from error


def load_encoder(*, kind: str, model: str, pretrained: str | None, dtype: str, device: str, name: str) -> DualEncoder:
    """Loads a dual encoder for inference.

    Args:
        kind: library; "open_clip".
        model: an architecture of open_clip, `local-dir:FOLDER` (see `openclip_folder`), or `hf-hub:OWNER/NAME`.
        pretrained: weights of an architecture: a tag of open_clip's hub, or a file; None for the other two.
        dtype: "float32", "bfloat16" or "float16", of weights and arithmetic; the unit rows come out as float32.
        device: see `resolve_device`.
        name: what its stores are called.

    Raises:
        ValueError: a name, folder, file, tokenizer or hub that is not there; weights that do not fit.
    """
    if kind != "open_clip":
        raise ValueError(f"encoder.kind is {kind!r}; known is open_clip")
    if dtype not in _PRECISION:
        raise ValueError(f"encoder.dtype is {dtype!r}; known are {', '.join(_PRECISION)}")
    precision, torch_dtype = _PRECISION[dtype]
    target = resolve_device(device)
    if model.startswith((_LOCAL_DIR, _HUB)) and pretrained is not None:
        raise ValueError(f"encoder.pretrained is {pretrained!r}, but {model} has its own weights; set it to null")
    if not model.startswith((_LOCAL_DIR, _HUB)):
        _require_architecture(model, pretrained)
    overrides: dict[str, Any] = {}
    if model.startswith(_LOCAL_DIR):
        local_cfg, _ = read_config(Path(model.removeprefix(_LOCAL_DIR)))
        # Handed over as overrides, so that a folder that was moved still finds the text tower inside itself.
        overrides = {"text_cfg": local_cfg["text_cfg"], "vision_cfg": local_cfg["vision_cfg"]}
    try:
        model_cfg = open_clip.get_model_config(model)
        network, preprocess = open_clip.create_model_from_pretrained(
            model, pretrained, precision=precision, device=target, **overrides
        )
        tokenizer = open_clip.get_tokenizer(model)
    except _LOADING_ERRORS as error:
        raise ValueError(_loading_problem(model, pretrained, error)) from error
    logger.info("encoder %s: %s, %d dimensions, on %s", name, model, model_cfg["embed_dim"], target)
    return OpenClipEncoder(
        model=network,
        preprocess=preprocess,
        tokenizer=tokenizer,
        dim=model_cfg["embed_dim"],
        dtype=torch_dtype,
        device=target,
        description={"name": name, "kind": kind, "dtype": dtype} | _describe(model, model_cfg, network, tokenizer),
    )


def _describe(model: str, model_cfg: dict[str, Any], network: OpenClipModel, tokenizer: Any) -> dict[str, str]:
    file = Path(model.removeprefix(_LOCAL_DIR)) / WEIGHTS
    from_file = model.startswith(_LOCAL_DIR) and file.is_file()
    return {
        # A folder may be moved without its vectors changing; its weights and configuration speak for it.
        "model": "local-dir" if model.startswith(_LOCAL_DIR) else model,
        "architecture": _architecture_sha256(model_cfg),
        "weights": file_sha256(file) if from_file else state_sha256(network.state_dict()),
        "preprocessing": json.dumps(network.visual.preprocess_cfg, sort_keys=True),
        "tokenizer": _tokenizer_sha256(tokenizer),
    }


def _require_architecture(model: str, pretrained: str | None) -> None:
    if model not in open_clip.list_models():
        near = get_close_matches(model, open_clip.list_models(), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; name an architecture of open_clip or local-dir:FOLDER"
        raise ValueError(f"encoder.model {model!r} is not known to open_clip{hint}")
    if pretrained is None:
        raise ValueError(f"encoder.pretrained is null, so {model} would have random weights; name a tag or a file")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(
            f"encoder.pretrained {pretrained!r} is neither a file nor a tag of {model}; "
            f"tags are {', '.join(tags) or 'none'}"
        )


def _loading_problem(model: str, pretrained: str | None, error: BaseException) -> str:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    if model.startswith(_LOCAL_DIR):
        return f"encoder {model} cannot be loaded: {reason}; make the folder again"
    if pretrained is not None and Path(pretrained).is_file():
        return f"encoder {model} cannot be loaded from {pretrained}: {reason}; give the weights of this architecture"
    return (
        f"encoder {model} cannot be loaded from the hub: {reason}; if it cannot be reached, give "
        "a local weights file as encoder.pretrained, or a folder as encoder.model=local-dir:FOLDER"
    )


def _architecture_sha256(model_cfg: dict[str, Any]) -> str:
    """Of the configuration without the names of the places that its parts were loaded from."""
    places = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "timm_model_pretrained")
    content = {
        key: {name: entry for name, entry in value.items() if name not in places} if isinstance(value, dict) else value
        for key, value in model_cfg.items()
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Of its vocabulary and context length."""
    own = isinstance(tokenizer, open_clip.SimpleTokenizer)
    vocabulary = tokenizer.encoder if own else tokenizer.tokenizer.get_vocab()
    return hashlib.sha256(json.dumps([vocabulary, tokenizer.context_length], sort_keys=True).encode()).hexdigest()
