"""Models of open_clip, of any architecture: from a tag of its hub, a weights file, or a folder."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import open_clip
import safetensors
import torch
from open_clip.hf_model import HFTextEncoder

from revision.encoders.base import EncoderSource, TorchEncoder, length_batches, resolve_device, torch_dtype
from revision.encoders.openclip_folder import WEIGHTS, read_config, state_sha256
from revision.encoders.sources import quick_hub
from revision.files import file_sha256
from revision.pictures import Preprocess

_LOCAL_DIR = "local-dir:"
_HUB = "hf-hub:"
_PRECISION = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}  # our names -> open_clip's
# What open_clip and the loaders below it raise when weights, a hub or a configuration let them down.
_LOADING_ERRORS = (RuntimeError, OSError, ValueError, TypeError, KeyError, ImportError, AssertionError,
                   pickle.UnpicklingError, safetensors.SafetensorError)  # fmt: skip

# Characters that open_clip's own tokenizer reads of a text, cleaned, for each token of the context. Its time grows with
# the square of a word: 8,000 letters without a blank take seconds, 100,000 a quarter of an hour. No token of CLIP's
# vocabulary holds more than 32 characters, and one blank may follow it, so a text that is longer than this has more
# tokens than fit. As long as no word has over 7 characters for each token of the context, 539 for CLIP's 77, those that
# fit end before the word that is cut through: they are the tokens of the whole text.
_CHARACTERS_A_TOKEN = 40

OpenClipModel: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP


class _Beginning:
    """The cleaning of open_clip's own tokenizer, and of what it gives only the first characters."""

    def __init__(self, clean: Callable[[str], str], most: int) -> None:
        self._clean = clean
        self._most = most

    def __call__(self, text: str) -> str:
        return self._clean(text)[: self._most]


