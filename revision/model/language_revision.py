"""The causal LM that the model is built on: read, measured, and given a row for the image token."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from .processing_revision import IMAGE_TOKEN


def load_language_model(llm: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A causal LM and its tokenizer, from a folder or the hub.

    Raises:
        ValueError: it cannot be read, or is a model of pictures already.
    """
    try:
        config = AutoConfig.from_pretrained(llm)
        tokenizer = AutoTokenizer.from_pretrained(llm)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(llm, error) from error
    if config.get_text_config() is not config:
        raise ValueError(
            f"model.llm={llm} is of type {config.model_type}, a model with parts beside its LLM; give one of text alone"
        )
    try:
        language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(llm, error) from error
    language_model.config._name_or_path = ""  # a path of this machine has no place in checkpoints
    return language_model, tokenizer


def why_unreadable(llm: str, error: BaseException) -> str:
    """What is wrong with the name of an LLM, or with what lies there, in a few words."""
    if llm.count("/") != 1 and not Path(llm).exists():  # transformers would speak of the hub
        return "there is no such folder"
    return str(error).strip().split("\n")[0]


def _unreadable(llm: str, error: BaseException) -> ValueError:
    return ValueError(
        f"model.llm={llm} cannot be read as a causal LM with its tokenizer ({why_unreadable(llm, error)}); give a "
        "folder with config.json, weights and tokenizer, or the name of one on the hub"
    )


def token_spread(language_model: Any) -> float:
    """Standard deviation of the numbers that the embedding layer puts out, over all of its tokens."""
    table = language_model.get_input_embeddings()
    with torch.no_grad(), gathered([table.weight]):
        return float(table(torch.arange(table.num_embeddings, device=table.weight.device)).float().std())


def table_rows(rows: int, multiple: int | None) -> int:
    """Rows that an embedding table grows to when it needs `rows`; products of odd widths are slow on GPUs."""
    return rows if multiple is None else -(-rows // multiple) * multiple


def add_image_token(language_model: Any, tokenizer: Any, *, multiple: int | None) -> int:
    """Adds the image token where the tokenizer lacks it, and rows for it where the tables end before it.

    Args:
        multiple: as `table_multiple` in `RevisionForConditionalGeneration.from_language_model`.

    Returns:
        Its id.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    rows = language_model.get_input_embeddings().num_embeddings
    if image_token_id < rows:
        return image_token_id
    language_model.resize_token_embeddings(table_rows(image_token_id + 1, multiple), mean_resizing=False)
    input_table, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    grown = {input_table.weight, head.weight}
    biases = [head.bias] if isinstance(head, nn.Linear) and head.bias is not None else []
    with torch.no_grad(), gathered([*grown, *biases]):
        for parameter in (*grown, *biases):
            parameter[rows:] = parameter[:rows].float().mean(dim=0).to(parameter.dtype)
    return image_token_id


def gathered(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Parameters put together while it lasts, where ZeRO-3 holds them in pieces; what rank 0 writes into them stays."""
    # By name: transformers wants every module that these files import before it loads them from a checkpoint.
    zero = import_module("deepspeed").zero if is_deepspeed_zero3_enabled() else None
    return nullcontext() if zero is None else zero.GatheredParameters(parameters, modifier_rank=0)
