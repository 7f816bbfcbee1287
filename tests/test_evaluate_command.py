"""`revision evaluate`: from a finished stage, stores and benchmark files to scores, predictions, table and sheet."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY_EMBED_DIM
from PIL import Image

from revision.commands import evaluate
from revision.embeddings import EmbeddingStore, StoreWriter
from revision.evaluation.reader import Reader
from revision.evaluation.table import collect
from revision.runs import rundir
from revision.schema import Config, DataConfig, EncoderConfig, EvaluateConfig, Modality, RunConfig, SourceConfig

NAMES = ["red square", "blue star", "yellow sun", "small bird", "big tree", "white table", "green circle"]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_store(path: Path, kind: str, ids: list[str], *, dim: int = TINY_EMBED_DIM, encoder: str = "tiny") -> None:
    rows = np.random.default_rng(len(ids)).normal(size=(len(ids), dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    writer = StoreWriter(
        path, kind=kind, dim=dim, encoder={"name": encoder}, records_fingerprint="0", records=len(ids),
        shard_size=100, reject_budget=0.0,
    )  # fmt: skip
    writer.write(0, rows=rows, ids=ids, payloads=ids, lengths=[1] * len(ids), rejected=[])
    writer.finish()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Six pictures in two tracks, one of them for validation, three questions, seven names; stage 2 is left out."""
    pictures = [
        {
            "id": f"p{i}",
            "image": f"pictures/{i}.png",
            "name": NAMES[i],
            "caption": f"a {NAMES[i]}.",
            "track": "unseen" if i > 3 else "known",
            "split": "validation" if i == 0 else "test",
        }
        for i in range(6)
    ]
    questions = [
        {"id": f"q{i}", "image": f"p{i}", "question": "how many?", "answer": "three", "kind": "count", "track": "known",
         "split": "test", "choices": ["one", "three"]}
        for i in (1, 2, 3)
    ]  # fmt: skip
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (30, 30), (40 * i, 0, 0)).save(tmp_path / f"pictures/{i}.png")
    write_lines(tmp_path / "naming.jsonl", pictures)
    write_lines(tmp_path / "questions.jsonl", questions)
    write_store(tmp_path / "stores/tiny/pictures", "image", [f"p{i}" for i in range(6)])
    write_store(tmp_path / "stores/tiny/names", "text", NAMES)
    return Config(
        name="test",
        runs=str(tmp_path / "runs"),
        data=DataConfig(
            name="tiny",
            folder=str(tmp_path),
            stores=str(tmp_path / "stores"),
            sources={
                "texts": SourceConfig(Modality.text, "texts.jsonl"),
                "statistics": SourceConfig(Modality.image, "statistics.jsonl"),
                "pictures": SourceConfig(Modality.image, "pictures.jsonl", str(tmp_path)),
                "names": SourceConfig(Modality.text, "names.jsonl"),
            },
            naming=str(tmp_path / "naming.jsonl"),
            questions=str(tmp_path / "questions.jsonl"),
            pictures="pictures",
            names="names",
        ),
        encoder=EncoderConfig(name="tiny", model="tiny"),
        evaluate=EvaluateConfig(candidates=4, bootstrap=50, max_new_tokens=3, batch_size=2, sheet=4),
        run=RunConfig(steps=["align", "pretrain", "evaluate"]),
    )


