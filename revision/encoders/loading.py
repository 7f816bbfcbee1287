"""From a kind and its settings to a loaded dual encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from revision.encoders.base import DualEncoder, EncoderLoader, EncoderSource
from revision.encoders.kinds import BUILT_IN, added, check_kind

# Modules with the loader `load` of each of our kinds; imported when asked for, since the libraries behind are heavy.
_MODULES = {kind: f"revision.encoders.{kind}" for kind in BUILT_IN} | {
    "open_clip": "revision.encoders.openclip",
    "transformers": "revision.encoders.huggingface",
}

logger = logging.getLogger(__name__)


def load_encoder(
    *,
    kind: str,
    model: str,
    dtype: str,
    device: str,
    name: str,
    pretrained: str | None = None,
    text_model: str | None = None,
    max_length: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> DualEncoder:
    """Loads a dual encoder for inference.

    Args:
        kind: "open_clip", "transformers", "llm2clip", or the name of an entry point in `revision.encoders`.
        model, dtype, device, name, pretrained, text_model, max_length, options: see `EncoderSource`; which of the last
            four a kind takes, `kinds.BUILT_IN` says.

    Raises:
        ValueError: a kind, name, folder, file, tokenizer or hub that is not there; weights that do not fit; a package
            that cannot be imported or gives no encoder.
    """
    extra = {"pretrained": pretrained, "text_model": text_model, "max_length": max_length}
    check_kind(kind, {**extra, "options": options})
    source = EncoderSource(
        name=name, model=model, pretrained=pretrained, text_model=text_model, max_length=max_length, dtype=dtype,
        device=device, options=dict(options or {}),
    )  # fmt: skip
    if kind in BUILT_IN:
        encoder: DualEncoder = import_module(_MODULES[kind]).load(source)
    else:
        made: Any = _loader_of(kind)(source)
        if not isinstance(made, DualEncoder):
            raise ValueError(
                f"encoder.kind {kind!r} gives a {type(made).__name__}, which is no DualEncoder; its package must give "
                "one with all attributes and methods of revision.encoders.DualEncoder"
            )
        encoder = made
        _require_description(kind, encoder.describe())
    logger.info("encoder %s: %s, %d dimensions", name, model, encoder.dim)
    return encoder


def embed_dim(*, kind: str, model: str, pretrained: str | None = None) -> int:
    """Dimension of an encoder's space, without its weights.

    Args:
        kind, model, pretrained: as in `load_encoder`.

    Raises:
        ValueError: a kind whose models do not say it in their configuration, or a model that is not there.
    """
    if kind != "open_clip":
        raise ValueError(
            f"encoder.kind = {kind}: its dimension is known only once it is loaded; embed a source first, whose "
            "store says it, or state plan.embed_dim"
        )
    dim: int = import_module(_MODULES[kind]).embed_dim(model, pretrained)
    return dim


def _loader_of(kind: str) -> EncoderLoader:
    point = added()[kind]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"encoder.kind {kind!r} of {point.value} cannot be imported ({error}); install what that package needs"
        ) from error


def _require_description(kind: str, description: Mapping[str, str]) -> None:
    """Without weights in its description, the stores of two models would pass for those of one."""
    if not isinstance(description, dict) or not description.get("weights") or not description.get("name"):
        raise ValueError(
            f"encoder.kind {kind!r} describes itself as {description}; its package must give a mapping of strings with "
            "`name`, and `weights` that change with the model"
        )
