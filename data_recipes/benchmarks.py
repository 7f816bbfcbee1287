"""The eleven benchmarks of ReVision (v3, App. H.3), as questions about pictures, from VLMEvalKit's tables.

    python data_recipes/benchmarks.py --out data/benchmarks

| benchmark | what is taken |
|---|---|
| `mme` | 2,374 questions of yes or no |
| `mmstar` | 1,500 questions with four choices |
| `scienceqa` | validation and test, questions with a picture |
| `realworldqa` | 765 questions |
| `mmmu` | validation, questions about one picture |
| `mmmu_pro` | up to ten choices, questions about one picture |
| `visulogic` | 1,000 questions, whose choices are in the picture |
| `logicvista` | questions whose answer is a letter, or several; few have a number |
| `crpe` | existence and relation |
| `pope` | random, popular and adversarial; a question of several counts in each |
| `hallusionbench` | questions with a picture |

Each is a track of `questions.jsonl`, its categories are the kinds; `pictures.jsonl` and images/ hold the pictures, each
once. `rejected.jsonl` names every row that became no question, and why. The paper gives neither prompts nor versions;
these are the tables that the community compares on (github.com/open-compass/VLMEvalKit, whose md5 sums are checked).
--source is a folder that has them already, such as VLMEvalKit's own, LMUData; else they are fetched, some gigabytes.

Licences are those of the benchmarks: ScienceQA CC BY-NC-SA 4.0, RealWorldQA CC BY-ND 4.0, MMMU and MMMU-Pro Apache-2.0,
HallusionBench BSD 3-Clause; MME for research alone; of the others see their homepages. Nothing is redistributed here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmark_parts import questions, tables
from benchmark_parts.tables import Pictures, Row, Table
from corpus_parts import line
from corpus_parts.card import sha256_of
from corpus_parts.keeping import write_whole

log = logging.getLogger("recipe")
ALL = "every kind"  # of what has no category
VLMEVALKIT = (
    "https://opencompass.openxlab.space/utils/VLMEval",
    "https://huggingface.co/datasets/mm-eval/VLMEvalKit/resolve/main",  # copies of some of them
)
SCIENCEQA = ("https://opencompass.openxlab.space/utils/benchmarks/ScienceQA", *VLMEVALKIT)
CRPE = ("https://huggingface.co/datasets/petter12321/crpe_vlmevalkit/resolve/main",)


@dataclass(frozen=True)
class Benchmark:
    """Its tables, how a row becomes a question, the column of its categories, and the rows that count."""

    tables: tuple[Table, ...]
    form: questions.Form
    kind: str = "category"
    only: tuple[str, str] | None = None  # (column, value)
    pairs: bool = False  # whether the questions about one picture are a group
    repeats: bool = False  # whether a row counts once for each of the categories that it lists


def _tables(*files: tuple[str, int | None, str], places: tuple[str, ...] = VLMEVALKIT) -> tuple[Table, ...]:
    """Of (name, rows where they are known, md5 sums, the newest first)."""
    return tuple(Table(f"{name}.tsv", places, tuple(md5.split()), rows) for name, rows, md5 in files)


BENCHMARKS = {
    "mme": Benchmark(_tables(("MME", 2374, "b36b43c3f09801f5d368627fb92187c3")), questions.yes_or_no, pairs=True),
    "mmstar": Benchmark(_tables(("MMStar", 1500, "e1ecd2140806c1b1bbf54b43372efb9e")), questions.options),
    "scienceqa": Benchmark(
        _tables(
            ("ScienceQA_VAL", 2097, "96320d05e142e585e7204e72affd29f3"),
            ("ScienceQA_TEST", 2017, "e42e9e00f9c59a80d8a5db35bc32b71f"),
            places=SCIENCEQA,
        ),
        questions.options,
    ),
    "realworldqa": Benchmark(
        _tables(("RealWorldQA", 765, "4de008f55dc4fd008ca9e15321dc44b7 92321028d2bc29040284b6674721e48f")),
        questions.options,
    ),
    "mmmu": Benchmark(
        _tables(("MMMU_DEV_VAL", None, "585e8ad75e73f75dcad265dfd0417d64 521afc0f3bf341e6654327792781644d")),
        questions.options,
        only=("split", "validation"),
    ),
    "mmmu_pro": Benchmark(_tables(("MMMU_Pro_10c", None, "22cee868fe6b680d14b99bfff6db8172")), questions.options),
    "visulogic": Benchmark(
        _tables(("VisuLogic", 1000, "b0820b5ec1e01dfe3951927f0def73b6")), partial(questions.letters, choices="ABCD")
    ),
    "logicvista": Benchmark(
        _tables(("LogicVista", None, "41c5d33adf33765c399e0e6ae588c061")), questions.letters, kind="skill"
    ),
    "crpe": Benchmark(
        _tables(
            ("CRPE_EXIST", None, "315584e23ac1ff7f8719ed3b7ad90f08"),
            ("CRPE_RELATION", None, "bad7094cde0b572288f4b119c2d0c656"),
            places=CRPE,
        ),
        questions.letters,
    ),
    "pope": Benchmark(_tables(("POPE", None, "c12f5acb142f2ef1f85a26ba2fbe41d5")), questions.yes_or_no, repeats=True),
    "hallusionbench": Benchmark(
        _tables(("HallusionBench", None, "0c23ac0dc9ef46832d7a24504f2a0c7c")), questions.hallusionbench
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line. Returns the number of questions of each benchmark, of pictures and of rejected rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/benchmarks"), help="folder of the corpus")
    parser.add_argument("--source", type=Path, help="folder of the tables; without it they are fetched")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), metavar="BENCHMARK")
    options = parser.parse_args(arguments)
    out: Path = options.out
    chosen = {name: benchmark for name, benchmark in BENCHMARKS.items() if name in options.only}
    made_from: dict[str, Any] = {"only": [*chosen], "code": _code()}
    if options.source is not None:  # what is fetched is known by its md5
        files = {name: _files(benchmark, options.source, out) for name, benchmark in chosen.items()}
        made_from["given"] = _sums(files)
    mark = json.loads((out / line.MARK).read_text()) if (out / line.MARK).is_file() else {}
    if mark.get("settings") == made_from:
        log.info("%s is finished and unchanged", out)
        return dict(mark["counts"])
    (out / line.MARK).unlink(missing_ok=True)
    if options.source is None:
        files = {name: _files(benchmark, None, out) for name, benchmark in chosen.items()}
    made: dict[str, list[dict[str, Any]]] = {"questions": [], "pictures": [], "rejected": []}
    counts = {}
    for name, paths in files.items():
        records: dict[str, Row] = {}
        asked: list[dict[str, Any]] = []
        for path in paths:
            pictures = Pictures(out, name, records)
            pictures.look(path)
            asked += _questions(name, path, pictures, made["rejected"])
        if not asked:
            raise ValueError(f"no row of {path} became a question; the first: {made['rejected'][-1]['reason']}")
        shown = {question["image"] for question in asked}
        made["questions"] += asked
        made["pictures"] += [record for identity, record in records.items() if identity in shown]
        counts[name] = len(asked)
        log.info("%s: %s questions", name, f"{len(asked):,}")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        write_whole(out / f"{name}.jsonl", iter(rows))
    counts |= {name: len(made[name]) for name in ("pictures", "rejected")}
    line.write_mark(out, {"sources": _sums(files), "counts": counts, "settings": made_from})
    return counts


def _files(benchmark: Benchmark, source: Path | None, out: Path) -> dict[Path, str]:
    """The tables of a benchmark, each with its md5; other contents than VLMEvalKit's are said."""
    found = {}
    for table in benchmark.tables:
        path = tables.fetch(table, out / "source") if source is None else source / table.name
        if not path.is_file():
            raise ValueError(f"--source {source} holds no {table.name}; download {table.url}, or leave --source out")
        if (md5 := tables.md5_of(path)) not in table.md5:
            log.warning("%s has md5 %s, not the one that VLMEvalKit gives, %s", path, md5, table.md5[0])
        found[path] = md5
    return found


