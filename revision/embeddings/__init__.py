"""The embedding store: unit rows in fp16 on disk, written once, read through memory maps by everything downstream."""

from revision.embeddings.layout import Manifest, Rejected, Shard, hash_id
from revision.embeddings.store import EmbeddingStore
from revision.embeddings.writer import StoreWriter

__all__ = ["EmbeddingStore", "Manifest", "Rejected", "Shard", "StoreWriter", "hash_id"]