class OpenClipEncoder(TorchEncoder):
    """A model of open_clip, of any architecture.

    Args:
        model: evaluation is switched on, gradients off.
        tokenizer: texts, and optionally `context_length` -> int64 [n, context_length]; open_clip's own one is made to
            read no more of a text than can matter.
        name, preprocess, dim, dtype, device, description: see `TorchEncoder`.
    """

    def __init__(
        self,
        *,
        name: str,
        model: OpenClipModel,
        preprocess: Preprocess,
        tokenizer: Callable[..., torch.Tensor],
        dim: int,
        dtype: torch.dtype,
        device: torch.device,
        description: Callable[[], dict[str, str]],
    ) -> None:
        super().__init__(name=name, dim=dim, preprocess=preprocess, dtype=dtype, device=device, description=description)
        # Channels last: twice the speed of a convolutional tower on a CPU, and what tensor cores want.
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        if isinstance(tokenizer, open_clip.SimpleTokenizer) and not isinstance(tokenizer.clean_fn, _Beginning):
            # Behind the cleaning: blanks and entities such as &amp; take any number of characters before it.
            tokenizer.clean_fn = _Beginning(tokenizer.clean_fn, _CHARACTERS_A_TOKEN * tokenizer.context_length)
        self.tokenizer = tokenizer

    def token_batches(self, texts: Sequence[str], batch_size: int) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yields (positions in `texts`, ids [<= batch_size, length]) on the device, shortest texts first.

        Padding behind the longest text of a batch is cut off where the tower masks it: for a Hugging Face tower. Other
        towers read their whole context, and get it, in the order of the texts.
        """
        ids = self.tokenizer(list(texts))
        self.cut_texts += self.count_cut(texts, ids)
        lengths = torch.full((len(ids),), ids.shape[1])
        tower = self.model.text if isinstance(self.model, open_clip.CustomTextCLIP) else None
        if isinstance(tower, HFTextEncoder):
            places = torch.arange(1, ids.shape[1] + 1)
            lengths = ((ids != tower.config.pad_token_id) * places).amax(dim=1).clamp(min=1)
        for positions in length_batches(lengths.tolist(), batch_size):
            yield positions, ids[positions, : int(lengths[positions].max())].to(self.device)

    def count_cut(self, texts: Sequence[str], ids: torch.Tensor) -> int:
        """How many texts lost tokens to become these ids: those that change when the context has room for one more.

        open_clip's tokenizers do not say it themselves. Only texts that reach the end of the context are read again.
        """
        context = ids.shape[1]
        padding = self.tokenizer([""])[0]
        full = torch.nonzero(ids[:, -2] != padding[-2]).flatten().tolist()
        if not full:
            return 0
        longer = self.tokenizer([texts[place] for place in full], context_length=context + 1)
        return int((longer[:, :context] != ids[full]).any(dim=1).sum())

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `TorchEncoder.text_features`."""
        return self.model.encode_text(tokens)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `TorchEncoder.image_features`."""
        return self.model.encode_image(pixels.to(self.dtype))


def load(source: EncoderSource) -> OpenClipEncoder:
    """Loads a model of open_clip.

    Args:
        source: `model` is an architecture of open_clip, `local-dir:FOLDER` (see `openclip_folder`), or
            `hf-hub:OWNER/NAME`; `pretrained` the weights of an architecture, a tag of open_clip's hub or a file, and
            None for the other two.

    Raises:
        ValueError: a name, folder, file, tokenizer or hub that is not there; weights that do not fit.
    """
    model, pretrained, dtype = source.model, source.pretrained, torch_dtype(source.dtype)
    device = resolve_device(source.device)
    if model.startswith((_LOCAL_DIR, _HUB)) and pretrained is not None:
        raise ValueError(f"encoder.pretrained is {pretrained!r}, but {model} has its own weights; set it to null")
    if not model.startswith((_LOCAL_DIR, _HUB)):
        require_architecture(model, pretrained)
    overrides: dict[str, Any] = {}
    if model.startswith(_LOCAL_DIR):
        local_cfg, _ = read_config(Path(model.removeprefix(_LOCAL_DIR)))
        # Handed over as overrides, so that a folder that was moved still finds the text tower inside itself.
        overrides = {"text_cfg": local_cfg["text_cfg"], "vision_cfg": local_cfg["vision_cfg"]}
    try:
        with quick_hub(needed=not model.startswith(_LOCAL_DIR)):
            model_cfg = open_clip.get_model_config(model)
            network, preprocess = open_clip.create_model_from_pretrained(
                model, pretrained, precision=_PRECISION[source.dtype], device=device, **overrides
            )
            tokenizer = open_clip.get_tokenizer(model)
    except _LOADING_ERRORS as error:
        raise ValueError(_loading_problem(model, pretrained, error)) from error
    return OpenClipEncoder(
        name=source.name,
        model=network,
        preprocess=preprocess,
        tokenizer=tokenizer,
        dim=model_cfg["embed_dim"],
        dtype=dtype,
        device=device,
        description=partial(_describe, source, model_cfg, network, tokenizer),
    )


def embed_dim(model: str, pretrained: str | None) -> int:
    """Dimension of the shared space, read from the configuration; no weights are loaded.

    Args:
        model, pretrained: as in `load`.

    Raises:
        ValueError: it has no configuration here.
    """
    if model.startswith(_LOCAL_DIR):
        return int(read_config(Path(model.removeprefix(_LOCAL_DIR)))[0]["embed_dim"])
    if not model.startswith(_HUB):
        require_architecture(model, pretrained)
    try:
        with quick_hub(needed=model.startswith(_HUB)):
            return int(open_clip.get_model_config(model)["embed_dim"])
    except _LOADING_ERRORS as error:
        raise ValueError(_loading_problem(model, pretrained, error)) from error


def _describe(
    source: EncoderSource, model_cfg: dict[str, Any], network: OpenClipModel, tokenizer: Any
) -> dict[str, str]:
    model = source.model
    file = Path(model.removeprefix(_LOCAL_DIR)) / WEIGHTS
    from_file = model.startswith(_LOCAL_DIR) and file.is_file()
    return {
        "name": source.name,
        "kind": "open_clip",
        "dtype": source.dtype,
        # A folder may be moved without its vectors changing; its weights and configuration speak for it.
        "model": "local-dir" if model.startswith(_LOCAL_DIR) else model,
        "architecture": _architecture_sha256(model_cfg),
        "weights": file_sha256(file) if from_file else state_sha256(network.state_dict()),
        "preprocessing": json.dumps(network.visual.preprocess_cfg, sort_keys=True),
        "tokenizer": _tokenizer_sha256(tokenizer),
    }


def require_architecture(model: str, pretrained: str | None) -> None:
    """Holds that open_clip knows an architecture and weights for it, trained with its activation; nothing is loaded.

    Raises:
        ValueError: an unknown or missing name, with the nearest one, or weights that ask for another activation.
    """
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
    _require_activation(model, pretrained)


def _require_activation(model: str, pretrained: str) -> None:
    """Refuses weights under another activation than they were trained with; open_clip warns and goes on."""
    trained = open_clip.get_pretrained_cfg(model, pretrained)
    computes = bool(open_clip.get_model_config(model).get("quick_gelu"))
    if trained and bool(trained.get("quick_gelu")) != computes:
        twin = _twin(model)
        remedy = f"set encoder.model to {twin}" if twin in open_clip.list_models() else "choose another tag"
        raise ValueError(
            f"encoder.pretrained {pretrained!r} was trained {'without' if computes else 'with'} QuickGELU, and {model} "
            f"computes {'with' if computes else 'without'} it, so that its vectors would be wrong; {remedy}"
        )


def _twin(model: str) -> str:
    """The same architecture with the other activation."""
    suffix = "-quickgelu"
    return model.removesuffix(suffix) if model.endswith(suffix) else model + suffix


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
