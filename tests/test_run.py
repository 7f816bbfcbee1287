"""`run` and sweeps: order, skipping, failures, names and tables, through real processes with stand-in steps."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from stand_in import stand_in_line
from tiny_corpus import make_corpus, make_groups

from revision.assembly import store_path
from revision.cli import main
from revision.cli.composition import compose, open_hydra, typed
from revision.cli.multirun import LONGEST_NAME, job_name
from revision.runs import processes

run_command = import_module("revision.commands.run")
is_of_other_stores = run_command._is_of_other_stores  # the stand-ins make no stores
STEPS = "run.steps=[embed,align,pretrain]"  # three, so that one can fail between others


@pytest.fixture(autouse=True)
def stand_ins(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every child is the stand-in (slow tests apart), and everything is written below `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    if request.node.get_closest_marker("slow"):
        return
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log.jsonl"))
    monkeypatch.delenv("STAND_IN_FAIL", raising=False)
    monkeypatch.setattr(processes, "command_line", stand_in_line)
    monkeypatch.setattr(run_command, "_is_of_other_stores", lambda config: False)


def log() -> list[dict[str, Any]]:
    """What the steps noted since the last call."""
    path = Path("log.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def steps_run() -> list[str]:
    return [line["step"] for line in log()]


def run(*arguments: str) -> int:
    return main(["run", "data.recipe=null", STEPS, *arguments])


def test_steps_run_in_order_and_a_second_call_skips_them(capfd: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert steps_run() == ["embed", "align", "pretrain"]
    assert run() == 0
    assert steps_run() == []
    assert capfd.readouterr().out.count("finished and unchanged") == 3


def test_a_changed_setting_repeats_what_depends_on_it() -> None:
    run()
    log()
    assert run("alignment=c3") == 0
    assert steps_run() == ["align", "pretrain"]
    assert run("alignment=c3", "pretrain.trainer.learning_rate=1e-3") == 0
    assert steps_run() == ["pretrain"]


def test_a_deleted_model_is_made_again_where_something_still_reads_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("run.steps=[pretrain,evaluate]") == 0
    log()
    Path("runs/default/pretrain/model").rmdir()
    assert run("run.steps=[pretrain,evaluate]") == 0
    assert steps_run() == []  # its scores are there, which is what was wanted of it
    assert run("run.steps=[pretrain,instruct,evaluate]") == 0
    assert steps_run() == ["pretrain", "instruct", "evaluate"]
    assert "its model is gone and instruct reads it: made again" in capfd.readouterr().out


def test_an_alignment_of_other_embeddings_is_fitted_again_for_what_still_reads_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    Path("runs/default/pretrain/finished.json").unlink()
    monkeypatch.setattr(run_command, "_is_of_other_stores", lambda config: True)
    assert run("run.steps=[embed,align]") == 0
    assert run() == 0
    assert steps_run() == ["embed", "align", "pretrain", "align", "pretrain"]
    assert "finished, but its embeddings are others now and pretrain reads it: made again" in capfd.readouterr().out


def test_stores_that_another_run_has_made_anew_are_noticed(tiny_llm: Path, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", tiny_llm)
    arguments = ["data=tiny", "encoder=tiny", "--config-dir", str(make_groups(tmp_path / "configs", corpus))]
    assert [main([step, *arguments]) for step in ("embed", "align")] == [0, 0]
    with open_hydra("run", arguments[-1]) as hydra:
        config = typed(compose(hydra, arguments[:2]))
    assert not is_of_other_stores(config)
    shutil.rmtree(store_path(config, "texts"))
    assert main(["embed", *arguments, "name=other"]) == 0
    assert not is_of_other_stores(config)  # the same again
    shutil.rmtree(store_path(config, "texts"))
    (corpus / "texts.jsonl").write_text((corpus / "texts.jsonl").read_text().replace("a red", "a big red"))
    assert main(["embed", *arguments, "name=other"]) == 0
    assert is_of_other_stores(config)


def test_children_get_the_same_configuration() -> None:
    assert (
        run(
            "name=mine",
            "alignment=c3",
            "+trainer.max_steps=3",
            "pretrain.prompts=['a, b <image>']",
            "gap.sample=${seed}7",
        )
        == 0
    )
    for line in log():
        config = line["config"]
        assert config["name"] == "mine"
        assert config["alignment"]["method"] == "c3"
        assert config["trainer"]["max_steps"] == 3
        assert config["pretrain"]["prompts"] == ["a, b <image>"]
        assert config["gap"]["sample"] == 7, "0 and 7"


def test_children_find_groups_of_the_users_own(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("# @package _global_\nname: own\nseed: 11\n")
    assert run("experiment=own", "--config-dir", "mine") == 0
    assert {line["config"]["seed"] for line in log()} == {11}


def test_a_failing_step_ends_the_run_and_the_same_command_continues(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAND_IN_FAIL", "default/align")
    assert run() == 1
    assert steps_run() == ["embed", "align"]
    errors = capfd.readouterr().err.splitlines()
    assert errors[0] == "revision: told to fail."
    assert errors[1].startswith("revision: step 'align' ended with exit code 1; pretrain not started:")
    assert len(errors) == 2
    monkeypatch.delenv("STAND_IN_FAIL")
    assert run() == 0
    assert steps_run() == ["align", "pretrain"]


NOTES_ITSELF = "import sys; open('log.jsonl', 'a').write('{\"step\": \"recipe ' + ' '.join(sys.argv[1:]) + '\"}\\n')"


def test_recipe_runs_first_and_gets_folder_and_options(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(NOTES_ITSELF)
    assert main(["run", STEPS, f"data.recipe={recipe}", "data.recipe_options=[--small]", "data.folder=here"]) == 0
    assert steps_run() == ["recipe --out here --small", "embed", "align", "pretrain"]


def test_recipes_that_the_corpus_needs_run_before_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.py").write_text(NOTES_ITSELF)
    own = ["data.recipe=recipe.py", "data.folder=here"]
    assert (
        main(
            ["run", "run.steps=[embed]", *own, "data.needs=[recipe.py --out there --keep 3, 'recipe.py --out \"a b\"']"]
        )
        == 0
    )
    before = ["recipe --out there --keep 3", "recipe --out a b", "recipe --out here"]
    assert steps_run() == [*before, "embed"]
    assert main(["run", "run.steps=[gap]", "data.recipe=null", "data.needs=[recipe.py --out there]"]) == 0
    assert steps_run() == ["recipe --out there", "gap"]
    assert main(["run", STEPS, *own, "data.needs=[no.py --out there]"]) == 1
    assert "data.needs = no.py: no such file" in capsys.readouterr().err
    assert steps_run() == [], "nothing starts where one is not there"


def test_the_recipe_of_the_benchmarks_runs_where_there_is_something_to_evaluate(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(NOTES_ITSELF)
    words = ["run", "data.recipe=null", "data.benchmark_recipe=recipe.py --out there --only pope"]
    assert main([*words, STEPS]) == 0
    assert steps_run() == ["embed", "align", "pretrain"]
    assert main([*words, "run.steps=[embed,evaluate]"]) == 0
    assert steps_run() == ["recipe --out there --only pope", "evaluate"]


@pytest.mark.parametrize("line", ["''", "'recipe.py \"a'"])
def test_a_need_that_is_no_command_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    for field, value in (("data.needs", f"[{line}]"), ("data.benchmark_recipe", line)):
        assert main(["run", STEPS, f"{field}={value}"]) == 2
        assert f"{field} = '" in (said := capsys.readouterr().err) and "must be a command line, such as" in said


def test_failing_recipe_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.py").write_text("import sys; sys.exit(3)")
    assert main(["run", STEPS, "data.recipe=recipe.py"]) == 1
    assert "recipe 'recipe.py' ended with exit code 3" in capsys.readouterr().err
    assert steps_run() == []


def test_missing_recipe_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", STEPS, "data.recipe=no_such_recipe.py"]) == 1
    err = capsys.readouterr().err
    assert "data.recipe = no_such_recipe.py: no such file" in err and err.count("\n") == 1


def test_experiment_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "experiment=nanoo"]) == 2
    assert "group 'experiment' has no option 'nanoo' (did you mean 'nano'?)" in capsys.readouterr().err


def test_sweep_runs_every_job_under_a_name_of_its_own() -> None:
    assert main(["align", "-m", "name=table", "alignment=none,c3", "seed=0,1", "gap.sample=9"]) == 0
    configs = [line["config"] for line in log()]
    found = {(config["name"], config["alignment"]["method"], config["seed"]) for config in configs}
    assert found == {
        (f"table/alignment={method},gap.sample=9,seed={seed}", method, seed)
        for method in ("none", "c3")
        for seed in (0, 1)
    }
    assert all(Path("runs", name, "align", "finished.json").is_file() for name, _, _ in found)


def test_a_failed_job_does_not_lose_the_rest_and_is_repeated_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "-m", "data.recipe=null", "run.steps=[align,pretrain]", "seed=0,1"]
    monkeypatch.setenv("STAND_IN_FAIL", r"default/.*seed=0/align")
    assert main(arguments) == 1
    assert [line["config"]["seed"] for line in log() if line["step"] == "pretrain"] == [1]
    out = capfd.readouterr().out
    assert "seed=0: `run` ended with exit code 1" in out
    assert "1 of 2 jobs finished" in out
    monkeypatch.delenv("STAND_IN_FAIL")
    assert main(arguments) == 0
    assert [(line["step"], line["config"]["seed"]) for line in log()] == [("align", 0), ("pretrain", 0)]


def test_a_sweep_of_one_command_runs_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAND_IN_FAIL", r"default/.*seed=0/pretrain")
    assert main(["pretrain", "-m", "seed=0,1"]) == 1
    monkeypatch.delenv("STAND_IN_FAIL")
    log()
    assert main(["pretrain", "-m", "seed=0,1,2"]) == 0
    assert [line["config"]["seed"] for line in log()] == [0, 2]
    out = capfd.readouterr().out
    assert "finished and unchanged: runs/default/seed=1/pretrain" in out and "3 of 3 jobs finished" in out
    assert main(["pretrain", "-m", "seed=0,1", "checkpoint.minutes=3", "model.num_visual_tokens=3"]) == 0
    assert [line["config"]["seed"] for line in log()] == [0, 1], "other settings, other jobs"


def test_a_sweep_of_training_alone_has_a_table_of_what_was_trained(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "-m", "seed=0,1", "alignment=none,c3"]) == 0
    assert (
        "losses and rates of all jobs: runs/default/training.csv, runs/default/training.png" in capfd.readouterr().out
    )
    header, *lines = Path("runs/default/training.csv").read_text().splitlines()
    assert header.startswith("run,stage,arm,seed") and len(lines) == 4
    assert main(["align", "-m", "name=untrained", "seed=0"]) == 0
    assert not Path("runs/untrained/training.csv").exists()


def test_a_sweep_of_embeddings_looks_at_the_records_again() -> None:
    for _ in range(2):
        assert main(["embed", "-m", "seed=0"]) == 0
        assert steps_run() == ["embed"]


def write_sweep(tmp_path: Path, text: str) -> None:
    """Makes `experiment=sweep`, for `--config-dir mine`."""
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(text)


def test_an_experiment_can_be_a_sweep(tmp_path: Path) -> None:
    write_sweep(
        tmp_path,
        "# @package _global_\nname: sweep\nhydra: {mode: MULTIRUN, sweeper: {params: {alignment: 'none,realign'}}}\n",
    )
    assert main(["align", "experiment=sweep", "--config-dir", "mine"]) == 0
    assert [line["config"]["name"] for line in log()] == ["sweep/alignment=none", "sweep/alignment=realign"]


def test_what_is_given_takes_the_place_of_an_experiments_sweep(tmp_path: Path) -> None:
    """Also for keys of open mappings, some of which no file has."""
    write_sweep(
        tmp_path,
        "# @package _global_\nname: sweep\npretrain: {trainer: {max_steps: 3}}\nhydra: {mode: MULTIRUN, sweeper: "
        "{params: {pretrain.trainer.max_steps: '3,5', trainer.warmup_steps: '1,2', seed: '0,1'}}}\n",
    )
    assert main(["align", "experiment=sweep", "pretrain.trainer.max_steps=7", "seed=4", "--config-dir", "mine"]) == 0
    found = [line["config"] for line in log()]
    assert [(one["seed"], one["trainer"]["warmup_steps"]) for one in found] == [(4, 1), (4, 2)]
    assert {one["pretrain"]["trainer"]["max_steps"] for one in found} == {7}
    assert found[0]["name"] == "sweep/pretrain.trainer.max_steps=7,seed=4,trainer.warmup_steps=1"
    assert main(["align", "experiment=sweep", "seed=4", "--config-dir", "mine"]) == 0
    assert len(log()) == 4


def test_an_experiment_may_leave_a_group_to_its_sweep(tmp_path: Path) -> None:
    write_sweep(
        tmp_path,
        "# @package _global_\ndefaults:\n  - override /alignment: ???\nname: sweep\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {alignment: 'none,c3'}}}\n",
    )
    assert main(["align", "experiment=sweep", "--config-dir", "mine"]) == 0
    assert [line["config"]["alignment"]["method"] for line in log()] == ["none", "c3"]


def test_broken_rule_in_one_job_is_that_jobs_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "-m", "embed.shard_size=0,8"]) == 1
    assert [line["config"]["embed"]["shard_size"] for line in log()] == [8]
    assert "embed.shard_size=0: embed.shard_size = 0: must be at least 1." in capfd.readouterr().out


def test_a_pattern_of_experiments_runs_each_under_its_own_name(capfd: pytest.CaptureFixture[str]) -> None:
    """So that one of them alone, later, finds what it has made."""
    pattern = "experiment=glob([table1_*,table3_*],exclude=*_revision)"
    assert main(["align", "-m", pattern]) == 0
    found = {line["config"]["name"]: line["config"]["alignment"]["method"] for line in log()}
    assert found == {"table1_c3": "c3", "table1_none": "none", "table3_bca": "blockwise"}
    assert "3 of 3 jobs finished" in capfd.readouterr().out
    assert Path("runs/table1_c3/align/finished.json").is_file()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-m", "experiment=glob(tabel*)"], "group 'experiment' has no option of such a name; it has: nano, "),
        (["-m", "seed=glob(*)"], "glob(...) chooses among the files of a group, which seed is not: list its values"),
        (["experiment=glob(table1_*)"], "holds several values: add -m to sweep over them"),
    ],
)
def test_a_pattern_that_fits_nothing_is_one_sentence(
    words: list[str], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["align", *words]) == 2
    error = capfd.readouterr().err
    assert why in error and error.count("\n") == 1
    assert log() == []


def test_table_is_drawn_over_all_jobs_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    import revision.evaluation.table

    collected: list[Path] = []
    monkeypatch.setattr(revision.evaluation.table, "collect", collected.append)
    assert main(["evaluate", "-m", "seed=0,1"]) == 0
    assert collected == [], "no job has scores"
    scores = Path("runs", "default", "seed=0", "evaluate", "pretrain", "scores.json")
    scores.parent.mkdir(parents=True)
    scores.write_text("{}")
    assert main(["evaluate", "-m", "seed=0"]) == 0
    assert main(["align", "-m", "seed=0"]) == 0
    assert collected == [Path("runs/default")]


def test_job_name_is_short_safe_and_distinct() -> None:
    assert job_name("table", ["experiment=nano", "seed=1", "alignment=c3", "name=table"]) == "table/alignment=c3,seed=1"
    assert job_name("nano", ["experiment=nano"]) == "nano"
    # A later sweep that goes further with the same jobs finds what they have made.
    assert job_name("table", ["seed=1", "run.steps=[embed,evaluate]", "evaluate.models=[pretrain]"]) == "table/seed=1"
    assert (
        job_name("a", ["++trainer.x=1e-3", "model.llm=/models/x y"]) == "a/model.llm=-models-x-y,trainer.x=1e-3-13b3c1"
    )
    assert job_name("a", ["model.llm=a/b"]) != job_name("a", ["model.llm=a-b"]) == "a/model.llm=a-b"
    long = [f"pretrain.trainer.key_number_{number}={number}" for number in range(20)]
    first, second = job_name("a", [*long, "seed=0"]), job_name("a", [*long, "seed=1"])
    assert first != second
    assert max(len(first), len(second)) < LONGEST_NAME + 20


def test_experiments_in_one_folder_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for swept in ("nano,nano_text_only", "glob(nano_t*)"):
        assert main(["run", "-m", f"experiment={swept}", "name=x"]) == 2
        assert f"name=x would put every one of experiment={swept} into one folder" in capsys.readouterr().err
    assert log() == []


SENDS_A_SIGNAL = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); "


def test_a_signal_that_a_step_ends_well_in_spite_of_starts_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a stage does in its last step. What asks `run` to leave would kill it in the middle of the next."""
    note = "signal.signal(signal.SIGTERM, signal.SIG_IGN); import time; "
    program = "import os, signal; " + note + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(.3)"
    monkeypatch.setattr(processes, "command_line", lambda command, arguments: [sys.executable, "-c", program])
    assert run() == 143
    assert "SIGTERM: step 'embed' has finished; the same command goes on with the next" in capsys.readouterr().err
    assert main(["align", "-m", "seed=0,1"]) == 143
    assert "has finished; the same command goes on with the next" in capsys.readouterr().err
    assert main(["run", "data.recipe=null", "run.steps=[embed]"]) == 0, "nothing is left to start"


