"""Dual encoders: texts or pictures to unit vectors of one shared space, one file a family.

The names below load their modules when they are first used: the rules of the configuration ask this room which kinds of
encoders there are, and must answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revision.encoders.base import DualEncoder, EncoderSource, TorchEncoder, resolve_device
    from revision.encoders.loading import embed_dim, load_encoder
    from revision.encoders.openclip import OpenClipEncoder

_HOMES = {
    "DualEncoder": "revision.encoders.base",
    "EncoderSource": "revision.encoders.base",
    "OpenClipEncoder": "revision.encoders.openclip",
    "TorchEncoder": "revision.encoders.base",
    "embed_dim": "revision.encoders.loading",
    "load_encoder": "revision.encoders.loading",
    "resolve_device": "revision.encoders.base",
}

__all__ = [
    "DualEncoder",
    "EncoderSource",
    "OpenClipEncoder",
    "TorchEncoder",
    "embed_dim",
    "load_encoder",
    "resolve_device",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
