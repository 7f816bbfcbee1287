"""Chat templates that mark what is learned: an LLM's own, where it does, or an equivalent of it that we compose.

Labels come from `{% generation %}` in the chat template: whatever is rendered inside it is learned, which is the text
of each answer and the token that ends its turn, nothing else. Most LLMs ship a template without these marks. For them
`marked_template` reads off what their own template writes around the turns, composes an equivalent with marks, and
proves on probe conversations that both render the same bytes.

Two things of an LLM's own template are settled once: thoughts are off (`enable_thinking` is false), and the day that
some write into the system turn is that of Llama 3.1's template, so that a template does not change overnight. An LLM
that then writes an empty thought before the last answer only (Qwen 3) is given one before each: every answer is learned
behind what the generation prompt puts before it. In the turns before the last that differs from the LLM's own template.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

Turns = list[dict[str, str]]

REMEDY = "write one with {% generation %} around each answer and its end-of-turn token: model.chat_template=FILE"
JINJA_ERRORS = (TemplateError, TypeError)  # what a template that is wrong, or given what it does not know, raises

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SYSTEM, _USER, _ANSWER = "~S~", "~U~", "~A~"  # contents that a template writes nowhere else
_TURN = {"system": _SYSTEM, "user": _USER, "assistant": _ANSWER}
_DAY = "26 Jul 2024"
_SETTLED = {"enable_thinking": False, "date_string": _DAY}
_CLOCK = f"{{% macro strftime_now(format) %}}{_DAY}{{% endmacro %}}\n"  # hides the real one


def base_template(*, bos: bool) -> str:
    """For an LLM without a template: roles as plain lines, turns ended by its own end-of-sequence token.

    bos: its tokenizer puts a token before every text, without which the LLM has never seen one.
    """
    opening = ["{%- if loop.first -%}{{- bos_token -}}{%- endif -%}"] if bos else []
    return "\n".join(
        [
            "{%- for message in messages -%}",
            *opening,
            "{{- '<|' + message['role'] + '|>\\n' -}}",
            "{%- if message['role'] == 'assistant' -%}",
            "{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}",
            "{%- else -%}{{- message['content'] + eos_token -}}{%- endif -%}",
            "{{- '\\n' -}}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}",
        ]
    )


def read_template(path: Path) -> str:
    """A chat template from a file.

    Raises:
        ValueError: a missing file, or one that Jinja cannot render a question and an answer by.
    """
    if not path.is_file():
        raise ValueError(f"model.chat_template={path} does not exist; give a Jinja file, or null for the LLM's own")
    try:
        template = path.read_text(encoding="utf-8")
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        _render(template, _turns("user", "assistant"), dict.fromkeys(names, ""), today=True)
    except (*JINJA_ERRORS, UnicodeDecodeError) as error:
        raise ValueError(
            f"model.chat_template={path} cannot be rendered ({said(error)}); mend it, or give null for the LLM's own"
        ) from error
    return template


def said(error: BaseException) -> str:
    """What Jinja says of a template, in a line."""
    where = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    return where + str(error).strip().split("\n")[0]


def is_marked(template: str) -> bool:
    """Whether a template marks anything to be learned."""
    return _MARKED.search(template) is not None


def marked_template(own: str, special_tokens: Mapping[str, Any], *, name: str = "the LLM's chat template") -> str:
    """A chat template that renders as `own` does and marks the answers.

    Args:
        own: the LLM's template, without marks, or with others than ours.
        special_tokens: names and texts (`bos_token`, ...) that the template may refer to.
        name: what errors call it.

    Raises:
        ValueError: `own` does more than write fixed text around each turn.
    """
    try:
        form = _read_off(own, special_tokens)
        alike = form.as_jinja(own=True)
        same = all(
            _render(own, turns, special_tokens, prompt) == _render(alike, turns, special_tokens, prompt)
            for turns, prompt in _probes(system=form.system is not None)
        )
    except (*JINJA_ERRORS, ValueError) as error:
        raise ValueError(f"{name} cannot be marked for training: {said(error)}; {REMEDY}") from error
    if not same:
        raise ValueError(
            f"{name} cannot be marked for training: it does more than write fixed text around each turn; {REMEDY}"
        )
    return form.as_jinja()


@dataclass(frozen=True)
class _Form:
    """What a template writes around the turns.

    Attributes:
        opening: before the first turn, where that is not of the system.
        system: around a system turn; None: there may be none.
        folded: the system turn stands inside the first user's, which begins with it (Gemma 3).
        before_user, after_user: around a user's turn.
        before_answer, before_history: before the last answer, and before earlier ones.
        end, after_end: behind an answer: what ends it, which is learned, and blanks.
        prompt: what asks for an answer.
        closing: behind a conversation that asks for none (Phi 3).
        stripped: roles whose contents lose the blanks around them.
    """

    opening: str
    system: tuple[str, str] | None
    folded: bool
    before_user: str
    after_user: str
    before_answer: str
    before_history: str
    end: str
    after_end: str
    prompt: str
    closing: str
    stripped: frozenset[str]

    def as_jinja(self, *, own: bool = False) -> str:
        """The marked template. Every line begins and ends with a tag that takes the blanks around it away.

        own: earlier answers as the LLM's own template writes them.
        """
        start = _put(self.opening)
        before_answer = _put(self.before_answer)
        if own and self.before_history != self.before_answer:
            history = _put(self.before_history)
            before_answer = f"{{%- if loop.last -%}}{before_answer}{{%- else -%}}{history}{{%- endif -%}}"
        before_user = _put(self.before_user)
        if self.folded:
            after_system = "loop.index0 == 1 and messages[0]['role'] == 'system'"
            before_user = f"{{%- if not ({after_system}) -%}}{before_user}{{%- endif -%}}"
        if self.system is None:
            first, refused = [f"{{%- if loop.first -%}}{start}{{%- endif -%}}"], "true"
            rule = "turns are of user and assistant"
        else:
            content = self._content("system")
            first = [
                "{%- if loop.first and message['role'] == 'system' -%}",
                f"{_put(self.system[0])}{{{{- {content} -}}}}{_put(self.system[1])}",
                f"{{%- elif loop.first -%}}{start}{{%- endif -%}}",
            ]
            refused = "not loop.first"
            rule = "the first turn may be of the system, all others are of user and assistant"
        answer = f"{{{{- {self._content('assistant')} + {_quoted(self.end)} -}}}}"
        asked = f"{{%- if add_generation_prompt -%}}{_put(self.prompt)}"
        asked += f"{{%- else -%}}{_put(self.closing)}{{%- endif -%}}" if self.closing else "{%- endif -%}"
        lines = [
            "{%- for message in messages -%}",
            *first,
            "{%- if message['role'] == 'user' -%}",
            f"{before_user}{{{{- {self._content('user')} -}}}}{_put(self.after_user)}",
            "{%- elif message['role'] == 'assistant' -%}",
            before_answer,
            f"{{%- generation -%}}{answer}{{%- endgeneration -%}}",
            _put(self.after_end),
            f"{{%- elif {refused} -%}}",
            f"{{{{- raise_exception({_quoted(rule)}) -}}}}",
            "{%- endif -%}",
            "{%- endfor -%}",
            asked,
        ]
        return "\n".join(lines)

    def _content(self, role: str) -> str:
        return "(message['content'] | trim)" if role in self.stripped else "message['content']"


def _read_off(own: str, special_tokens: Mapping[str, Any]) -> _Form:
    """Found by rendering short conversations of known contents and taking away what is known already."""
    opening, after_one = _around(_USER, _render(own, _turns("user"), special_tokens))
    _, tail = _around(_USER, _render(own, _turns("user", "assistant"), special_tokens))
    to_last, after_last = _around(_ANSWER, tail)
    again = _render(own, _turns("user", "assistant", "user"), special_tokens)
    to_history, after_history = _around(_ANSWER, again)
    between, _ = _around(_USER, after_history)
    closing = _closing(after_one, after_last, between, special_tokens)
    after_user, after_answer = after_one.removesuffix(closing), after_last.removesuffix(closing)
    before_user = _behind(after_answer, between)
    end = after_answer.rstrip()  # the tokens that end an answer are learned; blanks behind them are the template's
    if not end:
        raise ValueError("it writes no end-of-turn token after an answer")
    system, folded = _system(own, special_tokens, before_user, after_user + closing)
    prompt = _render(own, _turns("user"), special_tokens, prompt=True)
    return _Form(
        opening=opening.removesuffix(before_user),
        system=system,
        folded=folded,
        before_user=before_user,
        after_user=after_user,
        before_answer=_behind(after_user, to_last),
        before_history=_behind(opening + _USER + after_user, to_history),
        end=end,
        after_end=after_answer.removeprefix(end),
        prompt=_behind(opening + _USER + after_user, prompt),
        closing=closing,
        stripped=_stripped(own, special_tokens, system=system is not None),
    )


def _closing(after_one: str, after_last: str, between: str, special_tokens: Mapping[str, Any]) -> str:
    """What stands behind the last turn, of whatever role, and nowhere else."""
    end = str(special_tokens.get("eos_token") or "")
    alone = bool(end) and after_one.endswith(end) and after_last.endswith(end)
    return end if alone and not between.startswith(after_last) else ""


def _system(
    own: str, special_tokens: Mapping[str, Any], before_user: str, after: str
) -> tuple[tuple[str, str] | None, bool]:
    """What stands around a system turn, and whether it is part of the user's; a template may refuse such turns."""
    with contextlib.suppress(*JINJA_ERRORS, ValueError):
        rendered = _render(own, _turns("system", "user"), special_tokens)
        before, rest = _around(_SYSTEM, rendered)
        if rest.endswith(before_user + _USER + after):
            return (before, rest.removesuffix(before_user + _USER + after)), False
        if rest.endswith(_USER + after):
            return (before, rest.removesuffix(_USER + after)), True
    return None, False