def test_a_recipe_that_a_signal_ends_is_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.py").write_text(SENDS_A_SIGNAL + "import time; time.sleep(60)")
    assert main(["run", STEPS, "data.recipe=recipe.py", "data.folder=here"]) == 143
    assert "SIGTERM: recipe 'recipe.py' has left; the same command begins it anew" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.lock"))


def test_records_that_a_recipe_has_changed_do_every_step_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, words = tmp_path / "recipe.py", ["run", STEPS, "data.recipe=recipe.py", "data.folder=here"]
    write = "from pathlib import Path; Path('here').mkdir(exist_ok=True); Path('here/texts.jsonl').write_text('{}')"
    recipe.write_text(write.format("a"))
    assert main(words) == 0
    assert steps_run() == ["embed", "align", "pretrain"]
    assert main(words) == 0
    assert steps_run() == [], "written again, and the same"
    recipe.write_text(write.format("b"))
    monkeypatch.setenv("STAND_IN_FAIL", ".*/embed")
    assert main(words) == 1
    assert steps_run() == ["embed"]
    assert "here/texts.jsonl are others than before: every step is done again" in capsys.readouterr().out
    monkeypatch.delenv("STAND_IN_FAIL")
    assert main(words) == 0
    assert steps_run() == ["embed", "align", "pretrain"], "also where the run that noticed came to no end"


