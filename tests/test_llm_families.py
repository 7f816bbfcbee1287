"""LLM families: what their templates render, what is learned of it, and the traps of their special tokens."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_families import BASES, FAMILIES, THOUGHT, build_tokenizer
from transformers.utils import chat_template_utils

from revision.data.collators import Collator
from revision.data.conversation import IGNORED, UnfitError, build_processor, encode, end_of_turn, prompt_ids
from revision.data.templates import read_template
from revision.records import Message

K = 2
TALK = [
    Message("user", "<image>\nWhat is it?"), Message("assistant", "A dog."),
    Message("user", "And this? "), Message("assistant", "A cat, 'Tom'."),
]  # fmt: skip
DAY = "26 Jul 2024"


def built(name: str) -> Any:
    return build_processor(build_tokenizer(FAMILIES[name]), num_visual_tokens=K)


def own(name: str, talk: list[Message], *, prompt: bool = False) -> str:
    """A conversation as the family's own template renders it, without thoughts and on the day of Llama 3.1."""
    template = str(FAMILIES[name].template)
    for clock in ("strftime_now('%d %b %Y %H:%M:%S')", "strftime_now('%d %B %Y %H:%M:%S')"):
        template = template.replace(clock, f"'{DAY}'")
    tokenizer = build_tokenizer(FAMILIES[name])
    turns = [{"role": turn.role, "content": turn.content.replace("<image>", "<image>" * K)} for turn in talk]
    text: str = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
    )
    return text


