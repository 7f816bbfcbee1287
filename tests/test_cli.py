"""The command line: help, versions, Hydra's options, exit codes, and that nothing heavy is imported on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

import revision
from revision.alignment.methods import built_in
from revision.cli import main
from revision.commands import COMMANDS
from revision.schema import Config

HEAVY = ("torch", "transformers", "open_clip", "timm", "deepspeed", "datasets", "matplotlib", "numpy")


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that `revision embed` was called with; the command itself does nothing."""
    configs: list[Config] = []
    monkeypatch.setattr(import_module("revision.commands.embed"), "run", configs.append)
    return configs


def test_help_lists_every_command_with_its_first_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == overview
    lines = {line.split()[0]: line for line in overview.splitlines() if line.startswith("  ") and line.split()}
    for command in COMMANDS:
        paragraph = (import_module(f"revision.commands.{command}").__doc__ or "").split("\n\n")[0]
        assert " ".join(paragraph.split()) in lines[command]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"revision {revision.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_help_and_configuration(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: revision {command}")
    assert (import_module(f"revision.commands.{command}").__doc__ or "").strip().splitlines()[0] in text
    assert f"alignment: {', '.join(built_in())}" in text
    assert main([command, "--cfg", "job", "alignment=c3", "trainer.new_key=1"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["alignment"]["method"] == "c3"
    assert shown["trainer"]["new_key"] == 1
    assert "hydra" not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_a_command_reads_its_own_fields_first(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help", "seed=7"]) == 0
    own, others = capsys.readouterr().out.split("== Configuration groups")[0].split("== What else it depends on")
    own = own.split(f"== Fields of `{command}` (field=value) ==\n")[1]
    section = vars(Config())[command]
    assert {line.split(".")[1].split("=")[0] for line in own.splitlines() if line} == {*vars(section)}
    assert {line.split(".")[0].strip("'") for line in own.splitlines() if line} == {command}
    assert "name=default" in others and f"`revision {command} --cfg job`" in others
    assert ("alignment.method=realign" in others) == (command not in ("contrast", "embed", "inspect", "verify"))
    assert ("data.naming" in others) == (command in ("evaluate", "run"))
    assert ("seed=7" in others) == (command not in ("embed", "align", "verify"))
    if command == "gap":
        assert "gap.trials=5                                      # repetitions of curve and transfer" in own
        assert "gap.neighbours=null" in own and "gap.sizes=[]" in own


def test_help_survives_a_configuration_that_is_not_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "--help", "gap.energy=2"]) == 0
    out = capsys.readouterr().out
    assert "Its fields cannot be shown: gap.energy = 2.0: must be a share" in out and "== Options ==" in out


def test_cfg_shows_a_package_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--cfg", "job", "--package", "data.sources", "--resolve", "data.folder=elsewhere"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["texts"]["records"] == "elsewhere/texts.jsonl"


@pytest.mark.parametrize("options", [["--hydra-help"], ["--info", "defaults"], ["--cfg", "hydra"]])
def test_hydras_own_views(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", *options]) == 0
    assert "hydra" in capsys.readouterr().out.lower()


def test_command_gets_the_typed_tree(received: list[Config]) -> None:
    arguments = [
        "seed=3",
        "alignment=c3",
        "pretrain.trainer.learning_rate=1e-4",
        "instruct.init=null",
        "gap.neighbours=[5]",
    ]
    assert main(["embed", *arguments]) == 0
    (config,) = received
    assert type(config) is Config
    assert config.seed == 3
    assert config.alignment.method == "c3"
    assert config.pretrain.trainer["learning_rate"] == 1e-4
    assert type(config.pretrain.trainer) is dict
    assert config.instruct.init is None
    assert config.gap.neighbours == [5]
    assert config.data.sources["texts"].records == "data/nano/texts.jsonl", "interpolations are resolved"


def test_a_command_line_is_composed_once(received: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    compose = ConfigLoaderImpl.load_configuration

    def count(*arguments: Any, **further: Any) -> DictConfig:
        composed.append(compose(*arguments, **further))
        return composed[-1]

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", count)
    assert main(["embed", "experiment=nano", "seed=3", "alignment=c3", "gap.sample=7"]) == 0
    assert len(composed) == 1
    assert composed[0].hydra.mode is None and composed[0].gap.sample == 7  # as it came: what ran has copies
    assert received[0].gap.sample == 7


def test_later_files_win(received: list[Config], tmp_path: Path) -> None:
    """Groups, then the experiment, then this machine's file, then the command line."""
    for name, text in {
        "experiment/one": "# @package _global_\nalignment: {noise_std: 0.1}\nseed: 1\nruns: one\nname: one\n",
        "local/default": "# @package _global_\nseed: 2\nruns: two\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(text)
    assert main(["embed", "alignment=c3", "experiment=one", "runs=three", "--config-dir", str(tmp_path)]) == 0
    (config,) = received
    assert (config.alignment.noise_std, config.name, config.seed, config.runs) == (0.1, "one", 2, "three")


def test_groups_on_hydras_search_path(received: list[Config], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "far.yaml").write_text("# @package _global_\nseed: 5\n")
    assert main(["embed", "experiment=far", f"hydra.searchpath=[file://{tmp_path}]"]) == 0
    assert received[0].seed == 5


def test_sources_can_be_added_whole(received: list[Config]) -> None:
    assert main(["embed", "data.sources={more: {kind: image, records: more.jsonl}}"]) == 0
    assert received[0].data.sources["more"].records == "more.jsonl"
    assert "texts" in received[0].data.sources


def test_hydra_writes_nothing(received: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed"]) == 0
    assert received and list(tmp_path.iterdir()) == []


def test_users_mistake_in_a_command_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_config: Config) -> None:
        raise ValueError("texts.jsonl: line 3 has no text; remove it.")

    monkeypatch.setattr(import_module("revision.commands.embed"), "run", fail)
    assert main(["embed"]) == 1
    assert capsys.readouterr() == ("", "revision: texts.jsonl: line 3 has no text; remove it.\n")
    monkeypatch.setenv("REVISION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="line 3 has no text"):
        main(["embed"])


def test_our_own_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_config: Config) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(import_module("revision.commands.embed"), "run", fail)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        main(["embed"])


def test_interruption_is_told_in_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_config: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("revision.commands.embed"), "run", interrupt)
    assert main(["embed"]) == 130
    assert capsys.readouterr().err == "revision: interrupted\n"


def test_help_and_mistakes_import_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from revision.cli import main\n"
        "codes = [main(words) for words in (['--help'], ['pretrain', '--cfg', 'job'], ['pretrain', 'seeed=1'])]\n"
        "from revision.commands import COMMANDS\n"
        "for command in COMMANDS: __import__(f'revision.commands.{command}')\n"
        "sys.stdout.write('\\n' + json.dumps([codes, sorted(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 2]
    assert [name for name in HEAVY if name in modules] == []


@pytest.mark.slow
def test_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    root = Path(__file__).resolve().parent.parent
    wheel = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run([*pip, *wheel], check=True)
    (file,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), file], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run([sys.executable, *words], cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout

    assert run("-c", "import revision; import sys; sys.stdout.write(revision.__file__)").startswith(str(tmp_path))
    assert "llm: meta-llama" in run("-m", "revision", "run", "experiment=revision_8b", "--cfg", "job")
    recipe = ["data.recipe_options=[--help]", "run.steps=[embed]"]  # which then finds no records
    assert "--out" in run("-m", "revision", "run", "experiment=nano", *recipe, code=1), "the recipe of nano is there"


def test_module_and_script_are_the_same_command_line(tmp_path: Path) -> None:
    for start in ([sys.executable, "-m", "revision"], [str(Path(sys.executable).with_name("revision"))]):
        done = subprocess.run([*start, "alin"], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
        assert done.returncode == 2
        assert "did you mean 'align'?" in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "experiment=nano", "--help"]])
def test_output_that_nobody_reads_on_ends_the_command_in_silence(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "revision", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_pipe_that_breaks_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_words: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("revision.cli.command_line._answer", broken)
    with pytest.raises(BrokenPipeError):
        main([])
