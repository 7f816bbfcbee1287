"""A configuration of one text source and one image source, for the tests of `align` and `gap`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revision.schema import Config, DataConfig, EncoderConfig, Modality, SourceConfig


def two_sources(root: Path, text: Path, image: Path, *, foreign: bool, pairs: str | None, **sections: Any) -> Config:
    """`texts` and `statistics`, below a root that holds runs and stores.

    Args:
        root: an empty folder.
        text, image: files of records, or existing embeddings where `foreign`.
        foreign: whether they are embeddings.
        pairs: file of `data.pairs`.
        sections: fields of `Config`.
    """
    field = "embeddings" if foreign else "records"
    names: dict[str, dict[str, Any]] = {"texts": {field: str(text)}, "statistics": {field: str(image)}}
    sources = {
        "texts": SourceConfig(Modality.text, **names["texts"]),
        "statistics": SourceConfig(Modality.image, **names["statistics"]),
    }
    data = DataConfig(name="tiny", folder=str(root), stores=str(root / "stores"), sources=sources, pairs=pairs)
    encoder = EncoderConfig(name="b32" if foreign else "tiny", model="none")
    return Config(name="test", runs=str(root / "runs"), data=data, encoder=encoder, **sections)
