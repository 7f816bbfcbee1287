"""The multimodal LLM on disk: built fresh, read back, checked against what a stage expects, and saved whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from revision import model_card
from revision.conversation import build_processor, end_of_turn, read_template
from revision.model import RevisionForConditionalGeneration, RevisionProcessor

# Fields of RevisionConfig that decide the shapes and the meaning of the projector, by the config field that sets them.
_SHAPE = {
    "embed_dim": "the encoder",
    "num_visual_tokens": "model.num_visual_tokens",
    "visual_tokens": "model.visual_tokens",
    "projector_depth": "model.projector.depth",
    "projector_hidden_size": "model.projector.hidden_size",
    "input_scale": "model.projector.input_scale",
    "output_norm": "model.projector.output_norm",
}


def build_model(
    llm: str, *, chat_template: Path | None, dtype: torch.dtype, seed: int, **shape: Any
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """A pretrained LLM behind a fresh projector, and its processor.

    Args:
        llm: folder or hub name.
        chat_template: Jinja file; None: the LLM's own template, marked by us where it marks no answer.
        dtype: of the LLM.
        seed: of the projector.
        **shape: `embed_dim`, `num_visual_tokens`, `visual_tokens` and the projector's fields, as
            `RevisionForConditionalGeneration.from_language_model` takes them.

    Raises:
        ValueError: the LLM cannot be read, or its template cannot be marked.
    """
    template = None if chat_template is None else read_template(chat_template)
    model, tokenizer = RevisionForConditionalGeneration.from_language_model(llm, dtype=dtype, seed=seed, **shape)
    processor = build_processor(tokenizer, num_visual_tokens=shape["num_visual_tokens"], chat_template=template)
    generation = model.generation_config
    known = generation.eos_token_id
    stops = set(known if isinstance(known, list) else [] if known is None else [known])
    generation.eos_token_id = sorted(stops | {end_of_turn(processor)})  # an answer ends where training ends it
    generation.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def read_model(
    folder: Path, *, dtype: torch.dtype | None = None
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """A saved model and its processor.

    Args:
        folder: what `save_model` wrote.
        dtype: of the LLM; None: as it was saved.

    Raises:
        ValueError: the folder is no model of this package, or a weight is missing from it.
    """
    try:
        loaded: Any = RevisionForConditionalGeneration.from_pretrained(
            folder, dtype="auto" if dtype is None else dtype, output_loading_info=True
        )
        processor = RevisionProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{folder} cannot be read as a trained model ({reason}); train it again") from error
    model, info = loaded
    if info["missing_keys"] or info["unexpected_keys"]:
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        raise ValueError(f"{folder} lacks or has too many of the weights {', '.join(wrong[:3])}; train it again")
    return model, processor


def require_shape(model: RevisionForConditionalGeneration, folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuses a model whose projector is another than the one asked for.

    Args:
        model: read from `folder`.
        wanted: as `build_model` takes it; None stands for the same default as there.

    Raises:
        ValueError: names the field and both values.
    """
    config = model.config
    defaults = {"projector_hidden_size": config.text_config.hidden_size, "input_scale": wanted["embed_dim"] ** 0.5}
    has = {name: getattr(config, name) for name in _SHAPE}
    for name, asked in wanted.items():
        value = defaults[name] if asked is None else asked
        if has[name] != value:
            raise ValueError(
                f"the model in {folder} has {name}={has[name]}, but {_SHAPE[name]} asks for {value}; set it to that of "
                "the model, or run `revision pretrain` with this setting first"
            )


def require_llm(model: RevisionForConditionalGeneration, folder: Path, llm: str) -> bool:
    """Refuses a model whose LLM is of another shape than the one asked for.

    Args:
        model: read from `folder`.
        llm: folder or hub name of the LLM that the configuration names.

    Returns:
        Whether there was something to compare with: the named LLM may not be on this machine any more.

    Raises:
        ValueError: names the field and both values.
    """
    try:
        asked = AutoConfig.from_pretrained(llm)
    except (OSError, ValueError):
        return False
    has = model.config.text_config
    for name in ("model_type", "hidden_size", "num_hidden_layers"):
        mine, other = (getattr(one, name) for one in (has, asked))
        if mine != other:
            raise ValueError(
                f"the LLM of the model in {folder} has {name}={mine}, but model.llm={llm} has {other}; set model.llm "
                "to the one that it was trained with, or run `revision pretrain` with this LLM first"
            )
    return True


def save_model(
    model: RevisionForConditionalGeneration,
    processor: RevisionProcessor,
    folder: Path,
    *,
    alignment: Mapping[str, Any] | None,
    dtype: torch.dtype | None = None,
    history: Sequence[model_card.Entry] = (),
) -> None:
    """Writes one Hugging Face folder: weights, config, code, processor, template, card; aside first, then renamed.

    Args:
        alignment: lineage of the embeddings that the projector learned from; goes into the config.
        dtype: the LLM is turned into this type first; None leaves it.
        history: the stages it went through, from which the card is written; none, no card.
    """
    aside, before = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "old"))
    for leftover in (aside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    if dtype is not None:
        model.language_model.to(dtype)
    model.config.alignment = None if alignment is None else dict(alignment)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    if history:
        model_card.write(aside, history, config=model.config.to_dict(), parameters=model.num_parameters())
    if folder.exists():
        os.replace(folder, before)
    os.replace(aside, folder)
    shutil.rmtree(before, ignore_errors=True)
