"""Bunny-pretrain-LAION-2M: web captions of a pruned LAION-2B (arXiv 2402.11530); the texts of ReVision's stage 1.

Ships as `pretrain/bunny_pretrain_laion_2m.json` in LLaVA's form, one caption a row, and pictures as
`pretrain/images.tar.gz.part-*`, to be joined and unpacked: `cat images.tar.gz.part-* | tar xz`, then link the folder to
`images` below --out. Licence: Apache-2.0 on the card; the pictures are under LAION's terms and their owners' rights.

ReVision trains on 1M or 2M "filtered" captions (v3, Sec. 5) and does not say by which filter. `--filter` is one of our
own: lengths, letters, markup, repetition, exact duplicates (corpus_parts/quality.py). The paper's 1M is then

    python data_recipes/bunny.py --out data/bunny-1m --filter --keep 1000000
    python data_recipes/bunny.py --out data/bunny          # all 2M

The publisher states 2 million rows, not the exact number, and no checksum.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Convert, FilteredError, Plan, Records
from corpus_parts.duplicates import Duplicates
from corpus_parts.keeping import Row
from corpus_parts.quality import Quality

CARD = Card(
    name="bunny",
    homepage="https://huggingface.co/datasets/BoyaWu10/Bunny-v1_1-data",
    licence="Apache-2.0",
    hub="BoyaWu10/Bunny-v1_1-data",
    files=("pretrain/bunny_pretrain_laion_2m.json",),
)


def filtered(quality: Quality, met: Duplicates) -> Convert:
    """Captions that pass the filter; the others are rejected with the reason."""

    def convert(identity: str, row: Row) -> Records:
        """A row to its records; one that the filter refuses is an error that says why."""
        records = list(llava.captions(identity, row))
        text = records[0][1]["text"]
        fault = quality.fault(text) or met.fault(text, remember=False)  # its picture may still be missing
        if fault is not None:
            raise FilteredError(fault)
        return records

    return convert


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = line.parser_of(CARD, __doc__)
    parser.add_argument("--filter", action="store_true", help="leave out what corpus_parts/quality.py finds fault with")
    options = parser.parse_args(arguments)
    met = Duplicates(near=None)
    convert = filtered(Quality(min_words=3, max_words=200), met) if options.filter else llava.captions
    plan = Plan(
        convert=lambda _: convert,
        wanted=list(CARD.files),
        options={"filter": options.filter},
        remember=(lambda row: met.fault(row["text"])) if options.filter else None,
    )
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