def test_several_processes_start_through_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(words: list[str]) -> int:
        started.append(words)
        return 5

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.delenv("RANK", raising=False)
    assert main(["pretrain", "engine=ddp2", "seed=3"]) == 5
    (words,) = started
    assert words[:4] == [sys.executable, "-m", "revision.runs.launching", "--standalone"]
    assert words[-6:] == ["--nproc_per_node=2", "-m", "revision", "pretrain", "engine=ddp2", "seed=3"]
    assert all(word.startswith("--") for word in words[4:-6]), "between them are options of the launcher"


def test_launch_script_hands_over_to_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = tmp_path / "accelerate"
    accelerate.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    accelerate.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    script = Path(__file__).resolve().parent.parent / "scripts" / "launch.sh"
    done = subprocess.run([script, "ddp", "pretrain", "name=two words"], capture_output=True, text=True, check=True)
    first, option, file, *rest = done.stdout.splitlines()
    assert (first, option) == ("launch", "--config_file") and Path(file).is_file()
    assert rest == ["-m", "revision", "pretrain", "engine=ddp", "name=two words"]
    for wrong in (["ddp"], ["zero4", "pretrain"]):
        done = subprocess.run([script, *wrong], capture_output=True, text=True)
        assert done.returncode == 2 and "ENGINE is one of: cpu ddp fsdp2" in done.stderr


