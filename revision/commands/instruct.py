"""Stage 2, visual instruction tuning (ReVision v3, Sec. 5).

Projector and LLM learn to answer questions about pictures, given as embeddings of the dual encoder: of real pictures,
of texts in their place (the fully text-only setting), which the run's alignment moves as in stage 1, or some of each.
It starts from the model of stage 1; with `instruct.init=null` from a fresh projector, for comparison.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config, Modality

if TYPE_CHECKING:
    from revision.alignment import Alignment
    from revision.data.rows import Rows
    from revision.embeddings import EmbeddingStore


def run(config: Config) -> None:
    """1 arguments, 2 embeddings and alignment, 3 samples, 4 model, 5 train and save."""
    from revision.data.samples import KeptSamples, conversation_samples
    from revision.records import fingerprint, read_conversations
    from revision.stages import learning, starting
    from revision.training import ranks

    data = config.data
    if data.conversations is None or not data.conversation_sources:
        raise ValueError(
            f"corpus {data.name} has no data.conversations with data.conversation_sources; stage 2 needs both"
        )
    arguments = starting.arguments_of(config, "instruct")
    init = config.instruct.init
    folder = None if init is None else starting.model_folder(config, init, wanted_by="instruct")
    rows, lineage = _rows(config, folder)
    with ranks.main_first():  # the others map its file
        content = fingerprint(data.conversations, data.conversation_fields, whole=True)
        kept = starting.kept_at(config, "conversations", content, [store.state() for store in rows.stores])
        conversations = read_conversations(data.conversations, data.conversation_fields)
        samples = KeptSamples.at(kept, conversation_samples(conversations, rows))
    model, processor = starting.model_of(config, "instruct", rows.stores[0].dim, arguments)
    learning.train_and_save(
        config,
        "instruct",
        arguments=arguments,
        model=model,
        processor=processor,
        rows=rows,
        samples=samples,
        alignment=lineage,
        aligned_by=rows.alignment,
    )


def _rows(config: Config, folder: Path | None) -> tuple[Rows, dict[str, Any] | None]:
    """Embeddings as the model reads them, and the lineage that it keeps.

    folder: of the model that the stage starts from.
    """
    from revision import building
    from revision.assembly import open_sources
    from revision.data.rows import TEXT, Rows
    from revision.fields import sources_of_kind
    from revision.stages import starting

    sources = config.data.conversation_sources
    learned = None if folder is None else building.read_config(folder).alignment
    if not sources_of_kind(config, Modality.text):
        stores = open_sources(config, sources)
        _require_kinds(config, stores)
        # Where stage 1 learned from an alignment that moves images too, stage 2 reads moved images, and hands it on.
        moved_by = None if folder is None else building.read_image_alignment(folder)
        return Rows(stores, embed_dim=stores[0].dim, alignment=moved_by), learned
    texts, *stores = open_sources(config, [config.data.texts, *sources])
    _require_kinds(config, stores)
    alignment = starting.alignment_of(config, "instruct", texts)
    if folder is not None:
        _require_learned(folder, learned, alignment)
    for store in stores:
        if store.manifest.encoder != texts.manifest.encoder:
            raise ValueError(
                f"the alignment was fitted on {texts.path}, and {store.path} comes from another encoder; embed both "
                "with one"
            )
    noise: dict[str, Any] = {"noise_std": config.instruct.noise_std, "noisy": (TEXT,), "seed": config.seed}
    return Rows(stores, embed_dim=texts.dim, alignment=alignment, **noise), starting.lineage_of(alignment)


def _require_kinds(config: Config, stores: list[EmbeddingStore]) -> None:
    """Whether a row is moved depends on what its store holds: configuration and store have to say the same."""
    for name, store in zip(config.data.conversation_sources, stores, strict=True):
        said, holds = config.data.sources[name].kind.value, store.manifest.kind
        if said != holds:
            raise ValueError(
                f"data.sources.{name}.kind = {said}, but the store {store.path} holds embeddings of kind {holds}; set "
                "it to that, or embed the source anew"
            )


def _require_learned(folder: Path, learned: dict[str, Any] | None, alignment: Alignment) -> None:
    """Refuses texts that lie elsewhere than those, or the pictures, that the model learned from in the stage before."""
    from revision.stages.starting import lineage_of

    if learned is None:
        if alignment.moves_images:
            raise ValueError(
                f"the model in {folder} learned from pictures as they are, but {alignment.method} would move them; "
                "take an alignment that leaves pictures alone, or pretrain on texts with this one"
            )
        return
    ours = lineage_of(alignment)
    different = [name for name in learned if name in ours and learned[name] != ours[name]]
    if different:
        shown = "; ".join(f"{name} was {learned[name]}, is now {ours[name]}" for name in different)
        raise ValueError(
            f"the model in {folder} learned from texts of another alignment than the one that would move the texts of "
            f"stage 2 ({shown}); align with the same settings and stores, or pretrain with this alignment first"
        )
