"""DenseFusion-1M: long descriptions of LAION pictures by a captioning engine (arXiv 2407.08303).

Ships as JSON lines {"image_id", "image_path", "caption", "url", ...}: `DenseFusion-1M.jsonl`, and the 100k that GPT-4V
wrote, `DenseFusion-4V-100k.jsonl` (`--part 4v-100k`), which has also been `DenseFusion-4V-100K.jsonl`. Readers of the
data set find each in a folder of its name; the publisher's README links both at the root: all of these are tried.
Pictures ship as zip files below `images/` of the data set: unpack them so that each `image_path` is a path below
`images` of --out. Licence: CC-BY-4.0 for the captions; the pictures are under LAION's terms.

    python data_recipes/densefusion.py --out data/densefusion

The publisher states 1 million rows, not the exact number. Names of fields are those that public readers of the files
use; the recipe says so where they differ.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Plan, Records
from corpus_parts.keeping import Row

PARTS = {
    "1m": "DenseFusion-1M/DenseFusion-1M.jsonl",
    "4v-100k": "DenseFusion-4V-100k/DenseFusion-4V-100k.jsonl",
}
CARD = Card(
    name="densefusion",
    homepage="https://huggingface.co/datasets/BAAI/DenseFusion-1M",
    licence="CC-BY-4.0",
    hub="BAAI/DenseFusion-1M",
    files=tuple(PARTS.values()),
    moved={
        PARTS["1m"]: ("DenseFusion-1M.jsonl",),
        PARTS["4v-100k"]: (
            "DenseFusion-4V-100k.jsonl",
            "DenseFusion-4V-100k/DenseFusion-4V-100K.jsonl",
            "DenseFusion-4V-100K.jsonl",
        ),
    },
)


def convert(identity: str, row: Row) -> Records:
    """A description; its picture is `image_path`, or `image_id` with the ending that the publisher's script gives."""
    image = row.get("image_path")
    if image is None and row.get("image_id") is not None:
        image = f"{row['image_id']}.png"
    return llava.caption(identity, row.get("caption"), image)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = line.parser_of(CARD, __doc__)
    parser.add_argument("--part", choices=sorted(PARTS), default="1m", help="which of the two files")
    options = parser.parse_args(arguments)
    plan = Plan(convert=lambda _: convert, wanted=[PARTS[options.part]], options={"part": options.part})
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
