"""Unicorn-1.2M and Unicorn-Instruction-471K: captions and instructions that an LLM wrote (arXiv 2503.22655).

On the hub as Yu2020/Unicorn. We have not seen its listing: names of files and the licence are not known to us, so this
recipe reads files that you have downloaded, named by `--pretrain` and `--instruct`. Both are in the form that the
authors' training code reads, {"id", "caption"?, "conversations"}: of a pretraining row the text is `caption`, or else
its one answer; an instruction row is a conversation about the embedding of its own caption, whose id is the row's.

    python data_recipes/unicorn.py --out data/unicorn --pretrain Pretrain.json --instruct Instruct.json

So the conversations' `image` names a text: `texts.jsonl` holds the captions of both files, those of the instructions
under the ids of the source. An instruction without a caption of its own takes the pretraining caption of its id.

Statistics need pictures, which Unicorn does not ship: put some like those to come into `images` below --out.
Expected: 1.2 million and 471 thousand rows, as the paper states them; no exact number and no checksum are known to us.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Plan, Records
from corpus_parts.keeping import Row

from revision.records import fingerprint

CARD = Card(
    name="unicorn",
    homepage="https://huggingface.co/datasets/Yu2020/Unicorn",
    licence="not known to us; see the homepage",
    hub="Yu2020/Unicorn",
    files=(),
)


class Unicorn:
    """Knows which ids have a caption that was kept, so that each instruction finds one."""

    def __init__(self) -> None:
        self.captioned: set[str] = set()

    def pretrain(self, identity: str, row: Row) -> Records:
        """A caption under the id of the source."""
        own = self._id(row)
        if own in self.captioned:
            raise ValueError(f"id {own!r} has occurred before")
        if row.get("caption") is not None:
            records = llava.caption(own, row["caption"], None)
        else:
            records = llava.captions(own, row, images=False)
        return records

    def instruct(self, identity: str, row: Row) -> Records:
        """A conversation about the embedding of a caption, and the caption where it is a new one."""
        own = self._id(row)
        if own not in self.captioned and row.get("caption") is None:
            raise ValueError(f"it has no caption, and no pretraining row has its id {own!r}")
        talk = list(llava.talks(image_of=lambda _: own)(identity, row))
        records = [(kind, {**record, "image": own}) for kind, record in talk if kind == "conversations"]
        if own not in self.captioned:
            records += llava.caption(own, row["caption"], None)
        return records

    @staticmethod
    def _id(row: Row) -> str:
        own = row.get("id")
        if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
            raise ValueError(f"its id is {own!r}, neither a text nor a whole number")
        return str(own)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = line.parser_of(CARD, __doc__)
    parser.add_argument("--pretrain", type=Path, help="the captions, a JSON file")
    parser.add_argument("--instruct", type=Path, help="the instructions, a JSON file")
    options = parser.parse_args(arguments)
    given = {str(file): part for part in ("pretrain", "instruct") if (file := vars(options)[part]) is not None}
    if not given:
        raise ValueError(f"give --pretrain FILE, --instruct FILE or both; download them from {CARD.homepage}")
    unicorn = Unicorn()
    plan = Plan(
        convert=lambda name: unicorn.pretrain if given[name] == "pretrain" else unicorn.instruct,
        sources={name: fingerprint(name) for name in given},
        options={"parts": list(given.values())},
        remember=lambda row: unicorn.captioned.add(row["id"]),
    )
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
