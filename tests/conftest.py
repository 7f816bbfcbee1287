"""Tiny parts that many tests share: a random Llama with a real tokenizer, the multimodal model on it, a processor."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TINY_EMBED_DIM = 16
TINY_VISUAL_TOKENS = 3

CORPUS = [
    "a red square on a white table",
    "the green circle lies left of the blue star",
    "two small birds and one big tree",
    "what do you see in the picture? it is a penguin.",
    "how many stars are there? three.",
    "describe the picture. a yellow sun over the sea",
]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou see pictures.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_tokenizer(chat_template: str | None = CHATML) -> Any:
    """A byte-level BPE trained on a few sentences, so that any text is encoded and decoded without loss."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def build_tiny_llm(
    folder: Path,
    *,
    chat_template: str | None = CHATML,
    tied: bool = True,
    spare_rows: int = 0,
    head_dim: int = 8,
) -> Path:
    """Saves a random two-layer Llama and its tokenizer into a folder, and returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tiny_tokenizer(chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + spare_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    llm = LlamaForCausalLM(config)
    with torch.no_grad():  # livelier than the default initialisation, so that greedy answers differ between inputs
        for parameter in llm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command sets up logging to the stdout of its test, which is closed afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a causal LM (hidden 32, tied embeddings) with a tokenizer and a ChatML template without marks."""
    return build_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny")


@pytest.fixture
def make_tiny_model(tiny_llm: Path) -> Callable[..., Any]:
    """Builds a fresh multimodal model; keyword arguments override those of `from_language_model`."""
    from revision.model.modeling_revision import RevisionForConditionalGeneration

    def make(**changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "llm": str(tiny_llm),
            "embed_dim": TINY_EMBED_DIM,
            "num_visual_tokens": TINY_VISUAL_TOKENS,
            "visual_tokens": "slots",
            "seed": 0,
        }
        model, _ = RevisionForConditionalGeneration.from_language_model(**{**arguments, **changes})
        return model

    return make


@pytest.fixture
def tiny_model(make_tiny_model: Callable[..., Any]) -> Any:
    """A multimodal model with d = 16 and K = 3, in evaluation mode, float32."""
    return make_tiny_model().eval()


@pytest.fixture
def tiny_processor(tiny_llm: Path) -> Any:
    """The processor that fits `tiny_model`."""
    from transformers import AutoTokenizer

    from revision.data.conversation import build_processor

    return build_processor(AutoTokenizer.from_pretrained(tiny_llm), num_visual_tokens=TINY_VISUAL_TOKENS)


@pytest.fixture
def tiny_store(tmp_path: Path) -> Callable[..., Any]:
    """Writes an embedding store of n rows: ids `kind-0`, ..., texts that differ, unit rows drawn from a seed."""
    import numpy as np

    from revision.embeddings import EmbeddingStore, StoreWriter

    def make(kind: str = "text", n: int = 24, dim: int = TINY_EMBED_DIM, **changes: Any) -> Any:
        settings: dict[str, Any] = {"name": kind, "encoder": {"name": "tiny"}, "seed": 0, "shift": 0.0, **changes}
        rows = np.random.default_rng(settings["seed"]).normal(size=(n, dim)) + settings["shift"]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        path = tmp_path / "stores" / settings["name"]
        writer = StoreWriter(
            path,
            kind=kind,
            dim=dim,
            encoder=settings["encoder"],
            records_fingerprint="none",
            records=n,
            shard_size=10,
            reject_budget=0.0,
        )
        for shard in writer.missing():
            places = writer.positions(shard)
            payloads = settings.get("payloads") or [f"{CORPUS[place % len(CORPUS)]} {place}" for place in range(n)]
            writer.write(
                shard,
                rows=rows[list(places)].astype(np.float32),
                ids=[f"{kind}-{place}" for place in places],
                payloads=[payloads[place] for place in places],
                lengths=[len(payloads[place]) for place in places],
                rejected=[],
            )
        writer.finish()
        return EmbeddingStore.open(path)

    return make
