"""Every file under `configs/` composes, and every experiment takes one step of each of its commands on tiny parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_corpus import make_corpus, make_groups

from revision.cli import main
from revision.cli.composition import compose, open_hydra, typed
from revision.cli.overrides import check_overrides
from revision.runs import rundir
from revision.schema import Config
from revision.shipped import shipped

CONFIGS = shipped("configs")
OPTIONS = sorted(
    (str(file.parent.relative_to(CONFIGS)), file.stem) for file in CONFIGS.rglob("*.yaml") if file.parent != CONFIGS
)
EXPERIMENTS = sorted(
    str(file.relative_to(CONFIGS / "experiment").with_suffix("")) for file in (CONFIGS / "experiment").rglob("*.yaml")
)
# Those that stand for rows of the paper take their steps in test_paper_rows.py.
ROWS = [name for name in EXPERIMENTS if re.match(r"table\d|textonly", name)]

ONE_STEP = [
    "data=tiny", "encoder=tiny", "engine=local", "hydra.mode=RUN",
    "model.llm=${data.folder}/assets/llm", "model.num_visual_tokens=2",
    *(f"{stage}.trainer.{setting}" for stage in ("pretrain", "instruct") for setting in (
        "max_steps=1", "warmup_steps=0", "per_device_train_batch_size=2", "gradient_accumulation_steps=1")),
    "pretrain.max_length=64", "instruct.max_length=64", "pretrain.limit=null",
    "contrast.epochs=1", "contrast.batch_size=4", "contrast.probe_interval=1",
    "gap.sample=6", "gap.neighbours=[2]",
    "evaluate.candidates=2", "evaluate.bootstrap=5", "evaluate.sheet=2", "evaluate.max_new_tokens=2",
    "evaluate.split=test",
]  # fmt: skip


def composed(*arguments: str, config_dir: Path | None = None) -> Config:
    with open_hydra("run", None if config_dir is None else str(config_dir)) as hydra:
        return typed(compose(hydra, check_overrides(hydra, arguments)))


def test_there_are_configs() -> None:
    assert ("alignment", "realign") in OPTIONS
    assert {"nano", "revision_8b"} <= set(EXPERIMENTS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_file_composes_and_keeps_the_rules(group: str, option: str) -> None:
    top, *nested = group.split("/")
    composed(f"{top}={'/'.join([*nested, option])}")


def test_the_root_is_complete_by_itself() -> None:
    config = composed()
    assert config.name == "default"
    assert config.pretrain.train == ["projector"]
    assert config.instruct.train == ["projector", "llm"]
    assert config.instruct.init == "pretrain"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_says_how_to_run_it(experiment: str) -> None:
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# revision ") and f"experiment={experiment}" in lines[1]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_has_a_name_and_a_folder_of_its_own(experiment: str) -> None:
    assert composed(f"experiment={experiment}").name == experiment


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return make_groups(folder / "configs", make_corpus(folder / "corpus", tiny_llm))


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in ROWS])
def test_experiment_takes_one_step(
    experiment: str, groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [f"experiment={experiment}", *ONE_STEP]
    if composed(*arguments, config_dir=groups).pretrain.start_steps:
        arguments.append("pretrain.start_steps=2")
    config = composed(*arguments, config_dir=groups)
    for step in config.run.steps:
        assert main([step, *arguments, "--config-dir", str(groups)]) == 0, step
        assert rundir.is_finished(config, step)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_stage_two_with_an_adapter_is_evaluated_and_answers(
    adapter: str, groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=nano", f"adapter={adapter}", *ONE_STEP]
    config = composed(*arguments, config_dir=groups)
    assert config.instruct.train == ["projector", "adapter"]
    picture = next(Path(config.data.folder).glob("pictures/*.png"))
    for step in ("embed", "align", "pretrain", "instruct", "evaluate"):
        assert main([step, *arguments, "--config-dir", str(groups)]) == 0, step
    asked = ["chat.prompt=What is it?", f"chat.image={picture}", "chat.max_new_tokens=2"]
    assert main(["chat", *arguments, *asked, "--config-dir", str(groups)]) == 0
    assert main(["push", *arguments, "--config-dir", str(groups)]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
