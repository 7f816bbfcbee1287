"""Messages to token ids and loss mask, by one mechanism for every LLM: its chat template with `{% generation %}`.

A template that marks its answers with `{% generation %}` says itself which tokens are the assistant's. Few LLMs ship
one that does. For the common families there is a marked twin here, and it is used only where it renders a probe
conversation exactly as the LLM's own template does; anything else has to name a template file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from revision.records import Message

IGNORED = -100

_CHATML = (
    "{%- for message in messages -%}\n"
    "{%- if loop.first and message['role'] != 'system' and DEFAULT_SYSTEM -%}\n"
    "{{- '<|im_start|>system\\n' + DEFAULT_SYSTEM + '<|im_end|>\\n' -}}\n"
    "{%- endif -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
    "{%- if message['role'] == 'assistant' -%}\n"
    "{% generation %}{{- message['content'] + '<|im_end|>' -}}{% endgeneration %}{{- '\\n' -}}\n"
    "{%- else -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
_LLAMA_3 = (
    "{{- bos_token -}}{%- for message in messages -%}\n"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}\n"
    "{%- if message['role'] == 'assistant' -%}\n"
    "{% generation %}{{- message['content'] | trim + '<|eot_id|>' -}}{% endgeneration %}\n"
    "{%- else -%}{{- message['content'] | trim + '<|eot_id|>' -}}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
# ChatML families differ in the system message they put first when there is none.
_DEFAULT_SYSTEMS = (
    "",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful assistant.",
)
_MARK = "{% generation %}"

_PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}],
    [
        {"role": "system", "content": "Short answers."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Four."},
    ],
)


@dataclass(frozen=True)
class Encoded:
    """A conversation as the model reads it.

    Attributes:
        input_ids: token ids; each picture takes K image tokens.
        labels: the same ids where an answer (with its end-of-turn token) is learned, -100 elsewhere.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """Number of labels."""
        return sum(label != IGNORED for label in self.labels)


def marked_template(tokenizer: Any, file: Path | None = None) -> str:
    """The chat template that marks answers: from a file, the LLM's own, or a twin that renders the same.

    Args:
        tokenizer: of the LLM.
        file: Jinja file that overrides what the tokenizer has.

    Raises:
        ValueError: the file is missing or marks no answer, or the LLM's own template marks none and no twin renders
            the same text.
    """
    if file is not None:
        if not file.is_file():
            raise ValueError(f"model.chat_template={file} does not exist; name a Jinja file or leave it null")
        template = file.read_text()
        if "generation %}" not in template:
            raise ValueError(
                f"model.chat_template={file} marks no answer; wrap what the assistant says in "
                "{% generation %} ... {% endgeneration %}"
            )
        return template
    own = tokenizer.chat_template
    if own is None:
        return _with_system(_CHATML, "")
    if "generation %}" in own:
        return str(own)
    twins = [_with_system(_CHATML, system) for system in _DEFAULT_SYSTEMS] + [_LLAMA_3]
    for twin in twins:
        if all(_renders_alike(tokenizer, twin, probe) for probe in _PROBES):
            return twin
    raise ValueError(
        f"the chat template of {tokenizer.name_or_path} marks no answer, and no known template renders the same text; "
        "set model.chat_template to a Jinja file with {% generation %} around what the assistant says"
    )


def _with_system(template: str, system: str) -> str:
    return "{%- set DEFAULT_SYSTEM = " + repr(system) + " -%}\n" + template


def _renders_alike(tokenizer: Any, twin: str, probe: list[dict[str, str]]) -> bool:
    try:
        return all(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            == tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, chat_template=twin
            )
            for messages, prompt in ((probe, False), (probe[:-1], True))
        )
    except jinja2.TemplateError:  # a template may refuse roles, or be of no known family
        return False


def encode(processor: Any, messages: Sequence[Message], *, where: str, max_length: int) -> Encoded:
    """A conversation with its answers to ids and labels.

    Args:
        processor: `RevisionProcessor` whose template marks answers.
        messages: roles and texts; `<image>` marks a picture.
        where: id of the record, for errors.
        max_length: tokens a sample may have, visual ones included; nothing is ever cut.

    Raises:
        ValueError: the sample is too long, or has no answer to learn.
    """
    plain = [{"role": message.role, "content": processor.expand(message.content)} for message in messages]
    encoded = processor.tokenizer.apply_chat_template(
        plain,
        chat_template=processor.chat_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, mask = list(encoded["input_ids"]), encoded["assistant_masks"]
    if len(ids) > max_length:
        raise ValueError(
            f"record {where} takes {len(ids)} tokens, more than max_length={max_length}; raise max_length, shorten the "
            "record, or leave it out"
        )
    labels = [token if learn else IGNORED for token, learn in zip(ids, mask, strict=True)]
    if all(label == IGNORED for label in labels):
        raise ValueError(f"record {where} has no answer to learn from; it needs a non-empty assistant message")
    return Encoded(ids, labels)


def render_prompt(processor: Any, messages: Sequence[Message]) -> str:
    """The text up to where the assistant answers, image tokens not yet expanded."""
    plain = [{"role": message.role, "content": message.content} for message in messages]
    rendered = processor.tokenizer.apply_chat_template(
        plain, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
    )
    return str(rendered)
