"""What the documentation names exists: commands compose, options are known, paths are there, Python runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_configs import composed
from tiny_encoder import make_encoder_folder, make_picture

from revision.cli import main
from revision.cli.command_line import USAGE
from revision.commands import COMMANDS
from revision.data.rows import Rows
from revision.data.samples import conversation_samples
from revision.embeddings import EmbeddingStore
from revision.records import read_conversations

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
INDEX = ROOT / "configs" / "experiment" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", INDEX, *sorted((ROOT / "docs").glob("*.md"))]
# Folders that runs, builds and users make; what lies in them is not in the repository.
MADE = ("runs/", "data/", "configs/local/default.yaml")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def lines_of_shell() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


REVISION_LINES = [words[1:] for words in lines_of_shell() if words[0] == "revision"]
MAKE_TARGETS = sorted(
    {target for page in PAGES for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.M)}
)


def test_readme_has_lines_to_check() -> None:
    assert ["run", "experiment=revision_8b", "data.folder=/my/records"] in REVISION_LINES
    starts = {words[0] for words in lines_of_shell()}
    assert starts <= {"revision", "make", "python", "PROCESSES=8", "scripts/launch.sh", "scripts/slurm.sh"}


@pytest.mark.parametrize("words", REVISION_LINES, ids=" ".join)
def test_every_command_line_composes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the example of an experiment in its place. A sweep is shown for the first value of each of its overrides."""
    experiment, _ = blocks("yaml")
    (tmp_path / "my_configs" / "experiment").mkdir(parents=True)
    (tmp_path / "my_configs" / "experiment" / "mine.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    command, *arguments = [word for word in words if word not in ("-m", "--help")]
    globs = [re.fullmatch(r"(\w+)=glob\((.+)\)", word) for word in arguments]
    arguments = [
        word if glob is None else f"{glob[1]}={min((ROOT / 'configs' / glob[1]).glob(glob[2] + '.yaml')).stem}"
        for word, glob in zip(arguments, globs, strict=True)
    ]
    shown = [word if "," not in word or '"' in word else word.split(",")[0] for word in arguments]
    assert main([command, *shown, *([] if "--cfg" in shown else ["--cfg", "job"])]) == 0
    assert "runs: runs" in capsys.readouterr().out


def test_a_quoted_path_arrives_whole(tmp_path: Path) -> None:
    (quoted,) = [word for words in REVISION_LINES for word in words if '"' in word]
    assert composed(quoted).chat.image == "/my photos/dog, asleep.jpg"


def files_of_the_example() -> dict[str, str]:
    """The records of "Your own data" by file name, which begins the line above each block."""
    names = re.findall(r"^`(\w+\.jsonl)`, [^`]*(?:`[^`]+`[^`]*)*:\n\n```jsonl$", README, re.MULTILINE)
    return dict(zip(names, blocks("jsonl"), strict=True))


def test_the_records_of_the_example_are_what_the_commands_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`embed` and `align` on them, with a tiny encoder in place of the large one; and what stage 2 makes of them."""
    monkeypatch.chdir(tmp_path)
    files = files_of_the_example()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        for number, picture in enumerate(re.findall(r"photos/\d+\.jpg", content)):
            make_picture(tmp_path / picture, seed=number)
    experiment, _ = blocks("yaml")
    (tmp_path / "my_configs" / "experiment").mkdir(parents=True)
    (tmp_path / "my_configs" / "experiment" / "mine.yaml").write_text(experiment)
    encoder = make_encoder_folder(tmp_path / "encoder")
    words = ["experiment=mine", f"data.folder={tmp_path}", f"encoder.model=local-dir:{encoder}",
             "encoder.kind=open_clip", "encoder.pretrained=null", "--config-dir", "my_configs"]  # fmt: skip
    for command in ("embed", "align"):
        assert main([command, *words]) == 0, capsys.readouterr().err
    facts = json.loads((tmp_path / "runs/mine/align/alignment.json").read_text())
    assert (facts["text"]["count"], facts["image"]["count"]) == (2, 2)
    (store,) = (tmp_path / "stores").glob("*/pictures")
    rows = Rows([EmbeddingStore.open(store)], embed_dim=facts["dim"])
    talks = conversation_samples(read_conversations(tmp_path / "conversations.jsonl"), rows)
    assert [(talk.row, talk.messages[1].content) for talk in talks] == [(0, "A dog."), (1, "Two.")]


def test_every_command_is_listed() -> None:
    assert set(re.findall(r"^\| `revision (\w+)` \|", README, re.MULTILINE)) == set(COMMANDS)


def test_the_mistake_that_is_shown_is_what_one_gets(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("console")
    line, answer = example.strip().split("\n", 1)
    assert main(shlex.split(line.removeprefix("$ revision "))) == 2
    assert capsys.readouterr().err.strip() == answer


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_every_make_target_exists(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE))
    declared = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert listed == declared
    assert {"run", "test", "check", "format", "bench", "clean"} <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [(page.parent, link) for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    quoted = [
        (ROOT, word)
        for word in re.findall(r"`([\w./-]+)`", text)
        if re.match(r"(revision|configs|data_recipes|docs|scripts|tests)/", word)
    ]
    missing = [name for base, name in links + quoted if not name.startswith(MADE) and not (base / name).exists()]
    assert missing == []


def test_architecture_page_has_the_layers_of_the_test() -> None:
    from test_architecture import KNOW_THE_CONFIG, LAYERS

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    layers = page.split("## Layers")[1].split("```")[1].split("\n")
    assert [line.split() for line in layers if line] == [names for names in LAYERS if names != ["__main__"]]
    sentence = page.split("Only `assembly`")[1].split("import the schema")[0]
    assert {"assembly", *re.findall(r"`(\w+)`", sentence)} == KNOW_THE_CONFIG
    rooms = page.split("## Rooms")[1].split("```")[1]
    for name in (name for names in LAYERS for name in names if name != "__main__"):
        assert re.search(rf"\b{name}(\.py|/)", rooms), f"{name} is not among the rooms"


def test_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    text, image = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (rng.normal(size=(50, 8)) + offset for offset in (1.0, -1.0))
    )
    names = {"text": text, "image": image}
    exec(next(block for block in blocks("python") if "ReAlign" in block), names)
    before = np.linalg.norm(text.mean(0) - image.mean(0))
    after = np.linalg.norm(names["aligned"].mean(0) - image.mean(0))
    assert after < 0.05 * before
    assert (tmp_path / "alignment" / "alignment.safetensors").is_file()


def test_usage_shows_how_to_start() -> None:
    assert "accelerate launch" in USAGE and "python -m revision" in USAGE