@pytest.fixture
def finish_stage(make_tiny_model: Callable[..., Any], tiny_processor: Any) -> Callable[..., Path]:
    def finish(config: Config, stage: str = "pretrain", seed: int = 0) -> Path:
        folder = rundir.start(config, stage) / "model"
        make_tiny_model(seed=seed).save_pretrained(folder)
        tiny_processor.save_pretrained(folder)
        rundir.finish(config, stage)
        return folder

    return finish


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_predictions_table_and_sheet(
    config: Config, finish_stage: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    finish_stage(config)
    folder = Path(config.runs) / "test/evaluate"
    (folder / "instruct").mkdir(parents=True)
    (folder / "instruct/scores.json").write_text("{}")
    evaluate.run(config)
    assert not (folder / "instruct/scores.json").exists()  # of an earlier evaluation
    assert "instruct is not scored: run.steps of this run leaves it out" in capsys.readouterr().out
    scores = json.loads((folder / "pretrain/scores.json").read_text())
    assert (scores["model"], scores["split"]) == ("pretrain", "test")
    assert {track: found["token_nll"]["n"] for track, found in scores["pictures"].items()} == {"known": 3, "unseen": 2}
    assert scores["pictures"]["known"]["naming_r1_chance"]["value"] == 0.25
    assert set(scores["questions"]["known"]) == {"all", "count"}
    rows = read_lines(folder / "pretrain/predictions.jsonl")
    pictures = [row for row in rows if row["row"] == "picture"]
    assert [row["id"] for row in pictures] == ["p1", "p2", "p3", "p4", "p5"]
    nll = sum(row["nll"] for row in pictures[:3]) / sum(row["tokens"] for row in pictures[:3])
    assert scores["pictures"]["known"]["token_nll"]["value"] == pytest.approx(nll)
    page = (folder / "table.md").read_text()
    assert "## known concepts, 3 pictures" in page
    assert "## questions about known concepts, pretrain" in page
    assert Image.open(folder / "sheet.png").size[0] > 500
    assert rundir.is_finished(config, "evaluate")


def test_encoder_ranks_by_cosine(config: Config, finish_stage: Callable[..., Path]) -> None:
    finish_stage(config)
    every = replace(config, evaluate=replace(config.evaluate, candidates=100))
    evaluate.run(every)
    stores = Path(config.data.stores) / "tiny"
    names, pictures = EmbeddingStore.open(stores / "names"), EmbeddingStore.open(stores / "pictures")
    cosines = pictures.rows(slice(None)).astype(float) @ names.rows(slice(None)).astype(float).T
    for row in read_lines(Path(config.runs) / "test/evaluate/pretrain/predictions.jsonl"):
        if row["row"] == "picture":
            place = int(row["id"][1:])
            assert row["rank_encoder"] == 1 + (cosines[place] > cosines[place, place]).sum()
            assert row["candidates"] == len(NAMES)


def test_runs_of_all_seeds_meet_the_same_test(config: Config, finish_stage: Callable[..., Path]) -> None:
    drawn = []
    for seed in (0, 1):
        job = replace(config, name=f"sweep/{seed}", seed=seed)
        finish_stage(job, seed=seed)
        evaluate.run(job)
        rows = read_lines(Path(config.runs) / job.name / "evaluate/pretrain/predictions.jsonl")
        drawn.append([(row["id"], row.get("rank_encoder")) for row in rows])
    assert drawn[0] == drawn[1]
    collect(Path(config.runs) / "sweep")  # config.yaml and predictions are what the tables of sweeps expect
    table = (Path(config.runs) / "sweep/table.md").read_text()
    assert "| alignment | seeds | NLL / token |" in table
    assert "| realign | 2 | " in table


def test_stages_and_folders_side_by_side(
    config: Config, finish_stage: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other: a device that holds one model is enough."""
    other = finish_stage(replace(config, name="other"), seed=1)
    finish_stage(config)
    both = replace(config, evaluate=replace(config.evaluate, models=["pretrain", str(other)]))
    loaded: list[weakref.ref[Reader]] = []
    load = Reader.load

    def watched(*given: Any, **options: Any) -> Reader:
        assert all(one() is None for one in loaded), "the model before is gone"
        reader = load(*given, **options)
        loaded.append(weakref.ref(reader))
        return reader

    monkeypatch.setattr(Reader, "load", watched)
    evaluate.run(both)
    assert len(loaded) == 2
    folder = Path(config.runs) / "test/evaluate"
    assert {path.parent.name for path in folder.glob("*/scores.json")} == {"pretrain", "other-pretrain"}
    assert "|  | pretrain | other-pretrain |" in (folder / "table.md").read_text()


def with_models(config: Config, *models: str) -> Config:
    return replace(config, evaluate=replace(config.evaluate, models=list(models)))


def test_models_that_cannot_be_scored(config: Config, finish_stage: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`evaluate` reads .*, but `pretrain` never ran there"):
        evaluate.run(config)
    with pytest.raises(ValueError, match="leaves no model to score; name a stage that the run has"):
        evaluate.run(with_models(config, "instruct"))
    with pytest.raises(ValueError, match="`instruct` never ran there"):
        finish_stage(config)
        evaluate.run(replace(config, run=RunConfig(steps=["pretrain", "instruct", "evaluate"])))
    with pytest.raises(ValueError, match="there is no folder .*nowhere; give one that"):
        evaluate.run(with_models(config, str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="whose results would both go under 'm'; score them in runs of two names"):
        evaluate.run(with_models(config, str(tmp_path / "a/m"), str(tmp_path / "b/m")))


def test_benchmarks_that_do_not_fit(config: Config, finish_stage: Callable[..., Path], tmp_path: Path) -> None:
    finish_stage(config)
    data, stores = config.data, Path(config.data.stores) / "tiny"
    with pytest.raises(ValueError, match=r"corpus tiny has no benchmark; set data\.naming, data\.questions or both"):
        evaluate.run(replace(config, data=replace(data, naming=None, questions=None)))
    with pytest.raises(ValueError, match=r"data\.names is null, but the benchmark needs it"):
        evaluate.run(replace(config, data=replace(data, names=None)))
    write_store(stores / "few", "text", NAMES[:3])
    with pytest.raises(ValueError, match="small bird"):
        evaluate.run(replace(config, data=replace(data, names="few")))
    write_store(stores / "strange", "text", NAMES, encoder="strange")
    with pytest.raises(ValueError, match=r"were embedded by two encoders; embed both with one"):
        evaluate.run(replace(config, data=replace(data, names="strange")))
    write_store(stores / "wide", "image", [f"p{i}" for i in range(6)], dim=20)
    write_store(stores / "wide-names", "text", NAMES, dim=20)
    with pytest.raises(ValueError, match=r"pretrain reads embeddings of 16 dimensions, the pictures in .* have 20"):
        evaluate.run(replace(config, data=replace(data, pictures="wide", names="wide-names")))
    assert not (Path(config.runs) / "test/evaluate").exists(), "refused before a finished one would be touched"
    write_store(stores / "fewer", "image", ["p1", "p2"])
    with pytest.raises(ValueError, match="p3"):
        evaluate.run(replace(config, data=replace(data, pictures="fewer")))


def test_questions_alone(config: Config, finish_stage: Callable[..., Path]) -> None:
    finish_stage(config)
    evaluate.run(replace(config, data=replace(config.data, naming=None, names=None)))
    folder = Path(config.runs) / "test/evaluate"
    assert json.loads((folder / "pretrain/scores.json").read_text())["pictures"] == {}
    assert not (folder / "sheet.png").exists()


def test_scores_that_are_no_numbers_are_a_sentence() -> None:
    rows = [{"row": "picture", "id": "p0", "nll": 1.0}, {"row": "picture", "id": "p1", "nll": 2.0, "top": ["a", "b"]}]
    evaluate._require_numbers(rows, "pretrain")
    for value in (float("nan"), [1.0, float("-inf")]):
        with pytest.raises(
            ValueError, match=r"^pretrain gives nll = .* for picture 'p1', which is no number: score it"
        ):
            evaluate._require_numbers([rows[0], {**rows[1], "nll": value}], "pretrain")
