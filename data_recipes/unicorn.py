"""Unicorn-1.2M and Unicorn-Instruction-471K: captions and instructions that an LLM wrote (arXiv 2503.22655).

On the hub as Yu2020/Unicorn. We have not seen its listing: names of files and the licence are not known to us, so this
recipe reads files that you have downloaded, named by `--pretrain` and `--instruct`. Both are in the form that the
authors' training code reads, {"id", "caption"?, "conversations"}: of a pretraining row the text is `caption`, or else
its one answer; an instruction row is a conversation about the embedding of the caption of its id.

    python data_recipes/unicorn.py --out data/unicorn --pretrain Pretrain.json --instruct Instruct.json

So the conversations' `image` names a text: `texts.jsonl` holds the captions of both files, those of the instructions
under the ids of the source. An id has one caption, as in the authors' file of embeddings: that of its pretraining row
where there is one, whether the instruction has another or none, and else the instruction's own. Where the two differ,
the row is counted under `remarks` in `recipe.json`. So is a row without `<image>`: the authors' code shows it the
caption all the same, so the mark is put in front of its first question.

Statistics need pictures, which Unicorn does not ship: put some like those to come into `images` below --out.
Expected: 1.2 million and 471 thousand rows, as the paper states them; no exact number and no checksum are known to us.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Plan, Records, remark
from corpus_parts.keeping import Row
from corpus_parts.sampling import hash_of

from revision.records import IMAGE_MARK, fingerprint

CARD = Card(
    name="unicorn",
    homepage="https://huggingface.co/datasets/Yu2020/Unicorn",
    licence="not known to us; see the homepage",
    hub="Yu2020/Unicorn",
    files=(),
)
OTHER_CAPTION = "kept, about the caption that its id had before, which is not the row's own"
MARK_ADDED = f"kept, with {IMAGE_MARK} put in front of the first question, since none had it"


class Unicorn:
    """Knows which ids have a caption that was kept, and which, so that each instruction finds one."""

    def __init__(self) -> None:
        self.captioned: dict[str, int] = {}  # id -> hash of the text

    def remember(self, text: Row) -> None:
        """Takes in a caption that was kept."""
        self.captioned[text["id"]] = hash_of(text["text"])

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
        """A conversation about the embedding of a caption, and the caption where its id has none yet."""
        own, caption = self._id(row), row.get("caption")
        if own not in self.captioned and caption is None:
            raise ValueError(f"it has no caption, and no pretraining row has its id {own!r}")
        marked = with_mark(row)
        talk = list(llava.talks(image_of=lambda _: own)(identity, marked))
        records = [(kind, {**record, "image": own}) for kind, record in talk if kind == "conversations"]
        if own not in self.captioned:
            records += llava.caption(own, caption, None)
        elif isinstance(caption, str) and hash_of(caption.strip()) != self.captioned[own]:
            records.append(remark(OTHER_CAPTION))
        if marked is not row:
            records.append(remark(MARK_ADDED))
        return records

    @staticmethod
    def _id(row: Row) -> str:
        own = row.get("id")
        if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
            raise ValueError(f"its id is {own!r}, neither a text nor a whole number")
        return str(own)


def with_mark(row: Row) -> Row:
    """A row whose first question has `<image>` in front where no question has it; else the same row."""
    turns = row.get("conversations")
    if not isinstance(turns, list):
        return row
    asked = [
        place
        for place, turn in enumerate(turns)
        if isinstance(turn, dict) and turn.get("from") == "human" and isinstance(turn.get("value"), str)
    ]
    if not asked or any(IMAGE_MARK in turns[place]["value"] for place in asked):
        return row
    first = turns[asked[0]]
    shown = {**first, "value": f"{IMAGE_MARK}\n{first['value']}"}
    return {**row, "conversations": [*turns[: asked[0]], shown, *turns[asked[0] + 1 :]]}


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
        remember=unicorn.remember,
    )
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
