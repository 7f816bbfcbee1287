"""Fingerprints of what a stage reads, so that a resumed run notices when it has changed under the same name."""

from __future__ import annotations

import hashlib
import json

from revision.data.rows import Rows
from revision.data.samples import KeptSamples, Sample, Samples
from revision.model import RevisionProcessor


def contents(rows: Rows, samples: Samples, processor: RevisionProcessor) -> dict[str, str]:
    """What a run depends on besides its settings, by a name for the reader.

    Stores are known by the checksums in their manifests, which costs nothing; records and tokenizer are hashed.
    """
    found = {f"content of {store.path}": store.fingerprint() for store in rows.stores}
    if rows.alignment is not None:
        found["content of the alignment"] = rows.alignment.fingerprint()
    if isinstance(samples, KeptSamples):
        found["content of the records"] = samples.fingerprint()
    elif isinstance(samples, list):  # others are computed from the stores
        found["content of the records"] = _records(samples)
    known = processor.tokenizer
    vocabulary = known.backend_tokenizer.to_str() if known.is_fast else json.dumps(sorted(known.get_vocab().items()))
    found["tokenizer"] = _sha256(vocabulary)
    found["chat template"] = _sha256(str(processor.chat_template))
    return found


def _records(samples: list[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        turns = [[message.role, message.content] for message in sample.messages]
        digest.update(json.dumps([str(sample.name), sample.row, turns]).encode())
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
