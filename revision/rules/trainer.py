"""Names in the `trainer` mappings, held against transformers at once: a stage may start hours later."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from revision.fields import nearest
from revision.rules.sentences import broken
from revision.schema import Config


@cache
def argument_names() -> frozenset[str]:
    """The fields of `transformers.TrainingArguments`, read from its file: to import it takes seconds.

    None where they are not found there; each stage holds its mapping against the class itself.
    """
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        return frozenset()
    file = Path(package.origin).with_name("training_args.py")
    if not file.is_file():
        return frozenset()
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    bodies = [node.body for node in classes if node.name == "TrainingArguments"]
    fields = [line.target for body in bodies for line in body if isinstance(line, ast.AnnAssign)]
    return frozenset(field.id for field in fields if isinstance(field, ast.Name))


def check_trainer(config: Config) -> None:
    """That every key of the three mappings is an argument of transformers."""
    mappings = {
        "trainer": config.trainer,
        "pretrain.trainer": config.pretrain.trainer,
        "instruct.trainer": config.instruct.trainer,
    }
    known = argument_names()
    for place, mapping in mappings.items():
        for name in mapping:
            if known and name not in known:
                rule = f"left out, since transformers.TrainingArguments has no such argument{nearest(name, known)}"
                raise broken(f"{place}.{name}", mapping[name], rule)