def _sums(files: dict[str, dict[Path, str]]) -> dict[str, str]:
    """The md5 of every table by its name."""
    return {path.name: md5 for paths in files.values() for path, md5 in paths.items()}


def _questions(name: str, path: Path, pictures: Pictures, rejected: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every row of a table that counts, as a question; those that cannot be asked go to `rejected`."""
    benchmark = BENCHMARKS[name]
    seen: set[str] = set()
    rows = 0
    for row in tables.read(path):
        rows += 1
        if benchmark.only is not None and row.get(benchmark.only[0]) != benchmark.only[1]:
            continue
        identity = f"{path.stem.lower()}-{row.get('index', '')}"
        try:
            question = _asked(identity, row, benchmark, pictures, seen)
        except ValueError as error:
            rejected.append({"id": identity, "reason": str(error)})
            continue
        listed = row.get(benchmark.kind, ALL)
        kinds = listed.split(",") if benchmark.repeats else [listed]
        for place, kind in enumerate(kinds):
            own = {"groups": {"picture": f"{kind}/{question['image']}"}} if benchmark.pairs else {}
            again = {"id": f"{identity}-{kind.strip()}"} if place else {}
            yield {**question, **again, "kind": kind.strip(), "track": name, "split": "test", **own}
    (expected,) = (table.rows for table in benchmark.tables if table.name == path.name)
    if expected is not None and rows != expected:
        log.warning("%s has %s rows; %s are known", path.name, f"{rows:,}", f"{expected:,}")


def _asked(identity: str, row: Row, benchmark: Benchmark, pictures: Pictures, seen: set[str]) -> dict[str, Any]:
    if lacking := {"index", "question", "answer"} - set(row):
        raise ValueError(f"its {sorted(lacking)[0]} is empty")
    if identity in seen:
        raise ValueError("its index occurs a second time")
    seen.add(identity)
    return {"id": identity, "image": pictures.of(row), **benchmark.form(row)}


def _code() -> str:
    """What the records are a function of, beside the tables: this code."""
    files = [Path(__file__), *sorted((Path(__file__).parent / "benchmark_parts").glob("*.py"))]
    return hashlib.sha256(" ".join(sha256_of(file) for file in files).encode()).hexdigest()


if __name__ == "__main__":
    line.start(main, "benchmarks")