def test_run_and_sweeps_refuse_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run() == 1
    assert "`run` was started on 2 processes" in capsys.readouterr().err
    assert main(["align", "-m", "seed=0,1"]) == 1
    assert "a sweep was started on 2 processes" in capsys.readouterr().err
    assert log() == []


def test_processes_end_in_words() -> None:
    assert processes.start([sys.executable, "-c", "raise SystemExit(4)"]) == 4
    assert processes.ending(4) == "ended with exit code 4"
    killed = processes.start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert killed == -signal.SIGKILL
    assert processes.ending(killed) == "was killed by SIGKILL (out of memory?)"


@pytest.mark.slow
def test_the_pipeline_as_real_processes(tiny_llm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All steps, each a process of its own; then the same again; then a sweep over two alignments with its table."""
    groups = make_groups(tmp_path / "configs", make_corpus(tmp_path / "corpus", tiny_llm))
    stages = [
        f"{stage}.trainer.{value}" for stage in ("pretrain", "instruct") for value in ("max_steps=2", "warmup_steps=0")
    ]
    arguments = [
        "experiment=nano", "data=tiny", "encoder=tiny", "model.llm=${data.folder}/assets/llm", *stages,
        "evaluate.candidates=2", "evaluate.bootstrap=20", "gap.neighbours=[2]", "--config-dir", str(groups),
    ]  # fmt: skip
    assert main(["run", *arguments]) == 0
    for step in ("embed", "align", "gap", "pretrain", "instruct", "evaluate"):
        assert Path("runs", "nano", step, "finished.json").is_file()
    capfd.readouterr()
    assert main(["run", *arguments]) == 0
    assert capfd.readouterr().out.count("finished and unchanged") == 6
    assert main(["run", "-m", *arguments, "run.steps=[embed,align,pretrain,evaluate]", "alignment=none,realign"]) == 0
    table = Path("runs", "nano", "table.md").read_text()
    assert "none" in table and "realign" in table
    assert Path("runs", "nano", "table.csv").is_file() and Path("runs", "nano", "table.png").is_file()
