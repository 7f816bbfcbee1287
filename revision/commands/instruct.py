"""Stage 2, visual instruction tuning (ReVision v3, Sec. 5).

Projector and LLM learn to answer questions about real pictures, given as embeddings of the dual encoder. It starts from
the model of stage 1; with `instruct.init=null` from a fresh projector, for comparison.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from revision.schema import Config

if TYPE_CHECKING:
    from revision.embeddings import EmbeddingStore
    from revision.model import RevisionForConditionalGeneration, RevisionProcessor


def run(config: Config) -> None:
    """1 arguments, 2 embeddings, 3 model, 4 data set, 5 train, 6 save."""
    import torch

    from revision import building, rundir, training
    from revision.dataset import ConversationDataset, Rows, conversation_samples
    from revision.records import read_conversations

    stage = config.instruct
    if config.data.conversations is None or not config.data.conversation_sources:
        raise ValueError(
            f"corpus {config.data.name} has no data.conversations with data.conversation_sources; stage 2 needs both"
        )
    arguments = training.build_arguments(
        {**config.trainer, **stage.trainer},
        output=rundir.folder(config, "instruct"),
        seed=config.seed,
        tracker=config.tracker.value,
        run_name=f"{config.name}/instruct",
    )
    stores = _stores(config)
    rows = Rows(stores, embed_dim=stores[0].dim)
    samples = conversation_samples(list(read_conversations(Path(config.data.conversations))), rows)
    model, processor = _model(config, stores[0].dim, frozen_in_bf16=arguments.bf16 and "llm" not in stage.train)
    output = rundir.start(config, "instruct")
    dataset = ConversationDataset(
        samples, rows, processor, max_length=stage.max_length, limit=stage.limit, seed=config.seed
    )
    summary = training.train(
        model=model,
        processor=processor,
        dataset=dataset,
        parts=stage.train,
        arguments=arguments,
        output=output,
        processes=config.engine.processes,
        identity=rundir.fingerprint(config, "instruct"),
    )
    if rundir.is_main_process():
        building.save_model(
            model,
            processor,
            output / "model",
            alignment=model.config.alignment,
            dtype=torch.bfloat16 if arguments.bf16 else None,
        )
    rundir.finish(config, "instruct", **summary)
    training.conclude(arguments)


def _stores(config: Config) -> list[EmbeddingStore]:
    from revision.assembly import open_sources

    return open_sources(config, config.data.conversation_sources)


def _model(
    config: Config, dim: int, *, frozen_in_bf16: bool
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """The model of stage 1, one from a folder, or a fresh projector."""
    import torch

    from revision import building, rundir
    from revision.assembly import model_shape, template_file
    from revision.progress import say

    dtype = torch.bfloat16 if frozen_in_bf16 else torch.float32
    shape = model_shape(config, dim)
    init = config.instruct.init
    if init is None:
        say(f"starting from a fresh projector in front of {config.model.llm}")
        return building.build_model(
            config.model.llm, chat_template=template_file(config), dtype=dtype, seed=config.seed, **shape
        )
    folder = rundir.require(config, init, wanted_by="instruct") / "model" if init == "pretrain" else Path(init)
    say(f"starting from {folder}")
    model, processor = building.read_model(folder, dtype=dtype)
    building.require_shape(model, folder, shape)
    return model, processor
