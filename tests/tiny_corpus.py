"""A corpus of a few random pictures and sentences with a tiny encoder and LLM: enough for every command to run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tiny_encoder import WORDS, make_encoder_folder, make_picture

COUNT = 6  # pictures and texts of each part


def make_corpus(folder: Path, llm: Path) -> Path:
    """Records, pictures, and under `assets/` the models, laid out as data_recipes/nano.py lays them out."""
    pictures = [make_picture(folder / "pictures" / f"{number}.png", seed=number) for number in range(2 * COUNT)]
    rows = [{"id": path.stem, "image": f"pictures/{path.name}"} for path in pictures]
    names = [f"{WORDS[1 + number % 3]} {WORDS[4 + number // 3]}" for number in range(COUNT)]
    _write(folder / "texts.jsonl", [{"id": f"t{n}", "text": f"a {name}"} for n, name in enumerate(names)])
    _write(folder / "names.jsonl", [{"id": name, "text": name} for name in names])
    _write(folder / "statistics.jsonl", rows[:COUNT])
    _write(folder / "pictures.jsonl", rows[COUNT:])
    pairs = [
        {"id": row["id"], "image": row["id"], "text": f"a {name}"} for row, name in zip(rows, 2 * names, strict=True)
    ]
    _write(folder / "pairs.jsonl", pairs)
    files = [{**pair, "image": row["image"]} for pair, row in zip(pairs[:COUNT], rows, strict=False)]
    _write(folder / "train.jsonl", files)
    _write(folder / "validation.jsonl", files)
    turns = [{"role": "user", "content": "<image>\nWhat is this?"}, {"role": "assistant", "content": "a cat"}]
    conversations = [{"id": f"c{row['id']}", "image": row["id"], "messages": turns} for row in rows]
    _write(folder / "conversations.jsonl", conversations)
    where = [{"track": ("known", "unseen")[n % 2], "split": "test"} for n in range(COUNT)]
    shown = rows[COUNT:]
    _write(
        folder / "naming.jsonl",
        [
            {**row, "name": name, "caption": f"a {name}", **part}
            for row, name, part in zip(shown, names, where, strict=True)
        ],
    )
    asked = {"question": "<image>\nWhat is this?", "answer": "a cat", "kind": "name"}
    _write(
        folder / "questions.jsonl",
        [{"id": f"q{row['id']}", "image": row["id"], **asked, **part} for row, part in zip(shown, where, strict=True)],
    )
    for name in ("encoder", "towers"):
        make_encoder_folder(folder / "assets" / name)
    shutil.copytree(llm, folder / "assets" / "llm")
    return folder


def make_groups(folder: Path, corpus: Path) -> Path:
    """Config groups that swap the tiny parts in: `data=tiny encoder=tiny`; the LLM is `${data.folder}/assets/llm`."""
    sources = {
        "texts": {"kind": "text", "records": f"{corpus}/texts.jsonl"},
        "names": {"kind": "text", "records": f"{corpus}/names.jsonl"},
        "statistics": {"kind": "image", "records": f"{corpus}/statistics.jsonl"},
        "pictures": {"kind": "image", "records": f"{corpus}/pictures.jsonl"},
    }
    data: dict[str, Any] = {
        "name": "tiny",
        "folder": str(corpus),
        "stores": f"{folder}/stores",
        "sources": sources,
        "contrast_train": f"{corpus}/train.jsonl",
        "contrast_validation": f"{corpus}/validation.jsonl",
        "pairs": f"{corpus}/pairs.jsonl",
        "conversations": f"{corpus}/conversations.jsonl",
        "conversation_sources": ["statistics", "pictures"],
        "naming": f"{corpus}/naming.jsonl",
        "questions": f"{corpus}/questions.jsonl",
        "pictures": "pictures",
        "names": "names",
    }
    encoder = {"name": "tiny", "model": f"local-dir:{corpus}/assets/encoder", "batch_size": 4}
    for group, values in {"data": data, "encoder": encoder}.items():
        (folder / group).mkdir(parents=True)
        (folder / group / "tiny.yaml").write_text(json.dumps(values))  # JSON is YAML
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
