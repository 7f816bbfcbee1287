"""Stage 1, modality-substitution pretraining (ReVision v3, Sec. 5).

A projector in front of a frozen LLM reads aligned text embeddings as if they were pictures and learns to say the text.
It sees no image. With `pretrain.input=pairs` it reads real image-caption pairs instead: the upper bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config, Modality, StageInput

if TYPE_CHECKING:
    from revision.alignment import Alignment
    from revision.data.rows import Rows
    from revision.data.samples import Samples


def run(config: Config) -> None:
    """1 arguments, 2 embeddings and alignment, 3 samples, 4 model, 5 train and save."""
    from revision.stages import learning, starting
    from revision.training import ranks

    arguments = starting.arguments_of(config, "pretrain")
    rows, alignment = _rows(config)
    with ranks.main_first():  # the others map its file
        samples = _samples(config, rows)
    model, processor = starting.model_of(config, "pretrain", rows.stores[0].dim, arguments)
    learning.train_and_save(
        config,
        "pretrain",
        arguments=arguments,
        model=model,
        processor=processor,
        rows=rows,
        samples=samples,
        alignment=None if alignment is None else starting.lineage_of(alignment),
        aligned_by=alignment,
    )


def _rows(config: Config) -> tuple[Rows, Alignment | None]:
    """Embeddings as the projector reads them, and their alignment."""
    from revision.assembly import open_sources
    from revision.data.rows import Rows
    from revision.fields import sources_of_kind
    from revision.stages import starting

    noise: dict[str, Any] = {"noise_std": config.pretrain.noise_std, "seed": config.seed}
    if config.pretrain.input is StageInput.pairs:
        stores = open_sources(config, sources_of_kind(config, Modality.image))  # a caption's own row is no picture
        return Rows(stores, embed_dim=stores[0].dim, **noise), None
    (texts,) = open_sources(config, [config.data.texts])
    alignment = starting.alignment_of(config, "pretrain", texts)
    return Rows([texts], embed_dim=texts.dim, alignment=alignment, **noise), alignment


def _samples(config: Config, rows: Rows) -> Samples:
    from revision.data.samples import KeptSamples, TextSamples, pair_samples
    from revision.records import fingerprint, read_pairs
    from revision.stages import starting

    prompts, states = config.pretrain.prompts, [store.state() for store in rows.stores]
    if config.pretrain.input is StageInput.text:
        return TextSamples(rows.stores[0], prompts, config.seed, starting.kept_at(config, "texts", states))
    assert config.data.pairs is not None, "the rules between fields have seen to it"
    pairs = Path(config.data.pairs)
    content = [fingerprint(pairs, whole=True), states, prompts, config.seed]
    samples = pair_samples(read_pairs(pairs), rows, prompts, config.seed)
    return KeptSamples.at(starting.kept_at(config, "pairs", content), samples)
