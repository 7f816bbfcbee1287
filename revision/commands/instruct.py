"""Stage 2, visual instruction tuning (ReVision v3, Sec. 5).

Projector and LLM learn to answer questions about real pictures, given as embeddings of the dual encoder. It starts from
the model of stage 1; with `instruct.init=null` from a fresh projector, for comparison.
"""

from __future__ import annotations

from revision.schema import Config


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
    init = config.instruct.init
    folder = None if init is None else stages.model_folder(config, init, wanted_by="instruct")
    # Where stage 1 learned from an alignment that moves images too, stage 2 reads moved images, and hands it on.
    moved_by = None if folder is None else building.read_image_alignment(folder)
    stores = open_sources(config, data.conversation_sources)
    rows = Rows(stores, embed_dim=stores[0].dim, alignment=None if moved_by is None else ImageSide(moved_by))
    conversations = read_conversations(data.conversations, data.conversation_fields)
    samples = conversation_samples(list(conversations), rows)
    model, processor = stages.model_of(config, "instruct", stores[0].dim, arguments)
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
