"""Score trained models on benchmark pictures they have never seen.

For each model: the likelihood of the right caption, naming and questions, with the picture, with other pictures and
with none, beside the encoder's own naming; and one contact sheet of what all of them say.

`evaluate.models` names stages of this run, or folders of saved models. A stage that `run.steps` leaves out is no part
of the run: it is left out here too, and said so. Any other stage must have finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import MODEL_STEPS, SPREAD, Config

if TYPE_CHECKING:
    import numpy as np

    from revision.embeddings import EmbeddingStore
    from revision.evaluation.benchmarks import Picture, Question
    from revision.evaluation.naming import Candidate
    from revision.evaluation.reader import Reader
    from revision.evaluation.scoring import Track

OTHERS = 4  # pictures beside its own that each caption is tried under


@dataclass(frozen=True)
class _Benchmark:
    """What every model is scored on: pictures and questions by track, embeddings of pictures, and candidate names."""

    pictures: dict[str, list[Picture]]
    questions: dict[str, list[Question]]
    store: EmbeddingStore
    names: dict[str, Candidate]

    def embeddings(self, ids: Sequence[str]) -> np.ndarray:
        """float32 [n, d]."""
        return self.store.rows(self.store.index_of(ids)).astype("float32")


def run(config: Config) -> None:
    """Scores `evaluate.models` on the split `evaluate.split` of `data.naming` and `data.questions`."""
    settings = config.evaluate
    models = _models(config)  # before anything heavy is loaded
    asked = _asked(config, models)

    from rich import get_console

    from revision import building
    from revision.encoders import resolve_device
    from revision.evaluation.metrics import scores
    from revision.evaluation.reader import Reader, release_memory
    from revision.evaluation.report import report, score_tables
    from revision.files import write_json, write_json_lines, write_text
    from revision.progress import hide_bars_of_transformers, say
    from revision.runs import rundir

    hide_bars_of_transformers()
    benchmark = _benchmark(config)
    for label, path in models.items():  # whatever is refused costs no finished evaluation
        _require_same_dimension(building.read_config(path).embed_dim, benchmark.store, label)
    device = None if settings.device == SPREAD else resolve_device(settings.device)
    folder = rundir.start(config, "evaluate")
    for old in folder.glob("*/scores.json"):  # of other models or settings; tables of sweeps read what lies here
        old.unlink()
    found: dict[str, Any] = {}
    predictions: dict[str, list[dict[str, Any]]] = {}
    for label, path in models.items():
        reader = Reader.load(
            path,
            device=device,
            dtype=None if settings.dtype is None else settings.dtype.value,
            batch_size=settings.batch_size,
            track=_progress(label),
        )
        predictions[label] = _predictions(config, reader, benchmark, is_asked=label in asked)
        found[label] = {"model": label, "folder": str(path), "split": settings.split} | scores(
            predictions[label], resamples=settings.bootstrap, seed=settings.seed
        )
        del reader
        release_memory()  # the next model is laid out by what is free
        _require_numbers(predictions[label], label)
        write_json_lines(folder / label / "predictions.jsonl", predictions[label])
        write_json(folder / label / "scores.json", found[label])
    write_text(folder / "table.md", report(found, title=f"{config.name}: {settings.split} pictures"))
    _draw_sheet(config, folder / "sheet.png", benchmark, predictions)
    for table in score_tables(found):
        get_console().print(table.rich())
    say(f"all columns: {folder / 'table.md'}; all numbers: scores.json, in a folder for each model beside it")
    rundir.finish(config, "evaluate", models={label: str(path) for label, path in models.items()})


def _models(config: Config) -> dict[str, Path]:
    """Folder of each model to score, by the name its results go under."""
    from revision.hub import require_place
    from revision.progress import say
    from revision.stages.starting import model_folder

    found: dict[str, Path] = {}
    for model in config.evaluate.models:
        if model in MODEL_STEPS and model not in config.run.steps:
            say(f"{model} is not scored: run.steps of this run leaves it out")
            continue
        label = model if model in MODEL_STEPS else _label(Path(model))
        path = model_folder(config, model, wanted_by="evaluate")
        if label in found:
            raise ValueError(
                f"evaluate.models names {found[label]} and {path}, whose results would both go under {label!r}; "
                "score them in runs of two names"
            )
        found[label] = path
    if not found:
        raise ValueError(
            f"evaluate.models is {config.evaluate.models} and run.steps is {config.run.steps}, which leaves no model "
            "to score; name a stage that the run has, or a model's folder"
        )
    for path in found.values():
        require_place(path)
    return found


def _asked(config: Config, models: dict[str, Path]) -> list[str]:
    """Labels of the models that are asked questions. Every one has something to do."""
    from revision.progress import say

    wanted = config.evaluate.asked
    if wanted is None or config.data.questions is None:
        return [*models]
    places = {Path(name) for name in wanted}
    found = [label for label, path in models.items() if label in wanted or path in places]
    for label in models:
        if label not in found:
            say(f"{label} is asked no questions: evaluate.asked is {wanted}")
    idle = [label for label in models if label not in found]
    if config.data.naming is None and idle:
        raise ValueError(
            f"evaluate.asked is {wanted}, which leaves {', '.join(idle)} without questions, and data.naming is null; "
            "ask every one of evaluate.models, or take it out of them"
        )
    return found


def _label(path: Path) -> str:
    """runs/<name>/<stage>/model is known as <name>-<stage>, any other folder by its own name."""
    return f"{path.parts[-3]}-{path.parts[-2]}" if path.name == "model" and len(path.parts) > 2 else path.name


def _benchmark(config: Config) -> _Benchmark:
    from revision.assembly import open_sources
    from revision.evaluation.benchmarks import read_pictures, read_questions

    data, settings = config.data, config.evaluate
    if data.naming is None and data.questions is None:
        raise ValueError(f"corpus {data.name} has no benchmark; set data.naming, data.questions or both")
    pictures: dict[str, list[Picture]] = {}
    names: dict[str, Candidate] = {}
    pictured = _needed(data.pictures, "data.pictures")
    sources = [pictured] if data.naming is None else [pictured, _needed(data.names, "data.names")]
    store, *named = open_sources(config, sources)
    if data.naming is not None:
        root = data.sources[pictured].image_root if pictured in data.sources else None
        pictures = read_pictures(
            Path(data.naming),
            split=settings.split,
            image_root=None if root is None else Path(root),
            limit=settings.limit,
            seed=settings.seed,
        )
        names = _names(named[0], store, pictures, settings.naming_answer)
    questions: dict[str, list[Question]] = {}
    if data.questions is not None:
        questions = read_questions(
            Path(data.questions), split=settings.split, limit=settings.question_limit, seed=settings.seed
        )
    return _Benchmark(pictures=pictures, questions=questions, store=store, names=names)


def _needed(source: str | None, field: str) -> str:
    if source is None:
        raise ValueError(f"{field} is null, but the benchmark needs it; name one of data.sources")
    return source


def _names(
    names: EmbeddingStore, store: EmbeddingStore, pictures: dict[str, list[Picture]], answer: str
) -> dict[str, Candidate]:
    """Every candidate name: what the model may answer, and the encoder's vector; all right names must be among them."""
    from revision.evaluation.naming import Candidate

    if names.manifest.encoder != store.manifest.encoder:
        raise ValueError(
            f"names ({names.path}) and pictures ({store.path}) were embedded by two encoders; embed both with one"
        )
    names.index_of([picture.name for items in pictures.values() for picture in items])  # an absent one is named
    vectors = names.rows(slice(None)).astype("float32")
    texts = names.payload(slice(None))
    return {
        name: Candidate(answer.replace("{text}", text), vector)
        for name, text, vector in zip(names.ids(), texts, vectors, strict=True)
    }


