"""Rows of the source to records: what a recipe says of that, which rows become none, and how many of these may be."""

from __future__ import annotations

import argparse
import errno
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus_parts.card import Card
from corpus_parts.keeping import REJECTED, Keeper, Row, line_of
from corpus_parts.sampling import hash_of
from revision.records.formats import open_rows
from revision.records.spans import ALL

log = logging.getLogger("recipe")
Records = Iterable[tuple[str, Row]]  # (name of a file, row), or what `remark` gives
Convert = Callable[[str, Row], Records]  # (id, row of the source) -> records; ValueError: why there is none


class FilteredError(ValueError):
    """Why a row is left out that is as it should be: by a choice of the user's, so that it costs no --reject-budget."""


REMARK = "remark"


def remark(said: str) -> tuple[str, Row]:
    """In place of a record: something to be said of a row that is kept; recipe.json counts of how many."""
    return REMARK, {REMARK: said}


class RemarkedError(ValueError):
    """Why a row becomes no record, where rows of its kind are counted in recipe.json.

    Args:
        reason: as in `rejected.jsonl`.
        remark: what they are counted as.
    """

    def __init__(self, reason: str, remark: str) -> None:
        super().__init__(reason)
        self.remark = remark


def rows_of(location: str) -> Iterator[Any]:
    """The rows at a location, be they mappings or not: one that is none costs itself, not the corpus."""
    return (row for _, row in open_rows(location, ("images", "texts"), pictures=True, wanted=ALL))


class Rest(dict[str, Any]):
    """A row that goes on with the one before it, under the same id: what is too long to be held at once."""


@dataclass
class Plan:
    """What a recipe does with its options.

    Attributes:
        convert: how a row becomes records, by the name of its file.
        wanted: files of the corpus to read.
        options: all of the command line that the records depend on.
        sources: locations to read in place of files of the corpus, with the fingerprint of each.
        rows: how a location is read.
        remember: called with every row of texts.jsonl once it is kept, and for each of them again after a kill; what a
            converter remembers besides would depend on where it was killed.
    """

    convert: Callable[[str], Convert]
    wanted: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] | None = None
    rows: Callable[[str], Iterator[Any]] = rows_of
    remember: Callable[[Row], object] | None = None


def convert(card: Card, places: dict[str, str], plan: Plan, keeper: Keeper, options: argparse.Namespace) -> None:
    """Makes the records of every row that was not dealt with before a kill.

    Args:
        places: locations to read, each with the name of its file in the corpus.
        options: `out`, `check_images` and `reject_budget` of the command line.

    Raises:
        ValueError: no row became a record, or more of a file did not than the budget allows.
    """
    out = options.out if options.check_images else None
    read: Counter[str] = Counter()
    if keeper.done:
        log.info("going on after row %s", f"{keeper.done:,}")
    seen = {hash_of(row["id"]) for row in keeper.written("images")}
    for row in keeper.written("texts") if plan.remember else ():
        assert plan.remember is not None
        plan.remember(row)
    for place, (name, number, row) in enumerate(_rows(card, places, plan)):
        read[name] = number + 1
        if place < keeper.done:
            continue
        identity = f"{card.name}-{number:07d}" if len(places) == 1 else f"{Path(name).stem}-{number:07d}"
        try:
            records = list(_records(plan.convert(name), identity, row, out))
        except ValueError as error:
            keeper.reject(identity, str(error))
            if not isinstance(error, FilteredError):
                keeper.count_unfit(name, str(error))
            if isinstance(error, RemarkedError):
                keeper.remark(error.remark)
        else:
            for kind, record, text in records:
                if kind == REMARK:
                    keeper.remark(record[REMARK])
                    continue
                if kind == "images":
                    if hash_of(record["id"]) in seen:  # one picture of several conversations
                        continue
                    seen.add(hash_of(record["id"]))
                keeper.write(kind, text)
                if kind == "texts" and plan.remember is not None:
                    plan.remember(record)
        keeper.step()
        if keeper.done % 200_000 == 0:
            log.info("%s rows", f"{keeper.done:,}")
    if not sum(count for name, count in keeper.counts.items() if name != REJECTED):
        first = next(keeper.written(REJECTED), {"reason": "it is empty"})
        raise ValueError(f"no row of {next(iter(places), 'nothing')} became a record; the first: {first['reason']}")
    for name, rows in read.items():
        if keeper.unfit[name] > options.reject_budget * rows:
            keeper.save()  # with a higher budget, nothing is converted again
            raise ValueError(
                f"{keeper.unfit[name]:,} of {rows:,} rows of {name} became no record, more than --reject-budget "
                f"{options.reject_budget} allows; the first: {keeper.first_unfit[name]}; see "
                f"{keeper.path_of(REJECTED)}, then correct the source or raise --reject-budget"
            )


def _records(convert: Convert, identity: str, row: Any, out: Path | None) -> Iterator[tuple[str, Row, str]]:
    """The records of a row: file, record, and its line. Raises ValueError where one of them cannot be."""
    if not isinstance(row, dict):
        raise ValueError(f"it is {type(row).__name__}, not a mapping")
    for kind, record in convert(identity, row):
        if out is not None and kind == "images":
            _require_picture(out, record["image"])
        yield kind, record, line_of(record)


def _require_picture(out: Path, image: str) -> None:
    """Raises ValueError where a picture is not there, or has a name that no file can have."""
    try:
        is_there = (out / "images" / image).is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"the name of its picture, {image[:40]}..., is longer than that of a file can be") from error
    if not is_there:
        raise ValueError(f"picture images/{image} does not exist")


def _rows(card: Card, places: dict[str, str], plan: Plan) -> Iterator[tuple[str, int, Any]]:
    """Every row of every source, with the source's name in the corpus and the row's number."""
    for location, name in places.items():
        number = -1
        for row in plan.rows(location):
            number += not isinstance(row, Rest)
            yield name, number, row
        expected = card.expected.get(Path(name).name)
        if expected is not None and number + 1 != expected:
            log.warning("%s has %s rows; its publisher states %s", name, f"{number + 1:,}", f"{expected:,}")
