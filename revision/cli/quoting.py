"""Values as they are typed: quoted where Hydra, or the shell before it, would read a character as something else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from revision.fields import alternatives, type_at

_SHELL = re.compile(r"[\s\"'\\$`&|;<>()*?!#]|=~")  # what bash takes for its own inside of field=value


def written(value: Any) -> str:
    """A plain value as Hydra reads it back: `[<image>]` becomes `["<image>"]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{written(key)}:{written(one)}" for key, one in value.items()) + "}"
    return str(value) if not isinstance(value, str) or _reads_as_it_is(value) else _quoted(value)


def for_shell(word: str) -> str:
    """A word as it is typed in a shell."""
    if not _SHELL.search(word):
        return word
    if "'" not in word:
        return f"'{word}'"
    if re.search(r"[!`$\\]", word):
        return shlex.quote(word)
    return '"' + word.replace('"', '\\"') + '"'


def corrected(name: str, value: str) -> str:
    """What to type for a text that Hydra does not read as one value of the field `name`.

    A `~` is written out: quoted, nothing would read it as the home folder.
    """
    listed = re.fullmatch(r"\[(.*)\]", value, re.DOTALL)
    if listed and any(get_origin(one) is list for one in alternatives(type_at(name))):
        items = [item.strip() for item in listed[1].split(",")]
        return for_shell(f"{name}=[{','.join(map(_item, items))}]")
    if value.startswith("~/"):
        return for_shell(f"{name}={written(str(Path(value).expanduser()))}")
    return for_shell(f"{name}={_quoted(value)}")


def _item(text: str) -> str:
    return text if _parsed(text) is not None else _quoted(text)


def _quoted(text: str) -> str:
    quote = Quote.single if '"' in text and "'" not in text else Quote.double
    return str(QuotedString(text, quote).with_quotes())


def _reads_as_it_is(text: str) -> bool:
    parsed = _parsed(text)
    return isinstance(parsed, str) and parsed == text


def _parsed(text: str) -> Any:
    """What Hydra makes of an item of a list, or of a value; None where it is not one."""
    try:
        override = OverridesParser.create().parse_override(f"x=[{text}]")
    except HydraException:
        return None
    value = override.value()
    return value[0] if isinstance(value, list) and len(value) == 1 else None
