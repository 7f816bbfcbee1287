"""`revision COMMAND --help`: the fields that the command reads, its own first, each with its value and its meaning."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from revision.fields import flat
from revision.runs import rundir
from revision.schema import MODEL_STEPS, STEPS, Config

_FIELD = re.compile(r"    (\w+): .*?(?:  # (.*))?$")
_MORE = re.compile(r"    # (.*)$")


def fields_help(config: Config, command: str) -> str:
    """Lines `field=value  # meaning`: the section of the command, then what else its output depends on.

    Args:
        config: the composed configuration, whose values are shown.
        command: one of the commands.
    """
    values = dict(flat(config))
    values |= {f"{command}.{name}": "{}" for name, value in vars(vars(config)[command]).items() if value == {}}
    own = [name for name in values if name.split(".")[0] == command]
    read = _read(config, command)
    values = {**read, **values}
    others = sorted((name for name in read if name not in own), key=_place)
    titled = {f"Fields of `{command}`": own, "What else it depends on": others}
    meanings = {name: meaning for name, meaning in _meanings(Config) if meaning}
    parts = []
    for title, names in titled.items():
        keys = (re.sub(r"^data\.sources\.[^.]+", "data.sources.*", name) for name in names)
        lines = [_line(name, values[name], meanings.get(key)) for name, key in zip(names, keys, strict=True)]
        parts.append("\n".join([f"== {title} (field=value) ==", *(lines or ["none"])]))
    rest = f"All fields with their values: `revision {command} --cfg job`; their meanings: revision/schema"
    return "\n\n".join([*parts, rest]) + "\n"


def _read(config: Config, command: str) -> dict[str, Any]:
    """What a command's output depends on; of commands that leave none behind, what they use."""
    values = dict(flat(config))
    if command in STEPS:
        found = rundir.settings(config, command)
    elif command == "chat":
        found = rundir.settings(config, config.chat.model) if config.chat.model in MODEL_STEPS else {}
        found |= {name: values[name] for name in values if name.split(".")[0] == "encoder"}
    else:
        found = {name: values[name] for name in ("seed", "tracker", "engine.processes")}
    return {name: values[name] for name in ("name", "runs")} | found


def _place(name: str) -> tuple[int, str]:
    """Sorts as the schema does."""
    return list(get_type_hints(Config)).index(name.split(".")[0]), name


def _line(name: str, value: Any, meaning: str | None) -> str:
    shown = f"{name}={_shown(value)}"
    return f"{shown:<48}  # {meaning}" if meaning else shown


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return str(value)


def _meanings(container: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The comment of each field of a dataclass and of those inside it, by dotted name; `*` stands for any key."""
    comments = _comments(container)
    for name, hint in get_type_hints(container).items():
        yield f"{prefix}{name}", comments.get(name, "")
        if is_dataclass(hint):
            yield from _meanings(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            yield from _meanings(get_args(hint)[1], f"{prefix}{name}.*.")


def _comments(container: Any) -> Mapping[str, str]:
    """Comments of a class's fields, from its source; a comment may go on below its field."""
    found: dict[str, str] = {}
    last = None
    for line in inspect.getsource(container).splitlines():
        if field := _FIELD.match(line):
            last = field[1]
            found[last] = field[2] or ""
        elif (more := _MORE.match(line)) and last is not None:
            found[last] = f"{found[last]} {more[1]}".strip()
        else:
            last = None
    return found
