"""LLM families in small: tokenizers with their special tokens, chat templates in their formats, random models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CORPUS = ["what animal is on the white table?", "a brown dog and a small cat", "how many birds are there? three."]

_SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set brief = messages[0]['content'] | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set brief = '' %}{% set rest = messages %}{% endif %}"
)
_HEADER = "'<|start_header_id|>' + ROLE + '<|end_header_id|>\n\n'"
LLAMA_3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ " + _HEADER.replace("ROLE", "message['role']") + " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ " + _HEADER.replace("ROLE", "'assistant'") + " }}{% endif %}"
)
LLAMA_31 = (
    "{{ bos_token }}" + _SYSTEM_FIRST + "{% if date_string is not defined %}"
    "{% set date_string = strftime_now('%d %b %Y %H:%M:%S') %}{% endif %}"
    "{{ " + _HEADER.replace("ROLE", "'system'") + " + 'Known until: December 2023\nToday: ' + date_string"
    " + '\n\n' + brief + '<|eot_id|>' }}{% for turn in rest %}"
    "{{ " + _HEADER.replace("ROLE", "turn['role']") + " + turn['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ " + _HEADER.replace("ROLE", "'assistant'") + " }}{% endif %}"
)
CHATML_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THOUGHT = "<think>\n\n</think>\n\n"
QWEN_3 = (
    "{% set at = namespace(question=-1) %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set at.question = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% if loop.index0 > at.question %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'].split('</think>')[-1].lstrip('\n') }}{% else %}{{ message['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
_GEMMA_TURNS = (
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles take turns') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if loop.first %}{{ brief }}{% endif %}{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}"
    "{% set rest = messages %}{% set brief = '' %}" + _GEMMA_TURNS
)
GEMMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set brief = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set brief = '' %}{% set rest = messages %}{% endif %}" + _GEMMA_TURNS
)
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_4 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SMOLLM_3 = (
    _SYSTEM_FIRST + "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %B %Y %H:%M:%S') + '\n' + brief + "
    "'<|im_end|>\n' }}{% for turn in rest %}{% if turn['role'] == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\n' }}{% if not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    "{{ turn['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + turn['role'] + '\n' + turn['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What a tokenizer and a template of the family are like.

    Attributes:
        template: None: a base model.
        special: all special tokens, the first of them with the smallest id.
        end: what ends an answer.
        bos: written by the tokenizer before each text.
        pieces: characters with "▁" for blanks and bytes for the rest, as sentencepiece makes them; else byte-level BPE.
        stripping: special tokens that swallow the blanks behind them, as Phi 3's do.
    """

    template: str | None
    special: list[str]
    end: str
    eos: str
    pad: str | None = None
    bos: str | None = None
    pieces: bool = False
    stripping: list[str] = field(default_factory=list)


_LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_GEMMA = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
_PHI = ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
_LLAMA_BOS: dict[str, Any] = {"special": _LLAMA, "end": "<|eot_id|>", "bos": "<|begin_of_text|>"}
_GEMMA_BOS: dict[str, Any] = {
    "special": _GEMMA, "end": "<end_of_turn>", "eos": "<eos>", "pad": "<pad>", "bos": "<bos>", "pieces": True
}  # fmt: skip
FAMILIES = {
    "llama 3": Family(LLAMA_3, **_LLAMA_BOS, eos="<|eot_id|>"),
    "llama 3.1": Family(LLAMA_31, **_LLAMA_BOS, eos="<|eot_id|>"),
    "llama 3, eos of the base": Family(LLAMA_3, **_LLAMA_BOS, eos="<|end_of_text|>"),
    "qwen 2.5": Family(CHATML_DEFAULT, _CHATML, end="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>"),
    "qwen 2.5, base": Family(CHATML_DEFAULT, _CHATML, end="<|im_end|>", eos="<|endoftext|>", pad="<|endoftext|>"),
    "qwen 3": Family(QWEN_3, [*_CHATML, "<think>", "</think>"], "<|im_end|>", "<|im_end|>", "<|endoftext|>"),
    "gemma 2": Family(GEMMA, **_GEMMA_BOS),
    "gemma 3": Family(GEMMA_3, **_GEMMA_BOS),
    "phi 3": Family(
        PHI_3, _PHI, end="<|end|>", eos="<|endoftext|>", pad="<|endoftext|>", pieces=True, stripping=_PHI[3:]
    ),
    "phi 4": Family(PHI_4, [*_CHATML, "<|im_sep|>"], end="<|im_end|>", eos="<|im_end|>", pad="<|endoftext|>"),
    "smollm 2": Family(CHATML_DEFAULT, _CHATML, end="<|im_end|>", eos="<|im_end|>", pad="<|im_end|>"),
    "smollm 3": Family(SMOLLM_3, [*_CHATML, "<think>", "</think>"], end="<|im_end|>", eos="<|im_end|>"),
}
BASES = {
    "llama 3": Family(None, **{**_LLAMA_BOS, "end": "<|end_of_text|>"}, eos="<|end_of_text|>"),
    "gemma": Family(None, **{**_GEMMA_BOS, "end": "<eos>"}),
    "smollm": Family(None, ["<|endoftext|>"], end="<|endoftext|>", eos="<|endoftext|>"),
}


def build_tokenizer(family: Family) -> Any:
    """A tokenizer of the family, trained on a few sentences."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if family.pieces:
        characters = [*map(chr, range(33, 127)), "▁"]
        pieces = [*family.special, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
        vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
        bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token=family.special[0]))
        begin = [normalizers.Prepend("▁")] if family.stripping else []
        bpe.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", "▁")])
        bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=family.special, initial_alphabet=alphabet)
        )
    bpe.add_special_tokens(
        [AddedToken(one, rstrip=one in family.stripping, normalized=False, special=True) for one in family.special]
    )
    if family.bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, bpe.token_to_id(family.bos))]
        )
    names = {"bos_token": family.bos, "pad_token": family.pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=family.eos, clean_up_tokenization_spaces=False,
        **{name: text for name, text in names.items() if text},
    )  # fmt: skip
    tokenizer.chat_template = family.template
    return tokenizer


_SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
_GEMMA_SIZE: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
# Type of config of transformers, family of its tokenizer, and what is not as in `_SMALL`.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama 3": ("llama", "llama 3", {}),
    "smollm 2": ("llama", "smollm 2", {"tie_word_embeddings": True}),
    "smollm 3": ("smollm3", "smollm 3", {"pad_token_id": None}),
    "qwen 2.5": ("qwen2", "qwen 2.5", {}),
    "qwen 3": ("qwen3", "qwen 3", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma": ("gemma", "gemma 2", {"head_dim": 8}),
    "gemma 2": ("gemma2", "gemma 2", {**_GEMMA_SIZE, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0}),
    "gemma 3": ("gemma3_text", "gemma 3", _GEMMA_SIZE),
    "phi 3": ("phi3", "phi 3", {"pad_token_id": None}),
    "phi 4": ("phi3", "phi 4", {"tie_word_embeddings": True, "pad_token_id": None}),
    "cohere": ("cohere", "smollm 2", {"logit_scale": 0.25}),
    "granite": ("granite", "smollm 2", {"logits_scaling": 0.5, "embedding_multiplier": 3.0}),
}


def build_llm(name: str, folder: Path, *, spare_rows: int = 0, **changes: Any) -> Path:
    """Saves a random two-layer LLM of `MODELS` and its tokenizer into a folder, and returns the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, family, settings = MODELS[name]
    tokenizer = build_tokenizer(FAMILIES[family])
    config = AutoConfig.for_model(
        kind,
        **{
            **_SMALL, "vocab_size": len(tokenizer) + spare_rows, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, **settings, **changes,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # livelier than the default initialisation
        for parameter in llm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
