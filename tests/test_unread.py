"""Settings that are typed and that nothing reads are refused; files, sweeps and their jobs keep what they have."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from stand_in import stand_in_line

from revision.cli import main, multirun
from revision.runs import processes
from revision.schema import Config

BOTH = "set pretrain.trainer.learning_rate and instruct.trainer.learning_rate."
REFUSED = [
    (
        ["experiment=nano", "trainer.learning_rate=1e-3"],
        "no stage reads trainer.learning_rate, since both have a value",
    ),
    (["experiment=nano", "trainer.learning_rate=1e-3"], BOTH),
    (["-m", "experiment=nano", "trainer.learning_rate=1e-3,1e-4"], BOTH),
    (["alignment=none", "alignment.until=1e-7"], "none reads no field of alignment; leave it out."),
    (
        ["alignment=realign", "alignment.rank=4"],
        "realign reads alignment.centroid_steps, alignment.until, alignment.anch",
    ),
    (["alignment=c3", "alignment.trace=false", "gap.compare=[none]"], "c3 and none read alignment.noise_std; leave it"),
    (["-m", "alignment=none", "alignment.until=1e-7,1e-8"], "none reads no field of alignment"),
]
READ = [
    ["experiment=nano", "trainer.gradient_checkpointing=true"],
    ["trainer.learning_rate=1e-3"],
    ["experiment=nano", "~instruct.trainer.learning_rate", "trainer.learning_rate=1e-3"],
    ["alignment=quantile", "alignment.rank=4"],
    ["alignment=none", "gap.compare=[quantile]", "alignment.rank=4"],
    ["alignment=none", "alignment.until=null"],
    ["alignment=c3", "alignment.method=realign", "alignment.until=1e-7"],
    ["alignment=none", "alignment.until=1e-7", "hydra.mode=RUN"],
    ["experiment=shared"],
]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    configs: list[Config] = []
    monkeypatch.setattr(import_module("revision.commands.embed"), "run", configs.append)
    return configs


@pytest.mark.parametrize(("words", "expected"), REFUSED)
def test_what_nothing_reads_is_refused(
    words: list[str], expected: str, received: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", *words]) == 2
    said = capsys.readouterr().err
    assert re.match(r"revision: '(trainer|alignment)\.\w+=\S+' on the command line: ", said)
    assert expected in said and said.count("\n") == 1
    assert received == []


@pytest.mark.parametrize("words", READ)
def test_what_something_reads_is_not(words: list[str], received: list[Config], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "shared.yaml").write_text(
        "# @package _global_\ndefaults: [override /alignment: none]\nalignment: {until: 1.0e-7}\n"
        "trainer: {learning_rate: 1}\npretrain: {trainer: {learning_rate: 2}}\n"
        "instruct: {trainer: {learning_rate: 3}}\n"
    )
    assert main(["embed", *words, "--config-dir", str(tmp_path)]) == 0
    assert len(received) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["alignment=none,realign", "alignment.until=1e-7"],
        ["alignment.method=none,realign", "alignment.until=1e-7"],
        ["experiment=nano,nano_tokens", "trainer.learning_rate=1e-3", "alignment.rank=8"],
        ["experiment=nano_map", "alignment.rank=8"],
    ],
)
def test_sweeps_over_what_reads_them_and_their_jobs_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs are started as lines of their own, in which a method may have no use for what the sweep sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log.jsonl"))
    monkeypatch.setattr(processes, "command_line", stand_in_line)
    monkeypatch.setattr(multirun, "draw_table", lambda _folder: None)
    assert main(["align", "-m", *words]) == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= 2
