"""Any text corpus as the texts of stage 1: a folder of text files, or records with a column of texts.

    python data_recipes/text.py --out data/wiki --source hf://owner/name?split=train --level passage
    python data_recipes/text.py --out data/books --source ~/books --level sentence --max-words 60

`--source` is a .txt or .md file, also gzipped, a folder of such files, or any location of records (docs/formats.md):
JSON lines, parquet, a data set of the hub; `--column` names their texts, `meta.body` those inside of `meta`. Of a
folder, files in folders below count too, but for hidden ones. So a snapshot of a data set of the hub gives the rows of
all of its splits; a README or a licence beside records is not a text of the corpus. A folder that holds other texts
beside records is refused, since it does not say which of them are meant.

Texts are cut into sentences, into passages of whole sentences, or taken as they are; filtered
(corpus_parts/quality.py); and freed of duplicates, exact and near ones (MinHash, corpus_parts/duplicates.py). What is
left out stands in `rejected.jsonl` with the reason. A text file is read in blocks, however long it is, but for `--level
document`, which holds each as a whole. The licence is that of the texts.

Words are what stands between blanks. Chinese, Japanese, Thai, Lao, Burmese and Khmer are written without: there each
letter counts as a word, in `--min-words`, `--max-words` and the shingles of near duplicates. A sentence ends at the
stops of its script; in Thai and Lao, which have none, at a blank.

Statistics need pictures: put some like those to come into `images` below --out.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from corpus_parts import line
from corpus_parts.card import Card, sha256_of
from corpus_parts.converting import Plan, Records, Rest, rows_of
from corpus_parts.duplicates import Duplicates
from corpus_parts.keeping import Row
from corpus_parts.quality import Quality
from corpus_parts.sentences import pieces

from revision.records import fingerprint, json_text
from revision.records.formats import open_bytes
from revision.records.huggingface import is_saved

CARD = Card(name="text", homepage="that of the texts", licence="that of the texts", hub="", files=())
TEXTS = (".txt", ".md")
READABLE = (".tar", ".parquet", ".jsonl", ".json")
RECORDS = (*READABLE, ".ndjson", ".arrow", ".csv", ".tsv")
BLOCK = 1 << 20  # characters of a text file that are held at once
BATCH = 1000  # texts of a file that are one step of the recipe
# Names of files that lie beside a corpus and are not of it.
ABOUT = {"readme", "license", "licence", "notice", "changelog", "citation", "dataset_infos"}


def contents(location: str) -> tuple[list[Path], list[str]]:
    """What to read at a location: text files, or else locations of records. Hidden files are passed over.

    Raises:
        ValueError: a folder that holds both, or records of several kinds.
    """
    folder = Path(location)
    if folder.is_file() and _suffix(folder) in TEXTS and not _is_of_records(folder):
        return [folder], []
    if not folder.is_dir() or is_saved(folder):
        return [], [location]
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    records = [path for path in found if _suffix(path) in RECORDS and not _is_about(path)]
    texts = [path for path in found if _suffix(path) in TEXTS and not (records and _is_about(path))]
    if texts and records:
        raise ValueError(
            f"--source {folder} holds text files, such as {texts[0].relative_to(folder)}, and files of records, such "
            f"as {records[0].relative_to(folder)}; name the records alone, or move one of the two out"
        )
    kinds = {_suffix(path): path.relative_to(folder) for path in records}
    if len(kinds) > 1:
        raise ValueError(
            f"--source {folder} holds records of several kinds ({', '.join(map(str, kinds.values()))}); name one of "
            "them, or move the others out"
        )
    chosen = [str(path) for path in records if _suffix(path) in READABLE]
    return texts, [] if texts else chosen or [location]  # the reader says what is wrong with the location


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_of_records(file: Path) -> bool:
    """Whether a file that is named like a text holds JSON lines: formats are told by content."""
    with open_bytes(file) as opened:
        try:
            return isinstance(json_text.first_line(opened), dict)
        except json_text.DAMAGED:
            return False


def _is_about(path: Path) -> bool:
    return path.name.partition(".")[0].lower() in ABOUT


def documents(location: str, column: str, level: str, max_words: int) -> Iterator[Any]:
    """Rows {"pieces", "first"}, the texts of a document from that number on, or {"fault"} where it is none.

    A long file is several rows, so that it is never held as a whole. Of records, what is no mapping is given as it is.
    """
    files, records = contents(location)
    for one in records:
        for row in rows_of(one):
            said = field_of(row, column) if isinstance(row, dict) else None
            if isinstance(said, str):
                yield {"pieces": pieces([said.replace("\r\n", "\n")], level, max_words), "first": 0}
            elif isinstance(row, dict):
                yield {"fault": f"its text is {type(said).__name__}, not a text; see --column"}
            else:
                yield row
    for file in files:
        if (fault := fault_of(file)) is not None:
            yield {"fault": fault}
            continue
        with io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig") as opened:
            found = pieces(iter(partial(opened.read, BLOCK), ""), level, max_words)
            first, batch = 0, list(islice(found, BATCH))
            yield {"pieces": batch, "first": 0}
            while len(batch) == BATCH:
                first, batch = first + BATCH, list(islice(found, BATCH))
                yield Rest(pieces=batch, first=first)


def field_of(row: Row, column: str) -> Any:
    """A field of a row; a dot leads into a mapping, where no field has the whole name. None: it is not there."""
    value: Any = row
    for name in [column] if column in row else column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def fault_of(file: Path) -> str | None:
    """Why a text file cannot be read to its end, or None. A file is a text as a whole or not at all."""
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with open_bytes(file) as opened:
            for block in iter(partial(opened.read, BLOCK), b""):
                kept = len(decoder.getstate()[0])
                decoder.decode(block)
                read += len(block)
            kept = len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return f"{file} is not UTF-8: {error.reason} at byte {read - kept + error.start}"
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"{file} is a damaged gzip file: {error}"
    return None


class Cutter:
    """Texts of the wanted length that have not been met."""

    def __init__(self, quality: Quality, met: Duplicates) -> None:
        self.quality, self.met = quality, met

    def __call__(self, identity: str, row: Row) -> Records:
        """The texts of a document, each with an id of its own, and those that are left out with the reason."""
        if "fault" in row:
            raise ValueError(row["fault"])
        for number, piece in enumerate(row["pieces"], start=row["first"]):
            name = f"{identity}-{number:04d}"
            fault = self.quality.fault(piece) or self.met.fault(piece)
            if fault is None:
                yield "texts", {"id": name, "text": piece}
            else:
                yield "rejected", {"id": name, "reason": fault}


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = line.parser_of(CARD, __doc__, published=False)
    parser.add_argument("--column", default="text", help="of records: the column of texts; a dot leads into a mapping")
    parser.add_argument("--level", choices=("sentence", "passage", "document"), default="passage")
    parser.add_argument(
        "--min-words", type=int, default=5, help="a letter of a script without blanks, such as Chinese, counts as one"
    )
    parser.add_argument("--max-words", type=int, default=150, help="counted so too; also the length of passages")
    parser.add_argument(
        "--near", type=float, default=0.8, help="similarity from which texts are near duplicates; 0: off"
    )
    options = parser.parse_args(arguments)
    line.require(options, min_words=(1, None), max_words=(options.min_words, None), near=(0, 1))
    quality = Quality(min_words=options.min_words, max_words=options.max_words)
    met = Duplicates(near=options.near or None)
    plan = Plan(
        convert=lambda _: Cutter(quality, met),
        sources={options.source: source_fingerprint(options.source)},
        rows=lambda location: documents(location, options.column, options.level, options.max_words),
        options={name: vars(options)[name] for name in ("column", "level", "min_words", "max_words", "near")},
        remember=lambda row: met.fault(row["text"]),
    )
    return line.run(CARD, options, plan, Path(__file__))


def source_fingerprint(location: str) -> str:
    """What lies at a location, as a checksum."""
    files, records = contents(location)
    if records == [location]:
        return fingerprint(location)
    sums = [(str(file), sha256_of(file)) for file in files] + [(one, fingerprint(one)) for one in records]
    return hashlib.sha256("".join(f"{name} {one}\n" for name, one in sums).encode()).hexdigest()


if __name__ == "__main__":
    line.start(main, CARD.name)
