"""Builds `nano_parts/lexicon.json`, the concepts of the `nano` corpus: code points, name, group, family, tags.

Source: npm package emojibase-data 17.0.0 (MIT), whose English names and tags are those of the Unicode CLDR (Unicode
License v3). The result is small, is kept in the repository, and need only be built again for a new release:

    npm pack emojibase-data@17.0.0 && tar xzf emojibase-data-17.0.0.tgz
    python data_recipes/nano_lexicon.py --emojibase package

Expected count: 1,427 concepts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

# What a 160-pixel picture cannot tell apart, or what is only writing: flags, keycaps, letters, families, skin tones,
# the 24 clock faces, and the man and woman variants of a figure that is listed without gender too.
LEFT_OUT_GROUPS = {"components"}
LEFT_OUT_FAMILIES = {"country flags", "subdivision flags", "keypad characters", "alphanumeric symbols", "family"}
GENDERED = {"man", "woman", "men", "women"}


def wanted(label: str, *, gendered: bool) -> bool:
    """Whether a concept of an admitted family is kept."""
    variant = gendered and label.split()[0] in GENDERED and label not in GENDERED
    return not (variant or "facing right" in label or "-thirty" in label or "o’clock" in label)


def concepts(folder: Path) -> list[dict[str, Any]]:
    """The lexicon's rows from an unpacked emojibase-data package."""
    messages = json.loads((folder / "en/messages.json").read_text())
    groups = {row["order"]: row["message"] for row in messages["groups"]}
    families = {row["order"]: row["message"] for row in messages["subgroups"]}
    rows = []
    for emoji in json.loads((folder / "en/data.json").read_text()):
        if "group" not in emoji:  # regional indicators
            continue
        group, family = groups[emoji["group"]], families[emoji["subgroup"]]
        if group in LEFT_OUT_GROUPS or family in LEFT_OUT_FAMILIES:
            continue
        if wanted(emoji["label"], gendered="gender" in emoji):
            row = {"code": emoji["hexcode"].lower(), "name": emoji["label"].replace("’", "'"), "group": group}
            rows.append({**row, "family": family, "tags": emoji.get("tags", [])})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--emojibase", type=Path, required=True, help="folder of the unpacked npm package")
    rows = concepts(parser.parse_args().emojibase)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (Path(__file__).parent / "nano_parts/lexicon.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
