"""Experiments that stand for rows of the paper: what they differ in, their index, their plan, a few steps of each."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
from test_configs import CONFIGS, EXPERIMENTS, ONE_STEP, ROWS, composed
from tiny_corpus import make_corpus, make_groups

from revision.assembly import store_path
from revision.cli import main
from revision.cli.composition import compose, open_hydra
from revision.cli.overrides import check_overrides
from revision.runs import rundir
from revision.schema import Config, EngineKind, Modality

INDEX = (CONFIGS / "experiment" / "README.md").read_text(encoding="utf-8")
# Row: the run that it is compared with, and all that may differ, first names of `_settings_that_differ`.
DIFFERENCES = {
    "table1_revision": ("revision_8b", {"data", "pretrain.unfit", "instruct.unfit"}),
    "table1_none": ("table1_revision", {"alignment"}),
    "table1_c3": ("table1_revision", {"alignment"}),
    "table2_revision_1m": ("table1_revision", {"instruct.limit"}),
    "table2_revision_2m": ("table2_revision_1m", {"data"}),
    "table2_paired": ("table2_revision_1m", {"data", "alignment", "pretrain.input"}),
    "table2_unicorn": ("textonly_unicorn", {"pretrain.limit", "instruct.limit"}),
    "table3_bca": ("table1_revision", {"alignment"}),
    "table4_long": ("table1_revision", {"data"}),
    "table5_anchor": ("table1_revision", {"alignment"}),
    "table5_anchor_trace": ("table1_revision", {"alignment"}),
    "table7_sft30": ("table1_revision", {"instruct.limit"}),
    "table7_sft60": ("table1_revision", {"instruct.limit"}),
    "table8_70b": ("table1_revision", {"model", "engine"}),
    "textonly_realign": ("table1_revision", {"data"}),
    "textonly_none": ("textonly_realign", {"alignment"}),
    "textonly_c3": ("textonly_realign", {"alignment"}),
    "textonly_unicorn": ("textonly_realign", {"alignment"}),
    "textonly_quantile": ("textonly_realign", {"alignment"}),
}
WITHOUT_STAGE_1 = "table6_no_stage1"
# Rows unlike each other in what stage 2 and `plan` do; the others differ from them in values, or in what stage 1
# alone looks at. These go all the way in seconds, all rows in the slow tests.
UNLIKE = ["table1_revision", "table2_paired", "table2_unicorn", WITHOUT_STAGE_1, "table7_sft30", "textonly_realign"]


@cache
def composed_row(row: str) -> Config:
    """The configuration of an experiment; composing takes longer than what is asked of it here."""
    return composed(f"experiment={row}")


def _settings_that_differ(one: Config, other: Config) -> set[str]:
    """Of those that the model of stage 2 depends on: a stage's by field, all else by section."""
    ours, theirs = rundir.settings(one, "instruct"), rundir.settings(other, "instruct")
    different = [name for name in {*ours, *theirs} if ours.get(name, "absent") != theirs.get(name, "absent")]
    return {re.match(r"(pretrain|instruct)\.\w+|\w+", name)[0] for name in different}  # type: ignore[index]


def test_every_row_is_compared_with_another() -> None:
    assert {*DIFFERENCES, WITHOUT_STAGE_1} == {*ROWS}


@pytest.mark.parametrize("row", DIFFERENCES)
def test_a_row_differs_in_what_the_paper_says_and_in_nothing_else(row: str) -> None:
    """The global batch is among the settings, so smaller pieces of it on another engine have to make the same 256."""
    other, allowed = DIFFERENCES[row]
    assert _settings_that_differ(composed_row(row), composed_row(other)) == allowed


def test_without_stage_1_stage_2_stays_as_it_is() -> None:
    row, full = (composed_row(name) for name in (WITHOUT_STAGE_1, "table1_revision"))
    assert row.instruct.init is None and row.run.steps == ["embed", "instruct", "evaluate"]
    different = _settings_that_differ(row, full)
    assert {name for name in different if not name.startswith("pretrain.")} == {"alignment", "instruct.init", "data"}
    assert {name for name in rundir.settings(row, "instruct") if name.startswith(("pretrain.", "alignment."))} == set()