def _require_same_dimension(embed_dim: int, store: EmbeddingStore, label: str) -> None:
    if embed_dim != store.dim:
        raise ValueError(
            f"{label} reads embeddings of {embed_dim} dimensions, the pictures in {store.path} have "
            f"{store.dim}; evaluate it with the encoder it was trained on"
        )


def _predictions(config: Config, reader: Reader, benchmark: _Benchmark, *, is_asked: bool) -> list[dict[str, Any]]:
    from revision.evaluation.naming import read_pictures_aloud
    from revision.evaluation.questions import answer_questions

    settings = config.evaluate
    rows: list[dict[str, Any]] = []
    for pictures in benchmark.pictures.values():
        rows += read_pictures_aloud(
            reader,
            pictures,
            benchmark.embeddings([picture.id for picture in pictures]),
            benchmark.names,
            prompt=settings.naming_prompt,
            candidates=settings.candidates,
            others=OTHERS,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        )
    for questions in benchmark.questions.values() if is_asked else ():
        embeddings = benchmark.embeddings([question.image for question in questions])
        rows += answer_questions(
            reader,
            questions,
            embeddings,
            max_new_tokens=settings.max_new_tokens,
            spare_tokens=settings.spare_tokens,
        )
    return rows


def _require_numbers(rows: list[dict[str, Any]], label: str) -> None:
    """Holds that no score is NaN or infinite, as where half precision overflows."""
    import math

    for row in rows:
        for name, value in row.items():
            values = value if isinstance(value, list) else [value]
            if any(isinstance(one, float) and not math.isfinite(one) for one in values):
                raise ValueError(
                    f"{label} gives {name} = {value} for {row['row']} {row['id']!r}, which is no number: score it with "
                    "evaluate.dtype=float32, or train it again if its weights are none either"
                )


def _draw_sheet(
    config: Config, path: Path, benchmark: _Benchmark, predictions: dict[str, list[dict[str, Any]]]
) -> None:
    from revision.evaluation.sheet import draw_pictures, draw_sheet

    if not benchmark.pictures or config.evaluate.sheet == 0:
        return
    chosen = draw_pictures(benchmark.pictures, config.evaluate.sheet, config.evaluate.seed)
    said = {label: {row["id"]: row for row in rows if row["row"] == "picture"} for label, rows in predictions.items()}
    title = f"{config.name}: {len(chosen)} {config.evaluate.split} pictures drawn at random"
    draw_sheet(path, chosen, said, title=title)


def _progress(label: str) -> Track:
    """Shows a bar for each round of batches of one model."""
    from revision.progress import progress_bar

    def track(batches: Sequence[Any], title: str) -> Iterator[Any]:
        """The batches, each counted when the next is asked for."""
        with progress_bar("batches") as progress:
            task = progress.add_task(f"{label}: {title}", total=len(batches))
            for batch in batches:
                yield batch
                progress.advance(task)

    return track
