"""What a training stage starts from: its arguments, the alignment of its rows, and the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.fields import stage_of, trainer_of
from revision.schema import MODEL_STEPS, Config

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from revision.alignment import Alignment
    from revision.embeddings import EmbeddingStore
    from revision.model import RevisionForConditionalGeneration, RevisionProcessor

_LINES = 1  # version of what is kept: higher where the same records make other samples
ADAPTER = "adapter"  # in `train`, and the folder of an adapter that is kept


def arguments_of(config: Config, command: str) -> TrainingArguments:
    """The training arguments of `pretrain` or `instruct`.

    Raises:
        ValueError: a name or a value that transformers does not know.
    """
    from revision import precision, training
    from revision.runs import rundir

    mapping = trainer_of(config, command)
    arguments = training.build_arguments(
        mapping,
        output=rundir.folder(config, command),
        seed=config.seed,
        tracker=config.tracker.value,
        run_name=f"{config.name}/{command}",
        engine=config.engine.kind.value,
        engine_options=config.engine.options,
    )
    if remark := precision.remark(mapping.get("bf16"), arguments.device):
        say(remark)
    return arguments


def model_folder(config: Config, model: str, wanted_by: str) -> Path:
    """Where a model lies that is named by a stage of this run or by its folder.

    Raises:
        ValueError: the stage has not finished with the settings asked for now.
    """
    from revision.runs import rundir

    return rundir.require(config, model, wanted_by) / "model" if model in MODEL_STEPS else Path(model)


def alignment_of(config: Config, command: str, texts: EmbeddingStore) -> Alignment:
    """The alignment of the run, by which a stage moves the rows of text stores.

    texts: the store of `data.texts` as it is now.

    Raises:
        ValueError: `align` has not finished with the settings asked for now, or was fitted on another text store.
    """
    from revision.alignment import load_alignment
    from revision.runs import rundir

    folder = rundir.require(config, "align", wanted_by=command)
    alignment = load_alignment(folder)
    if alignment.statistics.text_fingerprint != texts.fingerprint():
        raise ValueError(
            f"the alignment in {folder} was fitted on another text store than {texts.path} is now; run "
            "`revision align` again"
        )
    return alignment


def lineage_of(alignment: Alignment) -> dict[str, Any]:
    """What a model keeps of the alignment it learned from: method, settings but the seed, and fingerprints of the fit.

    The map itself is not among it: fitted once more on other hardware it differs in the last bits.
    """
    known = alignment.statistics
    return {
        "method": alignment.method,
        "parameters": {name: value for name, value in alignment.parameters().items() if name != "seed"},
        "text": known.text_fingerprint,
        "image": known.image_fingerprint,
    }


def model_of(
    config: Config, command: str, dim: int, arguments: TrainingArguments
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """The model that the stage starts from, of an earlier stage or from a folder, or a fresh projector.

    Its loss is made sure to be that of the LLM's own logits, where the weights are there to ask.

    dim: of the embeddings.

    Raises:
        ValueError: it cannot be read, or is of another shape than the configuration asks for.
    """
    import torch

    from revision import building
    from revision.assembly import model_shape, template_file
    from revision.training.agreement import require_own_logits

    stage, llm = stage_of(config, command), config.model.llm
    frozen = {"projector", ADAPTER}.issuperset(stage.train)  # then half the memory will do
    dtype = torch.bfloat16 if arguments.bf16 and frozen else torch.float32
    shape = model_shape(config, dim)
    if stage.init is None:
        say(f"starting from a fresh projector in front of {llm}")
        model, processor = building.build_model(
            llm, chat_template=template_file(config), dtype=dtype, seed=config.seed, **shape
        )
    else:
        folder = model_folder(config, stage.init, command)
        say(f"starting from {folder}")
        model, processor = building.read_model(folder, dtype=dtype)
        building.require_shape(model, folder, shape)
        if not building.require_llm(model, folder, llm):
            say(f"{llm} cannot be read here, so its shape was not compared with that of the LLM in {folder}")
    if not require_own_logits(model):
        say("ZeRO-3 holds the weights in pieces, so the loss was not compared with the LLM's own logits")
    return model, processor


def kept_at(config: Config, *content: object) -> Path:
    """Where what is read anew at each start is kept as lines that all processes map.

    content: all that the lines depend on, as JSON takes it; the file is named after it.
    """
    name = hashlib.sha256(json.dumps([_LINES, *content], sort_keys=True).encode()).hexdigest()[:32]
    return Path(config.runs) / ".samples" / name


def say(line: str) -> None:
    """Once, whatever the number of processes."""
    from revision import progress
    from revision.runs import rundir

    if rundir.is_main_process():
        progress.say(line)
