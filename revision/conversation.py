"""Conversations to token ids, with the answers marked: one mechanism for every LLM.

Labels come from `{% generation %}` in the chat template: whatever is rendered inside it is learned, which is the text
of each answer and the token that ends its turn, nothing else. Most LLMs ship a template without these marks. For them
`marked_template` reads off what their own template writes around the turns, composes an equivalent with marks, and
proves on probe conversations that both render the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from revision.model.modeling_revision import IGNORED
from revision.model.processing_revision import IMAGE_TOKEN, RevisionProcessor
from revision.records import IMAGE_MARK, Message

assert IMAGE_MARK == IMAGE_TOKEN, "the mark in records is the text of the image token"

Turns = list[dict[str, str]]

# For an LLM that has no template of its own: roles as plain lines, turns ended by the LLM's own end-of-sequence token.
BASE_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|' + message['role'] + '|>\\n' -}}\n"
    "{%- if message['role'] == 'assistant' -%}\n"
    "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}\n"
    "{%- else -%}{{- message['content'] + eos_token -}}{%- endif -%}\n"
    "{{- '\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SYSTEM, _USER, _ANSWER = "~S~", "~U~", "~A~"  # contents that a template writes nowhere else
_TURN = {"system": _SYSTEM, "user": _USER, "assistant": _ANSWER}
_REMEDY = "write one with {% generation %} around each answer and its end-of-turn token: model.chat_template=FILE"


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation, int64 [L], visual tokens expanded, and its labels, -100 where nothing is learned."""

    input_ids: np.ndarray
    labels: np.ndarray


class UnfitError(ValueError):
    """A conversation that cannot be learned from as it is: too long, or without a label."""


