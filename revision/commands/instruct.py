"""Stage 2, visual instruction tuning (ReVision v3, Sec. 5).

Projector and LLM learn to answer questions about real pictures, given as embeddings of the dual encoder. It starts from
the model of stage 1; with `instruct.init=null` from a fresh projector, for comparison.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from revision.schema import Config

if TYPE_CHECKING:
    from revision.model import RevisionForConditionalGeneration, RevisionProcessor


def run(config: Config) -> None:
    """1 arguments, 2 embeddings, 3 samples, 4 model, 5 train and save."""
    from revision import building, stages
    from revision.alignment import ImageSide
    from revision.assembly import open_sources
    from revision.dataset import Rows, conversation_samples
    from revision.records import read_conversations

    data = config.data
    if data.conversations is None or not data.conversation_sources:
        raise ValueError(
            f"corpus {data.name} has no data.conversations with data.conversation_sources; stage 2 needs both"
        )
    arguments = stages.arguments_of(config, "instruct")
    folder = _start(config)
    # Where stage 1 learned from an alignment that moves images too, stage 2 reads moved images, and hands it on.
    moved_by = None if folder is None else building.read_image_alignment(folder)
    stores = open_sources(config, data.conversation_sources)
    rows = Rows(stores, embed_dim=stores[0].dim, alignment=None if moved_by is None else ImageSide(moved_by))
    conversations = read_conversations(data.conversations, data.conversation_fields)
    samples = conversation_samples(list(conversations), rows)
    in_bf16 = arguments.bf16 and "llm" not in config.instruct.train
    model, processor = _model(config, folder, stores[0].dim, frozen_in_bf16=in_bf16)
    stages.train_and_save(
        config,
        "instruct",
        arguments=arguments,
        model=model,
        processor=processor,
        rows=rows,
        samples=samples,
        alignment=model.config.alignment,
        aligned_by=moved_by,
    )


def _start(config: Config) -> Path | None:
    """Folder of the model of stage 1, or of another one that was named; None: a fresh projector."""
    from revision import rundir

    init = config.instruct.init
    if init is None:
        return None
    return rundir.require(config, init, wanted_by="instruct") / "model" if init == "pretrain" else Path(init)


def _model(
    config: Config, folder: Path | None, dim: int, *, frozen_in_bf16: bool
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """The model in a folder, or a fresh projector."""
    import torch

    from revision import building
    from revision.assembly import model_shape, template_file
    from revision.progress import say

    dtype = torch.bfloat16 if frozen_in_bf16 else torch.float32
    shape = model_shape(config, dim)
    if folder is None:
        say(f"starting from a fresh projector in front of {config.model.llm}")
        return building.build_model(
            config.model.llm, chat_template=template_file(config), dtype=dtype, seed=config.seed, **shape
        )
    say(f"starting from {folder}")
    model, processor = building.read_model(folder, dtype=dtype)
    building.require_shape(model, folder, shape)
    return model, processor
