"""The command line of a recipe: options, files, rows to records, statistics pictures, the finish mark.

Every recipe leaves below --out:

| file | rows |
|---|---|
| `texts.jsonl` | `id`, `text`: what stage 1 learns from |
| `images.jsonl` | `id`, `image`: a path below `images/` |
| `pairs.jsonl` | `id`, `image`, `text`: both together, for the upper bound |
| `conversations.jsonl` | `id`, `image`?, `conversations`: stage 2 |
| `statistics.jsonl` | `id`, `image`: a sample of the pictures, whose moments define the alignment |
| `rejected.jsonl` | `id`, `reason`: each row of the source that became no record |
| `recipe.json` | the finish mark: source, checksums, licence, counts; `remarks`, what is said of how many rows |

A corpus has those of them that it has content for. Pictures are not fetched: unpack them into `images/` below --out, or
link that name to where they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.logging import RichHandler

from corpus_parts.card import Card, find_files, sha256_of
from corpus_parts.converting import Plan, convert
from corpus_parts.keeping import Keeper
from corpus_parts.sampling import draw, write_statistics

MARK = "recipe.json"
FILES = ("texts", "images", "pairs", "conversations")

log = logging.getLogger("recipe")


def parser_of(card: Card, docstring: str | None, *, published: bool = True) -> argparse.ArgumentParser:
    """Options that all recipes have; where nobody publishes the corpus, --source is any location of texts."""
    parser = argparse.ArgumentParser(
        description=f"{(docstring or '').splitlines()[0]} Licence: {card.licence}. Homepage: {card.homepage}"
    )
    parser.add_argument("--out", type=Path, default=Path("data") / card.name, help="folder of the corpus")
    if published:
        parser.add_argument(
            "--source", type=Path, help="file or folder of its files; without it they come from the hub"
        )
    else:
        parser.add_argument("--source", required=True, help="text file, folder of them, or a location of records")
    parser.add_argument("--statistics", type=int, default=100_000, help="pictures whose moments define the alignment")
    parser.add_argument("--check-images", action="store_true", help="reject records whose picture is not in images/")
    parser.add_argument("--keep", type=int, help="records to draw at random in the end; without it all are kept")
    parser.add_argument("--seed", type=int, default=0, help="of every choice")
    parser.add_argument(
        "--reject-budget", type=float, default=0.05, metavar="SHARE",
        help="of the rows of a file, those that may become no record (0.05), missing pictures among them; what a "
        "filter leaves out does not count",
    )  # fmt: skip
    return parser


def require(options: argparse.Namespace, **ranges: tuple[float, float | None]) -> None:
    """Holds numbers of the command line to their ranges, least and most, where they are given.

    Raises:
        ValueError: one lies outside.
    """
    for name, (least, most) in ranges.items():
        value = vars(options)[name]
        if value is not None and not (value >= least and (most is None or value <= most)):  # so is a NaN
            rule = f"at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be {rule}, or left out")


def run(card: Card, options: argparse.Namespace, plan: Plan, recipe: Path) -> dict[str, int]:
    """Makes the records, or says that they are there; returns the counts.

    Raises:
        ValueError: an option is out of its range; a file is missing or is not what the publisher ships; more rows than
            --reject-budget allows became no record.
    """
    require(options, statistics=(0, None), keep=(1, None), seed=(0, None), reject_budget=(0, 1))
    if plan.sources is None:
        files = find_files(card, options.source, plan.wanted)
        sums = {file.name: sha256_of(file) for file in files}
        _compare(card, sums)
        places = {str(file): name for file, name in files.items()}
    else:
        sums, places = plan.sources, {name: name for name in plan.sources}
    made_of = {**plan.options, "check_images": options.check_images, "keep": options.keep, "seed": options.seed}
    made_from = _fingerprint(recipe, sums, made_of)
    settings = {"made_from": made_from, "statistics": options.statistics, "seed": options.seed}
    out: Path = options.out
    mark = json.loads((out / MARK).read_text()) if (out / MARK).is_file() else {}
    if mark.get("settings") == settings:
        log.info("%s is finished and unchanged", out)
        return dict(mark["counts"])
    (out / MARK).unlink(missing_ok=True)
    if mark.get("settings", {}).get("made_from") == made_from:
        counts = {name: count for name, count in mark["counts"].items() if name != "statistics"}
        remarks = mark["remarks"]
    else:
        keeper = Keeper(out, FILES, made_from)
        convert(card, places, plan, keeper, options)
        counts = _finish(keeper)
        remarks = dict(keeper.remarks)
        if options.keep is not None:
            counts |= draw(out, options.keep, options.seed)
    counts["statistics"] = write_statistics(out, options.statistics, options.seed)
    facts = {"corpus": asdict(card), "sources": sums, "counts": counts, "remarks": remarks}
    write_mark(out, {**facts, "settings": settings, "options": made_of})
    return counts


def start(main: Callable[[], Any], name: str) -> None:
    """Runs a recipe as a program: a mistake of the user's, or a disk that refuses, is a sentence, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    for noisy in ("httpx", "datasets", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        main()
    except ValueError as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        if error.strerror is None:  # not from the operating system
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        sys.exit(f"{name}: {place}{error.strerror}; mend that and give the same command again")


def _finish(keeper: Keeper) -> dict[str, int]:
    counts = keeper.finish()
    for name, count in counts.items():
        log.info("%s: %s", name, f"{count:,}")
    for remark, count in keeper.remarks.items():
        log.warning("%s: %s", remark, f"{count:,}")
    return counts


def _compare(card: Card, sums: dict[str, str]) -> None:
    for name, found in sums.items():
        known = card.sha256.get(name)
        if known is not None and known != found:
            log.warning("%s has sha256 %s, not the one that was reported, %s", name, found, known)


def _fingerprint(recipe: Path, sums: dict[str, str], options: dict[str, Any]) -> str:
    """What the records are a function of: this code, the recipe, the source and the options."""
    parts = sorted(Path(__file__).parent.glob("*.py"))
    code = {file.name: sha256_of(file) for file in (recipe, *parts)}
    return hashlib.sha256(json.dumps([code, sums, options], sort_keys=True).encode()).hexdigest()


def write_mark(out: Path, facts: dict[str, Any]) -> None:
    """Says that the corpus in `out` is finished, and what it was made from."""
    aside = out / f"{MARK}.partial"
    aside.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    os.replace(aside, out / MARK)