def test_the_ablations_of_realign_are_its_steps() -> None:
    steps = {
        row: (made.method, made.anchor is not False, made.trace is not False, made.centroid_steps)
        for row in ("table5_anchor", "table5_anchor_trace", "table1_revision")
        for made in [composed_row(row).alignment]
    }
    assert steps == {
        "table5_anchor": ("realign", True, False, 0),
        "table5_anchor_trace": ("realign", True, True, 0),
        "table1_revision": ("realign", True, True, 1),
    }


@pytest.mark.parametrize("row", [row for row in ROWS if row.startswith("textonly_") or row == "table2_unicorn"])
def test_no_picture_is_learned_from_where_a_row_is_text_only(row: str) -> None:
    data = composed_row(row).data
    assert [data.sources[name].kind for name in data.conversation_sources] == [Modality.text]


def _stores(row: str) -> dict[Path, object]:
    """What `embed` makes for a row, and of which records."""
    config = composed_row(row)
    names = config.embed.sources or list(config.data.sources)
    return {store_path(config, name): config.data.sources[name].records for name in names}


def test_rows_of_one_table_embed_nothing_twice() -> None:
    """Records that two rows of ReVision's tables read lie in one store, and no two records in the same one."""
    rows = [row for row in ROWS if row.startswith("table") and row != "table2_unicorn"]
    found = {(store, records) for row in rows for store, records in _stores(row).items()}
    assert len({store for store, _ in found}) == len({records for _, records in found}) == len(found)


@pytest.mark.parametrize("row", ROWS)
def test_what_a_row_reads_is_made_by_its_recipes(row: str) -> None:
    """Of its own corpus, and of those that it needs; nothing of what they make is left unread."""
    data = composed_row(row).data
    recipes = [*data.needs, data.benchmark_recipe or ""]
    made = {data.folder, *(re.findall(r"--out (\S+)", line)[0] for line in recipes)}
    read = {*_stores(row).values(), data.conversations, data.questions, *([data.pairs] if data.pairs else [])}
    assert {str(Path(str(records)).parent) for records in read} == made


@pytest.mark.parametrize("row", ROWS)
def test_every_row_ends_with_the_eleven_benchmarks(row: str) -> None:
    config = composed_row(row)
    assert config.run.steps[-2:] == ["instruct", "evaluate"] and config.evaluate.models == ["instruct"]
    assert config.data.questions == "data/benchmarks/questions.jsonl" and config.data.naming is None
    assert config.data.pictures in (config.embed.sources or config.data.sources)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_index_has_every_experiment_and_its_command(experiment: str) -> None:
    """A row's line has the figure of the paper that its file names."""
    _, head, says, *_ = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    command = re.split("   |, after", head.removeprefix("# "))[0]
    indexed = [line for line in INDEX.splitlines() if line.startswith("|") and f"`{command}`" in line]
    assert len(indexed) == 1, command
    if experiment in ROWS:
        (paper,) = re.findall(r": (\d\d\.\d\d)", says)
        assert f"| {paper} |" in indexed[0]


def test_the_index_names_nothing_else() -> None:
    assert {*re.findall(r"experiment=(\w+)", INDEX)} <= {*EXPERIMENTS, "NAME", "glob"}


SLOW_UNLESS_UNLIKE = [
    pytest.param(row, marks=() if row in (*UNLIKE, "table8_70b") else pytest.mark.slow) for row in ROWS
]