def tokens(processor: Any, text: str) -> list[int]:
    found: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_one_answer_is_read_as_the_family_renders_it(name: str) -> None:
    """Ids are those of the own rendering up to the answer's end; learned are the answer and that end alone."""
    processor, family = built(name), FAMILIES[name]
    encoded = encode(processor, TALK[:2], name="a")
    text = own(name, TALK[:2])
    assert encoded.input_ids.tolist() == tokens(processor, text[: text.rindex(family.end) + len(family.end)])
    learned = encoded.labels[encoded.labels != IGNORED]
    # Phi 3's tokenizer puts a blank behind each special token, which belongs to the answer's first word.
    assert processor.tokenizer.decode(learned).lstrip(" ") == f"A dog.{family.end}"
    prompt = prompt_ids(processor, TALK[:1]).tolist()
    assert prompt == tokens(processor, own(name, TALK[:1], prompt=True))
    assert encoded.input_ids.tolist() == prompt + learned.tolist(), "an answer is learned behind its prompt"
    assert prompt.count(processor.image_token_id) == K
    assert end_of_turn(processor) == processor.tokenizer.convert_tokens_to_ids(family.end)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_of_several_answers_is_learned(name: str) -> None:
    processor, family = built(name), FAMILIES[name]
    encoded = encode(processor, TALK, name="a")
    spans = np.flatnonzero(np.diff(np.pad(encoded.labels != IGNORED, 1).astype(int))).reshape(-1, 2)
    said = [processor.tokenizer.decode(encoded.labels[start:stop]).lstrip(" ") for start, stop in spans]
    assert said == [f"A dog.{family.end}", f"A cat, 'Tom'.{family.end}"]
    text = own(name, TALK)
    if name == "qwen 3":  # the thought that its own template leaves out of earlier turns stays, as the prompt has it
        assert text.count(THOUGHT) == 1
        text = text.replace("assistant\nA dog.", f"assistant\n{THOUGHT}A dog.")
    assert encoded.input_ids.tolist() == tokens(processor, text[: text.rindex(family.end) + len(family.end)])
    first = prompt_ids(processor, TALK[:1])
    assert encoded.input_ids[: len(first)].tolist() == first.tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_turn_is_rendered_as_the_family_does_or_refused(name: str) -> None:
    processor, family = built(name), FAMILIES[name]
    talk = [Message("system", "Be brief. "), *TALK[:2]]
    if name == "gemma 2":
        with pytest.raises(UnfitError, match=r"sample r-9 cannot be rendered .*\(turns are of user and assistant\); "):
            encode(processor, talk, name="r-9")
        return
    text = own(name, talk)
    found = encode(processor, talk, name="a").input_ids.tolist()
    assert found == tokens(processor, text[: text.rindex(family.end) + len(family.end)])
    assert "Be brief." in processor.tokenizer.decode(found)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_one_beginning_whatever_the_way(name: str) -> None:
    """The template's and not the tokenizer's besides: in training, in prompts, and through the processor."""
    processor, family = built(name), FAMILIES[name]
    bos, expected = processor.tokenizer.bos_token_id, int(family.bos is not None)
    prompt = prompt_ids(processor, TALK[:1]).tolist()
    ways = {"training": encode(processor, TALK, name="a").input_ids.tolist(), "prompt": prompt}
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": TALK[0].content}], add_generation_prompt=True, tokenize=False
    )
    embeds = np.zeros((1, 4), dtype=np.float32)
    ways["text"] = processor(text=rendered, image_embeds=embeds)["input_ids"][0]
    ways["chat"] = processor.apply_chat_template(
        [{"role": "user", "content": TALK[0].content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"image_embeds": embeds},
    )["input_ids"][0]  # fmt: skip
    for way, ids in ways.items():
        assert list(ids).count(bos) == expected, way
    assert list(ways["text"]) == list(ways["chat"]) == prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_turn_is_learned_also_where_it_is_the_padding(name: str) -> None:
    processor, family = built(name), FAMILIES[name]
    assert processor.tokenizer.pad_token == (family.pad or family.eos)
    examples: list[Any] = [
        {"input_ids": one.input_ids, "labels": one.labels, "image_embed": None}
        for one in (encode(processor, talk, name="a") for talk in (TALK, TALK[:2]))
    ]
    batch = Collator(processor.tokenizer.pad_token_id)(examples)
    ends = (batch["labels"] == end_of_turn(processor)).sum(dim=1).tolist()
    assert ends == [2, 1]
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


@pytest.mark.parametrize("name", BASES)
def test_a_base_llm_is_given_the_beginning_that_it_knows(name: str) -> None:
    family = BASES[name]
    processor = build_processor(build_tokenizer(family), num_visual_tokens=K)
    encoded = encode(processor, TALK[:2], name="a")
    begun = [processor.tokenizer.bos_token_id] if family.bos else []
    assert encoded.input_ids[: len(begun)].tolist() == begun
    assert encoded.input_ids.tolist().count(processor.tokenizer.bos_token_id) == len(begun)
    assert processor.tokenizer.decode(encoded.labels[encoded.labels != IGNORED]) == f"A dog.{family.end}"
    assert prompt_ids(processor, TALK[:1])[: len(begun)].tolist() == begun


class Tomorrow(datetime):
    """A clock that is ahead."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Some other day."""
        return datetime(2031, 5, 4, 3, 2, 1)


@pytest.mark.parametrize("name", ["llama 3.1", "smollm 3"])
def test_a_template_does_not_change_overnight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a resumed run would find another tokenizer than it began with."""
    before = built(name).chat_template
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert built(name).chat_template == before
    assert DAY in before


BROKEN = {
    "{% for m in messages %}{{ m['content'] }}": r"line 1: Unexpected end of template",
    "{{ messages[0]['content'] + nothing }}": "'nothing' is undefined",
    "{{ messages[0]['content'] + 1 }}": "can only concatenate str",
    "{{ raise_exception('never mind') }}": "never mind",
}


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_jinja_cannot_render_is_one_sentence(template: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    with pytest.raises(ValueError, match=rf"mine\.jinja cannot be rendered \({BROKEN[template]}.*; mend it") as caught:
        read_template(file)
    assert "\n" not in str(caught.value)
    for marks in ("", "{% generation %}{% endgeneration %}"):
        tokenizer = build_tokenizer(FAMILIES["qwen 2.5"])
        tokenizer.chat_template, tokenizer.name_or_path = marks + template, "some/llm"
        with pytest.raises(ValueError, match=rf"LLM some/llm.*{BROKEN[template]}.*model\.chat_template=FILE") as caught:
            build_processor(tokenizer, num_visual_tokens=K)
        assert "\n" not in str(caught.value)
