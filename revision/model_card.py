"""The model card of a trained model: where its data came from, how it was trained, how to use it; no licence is chosen.

`training.json` beside it holds the same as numbers, one entry a stage, so that a later stage can go on with it. Neither
holds an absolute path: both are made to be published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"
HISTORY = "training.json"
LICENCE = "license"  # the hub's name of the field
PIPELINE = "image-text-to-text"

Entry = dict[str, Any]  # one stage of training, plain JSON

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")  # of a data set on a hub, say
_PATH = re.compile(r"""(?<![^\s=:,'"\[(])/[^\s,'")\]]+""")  # an absolute one among other words
_USE = """\
```python
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
embeds = torch.nn.functional.normalize(torch.randn(1, {dim}), dim=-1)  # in its place: your picture, encoded
turns = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "What is it?"}}]}}]
inputs = processor.apply_chat_template(
    turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    processor_kwargs={{"image_embeds": embeds}},
)
answer = model.generate(**inputs, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
```

With `processor.attach(encode_images)`, where `encode_images` maps n PIL images to unit rows [n, {dim}] of that encoder,
messages and `pipeline("image-text-to-text", model=model, processor=processor)` take pictures themselves.
"""


def stage_entry(
    *, name: str, settings: Mapping[str, Any], facts: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Entry:
    """What one stage adds to the history of a model.

    Args:
        name: `<run>/<stage>`.
        settings: every field that its result depends on, by dotted name.
        facts: samples, steps, the last loss, rates.
        provenance: time, packages, commit and hardware.
    """
    told = ("time", "git", "python", "packages", "hardware")
    return {
        "stage": name,
        "facts": dict(facts),
        "settings": {key: public(value) for key, value in settings.items()},
        **{key: provenance[key] for key in told},
    }


def read_history(folder: Path) -> list[Entry]:
    """The stages that a saved model went through; none for a model without a history."""
    path = folder / HISTORY
    return json.loads(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else []


def public(value: Any) -> Any:
    """A setting without the folders of this machine: of an absolute path, the last name; addresses stay whole."""
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    if not isinstance(value, str) or _ADDRESS.match(value):
        return value
    if Path(value).is_absolute():  # one path, whatever characters it has
        return Path(value).name
    return _PATH.sub(lambda found: Path(found[0]).name, value)


def write(folder: Path, history: Sequence[Entry], *, config: Mapping[str, Any], parameters: int) -> None:
    """Writes card and history into the folder of a model.

    Args:
        folder: of the model.
        history: a stage each, in order; at least one.
        config: the model's, as a dictionary.
        parameters: how many the model has.
    """
    text = json.dumps({"stages": list(history)}, indent=2, ensure_ascii=False)
    (folder / HISTORY).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(render(history, config=config, parameters=parameters), encoding="utf-8")


def render(history: Sequence[Entry], *, config: Mapping[str, Any], parameters: int) -> str:
    """The card, Markdown behind the hub's fields in YAML. Arguments as of `write`."""
    last = history[-1]
    settings = last["settings"]
    llm, encoder = settings["model.llm"], settings["encoder.name"]
    sections = [
        _fields(llm),
        f"# {last['stage'].rpartition('/')[0]}\n",
        f"A language model that reads pictures: `{llm}` behind a projector of {config['projector_depth']} layers, "
        f"which turns one embedding of the dual encoder `{encoder}` ({config['embed_dim']} dimensions) into "
        f"{config['num_visual_tokens']} visual tokens. {parameters:,} parameters in all. Made with ReVision "
        "([arXiv 2602.07026](https://arxiv.org/abs/2602.07026)): in training, no picture was opened; embeddings of "
        "pictures, or of texts moved onto them, stood in their place.\n",
        "## Use\n",
        _USE.format(dim=config["embed_dim"]),
        "## Data\n",
        _data(history, config["alignment"]),
        "## Training\n",
        *(_stage(entry) for entry in history),
        "## Versions\n",
        _versions(last),
        "## Licence and limits\n",
        f"Not chosen yet: whoever publishes this model adds `{LICENCE}:` to the fields above, after reading the "
        f"licences of the language model (`{llm}`), of the encoder (`{encoder}`) and of the data. What the model was "
        "not tested on, and what it should not be used for, belongs here too.\n",
    ]
    return "\n".join(sections)


def licence_of(folder: Path) -> str | None:
    """The licence that the card of a model names."""
    found = re.search(rf"^{LICENCE}:[ \t]*(\S.*?)[ \t]*$", _head(folder / CARD)[0], re.MULTILINE)
    return None if found is None else found[1]


def with_licence(card: str, licence: str) -> str:
    """The text of a card with another licence among its fields."""
    head, body = _split(card)
    kept = [line for line in head.splitlines() if not line.startswith(f"{LICENCE}:")]
    return "\n".join(["---", *kept, f"{LICENCE}: {licence}", "---", body])


def _head(path: Path) -> tuple[str, str]:
    return _split(path.read_text(encoding="utf-8")) if path.is_file() else ("", "")


def _split(card: str) -> tuple[str, str]:
    """Fields and text of a card."""
    found = re.match(r"---\n(.*?\n)---\n(.*)", card, re.DOTALL)
    return (found[1], found[2]) if found else ("", card)


def _fields(llm: str) -> str:
    base = [f"base_model: {llm}"] if re.fullmatch(r"[\w.-]+/[\w.-]+", llm) and not Path(llm).exists() else []
    lines = ["library_name: transformers", f"pipeline_tag: {PIPELINE}", *base, "tags:", "- revision", "- multimodal"]
    return "\n".join(["---", *lines, "---", ""])


def _data(history: Sequence[Entry], alignment: Mapping[str, Any] | None) -> str:
    lines = [f"- {_command(entry)}: {int(entry['facts']['samples']):,} samples{_read(entry)}." for entry in history]
    if alignment is not None:
        method = alignment["method"]
        lines.append(
            f"- Texts were moved onto the pictures by `{method}`, fitted on the text store `{alignment['text']}` and "
            f"the image store `{alignment['image']}` (fingerprints)."
        )
    return "\n".join([*lines, ""])


def _read(entry: Entry) -> str:
    """What the samples of a stage were, and what stood where pictures will stand: texts, pictures, or some of each."""
    settings, facts, stage = entry["settings"], entry["facts"], _command(entry)
    in_pairs = settings.get("pretrain.input") == "pairs"
    talks = settings.get("data.conversations" if stage == "instruct" else "data.pairs" if in_pairs else "")
    of_texts = stage == "pretrain" and not in_pairs
    sources = [settings.get("data.texts")] if of_texts else settings.get("data.conversation_sources") or []
    read: dict[str, list[str]] = {"text": [], "image": []}
    for source in sources:
        files = (settings.get(f"data.sources.{source}.{name}") for name in ("records", "embeddings"))
        read.setdefault(settings.get(f"data.sources.{source}.kind"), []).append(
            f"`{next(filter(None, files), source)}`"
        )
    told = [f" from `{talks}`" if talks else ""]
    for kind, counted, what in (
        ("text", "about_texts", "texts in the place of pictures"),
        ("image", "about_pictures", "pictures"),
    ):
        number = f"{facts[counted]:,} " if counted in facts else ""
        if read[kind] and number != "0 ":
            told.append(f"{number}with embeddings of {what} ({', '.join(_unique(read[kind]))})")
    if facts.get("about_neither"):
        told.append(f"{facts['about_neither']:,} without")
    return "; ".join(told)


def _stage(entry: Entry) -> str:
    stage, facts = _command(entry), entry["facts"]
    names = [
        name
        for name in entry["settings"]
        if name.startswith((f"{stage}.", "adapter.", "alignment.", "model.", "seed", "engine."))
    ]
    rows = [f"| `{name}` | {_cell(entry['settings'][name])} |" for name in names]
    done = f"{int(facts['steps']):,} steps" + (f", last loss {facts['loss']:.4f}" if "loss" in facts else "")
    return "\n".join([f"### {entry['stage']}\n", f"{done}.\n", "| setting | value |", "|---|---|", *rows, ""])


def _versions(entry: Entry) -> str:
    git = entry["git"]
    commit = "" if git is None else f", commit `{git['commit']}`{' with changes' if git['dirty'] else ''}"
    packages = [f"{name} {version}" for name, version in entry["packages"].items() if version is not None]
    return f"Python {entry['python']}, {', '.join(packages)}{commit}; {entry['time']}.\n"


def _command(entry: Entry) -> str:
    return str(entry["stage"].rpartition("/")[2])


def _cell(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