@pytest.mark.parametrize("row", SLOW_UNLESS_UNLIKE)
def test_every_row_is_planned_with_no_more_than_the_shape_of_an_llm(
    row: str, tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = tmp_path / "llm"
    shape.mkdir()
    (shape / "config.json").write_bytes((tiny_llm / "config.json").read_bytes())
    assert main(["plan", f"experiment={row}", f"model.llm={shape}"]) == 0
    found = json.loads(Path("runs", row, "plan", "plan.json").read_text())["stages"]
    config = composed_row(row)
    assert [*found] == [step for step in config.run.steps if step in ("pretrain", "instruct")]
    for stage in found.values():
        batch = stage["setting"]["batch"] * stage["setting"]["accumulation"] * stage["setting"]["gpus"]
        assert batch == 256, "ReVision v3, App. H.2, in both stages"
    assert (found["instruct"]["setting"]["sharding"] == "zero3") == (config.engine.kind is EngineKind.zero3_offload)
    if config.instruct.limit is not None:
        assert found["instruct"]["lengths"]["records"] == config.instruct.limit


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> Path:
    folder = make_corpus(tmp_path_factory.mktemp("rows") / "corpus", tiny_llm)
    turns = [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "a cat"}]
    texts = [json.loads(line)["id"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    talks = [{"id": f"about-{one}", "image": one, "messages": turns} for one in texts]
    (folder / "text_talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    asked = {"question": "What is it?\nA. a cat\nB. a dog", "answer": "B", "choices": ["A", "B"], "kind": "name"}
    shown = [json.loads(line)["id"] for line in (folder / "statistics.jsonl").read_text().splitlines()]
    rows = [
        {"id": f"{track}-{one}", "image": one, **asked, "track": track, "split": "test"}
        for track in ("mme", "mmstar") for one in shown
    ]  # fmt: skip
    (folder / "benchmark.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_groups(folder / "configs", folder)
    return folder


def _swapped(row: str, corpus: Path) -> list[str]:
    """The row on tiny parts. Sources of its own keep their names and get the tiny corpus' records."""
    groups = ["--config-dir", str(corpus / "configs")]
    words = [f"experiment={row}", *ONE_STEP, "engine.processes=1", "embed.sources=null", "name=rows"]
    words = [word.replace("max_steps=1", "max_steps=2") for word in words]
    with open_hydra("run", groups[1]) as hydra:
        data = compose(hydra, check_overrides(hydra, words)).data
    own = [name for name, source in data.sources.items() if not str(source.records).startswith(str(corpus))]
    for name in own:
        file = "texts.jsonl" if data.sources[name].kind is Modality.text else "statistics.jsonl"
        words += [f"data.sources.{name}.records={corpus}/{file}", f"data.sources.{name}.image_root=null"]
    words += [f"data.questions={corpus}/benchmark.jsonl", "data.naming=null"]
    if not data.pairs.startswith(str(corpus)):
        words.append(f"data.pairs={corpus}/pairs.jsonl")
    real = composed_row(row).data
    if any(real.sources[name].kind is Modality.text for name in real.conversation_sources):
        words += ["data.conversation_sources=[texts]", f"data.conversations={corpus}/text_talks.jsonl"]
    else:
        further = [name for name in own if name in real.conversation_sources]
        words.append(f"data.conversation_sources=[{','.join(['statistics', 'pictures', *further])}]")
    return [*words, *groups]


def _take_steps(row: str, corpus: Path, *, skip: tuple[str, ...] = ()) -> None:
    """The steps of a row in order, finished and unchanged ones skipped, as `run` does."""
    words = _swapped(row, corpus)
    config = composed(*words[:-2], config_dir=corpus / "configs")
    for step in (step for step in config.run.steps if step not in skip):
        embedded = all((store_path(config, name) / "manifest.json").is_file() for name in config.data.sources)
        if rundir.is_finished(config, step) or (step == "embed" and embedded):
            continue
        assert main([step, *words]) == 0, step
        assert rundir.is_finished(config, step)
    scores = rundir.folder(config, "evaluate") / "instruct" / "scores.json"
    assert "evaluate" in skip or "accuracy" in json.loads(scores.read_text())["mean"]
    trained = [step for step in config.run.steps if step in ("pretrain", "instruct") and step not in skip]
    learned = json.loads((rundir.folder(config, trained[-1]) / "model" / "config.json").read_text())["alignment"]
    method = config.alignment.method if "align" in config.run.steps else None
    assert (learned or {}).get("method") == method


@pytest.mark.parametrize("row", [row if row in UNLIKE else pytest.param(row, marks=pytest.mark.slow) for row in ROWS])
def test_every_row_takes_a_few_steps(row: str, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in one folder, so that each does only what none before it has done."""
    monkeypatch.chdir(corpus)
    _take_steps(row, corpus, skip=("gap",) if row in UNLIKE else ("gap", "instruct", "evaluate"))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_every_row_runs_whole(row: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _take_steps(row, corpus)