def _stripped(own: str, special_tokens: Mapping[str, Any], *, system: bool) -> frozenset[str]:
    """Roles whose contents lose the blanks around them."""
    found = set()
    for roles in [("user",), ("user", "assistant"), *([("system", "user")] if system else [])]:
        role = roles[0] if system and roles[0] == "system" else roles[-1]
        turns = [{**turn, "content": f" {turn['content']} "} for turn in _turns(*roles)]
        if f" {_TURN[role]} " not in _render(own, turns, special_tokens):
            found.add(role)
    return frozenset(found)


def _render(
    template: str, turns: Turns, special_tokens: Mapping[str, Any], prompt: bool = False, *, today: bool = False
) -> str:
    """The text of a conversation. today: as it comes, so that Jinja counts lines of `template` alone."""
    clock = _CLOCK if "strftime_now" in template and not today else ""
    rendered: Any = render_jinja_template(
        [turns], chat_template=clock + template, add_generation_prompt=prompt, **{**special_tokens, **_SETTLED}
    )
    return str(rendered[0][0])


def _turns(*roles: str) -> Turns:
    return [{"role": role, "content": _TURN[role]} for role in roles]


def _put(text: str) -> str:
    """Jinja that writes a text."""
    return f"{{{{- {_quoted(text)} -}}}}" if text else ""


def _quoted(text: str) -> str:
    """A Jinja string literal; Jinja reads the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _around(content: str, text: str) -> tuple[str, str]:
    """What stands before and after a content's first place; in a text that has it once, of all turns asked for."""
    if content not in text:
        raise ValueError("it leaves the content of a turn out, repeats it or moves it")
    before, _, after = text.partition(content)
    return before, after


def _behind(start: str, text: str) -> str:
    """The rest of a text behind what it has to begin with."""
    if not text.startswith(start):
        raise ValueError("it does more than write fixed text around each turn")
    return text.removeprefix(start)


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
