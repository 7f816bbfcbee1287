"""Text embeddings that stand in for images: align them, train a multimodal LLM on them, and measure what it sees.

    from revision import ReAlign
    aligned = ReAlign().fit(text, image).apply(text)

The names below load their modules when they are first used, so that `import revision` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revision.alignment import (
        C3,
        Alignment,
        Blockwise,
        Diagonal,
        GaussianOT,
        MeanShift,
        NoAlignment,
        Quantile,
        ReAlign,
        ResidualNoise,
        ShrunkOT,
        Unicorn,
        build_alignment,
        load_alignment,
    )
    from revision.embeddings import EmbeddingStore
    from revision.encoders import load_encoder
    from revision.model.configuration_revision import RevisionConfig
    from revision.model.modeling_revision import RevisionForConditionalGeneration
    from revision.model.processing_revision import RevisionProcessor

__version__ = "0.1.0"

_HOMES = {
    "Alignment": "revision.alignment",
    "Blockwise": "revision.alignment",
    "C3": "revision.alignment",
    "Diagonal": "revision.alignment",
    "EmbeddingStore": "revision.embeddings",
    "GaussianOT": "revision.alignment",
    "MeanShift": "revision.alignment",
    "NoAlignment": "revision.alignment",
    "Quantile": "revision.alignment",
    "ReAlign": "revision.alignment",
    "ResidualNoise": "revision.alignment",
    "RevisionConfig": "revision.model.configuration_revision",
    "RevisionForConditionalGeneration": "revision.model.modeling_revision",
    "RevisionProcessor": "revision.model.processing_revision",
    "ShrunkOT": "revision.alignment",
    "Unicorn": "revision.alignment",
    "build_alignment": "revision.alignment",
    "load_alignment": "revision.alignment",
    "load_encoder": "revision.encoders",
}

__all__ = [
    "C3",
    "Alignment",
    "Blockwise",
    "Diagonal",
    "EmbeddingStore",
    "GaussianOT",
    "MeanShift",
    "NoAlignment",
    "Quantile",
    "ReAlign",
    "ResidualNoise",
    "RevisionConfig",
    "RevisionForConditionalGeneration",
    "RevisionProcessor",
    "ShrunkOT",
    "Unicorn",
    "__version__",
    "build_alignment",
    "load_alignment",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
