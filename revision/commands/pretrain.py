"""Stage 1, modality-substitution pretraining (ReVision v3, Sec. 5).

A projector in front of a frozen LLM reads aligned text embeddings as if they were pictures and learns to say the text.
It sees no image. With `pretrain.input=pairs` it reads real image-caption pairs instead: the upper bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config, StageInput

if TYPE_CHECKING:
    from revision.dataset import Rows, Sample


def run(config: Config) -> None:
    """1 arguments, 2 embeddings and alignment, 3 model, 4 data set, 5 train, 6 save."""
    import torch

    from revision import building, rundir, training
    from revision.assembly import model_shape, template_file
    from revision.dataset import ConversationDataset

    stage = config.pretrain
    output = rundir.start(config, "pretrain")
    arguments = training.build_arguments(
        {**config.trainer, **stage.trainer}, output=output, seed=config.seed,
        tracker=config.tracker.value, run_name=f"{config.name}/pretrain",
    )  # fmt: skip
    dim = _stores(config)[0].dim
    rows, alignment = _rows(config, dim)
    trains_llm = "llm" in stage.train
    model, processor = building.build_model(
        config.model.llm,
        chat_template=template_file(config),
        dtype=torch.bfloat16 if arguments.bf16 and not trains_llm else torch.float32,
        seed=config.seed,
        **model_shape(config, dim),
    )
    dataset = ConversationDataset(
        _samples(config, rows), rows, processor, max_length=stage.max_length, limit=stage.limit, seed=config.seed
    )
    summary = training.train(
        model=model, tokenizer=processor.tokenizer, dataset=dataset, parts=stage.train, arguments=arguments,
        output=output, processes=config.engine.processes,
    )  # fmt: skip
    if rundir.is_main_process():
        building.save_model(model, processor, output / "model", alignment=alignment)
    rundir.finish(config, "pretrain", **summary)


def _stores(config: Config) -> list[Any]:
    from revision.embeddings import EmbeddingStore

    pairs = config.pretrain.input is StageInput.pairs
    sources = config.data.conversation_sources if pairs else [config.data.texts]
    return [EmbeddingStore.open(Path(config.data.stores) / config.encoder.name / source) for source in sources]


def _rows(config: Config, dim: int) -> tuple[Rows, dict[str, Any] | None]:
    """Embeddings as the projector reads them, and the lineage of their alignment."""
    from revision import rundir
    from revision.alignment import load_alignment
    from revision.dataset import Rows

    stores = _stores(config)
    if config.pretrain.input is StageInput.pairs:
        return Rows(stores, embed_dim=dim), None
    folder = rundir.require(config, "align", wanted_by="pretrain")
    alignment = load_alignment(folder)
    statistics, used = alignment.statistics, stores[0].fingerprint()
    if statistics.text_fingerprint != used:
        raise ValueError(
            f"the alignment in {folder} was fitted on another text store than {stores[0].path}; run align again"
        )
    lineage = {"method": alignment.method, "text": used, "image": statistics.image_fingerprint}
    return Rows(stores, embed_dim=dim, alignment=alignment), lineage


def _samples(config: Config, rows: Rows) -> Any:
    from revision.dataset import TextSamples, pair_samples
    from revision.records import read_pairs

    if config.pretrain.input is StageInput.text:
        return TextSamples(rows.stores[0], config.pretrain.prompts, config.seed)
    if config.data.pairs is None:
        raise ValueError("pretrain.input=pairs needs data.pairs, records of (id, image, text); it is null")
    pairs: list[Any] = list(read_pairs(Path(config.data.pairs), None))
    samples: list[Sample] = pair_samples(pairs, rows, config.pretrain.prompts, config.seed)
    return samples
