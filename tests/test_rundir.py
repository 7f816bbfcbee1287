"""The run folder: what a fingerprint covers, marks, provenance, and the sentences of `require`."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from revision.alignment.methods import built_in, method_class
from revision.runs import provenance, rundir
from revision.schema import (
    STEPS,
    AlignmentConfig,
    BadRows,
    Config,
    DataConfig,
    EncoderConfig,
    EngineKind,
    GapConfig,
    GuardPolicy,
    Modality,
    ModelConfig,
    Packing,
    ProjectorStart,
    SourceConfig,
    StageConfig,
    StageInput,
    Tracker,
    Unfit,
)

Change = Callable[[Config], Any]
FREE = ("trainer", "chat", "inspect", "plan", "push", "search")  # open, or of commands that leave nothing others read


def make_config(**changes: Any) -> Config:
    sources = {name: SourceConfig(Modality.image, f"{name}.jsonl") for name in ("statistics", "pictures", "pages")}
    sources |= {name: SourceConfig(Modality.text, f"{name}.jsonl") for name in ("texts", "names")}
    values: dict[str, Any] = {
        "name": "r",
        "data": DataConfig(
            name="d",
            folder="d",
            stores="s",
            sources=sources,
            conversation_sources=["pages"],
            pictures="pictures",
            names="names",
        ),
        "encoder": EncoderConfig(name="e", model="m"),
        "model": ModelConfig(llm="l"),
        "pretrain": StageConfig(train=["projector"]),
        "instruct": StageConfig(init="pretrain", train=["projector", "llm"]),
    }
    return Config(**{**values, **changes})


def put(name: str, value: Any) -> Change:
    """A change of one field by its dotted name."""

    def change(config: Config) -> None:
        *path, last = name.split(".")
        here: Any = config
        for part in path:
            here = here[part] if isinstance(here, dict) else vars(here)[part]
        if isinstance(here, dict):
            here[last] = value
        else:
            assert last in vars(here), f"{name} is no field"
            setattr(here, last, value)

    return change


AFTER = {step: STEPS[STEPS.index(step) :] for step in STEPS}
# A changed field, and the steps whose output it changes.
EFFECTS = [
    (put("name", "other"), ()),
    (put("runs", "elsewhere"), ()),
    (put("tracker", Tracker.wandb), ()),
    (put("embed.workers", 3), ()),
    (put("embed.shard_size", 3), ()),
    (put("embed.device", "cuda"), ()),
    (put("encoder.batch_size", 3), ()),
    (put("evaluate.batch_size", 3), ()),
    (put("evaluate.device", "cuda"), ()),
    (put("trainer.logging_steps", 3), ()),
    (put("checkpoint.minutes", 3.0), ()),
    (put("verify.path", "x"), ()),
    (put("guard.spike", 6.0), ("pretrain", "instruct", "evaluate")),
    (put("trainer.per_device_train_batch_size", 3), ("pretrain", "instruct", "evaluate")),
    (put("pretrain.trainer.save_steps", 3), ()),
    (put("chat.prompt", "what?"), ()),
    (put("chat.model", "x"), ()),
    (put("push.license", "x"), ()),
    (put("adapter.rank", 3), ()),  # no stage here trains one
    (put("engine.peak_tflops", 2.0), ()),
    (put("plan.gpu", "h200"), ()),
    (put("search.trials", 3), ()),
    (put("run.steps", ["evaluate", "pretrain", "instruct"]), ()),
    (put("run.steps", ["pretrain", "evaluate"]), ("evaluate",)),
    (put("contrast.epochs", 3), ("contrast",)),
    (put("contrast.frame_energy", 0.5), ("contrast",)),  # the trace is an output too
    (put("contrast.frame_step", 3), ("contrast",)),
    (put("contrast.probe_interval", 3), ("contrast",)),
    (put("contrast.device", "cpu"), ()),
    (put("data.contrast_train", "x"), ("contrast",)),
    (put("encoder.pretrained", "x"), AFTER["embed"]),
    (put("encoder.model", "x"), AFTER["embed"]),
    (put("encoder.kind", "transformers"), AFTER["embed"]),
    (put("encoder.text_model", "x"), AFTER["embed"]),
    (put("encoder.max_length", 64), AFTER["embed"]),
    (put("encoder.options.fps", 8), AFTER["embed"]),
    (put("data.stores", "x"), AFTER["embed"]),
    (put("data.recipe_options", ["--small"]), STEPS),
    (put("data.needs", ["a.py --small"]), STEPS),
    (put("data.sources.texts.records", "x"), AFTER["embed"]),
    (put("data.sources.texts.fields", {"text": "caption"}), AFTER["embed"]),
    (put("data.conversation_fields", {"image": "file"}), ("instruct", "evaluate")),
    (put("inspect.sample", 3), ()),
    (put("data.sources.pages.records", "x"), ("embed", "instruct", "evaluate")),
    (put("data.sources.pictures.records", "x"), ("embed", "evaluate")),
    (put("alignment.method", "c3"), AFTER["align"]),
    (put("alignment.until", 1e-7), AFTER["align"]),
    (put("alignment.noise_std", 0.5), ()),  # realign has no noise
    (put("align.bad_rows", BadRows.skip), AFTER["align"]),
    (put("gap.sample", 3), ("gap",)),
    (put("data.pairs", "other.jsonl"), ("gap",)),
    (put("seed", 3), ("contrast", "gap", "pretrain", "instruct", "evaluate")),
    (put("model.llm", "x"), ("pretrain", "instruct", "evaluate")),
    (put("model.projector.depth", 3), ("pretrain", "instruct", "evaluate")),
    (put("engine.processes", 2), ("pretrain", "instruct", "evaluate")),
    (put("engine.kind", EngineKind.zero2), ("pretrain", "instruct", "evaluate")),
    (put("engine.options.gradient_clipping", 0.5), ("pretrain", "instruct", "evaluate")),
    (put("trainer.learning_rate", 3.0), ("pretrain", "instruct", "evaluate")),
    (put("pretrain.trainer.max_steps", 3), ("pretrain", "instruct", "evaluate")),
    (put("pretrain.start_steps", 7), ("pretrain", "instruct", "evaluate")),
    (put("pretrain.start", ProjectorStart.regression), ("pretrain", "instruct", "evaluate")),
    (put("pretrain.limit", 3), ("pretrain", "instruct", "evaluate")),
    (put("instruct.limit", 3), ("instruct", "evaluate")),
    (put("instruct.packing", Packing.packed), ("instruct", "evaluate")),
    (put("pretrain.pack_tokens", 4096), ("pretrain", "instruct", "evaluate")),
    (put("instruct.unfit", Unfit.cut_turns), ("instruct", "evaluate")),
    (put("instruct.reject_budget", 0.5), ()),
    (put("instruct.parts.llm.learning_rate", 3.0), ("instruct", "evaluate")),
    (put("pretrain.parts.projector.weight_decay", 3.0), ("pretrain", "instruct", "evaluate")),
    (put("instruct.init", None), ("instruct", "evaluate")),
    (put("data.conversations", "x"), ("instruct", "evaluate")),
    (put("evaluate.candidates", 3), ("evaluate",)),
    (put("evaluate.spare_tokens", 9), ("evaluate",)),
    (put("evaluate.asked", ["pretrain"]), ("evaluate",)),
    (put("data.questions", "x"), ("evaluate",)),
    (put("data.benchmark_recipe", "a.py --small"), ("evaluate",)),
]


@pytest.mark.parametrize(("change", "changed"), EFFECTS)
def test_fingerprint_changes_exactly_where_the_output_does(change: Change, changed: tuple[str, ...]) -> None:
    before, after = make_config(), make_config()
    change(after)
    assert before != after, "the change changes something"
    found = [step for step in STEPS if rundir.fingerprint(before, step) != rundir.fingerprint(after, step)]
    assert found == list(changed)


def packed(processes: int, batch: int, accumulation: int, tokens: int | None) -> dict[str, Any]:
    config = make_config(instruct=StageConfig(train=["projector"], packing=Packing.packed, pack_tokens=tokens))
    config.engine.processes = processes
    config.trainer = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    return rundir.settings(config, "instruct")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((1, 8, 2, None), (1, 4, 4, None), False),  # rows of other tokens
        ((1, 8, 2, 4096), (1, 4, 4, 4096), False),  # other rows a step
        ((1, 8, 1, 4096), (2, 4, 1, 4096), False),
        ((1, 8, 2, 4096), (2, 4, 1, 4096), True),  # a batch of its own size has no part in it
        ((1, 8, 2, None), (2, 8, 1, None), True),
    ],
)
def test_packed_rows_count_by_the_step_and_by_their_tokens(one: Any, other: Any, same: bool) -> None:
    assert (packed(*one) == packed(*other)) is same


def test_pairs_read_no_alignment() -> None:
    """Stage 1 on real pairs depends on neither the alignment nor the texts, but on the pictures of the pairs."""
    pairs = make_config(pretrain=StageConfig(input=StageInput.pairs))
    for change, matters in [
        (put("alignment.method", "none"), False),
        (put("data.sources.texts.records", "x"), False),
        (put("data.pairs", "x"), True),
        (put("data.sources.pages.records", "x"), True),
    ]:
        other = make_config(pretrain=StageConfig(input=StageInput.pairs))
        change(other)
        assert (rundir.fingerprint(pairs, "pretrain") != rundir.fingerprint(other, "pretrain")) is matters


@pytest.mark.parametrize("option", [{"captions": "titles"}, {"domains": ["titles/images", "texts/images"]}])
def test_a_gap_report_depends_on_the_further_sources_it_measures(option: dict[str, Any]) -> None:
    def printed(records: str, **gap: Any) -> str:
        config = make_config(gap=GapConfig(**gap))
        config.data.sources["titles"] = SourceConfig(Modality.text, records)
        config.data.sources.setdefault("images", SourceConfig(Modality.image, "images.jsonl"))
        return rundir.fingerprint(config, "gap")

    assert printed("a.jsonl", **option) != printed("b.jsonl", **option)
    assert printed("a.jsonl") == printed("b.jsonl")


@pytest.mark.parametrize("method", built_in())
def test_an_alignment_depends_on_the_settings_that_it_knows(method: str) -> None:
    """So that a sweep over a field of one method does not fit all others again."""
    alignment = AlignmentConfig(method)
    found = rundir.settings(make_config(alignment=alignment), "align")
    read = {name.removeprefix("alignment.") for name in found if name == "seed" or name.startswith("alignment.")}
    assert read == {"method", *method_class(method).settings}
    compared = rundir.settings(make_config(gap=GapConfig(compare=[method])), "gap")
    assert {f"alignment.{name}" for name in method_class(method).settings if name != "seed"} <= {*compared}


@pytest.mark.parametrize(("name", "value"), [("rank", 3), ("targets", ["q_proj"]), ("keep", True)])
def test_an_adapter_matters_to_the_stage_that_trains_it(name: str, value: Any) -> None:
    before, after = (make_config(instruct=StageConfig(init="pretrain", train=["adapter"])) for _ in range(2))
    put(f"adapter.{name}", value)(after)
    found = [step for step in STEPS if rundir.fingerprint(before, step) != rundir.fingerprint(after, step)]
    assert found == ["instruct", "evaluate"]


def test_text_in_stage_two_is_aligned() -> None:
    def config(method: str) -> Config:
        made = make_config(alignment=AlignmentConfig(method), instruct=StageConfig(init=None))
        made.data.conversation_sources = ["texts"]
        return made

    prints = [rundir.fingerprint(config(method), "instruct") for method in ("none", "c3")]
    assert prints[0] != prints[1]


def test_stores_of_an_encoder_trained_here_depend_on_its_training() -> None:
    def embedded(model: str, epochs: int, probe_interval: int = 100) -> str:
        config = make_config(encoder=EncoderConfig(name="e", model=model))
        config.contrast.epochs, config.contrast.probe_interval = epochs, probe_interval
        return rundir.fingerprint(config, "embed")

    own = "local-dir:runs/r/contrast/encoder"
    assert embedded(own, 1) != embedded(own, 2)
    assert embedded(own, 1) == embedded(own, 1, probe_interval=3), "a trace changes no weight"
    assert embedded("local-dir:elsewhere", 1) == embedded("local-dir:elsewhere", 2)


def test_evaluated_folder_depends_on_no_stage() -> None:
    config, other = make_config(), make_config()
    for made in (config, other):
        made.evaluate.models = ["some/folder"]
    other.pretrain.limit = 3
    assert rundir.fingerprint(config, "evaluate") == rundir.fingerprint(other, "evaluate")


def test_every_field_has_been_decided_on() -> None:
    """A field that no step reads has to stand here, so that a new one is never forgotten in the table."""

    def names(node: Any, prefix: str = "") -> list[str]:
        if isinstance(node, dict) and node:
            return [name for key, value in node.items() for name in names(value, f"{prefix}{key}.")]
        if is_dataclass(node):
            return [n for field in fields(node) for n in names(vars(node)[field.name], f"{prefix}{field.name}.")]
        return [prefix[:-1]]

    config = make_config(trainer={"learning_rate": 1.0})
    config.data.needs = ["a.py"]  # like the next two, absent from the table where it has its default
    config.data.benchmark_recipe, config.evaluate.spare_tokens, config.evaluate.asked = "b.py", 9, ["pretrain"]
    aligned = [replace(config, alignment=AlignmentConfig(method)) for method in built_in()]
    covered = {name for one in aligned for step in STEPS for name in rundir.settings(one, step)}
    covered |= set(rundir.settings(make_config(instruct=StageConfig(train=["adapter"])), "instruct"))
    covered |= {"trainer"} if "pretrain.trainer.learning_rate" in covered else set()
    free = {name for name in names(config) if name not in covered and name.split(".")[0] not in FREE}
    free = {name for name in free if "fields" not in name.split(".")[-1]}  # empty here; they have lines of EFFECTS
    assert free == {
        "name", "runs", "tracker", "data.name", "encoder.batch_size", "embed.sources", "embed.shard_size",
        "embed.reject_budget", "embed.workers", "embed.device", "evaluate.batch_size", "evaluate.device",
        "run.steps", "pretrain.trainer", "instruct.trainer", "align.export", "align.shard_size", "align.bad_rows",
        "pretrain.reject_budget", "instruct.reject_budget",
        "contrast.architecture", "contrast.device", "checkpoint.minutes", "verify.path", "encoder.options",
        "alignment.options",  # of methods that are not ours, as test_alignment_added has them
        "engine.peak_tflops",
        "engine.processes",  # counts in the global batch
        "engine.options",  # empty here
    }  # fmt: skip


def test_start_writes_config_and_provenance_and_takes_the_mark_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config()
    path = rundir.start(config, "align")
    assert path == rundir.folder(config, "align") == Path("runs/r/align")
    written = yaml.safe_load((path / "config.yaml").read_text())
    assert written["alignment"]["method"] == "realign"
    texts: dict[str, Any] = {
        "kind": "text",
        "records": "texts.jsonl",
        "image_root": None,
        "embeddings": None,
        "fields": {},
    }
    assert written["data"]["sources"]["texts"] == texts
    provenance = json.loads((path / "provenance.json").read_text())
    assert provenance["packages"]["numpy"] is not None
    assert provenance["hardware"]["cpus"] == os.cpu_count()
    assert shlex.split(provenance["command_line"]) == sys.orig_argv
    rundir.finish(config, "align", gap=0.5)
    rundir.start(config, "align")
    assert not rundir.is_finished(config, "align")
    assert sorted(file.name for file in path.iterdir()) == ["config.yaml", "provenance.json"], "nothing is left aside"


def test_finish_mark(tmp_path: Path) -> None:
    config = make_config(runs=str(tmp_path))
    rundir.start(config, "align")
    assert not rundir.is_finished(config, "align")
    rundir.finish(config, "align", gap=0.5, rows=[1, 2])
    mark = json.loads((tmp_path / "r" / "align" / "finished.json").read_text())
    assert mark["command"] == "align"
    assert mark["fingerprint"] == rundir.fingerprint(config, "align")
    assert mark["facts"] == {"gap": 0.5, "rows": [1, 2]}
    assert rundir.is_finished(config, "align")
    config.alignment.method = "none"
    assert not rundir.is_finished(config, "align")


@pytest.mark.parametrize("bad_steps", [0, 1])
def test_the_policy_counts_from_the_first_bad_step_on(tmp_path: Path, bad_steps: int) -> None:
    """A stage that met none is the same under any policy, and so is what was made from it."""
    config = make_config(runs=str(tmp_path))
    config.run.steps, config.evaluate.models = ["pretrain", "instruct", "evaluate"], ["instruct"]
    for step, facts in (("pretrain", {"bad_steps": bad_steps}), ("instruct", {"bad_steps": 0}), ("evaluate", {})):
        rundir.start(config, step)
        rundir.finish(config, step, **facts)
    config.guard.policy, config.guard.limit = GuardPolicy.skip, 3
    assert [rundir.is_finished(config, step) for step in config.run.steps] == [not bad_steps] * 3
    if bad_steps:
        with pytest.raises(ValueError, match=r"guard\.limit was 10, is now 3; guard\.policy was stop, is now skip"):
            rundir.require(config, "pretrain", wanted_by="instruct")
    config.guard.spike = 6.0
    assert not any(rundir.is_finished(config, step) for step in config.run.steps), "other steps may be bad"


def test_checkpoints_are_those_of_a_run_that_stops_or_skips() -> None:
    one, other, third = (make_config() for _ in range(3))
    other.guard.policy, other.guard.limit = GuardPolicy.skip, 3
    third.guard.policy = GuardPolicy.roll_back
    known = [rundir.identity(config, "instruct") for config in (one, other, third)]
    assert known[0] == known[1] != known[2]
    assert known[0]["guard.window"] == 100
    assert known[2]["guard.policy"] == "roll_back"


def test_provenance_names_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    module = tmp_path / "revision" / "runs" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(module))
    config = make_config(runs=str(tmp_path.parent / "runs-of-provenance"))

    def noted() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((rundir.start(config, "align") / "provenance.json").read_text())["git"]
        return found

    first = noted()
    assert len(first["commit"]) == 40 and first["dirty"] is False
    module.write_text("changed = 1")
    assert noted() == {"commit": first["commit"], "dirty": True}
    (tmp_path / ".git").rename(tmp_path / "gone")
    assert noted() is None


def test_require_says_what_is_wrong(tmp_path: Path) -> None:
    config = make_config(runs=str(tmp_path))

    def sentence() -> str:
        with pytest.raises(ValueError) as caught:
            rundir.require(config, "align", wanted_by="pretrain")
        return str(caught.value)

    place = tmp_path / "r" / "align"
    remedy = "run `revision align` with the same overrides first."
    assert sentence() == f"`pretrain` reads {place}, but `align` never ran there: {remedy}"
    rundir.start(config, "align")
    assert sentence() == f"`pretrain` reads {place}, but `align` did not finish there: {remedy}"
    rundir.finish(config, "align")
    assert rundir.require(config, "align", wanted_by="pretrain") == place
    config.alignment.method = "mean_shift"
    found = "`align` ran there with other settings (alignment.method was realign, is now mean_shift)"
    assert found in sentence()
    config.data.folder, config.data.stores, config.encoder.model = "d2", "s2", "m2"
    assert "; and 1 more): run" in sentence()


@pytest.mark.parametrize(
    ("command", "output"),
    [("embed", "stores/e/texts/manifest.json"), ("contrast", "encoder/open_clip_config.json")],
)
def test_output_that_is_gone_is_not_finished(command: str, output: str, tmp_path: Path) -> None:
    config = make_config(runs=str(tmp_path / "runs"))
    config.data.stores = str(tmp_path / "stores")
    config.contrast.output = str(tmp_path / "encoder")
    files = [tmp_path / "encoder/open_clip_config.json"]
    files += [tmp_path / "stores/e" / name / "manifest.json" for name in config.data.sources]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    rundir.start(config, command)
    rundir.finish(config, command)
    assert rundir.is_finished(config, command)
    (tmp_path / output).unlink()
    assert not rundir.is_finished(config, command)
    with pytest.raises(ValueError, match=f"finished there and its output {tmp_path / output} is gone"):
        rundir.require(config, command, wanted_by="align")


@pytest.mark.parametrize(
    ("environment", "main"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False), ({"LOCAL_RANK": "1"}, False),
     ({"RANK": "0", "LOCAL_RANK": "1"}, True)],
)  # fmt: skip
def test_only_rank_zero_writes(
    environment: dict[str, str], main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = make_config(runs=str(tmp_path))
    path = rundir.start(config, "align")
    rundir.finish(config, "align")
    assert rundir.is_main_process() is main
    assert (path / "finished.json").exists() is main
    assert (path / "config.yaml").exists() is main


def test_fingerprint_is_the_same_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_rundir import make_config; "
        "from revision.runs import rundir; sys.stdout.write(rundir.fingerprint(make_config(), 'evaluate'))"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(words, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    assert done.stdout == rundir.fingerprint(make_config(), "evaluate")


def test_a_disk_that_refuses_is_one_sentence_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "finished.json"
    rundir.write_json(mark, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match=r"finished\.json cannot be written: the disk is full; mend"):
            rundir.write_json(mark, {"new": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["finished.json"]
    assert json.loads(mark.read_text()) == {"old": 1}
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ValueError, match=r"runs/r/gap cannot be written: .*; mend the cause"):
        rundir.start(make_config(runs=str(tmp_path / "runs")), "gap")
