"""Names in the `trainer` mappings, held against transformers at once: a stage may start hours later."""

from __future__ import annotations

from revision.fields import argument_names, nearest
from revision.rules.sentences import broken
from revision.schema import Config


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
