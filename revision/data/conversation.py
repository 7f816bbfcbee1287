"""Conversations to token ids, with the answers marked: one mechanism for every LLM (`templates`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from revision.data.templates import JINJA_ERRORS, REMEDY, Turns, base_template, is_marked, marked_template, said
from revision.model.modeling_revision import IGNORED
from revision.model.processing_revision import IMAGE_TOKEN, RevisionProcessor
from revision.records import IMAGE_MARK, Message

assert IMAGE_MARK == IMAGE_TOKEN, "the mark in records is the text of the image token"


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, int64 [L], visual tokens expanded, and its labels, -100 where nothing is learned."""

    input_ids: np.ndarray
    labels: np.ndarray


class UnfitError(ValueError):
    """A conversation that cannot be learned from as it is: too long, without a label, with a mark where none may be, or
    with turns of a kind that the chat template refuses."""


def build_processor(tokenizer: Any, *, num_visual_tokens: int, chat_template: str | None = None) -> RevisionProcessor:
    """A processor whose template marks the answers and whose tokenizer can pad.

    Args:
        tokenizer: of the LLM; the image token and a pad token are added where it lacks them.
        num_visual_tokens: K of the model.
        chat_template: Jinja text to use; None: the LLM's own, marked by us where it marks no answer as we do, or
            `base_template` where it has none.

    Raises:
        ValueError: the LLM has no end-of-sequence token, or its template cannot be rendered or marked.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if tokenizer.eos_token is None:
        raise ValueError("the LLM's tokenizer has no end-of-sequence token, so no answer could end; set its eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is told apart by the attention mask, never by its id
    if chat_template is not None:
        return _processor(tokenizer, num_visual_tokens, chat_template)
    own = tokenizer.chat_template
    if own is None:
        return _processor(tokenizer, num_visual_tokens, base_template(bos=_begins_texts(tokenizer)))
    if isinstance(own, Mapping):  # several, by name
        own = own.get("default") or next(iter(own.values()))
    name = f"the chat template of the LLM {tokenizer.name_or_path}".rstrip()
    if not is_marked(own):
        return _processor(tokenizer, num_visual_tokens, marked_template(own, tokenizer.special_tokens_map, name=name))
    try:
        return _processor(tokenizer, num_visual_tokens, own)
    except ValueError as refusal:  # its marks are others than ours: around whole turns, as SmolLM 3's
        try:
            composed = marked_template(own, tokenizer.special_tokens_map, name=name)
        except ValueError:
            raise ValueError(f"{name}: {refusal}") from refusal
        return _processor(tokenizer, num_visual_tokens, composed)


def _processor(tokenizer: Any, num_visual_tokens: int, chat_template: str) -> RevisionProcessor:
    """A processor with this template; one without marks of ours is refused."""
    tokenizer.chat_template = chat_template
    processor = RevisionProcessor(tokenizer, num_visual_tokens=num_visual_tokens, chat_template=chat_template)
    end_of_turn(processor)
    return processor


def _begins_texts(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its beginning-of-sequence token before each text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def end_of_turn(processor: RevisionProcessor) -> int:
    """Id of the token that ends an answer, at which generation must stop.

    Raises:
        ValueError: the chat template marks anything but an answer and one token after it, or its generation prompt is
            not what stands before an answer.
    """
    question, answer = Message("user", "Hi."), Message("assistant", "Hello.")
    probe = encode(processor, [question, answer], name="probe")
    learned = probe.input_ids[probe.labels != IGNORED].tolist()
    text, end = processor.tokenizer.decode(learned[:-1]), learned[-1]
    if text.strip() != answer.content or end not in processor.tokenizer.added_tokens_decoder:
        shown = processor.tokenizer.decode(learned)
        raise ValueError(
            f"of the answer 'Hello.' and its end-of-turn token, the chat template marks {shown!r}; {REMEDY}"
        )
    prompt = prompt_ids(processor, [question])
    if prompt.tolist() != probe.input_ids[: int(np.argmax(probe.labels != IGNORED))].tolist():
        raise ValueError(
            f"the chat template's generation prompt, {processor.tokenizer.decode(prompt)!r}, is not what it writes "
            f"before an answer, so training and use would differ; {REMEDY}"
        )
    return int(end)


def prompt_ids(processor: RevisionProcessor, messages: Sequence[Message], *, name: object = "prompt") -> np.ndarray:
    """Token ids of turns up to where the next answer begins, int64 [L], visual tokens expanded."""
    encoded = _tokenized(processor, messages, name, add_generation_prompt=True)
    return np.asarray(encoded["input_ids"], dtype=np.int64)


def encode(
    processor: RevisionProcessor, messages: Sequence[Message], *, name: object, max_length: int = 2**31
) -> Encoded:
    """Token ids and labels of one conversation.

    Blanks at both ends of an answer are dropped: they would merge with the template's own tokens, so that training and
    generation would see different ids. Tokens behind the last label are dropped too: they teach nothing.

    Args:
        processor: made by `build_processor`.
        messages: turns; `<image>` in a user's turn becomes K image tokens.
        name: its text is what errors call the sample.
        max_length: tokens a sample may have; nothing is ever cut.

    Raises:
        UnfitError: no label, a picture behind the last answer, too many tokens, an `<image>` outside the user's turns,
            or turns that the template refuses, as Gemma's those of the system.
    """
    encoded = _tokenized(processor, messages, name, return_assistant_tokens_mask=True)
    input_ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    learned = np.asarray(encoded["assistant_masks"], dtype=bool)
    if not learned.any():
        raise UnfitError(f"sample {name} has no label: it holds no answer that the chat template marks; {REMEDY}")
    end = int(np.flatnonzero(learned)[-1]) + 1
    if (input_ids[end:] == processor.image_token_id).any():
        raise UnfitError(
            f"sample {name} shows its picture behind the last answer, so that no answer is about it; move the mark "
            "before an answer, or take the picture out of the record"
        )
    input_ids, learned = input_ids[:end], learned[:end]
    if len(input_ids) > max_length:
        raise UnfitError(
            f"sample {name} has {len(input_ids)} tokens, above max_length={max_length}; raise max_length or take the "
            "sample out: an answer is never cut"
        )
    return Encoded(input_ids, np.where(learned, input_ids, IGNORED))


def encode_what_fits(
    processor: RevisionProcessor, messages: Sequence[Message], *, name: object, max_length: int, pictured: bool
) -> tuple[Encoded, int]:
    """As `encode`, but a conversation that cannot be learned whole loses turns at its end, as few as will do.

    Args:
        processor, messages, name, max_length: as for `encode`.
        pictured: about a picture, whose mark has to stay: without it, it would be another sample.

    Returns:
        Token ids and labels, and how many turns they hold.

    Raises:
        UnfitError: of the whole conversation, where none of its beginnings can be learned either.
    """
    try:
        return encode(processor, messages, name=name, max_length=max_length), len(messages)
    except UnfitError:
        ends = [end for end, turn in enumerate(messages, 1) if turn.role == "assistant"][:-1]
        for end in reversed(ends):
            if pictured and not any(IMAGE_MARK in turn.content for turn in messages[:end]):
                break
            try:
                return encode(processor, messages[:end], name=name, max_length=max_length), end
            except UnfitError:
                continue
        raise


def _tokenized(processor: RevisionProcessor, messages: Sequence[Message], name: object, **options: Any) -> Any:
    """Turns through the chat template, which writes every special token itself, to token ids."""
    turns = _turns_of(processor, messages, name)
    try:
        return processor.tokenizer.apply_chat_template(
            turns, chat_template=processor.chat_template, tokenize=True, return_dict=True, **options
        )
    except JINJA_ERRORS as error:
        raise UnfitError(
            f"sample {name} cannot be rendered by the chat template ({said(error)}); mend the template, give another "
            "by model.chat_template=FILE, or take such turns out of the record"
        ) from error


def _turns_of(processor: RevisionProcessor, messages: Sequence[Message], name: object) -> Turns:
    """Messages as templates take them."""
    turns = []
    for message in messages:
        content = message.content.strip() if message.role == "assistant" else message.content
        if message.role != "user" and IMAGE_MARK in content:
            raise UnfitError(
                f"sample {name} has {IMAGE_MARK} in a turn of the {message.role}; the mark is kept for pictures in the "
                "user's turns: take it out of the record"
            )
        turns.append({"role": message.role, "content": processor.expand(content)})
    return turns


def common_prefix(sequences: Sequence[Sequence[int]], image_token_id: int) -> list[int]:
    """Tokens that all sequences begin with: before any picture, and short of the last token of each."""
    shared: list[int] = []
    for tokens in zip(*(sequence[:-1] for sequence in sequences), strict=False):
        if len(set(tokens)) > 1 or tokens[0] == image_token_id:
            break
        shared.append(tokens[0])
    return shared
