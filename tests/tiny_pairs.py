"""Pairs of random pictures and short texts for the tests of `contrast`, and a configuration that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny_encoder import make_picture

from revision.schema import Config, ContrastConfig, DataConfig, EncoderConfig


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    """Records as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs_config(
    root: Path, counts: Mapping[str, int], text: Callable[[int, int], str], *, name: str, contrast: ContrastConfig
) -> Config:
    """Writes `<split>.jsonl` and its pictures, and gives a configuration whose encoder is the one that it trains.

    Args:
        root: an empty folder.
        counts: of pairs, by split: train and validation.
        text: of pair number i of n.
        name: of the run.
        contrast: its settings.
    """
    for split, count in counts.items():
        rows = []
        for number in range(count):
            make_picture(root / split / f"{number}.png", seed=number + 100 * count)
            rows.append({"id": f"{number}", "image": f"{split}/{number}.png", "text": text(number, count)})
        write_lines(root / f"{split}.jsonl", rows)
    return Config(
        name=name,
        runs=str(root / "runs"),
        data=DataConfig(
            name="tiny",
            stores=str(root / "stores"),
            contrast_train=str(root / "train.jsonl"),
            contrast_validation=str(root / "validation.jsonl"),
        ),
        encoder=EncoderConfig(name="tiny", model=f"local-dir:{root}/runs/{name}/contrast/encoder", batch_size=5),
        contrast=contrast,
    )
