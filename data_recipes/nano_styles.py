"""Part (a) of the `nano` protocol: pairs for the dual encoder, in eight drawing styles that no evaluation uses.

The heads trained on them are shipped (nano_parts/heads.safetensors), so only who wants to train them again needs this:

    make nano-heads          # runs this recipe, then `revision contrast experiment=nano_heads`

Sources, fetched with `npm pack` (nothing of them is kept in the repository), expected drawings of the lexicon's
1,427 concepts in brackets:

- emoji-datasource-google 16.0.0 [1,419]: Noto Emoji, Apache-2.0
- emoji-datasource-twitter 16.0.0 [1,419]: Twemoji, CC-BY-4.0
- @lobehub/fluent-emoji-3d 1.1.0 [1,402] and @iconify-json/fluent-emoji-flat 1.2.6 [1,382]: Fluent Emoji, MIT
- @iconify-json/noto-v1 1.2.5 [1,040]: Noto Emoji of 2016, Apache-2.0
- @iconify-json/emojione 1.2.3 [969]: CC-BY-4.0
- @iconify-json/fxemoji 1.2.2 [466]: Firefox OS Emoji, Apache-2.0
- @iconify-json/streamline-emojis 1.2.4 [361]: CC-BY-4.0

Concepts of the unseen families are left out. The validation pairs are plain OpenMoji drawings of the *training*
concepts: a style that the heads never meet, and pictures that no evaluation uses.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus_parts.line import start
from nano import Row, write_rows
from nano_parts import drawing, marks, models, scenes
from nano_parts.captions import NAME_TEMPLATE, caption_of_scene, captions_of
from nano_parts.lexicon import Concept, part, read_lexicon
from PIL import Image
from rich.logging import RichHandler

PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
}
VIEWS = 3  # pictures of one drawing: one plain, the others with other sizes, places, turns and backgrounds
SCENES = 5_000
SEED = 2027

log = logging.getLogger("nano_styles")
Drawings = dict[str, Image.Image]


def fetch(style: str, cache: Path) -> Path:
    """The unpacked npm package of a style.

    Raises:
        ValueError: npm is missing or does not serve the package.
    """
    folder = cache / style
    if (folder / "package").is_dir():
        return folder / "package"
    if shutil.which("npm") is None:
        raise ValueError("npm is not installed; the drawing styles come as npm packages (or use the shipped heads)")
    cache.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", "--pack-destination", str(cache), PACKAGES[style]]
    packed = subprocess.run(command, capture_output=True, text=True, check=False)
    if packed.returncode != 0:
        raise ValueError(f"npm could not fetch {PACKAGES[style]}: {packed.stderr.strip()}")
    aside = cache / f".{style}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    with tarfile.open(cache / packed.stdout.split()[-1]) as archive:
        archive.extractall(aside, filter="data")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)  # whole or not at all
    return folder / "package"


def _plain_code(code: str) -> str:
    return code.lower().replace("-fe0f", "")


def raster_drawings(folder: Path, pattern: str, concepts: list[Concept]) -> Drawings:
    """Drawings from files that are named by code points."""
    files = {_plain_code(file.stem): file for file in folder.glob(pattern)}
    found = [(concept, files.get(_plain_code(concept.code))) for concept in concepts]
    return {concept.code: drawing.fit_glyph(Image.open(file)) for concept, file in found if file is not None}


def vector_drawings(folder: Path, concepts: list[Concept]) -> Drawings:
    """Drawings from an Iconify set, whose icons are named by slugs.

    Raises:
        ValueError: the SVG renderer is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise ValueError("the package resvg-py is not installed; pip install 'revision-mllm[styles]'") from None
    icons = json.loads((folder / "icons.json").read_text())
    by_name = {name.replace("-", ""): icon for name, icon in icons["icons"].items()}
    drawings: Drawings = {}
    for concept in concepts:
        icon = by_name.get(re.sub(r"[^a-z0-9]+", "", concept.name.lower()))
        if icon is not None:
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            box = f'viewBox="0 0 {width} {height}" width="{drawing.GLYPH}" height="{drawing.GLYPH}"'
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{icon["body"]}</svg>'
            png = resvg_py.svg_to_bytes(svg_string=svg, width=drawing.GLYPH)
            drawings[concept.code] = drawing.fit_glyph(Image.open(io.BytesIO(bytes(png))))
    return drawings


def drawings_of(style: str, cache: Path, concepts: list[Concept]) -> Drawings:
    """All drawings of a style, by code points."""
    folder = fetch(style, cache)
    if style in ("google", "twitter"):
        return raster_drawings(folder, f"img/{style}/64/*.png", concepts)
    if style == "fluent-3d":
        return raster_drawings(folder, "assets/*.webp", concepts)
    return vector_drawings(folder, concepts)