def build_processor(tokenizer: Any, *, num_visual_tokens: int, chat_template: str | None = None) -> RevisionProcessor:
    """A processor whose template marks the answers and whose tokenizer can pad.

    Args:
        tokenizer: of the LLM; the image token and a pad token are added where it lacks them.
        num_visual_tokens: K of the model.
        chat_template: Jinja text to use; None: the LLM's own, marked by us where it marks no answer, or
            `BASE_TEMPLATE` where it has none.

    Raises:
        ValueError: the LLM has no end-of-sequence token, or its template cannot be marked.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    if tokenizer.eos_token is None:
        raise ValueError("the LLM's tokenizer has no end-of-sequence token, so no answer could end; set its eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is told apart by the attention mask, never by its id
    if chat_template is None:
        own = tokenizer.chat_template
        chat_template = BASE_TEMPLATE if own is None else marked_template(own, tokenizer.special_tokens_map)
    tokenizer.chat_template = chat_template
    processor = RevisionProcessor(tokenizer, num_visual_tokens=num_visual_tokens, chat_template=chat_template)
    end_of_turn(processor)  # a template without marks is refused here
    return processor


def read_template(path: Path) -> str:
    """A chat template from a file. Raises ValueError for a missing file."""
    if not path.is_file():
        raise ValueError(f"model.chat_template={path} does not exist; give a Jinja file, or null for the LLM's own")
    return path.read_text(encoding="utf-8")


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
            f"of the answer 'Hello.' and its end-of-turn token, the chat template marks {shown!r}; {_REMEDY}"
        )
    prompt = prompt_ids(processor, [question])
    if prompt.tolist() != probe.input_ids[: int(np.argmax(probe.labels != IGNORED))].tolist():
        raise ValueError(
            f"the chat template's generation prompt, {processor.tokenizer.decode(prompt)!r}, is not what it writes "
            f"before an answer, so training and use would differ; {_REMEDY}"
        )
    return int(end)


def prompt_ids(processor: RevisionProcessor, messages: Sequence[Message], *, name: object = "prompt") -> np.ndarray:
    """Token ids of turns up to where the next answer begins, int64 [L], visual tokens expanded."""
    encoded = processor.tokenizer.apply_chat_template(
        _turns_of(processor, messages, name),
        chat_template=processor.chat_template,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
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
        UnfitError: no label, or too many tokens.
        ValueError: an `<image>` outside the user's turns.
    """
    encoded = processor.tokenizer.apply_chat_template(
        _turns_of(processor, messages, name),
        chat_template=processor.chat_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    input_ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    learned = np.asarray(encoded["assistant_masks"], dtype=bool)
    if not learned.any():
        raise UnfitError(f"sample {name} has no label: it holds no answer that the chat template marks; {_REMEDY}")
    end = int(np.flatnonzero(learned)[-1]) + 1
    input_ids, learned = input_ids[:end], learned[:end]
    if len(input_ids) > max_length:
        raise UnfitError(
            f"sample {name} has {len(input_ids)} tokens, above max_length={max_length}; raise max_length or take the "
            "sample out: an answer is never cut"
        )
    return Encoded(input_ids, np.where(learned, input_ids, IGNORED))


def _turns_of(processor: RevisionProcessor, messages: Sequence[Message], name: object) -> Turns:
    """Messages as templates take them."""
    turns = []
    for message in messages:
        content = message.content.strip() if message.role == "assistant" else message.content
        if message.role != "user" and IMAGE_MARK in content:
            raise ValueError(
                f"sample {name} has {IMAGE_MARK} in a turn of the {message.role}; the mark is kept for pictures in the "
                "user's turns: take it out of the record"
            )
        turns.append({"role": message.role, "content": processor.expand(content)})
    return turns


def marked_template(own: str, special_tokens: dict[str, Any]) -> str:
    """A chat template that renders as `own` does and marks the answers.

    Args:
        own: the LLM's template; returned as it is where it marks answers already.
        special_tokens: names and texts (`bos_token`, ...) that the template may refer to.

    Raises:
        ValueError: `own` does more than write fixed text around each turn.
    """
    if _MARKED.search(own):
        return own
    try:
        composed = _compose(own, special_tokens)
        same = all(
            _render(own, turns, special_tokens, prompt) == _render(composed, turns, special_tokens, prompt)
            for turns, prompt in _probes(system="system" in composed)
        )
    except (TemplateError, ValueError) as error:
        raise ValueError(f"the LLM's chat template cannot be marked for training: {error}; {_REMEDY}") from error
    if not same:
        raise ValueError(
            "the LLM's chat template cannot be marked for training: it does more than write fixed text around each "
            f"turn; {_REMEDY}"
        )
    return composed


def _render(template: str, turns: Turns, special_tokens: dict[str, Any], prompt: bool = False) -> str:
    rendered: Any = render_jinja_template(
        [turns], chat_template=template, add_generation_prompt=prompt, **special_tokens
    )
    return str(rendered[0][0])


def _turns(*roles: str) -> Turns:
    return [{"role": role, "content": _TURN[role]} for role in roles]


def _compose(own: str, special_tokens: dict[str, Any]) -> str:
    """The marked equivalent of a template that writes fixed text around each turn.

    Found by rendering short conversations of known contents and taking away what is known already.
    """
    opening, after_user = _around(_USER, _render(own, _turns("user"), special_tokens))
    answered = _render(own, _turns("user", "assistant"), special_tokens)
    before_answer, after_answer = _around(_ANSWER, answered.removeprefix(opening + _USER + after_user))
    again = _render(own, _turns("user", "assistant", "user"), special_tokens)
    before_user, _ = _around(_USER, again.removeprefix(answered))
    end = after_answer.rstrip()  # the tokens that end an answer are learned; blanks behind them are the template's
    if not end:
        raise ValueError("it writes no end-of-turn token after an answer")
    system = None  # a template may refuse system turns; then ours does
    with contextlib.suppress(TemplateError, ValueError):
        with_system = _render(own, _turns("system", "user"), special_tokens)
        system = _around(_SYSTEM, with_system.removesuffix(before_user + _USER + after_user))
    alone = opening + _USER + after_user
    prompt = _render(own, _turns("user"), special_tokens, prompt=True).removeprefix(alone)
    padded = _render(own, [{"role": "user", "content": f" {_USER} "}], special_tokens)
    strip = "" if f" {_USER} " in padded else " | trim"
    return _write(
        opening=opening.removesuffix(before_user),
        system=system,
        user=(before_user, after_user),
        answer=(before_answer, end, after_answer.removeprefix(end)),
        prompt=prompt,
        strip=strip,
    )


def _write(
    *,
    opening: str,
    system: tuple[str, str] | None,
    user: tuple[str, str],
    answer: tuple[str, str, str],
    prompt: str,
    strip: str,
) -> str:
    """Jinja text. Every line begins and ends with a tag that takes the blanks around it away."""
    content = f"message['content']{strip}"

    def wrapped(before: str, after: str) -> str:
        """Jinja that puts out the content of a turn between two texts."""
        return f"{{{{- {_quoted(before)} + ({content}) + {_quoted(after)} -}}}}"

    start = f"{{{{- {_quoted(opening)} -}}}}"
    roles = "the first turn may be of the system, all others are of user and assistant"
    if system is None:
        first, roles = [f"{{%- if loop.first -%}}{start}{{%- endif -%}}"], "turns are of user and assistant"
    else:
        first = [
            "{%- if loop.first and message['role'] == 'system' -%}",
            wrapped(*system),
            f"{{%- elif loop.first -%}}{start}{{%- endif -%}}",
        ]
    lines = [
        "{%- for message in messages -%}",
        *first,
        "{%- if message['role'] == 'user' -%}",
        wrapped(*user),
        "{%- elif message['role'] == 'assistant' -%}",
        f"{{{{- {_quoted(answer[0])} -}}}}",
        f"{{%- generation -%}}{{{{- ({content}) + {_quoted(answer[1])} -}}}}{{%- endgeneration -%}}",
        f"{{{{- {_quoted(answer[2])} -}}}}",
        f"{{%- elif {'true' if system is None else 'not loop.first'} -%}}",
        f"{{{{- raise_exception({_quoted(roles)}) -}}}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{{{{- {_quoted(prompt)} -}}}}{{%- endif -%}}",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A Jinja string literal; Jinja reads the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _around(content: str, text: str) -> tuple[str, str]:
    """What stands before and after a content that occurs once."""
    if text.count(content) != 1:
        raise ValueError("it leaves the content of a turn out, repeats it or moves it")
    before, after = text.split(content)
    return before, after


def _probes(*, system: bool) -> list[tuple[Turns, bool]]:
    """Conversations of several shapes, with contents that a template could treat in a way of its own."""
    texts = {"system": " Be brief: 1. ", "user": "  What\n\nis 'this'? ", "assistant": ' A "red" house.\n{{ x }} '}
    shapes = ["u", "ua", "uau", "uaua", "uauaua"] + (["su", "sua", "suaua"] if system else [])
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [
        ([{"role": roles[letter], "content": texts[roles[letter]]} for letter in shape], prompt)
        for shape in shapes
        for prompt in (False, True)
        if not (prompt and shape.endswith("a"))
    ]
