"""A multimodal model that has shapes, types and gradients, but no weights: for counting."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import AttentionInterface, AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedConfig

from revision.model import RevisionConfig, RevisionForConditionalGeneration
from revision.model.language_revision import table_rows, why_unreadable
from revision.model.processing_revision import IMAGE_TOKEN

# Shapes of hub models that ask for a licence, for a plan before it is accepted; from their config.json.
KNOWN_SHAPES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False,
    ),
    "meta-llama/Meta-Llama-3-70B-Instruct": LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=False,
    ),
}  # fmt: skip

_ATTENTION = "revision_sketch"
_LENGTH = 64  # of the sequences that memory is measured on


@dataclass(frozen=True)
class Language:
    """An LLM without its weights.

    Attributes:
        config: its architecture.
        tokenizer: None where it cannot be read.
        remarks: what had to be assumed, for the reader of a plan.
    """

    config: PreTrainedConfig
    tokenizer: Any | None
    remarks: tuple[str, ...]


def read_language(llm: str) -> Language:
    """Architecture and tokenizer of an LLM; of a folder, config.json is enough.

    Raises:
        ValueError: its architecture cannot be read.
    """
    remarks = []
    try:
        config = AutoConfig.from_pretrained(llm)
    except (OSError, ValueError, KeyError) as error:
        if llm not in KNOWN_SHAPES:
            raise ValueError(
                f"model.llm = {llm}: its config.json cannot be read ({why_unreadable(llm, error)}); give a folder that "
                "holds one, or the name of a model on a hub that can be reached"
            ) from error
        config = KNOWN_SHAPES[llm]
        remarks.append(f"{llm} cannot be read here: its published shape")
    try:
        tokenizer = AutoTokenizer.from_pretrained(llm)
    except (OSError, ValueError, KeyError):
        tokenizer = None
        remarks.append("no tokenizer: one token for four characters, one more row for the image token")
    return Language(config, tokenizer, tuple(remarks))


def sketch(language: Language, **shape: Any) -> RevisionForConditionalGeneration:
    """The model that training would build, on the meta device.

    Args:
        language: from `read_language`.
        **shape: as `RevisionForConditionalGeneration.from_language_model` takes it.
    """
    text = copy.deepcopy(language.config)
    shape = dict(shape)
    text.vocab_size = _rows(language, shape.pop("table_multiple", None))
    hidden = text.hidden_size
    config = RevisionConfig(
        text_config=text,
        **{
            **shape,
            "projector_hidden_size": shape["projector_hidden_size"] or hidden,
            "input_scale": shape["input_scale"] or shape["embed_dim"] ** 0.5,
        },
    )
    with torch.device("meta"):
        model = RevisionForConditionalGeneration(config)
    model.train()
    return model


@dataclass(frozen=True)
class Saved:
    """Bytes that autograd keeps between the passes: `token` for each position of the LLM, `picture` in the projector,
    and `casts`, once, for copies of weights that autocast makes."""

    token: float
    picture: float
    casts: float


def saved_bytes(model: RevisionForConditionalGeneration, *, half: bool) -> Saved:
    """Runs the forward pass on fake tensors and adds up what it keeps, without gradient checkpointing.

    Attention is torch's fused one, whose memory grows with the length and not with its square.

    Args:
        model: a sketch, its parameters frozen and typed as training would.
        half: arithmetic is bfloat16; an LLM of which something is float32 is then under autocast.
    """
    text = model.config.get_text_config()
    decoder: Any = model.get_decoder()
    table = next(model.get_input_embeddings().parameters())
    reached = any(one.requires_grad for one in (table, *model.projector.parameters()))
    trained = [one for one in model.language_model.parameters() if one.requires_grad]
    autocast = half and any(one.element_size() == 4 for one in (table, *trained))
    AttentionInterface.register(_ATTENTION, _fused_attention)
    decoder.config._attn_implementation = _ATTENTION

    def decode(sequences: int) -> int:
        """Bytes that the decoder keeps for so many sequences."""
        with FakeTensorMode():
            inputs = torch.zeros(sequences, _LENGTH, text.hidden_size, dtype=table.dtype).requires_grad_(reached)
            return _kept(decoder, {"inputs_embeds": inputs, "use_cache": False}, autocast)

    def project(pictures: int) -> int:
        """Bytes that the projector keeps for so many pictures."""
        with FakeTensorMode():
            return _kept(model.projector, {"embeds": torch.zeros(pictures, model.config.embed_dim)}, autocast)

    one, two, first, second = decode(1), decode(2), project(1), project(2)
    return Saved(token=(two - one) / _LENGTH, picture=second - first, casts=max(2 * one - two, 0))


def _fused_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """As on a GPU: transformers' own would expand heads and write a mask out, since fake tensors look like tracing."""
    shared = query.shape[1] != key.shape[1]
    found = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=shared)
    return found.transpose(1, 2).contiguous(), None


def _kept(module: nn.Module, inputs: dict[str, Any], autocast: bool) -> int:
    """Bytes of the distinct tensors saved for the backward pass, parameters left out."""
    fake = {
        name: torch.empty(one.shape, dtype=one.dtype).requires_grad_(one.requires_grad)
        for name, one in (*module.named_parameters(), *module.named_buffers())
    }
    own = {one.untyped_storage()._cdata for one in fake.values()}
    held: list[weakref.ref[_Held]] = []

    def pack(tensor: torch.Tensor) -> _Held:
        """Notes a tensor that autograd keeps."""
        one = _Held(tensor)
        held.append(weakref.ref(one))
        return one

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = functional_call(module, fake, kwargs=inputs)  # held until all is counted, and with it what it keeps
    storages = [one.tensor.untyped_storage() for one in (each() for each in held) if one is not None]
    kept = {storage._cdata: storage.nbytes() for storage in storages if storage._cdata not in own}
    del result
    return sum(kept.values())


@dataclass
class _Held:
    """What autograd saves; it goes when the graph that needs it goes, as DoRA's of its norms does at once."""

    tensor: torch.Tensor

    __hash__ = object.__hash__


def _rows(language: Language, multiple: int | None) -> int:
    """Rows of the embedding table once the image token is in."""
    rows = int(language.config.vocab_size)
    tokenizer = language.tokenizer
    if tokenizer is None:
        return table_rows(rows + 1, multiple)
    known = tokenizer.get_vocab()
    last = known.get(IMAGE_TOKEN, len(tokenizer))
    return rows if last < rows else table_rows(last + 1, multiple)