def single_pairs(
    out: Path, style: str, drawings: Drawings, concepts: list[Concept], rng: np.random.Generator
) -> Iterator[Row]:
    """VIEWS pictures of every drawing, each paired with three of the concept's captions."""
    for concept in concepts:
        if concept.code not in drawings:
            continue
        for view in range(VIEWS):
            placement = drawing.random_placement(rng) if view else drawing.Placement()
            colour = drawing.random_colour(rng) if view else "white"
            path = Path("pictures") / style / f"{concept.code}-{view}.png"
            drawing.save_picture(drawing.single(drawings[concept.code], colour, placement), out / path)
            captions = captions_of(concept, rng, colour)
            for number in rng.choice(len(captions), 3, replace=False):
                yield {"id": f"{path.stem}-{style}-{number}", "image": str(path), "text": captions[int(number)]}


def scene_pairs(
    out: Path, styles: dict[str, Drawings], concepts: list[Concept], rng: np.random.Generator
) -> Iterator[Row]:
    """Pictures of several glyphs of one style, each with its caption."""
    names = list(styles)
    for number in range(SCENES):
        style = names[int(rng.integers(len(names)))]
        available = [concept for concept in concepts if concept.code in styles[style] and concept.countable]
        shown = scenes.random_scene(available, rng, drawing.random_colour(rng, white=0.2))
        glyphs = [styles[style][c.code] for c, n in zip(shown.concepts, shown.counts, strict=True) for _ in range(n)]
        path = Path("pictures/scenes") / f"{number:05d}.png"
        drawing.save_picture(drawing.scene(glyphs, shown.colour), out / path)
        yield {"id": f"scene-{number:05d}", "image": str(path), "text": caption_of_scene(shown)}


def coloured_pairs(
    out: Path, styles: dict[str, Drawings], concepts: list[Concept], rng: np.random.Generator
) -> Iterator[Row]:
    """One glyph on a coloured ground, the caption naming both."""
    names = list(styles)
    for number in range(SCENES // 2):
        style = names[int(rng.integers(len(names)))]
        concept = concepts[int(rng.integers(len(concepts)))]
        if concept.code in styles[style]:
            colour = drawing.random_colour(rng, white=0.0)
            path = Path("pictures/coloured") / f"{number:05d}.png"
            picture = drawing.single(styles[style][concept.code], colour, drawing.random_placement(rng))
            drawing.save_picture(picture, out / path)
            text = caption_of_scene(scenes.Scene((concept,), (1,), colour))
            yield {"id": f"coloured-{number:05d}", "image": str(path), "text": text}


def validation_pairs(out: Path, concepts: list[Concept]) -> Iterator[Row]:
    """Plain OpenMoji drawings of the training concepts with the name that `evaluate` asks for."""
    for concept in concepts:
        path = Path("pictures/openmoji") / f"{concept.code}.png"
        drawing.save_picture(
            drawing.single(drawing.openmoji(concept.character), "white", drawing.Placement()), out / path
        )
        yield {"id": concept.code, "image": str(path), "text": NAME_TEMPLATE.format(noun=concept.noun)}


def made_from() -> str:
    """Fingerprint of what the pairs are a function of; the packages are pinned by version."""
    parts = Path(__file__).parent / "nano_parts"
    files = [parts / name for name in ("captions.py", "drawing.py", "lexicon.py", "scenes.py", "lexicon.json")]
    return marks.fingerprint([Path(__file__), *files])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/nano-styles"), help="folder of the corpus")
    out: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    source = made_from()
    if marks.is_finished(out, source):
        log.info("%s is finished and unchanged", out)
        return
    marks.unmark(out)
    lexicon = read_lexicon()
    known = [concept for concept in lexicon if not concept.unseen]
    rng = np.random.default_rng(SEED)
    styles = {style: drawings_of(style, out / "packages", known) for style in PACKAGES}
    log.info("drawings: %s", {style: len(found) for style, found in styles.items()})
    rows = [row for style, found in styles.items() for row in single_pairs(out, style, found, known, rng)]
    rows += [*scene_pairs(out, styles, known, rng), *coloured_pairs(out, styles, known, rng)]
    counts = {
        "train": write_rows(out / "train.jsonl", rows),
        "validation": write_rows(out / "validation.jsonl", validation_pairs(out, part(lexicon, "training"))),
    }
    models.save_encoder(out / "assets/towers", heads=None)
    marks.mark(out, source, counts)


if __name__ == "__main__":
    start(main, "nano_styles")
