"""Embeddings that another program wrote, read where they lie; `docs/formats.md` lists the formats."""

from revision.embeddings.foreign.store import ForeignStore

__all__ = ["ForeignStore"]
