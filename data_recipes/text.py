"""Any text corpus as the texts of stage 1: a folder of text files, or records with a column of texts.

    python data_recipes/text.py --out data/wiki --source hf://owner/name?split=train --level passage
    python data_recipes/text.py --out data/books --source ~/books --level sentence --max-words 60

`--source` is a folder of .txt and .md files, or any location of records (docs/formats.md): JSON lines, parquet, a data
set of the hub; `--column` names their texts. Of a folder, files in folders below count too. So a snapshot of a data set
of the hub gives the rows of all of its splits; a README or a licence beside records is not a text of the corpus. A
folder that holds other texts beside records is refused, since it does not say which of them are meant.

Texts are cut into sentences, into passages of whole sentences, or taken as they are; filtered
(corpus_parts/quality.py); and freed of duplicates, exact and near ones (MinHash, corpus_parts/duplicates.py). What is
left out stands in `rejected.jsonl` with the reason. The licence is that of the texts.

Words are what stands between blanks. Chinese, Japanese, Thai, Lao, Burmese and Khmer are written without: there each
letter counts as a word, in `--min-words`, `--max-words` and the shingles of near duplicates. A sentence ends at the
stops of its script; in Thai and Lao, which have none, at a blank.

Statistics need pictures: put some like those to come into `images` below --out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpus_parts import line
from corpus_parts.card import Card, sha256_of
from corpus_parts.converting import Plan, Records, rows_of
from corpus_parts.duplicates import Duplicates
from corpus_parts.keeping import Row
from corpus_parts.quality import Quality
from corpus_parts.sentences import paragraphs, passages, sentences

from revision.records import fingerprint
from revision.records.huggingface import is_saved

CARD = Card(name="text", homepage="that of the texts", licence="that of the texts", hub="", files=())
TEXTS = (".txt", ".md")
READABLE = (".tar", ".parquet", ".jsonl", ".json")
RECORDS = (*READABLE, ".ndjson", ".arrow", ".csv", ".tsv")
# Names of files that lie beside a corpus and are not of it.
ABOUT = {"readme", "license", "licence", "notice", "changelog", "citation", "dataset_infos"}


def contents(location: str) -> tuple[list[Path], list[str]]:
    """What to read at a location: text files, or else locations of records.

    Raises:
        ValueError: a folder that holds both, or records of several kinds.
    """
    folder = Path(location)
    if not folder.is_dir() or is_saved(folder):
        return [], [location]
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    records = [path for path in found if _suffix(path) in RECORDS and not _is_about(path)]
    texts = [path for path in found if path.suffix.lower() in TEXTS and not (records and _is_about(path))]
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


def _is_about(path: Path) -> bool:
    return path.name.partition(".")[0].lower() in ABOUT


def documents(location: str, column: str) -> Iterator[Any]:
    """Rows {"text"} of a folder of text files, or of records; what is no mapping there is given as it is."""
    files, records = contents(location)
    for one in records:
        yield from ({"text": row.get(column)} if isinstance(row, dict) else row for row in rows_of(one))
    for file in files:
        try:
            yield {"text": file.read_text(encoding="utf-8-sig")}
        except UnicodeDecodeError as error:
            yield {"text": None, "fault": f"{file} is not UTF-8: {error.reason} at byte {error.start}"}


class Cutter:
    """Documents to texts of the wanted length that have not been met."""

    def __init__(self, level: str, quality: Quality, met: Duplicates) -> None:
        self.level, self.quality, self.met = level, quality, met

    def __call__(self, identity: str, row: Row) -> Records:
        """The texts of a document, each with an id of its own, and those that are left out with the reason."""
        text = row.get("text")
        if not isinstance(text, str):
            raise ValueError(row.get("fault", f"its text is {type(text).__name__}, not a text; see --column"))
        for number, piece in enumerate(self._pieces(text)):
            name = f"{identity}-{number:04d}"
            fault = self.quality.fault(piece) or self.met.fault(piece)
            if fault is None:
                yield "texts", {"id": name, "text": piece}
            else:
                yield "rejected", {"id": name, "reason": fault}

    def _pieces(self, text: str) -> Iterator[str]:
        if self.level == "document":
            if whole := " ".join(text.split()):
                yield whole
            return
        for paragraph in paragraphs(text):
            yield from sentences(paragraph) if self.level == "sentence" else passages(paragraph, self.quality.max_words)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = line.parser_of(CARD, __doc__, published=False)
    parser.add_argument("--column", default="text", help="of records: the column of texts")
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
        convert=lambda _: Cutter(options.level, quality, met),
        sources={options.source: source_fingerprint(options.source)},
        rows=lambda location: documents(location, options.column),
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
