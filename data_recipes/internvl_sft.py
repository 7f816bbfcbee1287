"""InternVL-Chat-V1-2-SFT: 1.2M instructions from nine sources; stage 2 of ReVision (v3, Sec. 5).

Ships as nine files of JSON lines in LLaVA's form. Code that reads the data set finds them below `opensource/`; at its
commit d1527c5 they lie at the root. The first place is tried, then the other. Pictures: unpack those of the data set,
or of each source as InternVL's documentation lays them out, so that its folder `playground/data` is `images` below
--out. Licence: Apache-2.0 on the card; each of the sources has terms of its own.

    python data_recipes/internvl_sft.py --out data/internvl-sft
    python data_recipes/internvl_sft.py --out data/internvl-sft-417k --keep 417000

ReVision's Table 2 uses "a 417k subset" and does not say which one: `--keep 417000` draws one at random, by --seed.
Expected counts are those of InternVL's own training configuration; 1,267,819 in all. No checksum is known to us.
"""

from __future__ import annotations

from pathlib import Path

from corpus_parts import line, llava
from corpus_parts.card import Card
from corpus_parts.converting import Plan

# File: rows, and the folder that its paths start from; both from InternVL's data_yi34b_finetune.json.
SETS = {
    "sharegpt4v_instruct_gpt4-vision_cap100k.jsonl": (102_025, ""),
    "llava_instruct_150k_zh.jsonl": (157_712, "coco"),
    "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.jsonl": (665_058, ""),
    "dvqa_train_200k.jsonl": (200_000, "dvqa"),
    "chartqa_train_18k.jsonl": (18_317, "chartqa"),
    "ai2d_train_12k.jsonl": (12_413, "ai2d"),
    "docvqa_train_10k.jsonl": (10_211, "docvqa"),
    "geoqa+.jsonl": (72_318, "geoqa+"),
    "synthdog_en.jsonl": (29_765, "synthdog-en"),
}
CARD = Card(
    name="internvl-sft",
    homepage="https://huggingface.co/datasets/OpenGVLab/InternVL-Chat-V1-2-SFT-Data",
    licence="Apache-2.0",
    hub="OpenGVLab/InternVL-Chat-V1-2-SFT-Data",
    files=tuple(f"opensource/{name}" for name in SETS),
    moved={f"opensource/{name}": (name,) for name in SETS},
    expected={name: rows for name, (rows, _) in SETS.items()},
)


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = line.parser_of(CARD, __doc__)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="FILE", help="of the nine")
    options = parser.parse_args(arguments)
    plan = Plan(
        convert=lambda name: llava.talks(SETS[Path(name).name][1]),
        wanted=[f"opensource/{name}" for name in options.sets],
        options={"sets": options.sets},
    )
    return line.run(CARD, options, plan, Path(__file__))


if __name__ == "__main__":
    line.start(main, CARD.name)
