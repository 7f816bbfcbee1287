"""From the configuration to what commands share: embeddings of a source, the encoder, the model's plain arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config
from revision.shipped import shipped

if TYPE_CHECKING:
    from revision.embeddings import EmbeddingStore
    from revision.encoders import DualEncoder


def store_path(config: Config, source: str) -> Path:
    """Where the embeddings of a source lie: its store, or the foreign files that it names in place of records.

    Raises:
        ValueError: foreign files that are not there.
    """
    from revision.embeddings.foreign.finding import is_there

    foreign = config.data.sources[source].embeddings if source in config.data.sources else None
    if foreign is None:
        return Path(config.data.stores) / config.encoder.name / source
    path = Path(foreign)
    if not is_there(path):
        raise ValueError(f"data.sources.{source}.embeddings = {foreign}: there is nothing there; give existing files")
    return path


def open_sources(config: Config, sources: Sequence[str]) -> list[EmbeddingStore]:
    """The embeddings of some sources, all of one encoder, whatever files they lie in.

    Raises:
        ValueError: a store is missing or unfinished, or foreign files cannot be read.
    """
    from revision.embeddings.opening import open_stores

    places = [(store_path(config, source), _kind(config, source)) for source in sources]
    return open_stores(places, encoder=config.encoder.name)


def open_sides(config: Config) -> tuple[EmbeddingStore, EmbeddingStore]:
    """The embeddings that the alignment is fitted on: of texts, and of pictures that have nothing to do with them.

    Raises:
        ValueError: one is missing or unfinished, or they cannot be two sides of one encoder.
    """
    from revision.alignment import stores

    text, image = (store_path(config, source) for source in (config.data.texts, config.data.statistics))
    return stores.open_sides(text, image, encoder=config.encoder.name)


def _kind(config: Config, source: str) -> str:
    return config.data.sources[source].kind.value if source in config.data.sources else "text"


def load_encoder(config: Config, device: str) -> DualEncoder:
    """The configured encoder on a device.

    Raises:
        ValueError: it is not there, or cannot be loaded.
    """
    from revision.encoders import load_encoder

    settings = config.encoder
    return load_encoder(
        kind=settings.kind, model=settings.model, pretrained=settings.pretrained, text_model=settings.text_model,
        max_length=settings.max_length, options=settings.options, dtype=settings.dtype.value, device=device,
        name=settings.name,
    )  # fmt: skip


def model_shape(config: Config, dim: int) -> dict[str, Any]:
    """The shape of projector and visual tokens that the config asks for."""
    projector = config.model.projector
    return {
        "embed_dim": dim,
        "num_visual_tokens": config.model.num_visual_tokens,
        "visual_tokens": config.model.visual_tokens.value,
        "projector_depth": projector.depth,
        "projector_hidden_size": projector.hidden_size,
        "input_scale": projector.input_scale,
        "output_norm": projector.output_norm,
        "table_multiple": config.model.table_multiple,
    }


def template_file(config: Config) -> Path | None:
    """The chat template that the config names, in the working folder or shipped with the package."""
    if config.model.chat_template is None:
        return None
    named = Path(config.model.chat_template)
    return named if named.is_file() else shipped(config.model.chat_template)
