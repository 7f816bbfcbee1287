"""Conversations to token ids and labels: what is learned, and templates of several LLM families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHATML, TINY_VISUAL_TOKENS, build_tiny_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from revision.data.conversation import (
    IGNORED,
    UnfitError,
    build_processor,
    encode,
    end_of_turn,
    prompt_ids,
)
from revision.data.templates import marked_template, read_template
from revision.records import Message

LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
FULL_WIDTH = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<｜User｜>' + message['content'] }}{% else %}"
    "{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
LAST = "{% for m in messages %}{{ m['content'] + '<end>' }}{% if loop.length > 3 %}!{% endif %}{% endfor %}"
FAMILIES = {"chatml": CHATML, "llama-3": LLAMA_3, "gemma": GEMMA, "zephyr": ZEPHYR, "full width": FULL_WIDTH}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[place % 2], "content": text} for place, text in enumerate(contents)]


def render(template: str, messages: list[dict[str, str]], prompt: bool = False, **options: Any) -> Any:
    arguments: dict[str, Any] = {"chat_template": template, "add_generation_prompt": prompt, **SPECIAL, **options}
    rendered: Any = render_jinja_template([messages], **arguments)
    return (rendered[0][0], rendered[1][0]) if options else rendered[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_marked_template_renders_the_same_bytes(family: str) -> None:
    own = FAMILIES[family]
    marked = marked_template(own, SPECIAL)
    talks = [turns("Hi, 'you'"), turns("a", 'the "b"\n'), turns("a\n\nb", "b", " c ")]
    talks += [turns("ä", "日本 😀", "c", "{{ d }}")]
    if family in ("chatml", "llama-3", "zephyr"):
        talks += [turns("a", "b", system="Be brief."), turns("a", system="")]
    for talk in talks:
        assert render(marked, talk) == render(own, talk)
        if talk[-1]["role"] == "user":
            assert render(marked, talk, prompt=True) == render(own, talk, prompt=True)


@pytest.mark.parametrize(
    ("family", "end"), [("chatml", "<|im_end|>"), ("llama-3", "<|eot_id|>"), ("gemma", "<end_of_turn>")]
)
def test_answers_and_their_ends_are_marked_and_nothing_else(family: str, end: str) -> None:
    text, spans = render(
        marked_template(FAMILIES[family], SPECIAL),
        turns("What?", "A dog.", "And?", "A cat."),
        return_assistant_tokens_mask=True,
    )
    assert [text[start:stop] for start, stop in spans] == [f"A dog.{end}", f"A cat.{end}"]


def test_a_template_with_marks_is_kept() -> None:
    own = changed("You see pictures.", "Look.") + "{#- its own -#}"
    processor = build_processor(build_tiny_tokenizer(chat_template=own), num_visual_tokens=2)
    assert processor.chat_template == own


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (LAST, "fixed text"),
        ("{{ messages[0]['content'] }}<end>", "leaves the content"),
        ("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", "end-of-turn"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_that_cannot_be_marked_is_refused_with_the_remedy(own: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be marked for training.*({why}).*model.chat_template=FILE"):
        marked_template(own, SPECIAL)


def test_labels_are_the_answers_with_their_end_of_turn(tiny_processor: Any) -> None:
    talk = [
        Message("user", "<image>\nwhat do you see?"),
        Message("assistant", " a red square \n"),
        Message("user", "and how many?"),
        Message("assistant", "three."),
    ]
    encoded = encode(tiny_processor, talk, name="a")
    tokenizer = tiny_processor.tokenizer
    expected = (
        "<|im_start|>system\nYou see pictures.<|im_end|>\n<|im_start|>user\n" + "<image>" * TINY_VISUAL_TOKENS
        + "\nwhat do you see?<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>\n<|im_start|>user\nand how many?"
        "<|im_end|>\n<|im_start|>assistant\nthree.<|im_end|>"
    )  # fmt: skip
    assert tokenizer.decode(encoded.input_ids) == expected
    learned = encoded.labels != IGNORED
    assert np.array_equal(encoded.labels[learned], encoded.input_ids[learned])
    assert tokenizer.decode(encoded.labels[learned]) == "a red square<|im_end|>three.<|im_end|>"
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int64


def test_a_prompt_is_what_training_puts_before_the_answer(tiny_processor: Any) -> None:
    question = [Message("system", "Be brief."), Message("user", "<image> what?")]
    encoded = encode(tiny_processor, [*question, Message("assistant", "a dog")], name="a")
    prompt = prompt_ids(tiny_processor, question)
    assert prompt.tolist() == encoded.input_ids[: len(prompt)].tolist()
    assert (encoded.labels[: len(prompt)] == IGNORED).all()
    assert encoded.labels[len(prompt)] != IGNORED


def test_the_end_of_turn_stops_generation(tiny_processor: Any) -> None:
    assert end_of_turn(tiny_processor) == tiny_processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_base_llm_gets_a_template_and_a_pad_token(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer(chat_template=None)
    tokenizer.pad_token = None
    processor = build_processor(tokenizer, num_visual_tokens=2)
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token
    encoded = encode(processor, [Message("user", "<image>?"), Message("assistant", "a tree")], name="a")
    assert processor.tokenizer.decode(encoded.input_ids) == (
        "<|user|>\n<image><image>?<|im_end|>\n<|assistant|>\na tree<|im_end|>"
    )
    assert processor.tokenizer.decode(encoded.labels[encoded.labels != IGNORED]) == "a tree<|im_end|>"
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert again.chat_template == processor.chat_template
    assert encode(again, [Message("user", "x"), Message("assistant", "y")], name="a").labels.max() >= 0


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        build_processor(tokenizer, num_visual_tokens=2)


def changed(before: str, after: str) -> str:
    """A marked ChatML template with one part replaced."""
    template = marked_template(CHATML, {})
    assert before in template
    return template.replace(before, after)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (CHATML, "has no label"),
        (changed('"<|im_end|>" -}}{%- endgeneration', '"" -}}{%- endgeneration'), "marks 'Hello.'"),
        (changed('prompt -%}{{- "<|im_start|>assistant', 'prompt -%}{{- "<|im_start|>bot'), "generation prompt"),
    ],
)
def test_a_given_template_is_checked(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"{why}.*model.chat_template=FILE"):
        build_processor(build_tiny_tokenizer(), num_visual_tokens=2, chat_template=template)


def test_a_given_template_is_used(tmp_path: Path) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text(marked_template(CHATML, {}).replace("You see pictures.", "Look."))
    processor = build_processor(build_tiny_tokenizer(), num_visual_tokens=2, chat_template=read_template(file))
    ids = encode(processor, [Message("user", "x"), Message("assistant", "y")], name="a").input_ids
    assert processor.tokenizer.decode(ids).startswith("<|im_start|>system\nLook.<|im_end|>")
    with pytest.raises(ValueError, match=r"model.chat_template=.*none.jinja does not exist"):
        read_template(tmp_path / "none.jinja")


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        ([Message("user", "x"), Message("assistant", "see <image>")], "has <image> in a turn of the assistant"),
        ([Message("system", "<image>"), Message("user", "x")], "has <image> in a turn of the system"),
        ([Message("user", "x")], "has no label"),
        (
            [Message("user", "x"), Message("assistant", "y"), Message("user", "<image> and this?")],
            "shows its picture behind the last answer",
        ),
        ([Message("user", "x"), Message("assistant", "word " * 60)], r"tokens, above max_length=50.*never cut"),
    ],
)
def test_a_sample_that_cannot_be_learned_is_named(tiny_processor: Any, talk: list[Message], why: str) -> None:
    with pytest.raises(UnfitError, match=f"sample cap-7 .*{why}"):
        encode(tiny_processor, talk, name="cap-7", max_length=50)
