"""The multimodal LLM on disk: built fresh, read back, checked against what a stage expects, and saved whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from revision.conversation import marked_template
from revision.model import RevisionForConditionalGeneration, RevisionProcessor


def build_model(
    llm: str, *, chat_template: Path | None, dtype: torch.dtype, seed: int, **shape: Any
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """A pretrained LLM behind a fresh projector, and its processor.

    Args:
        llm: folder or hub name.
        chat_template: Jinja file, or None for the LLM's own template or its marked twin.
        dtype: of the LLM.
        seed: of the projector.
        **shape: `embed_dim`, `num_visual_tokens`, `visual_tokens` and the projector's fields, as
            `RevisionForConditionalGeneration.from_language_model` takes them.

    Raises:
        ValueError: the LLM cannot be read, or its template marks no answer.
    """
    model, tokenizer = RevisionForConditionalGeneration.from_language_model(llm, dtype=dtype, seed=seed, **shape)
    template = marked_template(tokenizer, chat_template)
    processor = RevisionProcessor(tokenizer, shape["num_visual_tokens"], chat_template=template)
    return model, processor


def read_model(
    folder: Path, *, dtype: torch.dtype
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """A saved model and its processor.

    Raises:
        ValueError: the folder is no model of this package, or a weight is missing from it.
    """
    try:
        model, info = RevisionForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        processor = RevisionProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{folder} cannot be read as a ReVision model ({reason}); name a folder that a stage wrote") from error
    if info["missing_keys"]:
        raise ValueError(f"{folder} lacks the weights {sorted(info['missing_keys'])[:3]}; it is incomplete, train it again")
    return model, processor


def require_shape(model: RevisionForConditionalGeneration, folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a model whose projector is another than the config asks for.

    Raises:
        ValueError: names the field and both values.
    """
    for name, value in wanted.items():
        has = getattr(model.config, name)
        if value is not None and has != value:
            raise ValueError(
                f"the model in {folder} has {name}={has}, but this run asks for {value}; pretrain it again with this "
                f"setting, or set {name}={has}"
            )


def save_model(
    model: RevisionForConditionalGeneration,
    processor: RevisionProcessor,
    folder: Path,
    *,
    alignment: Mapping[str, Any] | None,
) -> None:
    """Write one Hugging Face folder: weights, config, code, processor, template; aside first, then renamed.

    Args:
        alignment: lineage of the embeddings that the projector learned from; goes into the config.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.config.alignment = None if alignment is None else dict(alignment)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    code = Path(__file__).parent / "model"
    for name in ("configuration", "modeling", "processing"):
        shutil.copyfile(code / f"{name}_revision.py", aside / f"{name}_revision.py")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
