"""ShareGPT4V: descriptions by GPT-4V (102K), by a captioner trained on them (1.2M), and a mix of instructions (665K).

Of the three files of the data set (arXiv 2311.12793), `--part` takes
- `captions`: share-captioner_coco_lcs_sam_1246k_1107.json, texts and pictures of stage 1;
- `gpt4v`: sharegpt4v_instruct_gpt4-vision_cap100k.json, the same;
- `mix`: sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json, conversations of stage 2.
Pictures come from COCO, LAION-CC-SBU, SAM, GQA and others, laid out as in the publisher's documentation: its folder
`data` is `images` below --out. Licence: CC-BY-NC-4.0 on the card, and OpenAI's terms for what GPT-4V wrote; web
pictures are for academic use only.

    python data_recipes/sharegpt4v.py --out data/sharegpt4v --part captions

Expected counts: 102,025 and 665,058, as InternVL's configuration lists the same files; 1,246 thousand by the publisher.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Plan

PARTS = {
    "captions": "share-captioner_coco_lcs_sam_1246k_1107.json",
    "gpt4v": "sharegpt4v_instruct_gpt4-vision_cap100k.json",
    "mix": "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json",
}
CARD = Card(
    name="sharegpt4v",
    homepage="https://huggingface.co/datasets/Lin-Chen/ShareGPT4V",
    licence="CC-BY-NC-4.0, and OpenAI's terms of use",
    hub="Lin-Chen/ShareGPT4V",
    files=tuple(PARTS.values()),
    expected={PARTS["gpt4v"]: 102_025, PARTS["mix"]: 665_058},
)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = line.parser_of(CARD, __doc__)
    parser.add_argument("--part", choices=list(PARTS), default="captions", help="which of the three files")
    options = parser.parse_args(arguments)
    convert = llava.talks() if options.part == "mix" else llava.captions
    plan = Plan(convert=lambda _: convert, wanted=[PARTS[options.part]], options={"part": options.part})
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
