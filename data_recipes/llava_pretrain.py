"""LLaVA-1.5 pretraining, 558K: LAION, CC and SBU pictures with BLIP captions (arXiv 2310.03744).

Ships as `blip_laion_cc_sbu_558k.json` in LLaVA's form, one caption a row, and `images.zip`: unpack it into `images`
below --out. Licence: "other" on the card: users comply with the terms of CC-3M, and of BLIP for its captions.

    python data_recipes/llava_pretrain.py --out data/llava-pretrain

The publisher names 558 thousand rows, not the exact number, and no checksum.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Plan

CARD = Card(
    name="llava-pretrain",
    homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
    licence="other: see the card",
    hub="liuhaotian/LLaVA-Pretrain",
    files=("blip_laion_cc_sbu_558k.json",),
)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    options = line.parser_of(CARD, __doc__).parse_args(arguments)
    plan = Plan(convert=lambda _: llava.captions, wanted=list(CARD.files))
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
