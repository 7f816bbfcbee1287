"""LLaVA-1.5 instruction tuning, 665K: visual and plain conversations from ten sources (arXiv 2310.03744).

Ships as `llava_v1_5_mix665k.json`. Pictures come from COCO, GQA, OCR-VQA, TextVQA and Visual Genome, laid out as in
LLaVA's documentation (`coco/train2017/...`, `gqa/images/...`): put those folders below `images` of --out. Rows without
a picture are plain conversations (ShareGPT). Licence: CC-BY-4.0 on the card, and OpenAI's terms for what GPT-4 wrote.

    python data_recipes/llava_instruct.py --out data/llava-instruct

The publisher names 665 thousand rows, not the exact number. The checksum is one that a public log of a download
reports; another one is a warning.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Plan

CARD = Card(
    name="llava-instruct",
    homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    licence="CC-BY-4.0, and OpenAI's terms of use",
    hub="liuhaotian/LLaVA-Instruct-150K",
    files=("llava_v1_5_mix665k.json",),
    sha256={"llava_v1_5_mix665k.json": "ce959ce6e23073ee1cd1a8a2ef1c633768c10d4174327b8b2dc7113b91af6cf8"},
)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    options = line.parser_of(CARD, __doc__).parse_args(arguments)
    plan = Plan(convert=lambda _: llava.talks(), wanted=list(CARD.files))
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
