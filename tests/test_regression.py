"""A projector that begins by a regression: against arithmetic of its own, whatever the engine, and through a kill."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training
import torch
from test_configs import composed
from tiny_training import SAMPLES

from revision.data.conversation import IGNORED
from revision.data.samples import Sample
from revision.records import Message
from revision.training import regression, words
from revision.training.trainer import StageTrainer


def make(llm: Path, **shape: Any) -> Any:
    """The tiny model; of any type, since its layers are looked into."""
    return tiny_training.make_model(llm, **shape)


def contents_of(dataset: Any) -> tuple[list[int], list[list[int]]]:
    """Places of the texts, and their tokens but for those that all have, from the labels."""
    learned = {}
    for place in range(len(dataset)):
        if dataset.sample(place).row is not None:
            labels = dataset[place]["labels"]
            learned[place] = [int(token) for token in labels if token != IGNORED]
    met = Counter(token for tokens in learned.values() for token in set(tokens))
    # In fewer than half of so few texts there is a token that at most a tenth have.
    assert sum(any(met[token] <= 0.1 * len(learned) for token in tokens) for tokens in learned.values()) < 13
    content = {
        place: found
        for place, tokens in learned.items()
        if (found := [token for token in tokens if met[token] < len(learned)])
    }
    return list(content), list(content.values())


def expected(model: Any, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the last layer in float64, from all rows at once."""
    projector, draws = model.projector, []
    places, contents = contents_of(dataset)
    table = model.get_input_embeddings().weight.detach().double().numpy()
    centre, scale = np.zeros(table.shape[1]), 1.0
    if projector.norm is not None:
        seen = sorted({one for some in contents for one in some})
        centre, scale = table[seen].mean(axis=0), projector.output_std
    cut = [words.runs_of(some, projector.slots) for some in contents]
    targets = np.stack([np.concatenate([table[run].mean(axis=0) - centre for run in runs]) for runs in cut]) / scale
    for draw in range(3):
        dataset.set_epoch(2**20 + draw)
        draws.append(np.stack([dataset[place]["image_embed"].numpy() for place in places]))
    dataset.set_epoch(0)
    inputs = torch.from_numpy(np.concatenate(draws)).double() * projector.input_scale
    with torch.no_grad():
        features = projector.double().layers[:-1](inputs).numpy()
    projector.float()
    targets = np.concatenate([targets] * 3)
    h, t = features - features.mean(axis=0), targets - targets.mean(axis=0)
    covariance = h.T @ h / len(h)
    ridge = 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weight = np.linalg.solve(covariance + ridge, h.T @ t / len(h))
    common = targets.mean(axis=0) if projector.norm is None else 0.0
    return weight.T, common - features.mean(axis=0) @ weight


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"projector_depth": 1},
        {"projector_depth": 3, "projector_hidden_size": 24},
        {"output_norm": False},
        {"visual_tokens": "repeat"},
    ],
    ids=str,
)
def test_the_last_layer_is_the_ridge_regression(tiny_llm: Path, shape: dict[str, Any]) -> None:
    model, dataset = make(tiny_llm, **shape), tiny_training.make_dataset(tiny_llm)
    before = tiny_training.weights(model)
    weight, bias = expected(model, dataset)
    begun = regression.begin_by_regression(model, dataset)
    last = f"projector.layers.{len(model.projector.layers) - 1}"
    np.testing.assert_allclose(model.projector.layers[-1].weight.detach().numpy(), weight, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(model.projector.layers[-1].bias.detach().numpy(), bias, rtol=2e-3, atol=2e-4)
    after = tiny_training.weights(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {f"{last}.weight", f"{last}.bias"}
    assert 0 < begun.explained <= 1
    assert begun.named is None


def by_hand(model: Any, dataset: Any, epoch: int) -> tuple[float, list[int], list[list[int]]]:
    """Cross-entropy over distances in float64, the word nearest to each visual token, and the words it is to name."""
    projector, (places, contents) = model.projector, contents_of(dataset)
    table = model.get_input_embeddings().weight.detach().double().numpy()
    seen = sorted({token for tokens in contents for token in tokens})
    vectors = table[seen]
    if projector.norm is None:
        unit = np.sqrt(np.mean((vectors - vectors.mean(axis=0)) ** 2))
    else:
        vectors, unit = vectors - vectors.mean(axis=0), projector.output_std
    dataset.set_epoch(epoch)
    with torch.no_grad():
        visual = projector(torch.stack([dataset[place]["image_embed"] for place in places]))[:, : projector.slots]
    dataset.set_epoch(0)
    losses, nearest, runs = [], [], []
    for own, tokens in zip(visual.double().numpy(), contents, strict=True):
        for token, run in zip(own, words.runs_of(tokens, projector.slots), strict=True):
            scores = -10 * np.mean(((token - vectors) / unit) ** 2, axis=1)
            scores -= scores.max() + np.log(np.exp(scores - scores.max()).sum())
            losses.append(-np.mean([scores[seen.index(one)] for one in run]))
            nearest.append(seen[int(scores.argmax())])
            runs.append(run)
    return float(np.mean(losses)), nearest, runs


SHAPES: list[dict[str, Any]] = [{}, {"output_norm": False}, {"visual_tokens": "repeat"}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_is_a_softmax_over_distances(tiny_llm: Path, shape: dict[str, Any]) -> None:
    model, dataset = make(tiny_llm, **shape), tiny_training.make_dataset(tiny_llm)
    expected_loss, _, _ = by_hand(model, dataset, epoch=0)
    places, contents = contents_of(dataset)
    known = words.Words(model.get_input_embeddings(), dict(zip(places, contents, strict=True)), model.projector)
    visual = model.projector(torch.stack([dataset[place]["image_embed"] for place in places]))
    loss, _ = known.compare(visual[:, : model.projector.slots], contents)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_descent_goes_on_from_there_in_all_layers(tiny_llm: Path, shape: dict[str, Any]) -> None:
    model, dataset = make(tiny_llm, **shape), tiny_training.make_dataset(tiny_llm)
    before = tiny_training.weights(model)
    # A first step has rate 0, so what it reports is of the closed form, over one more draw of the noise.
    begun = regression.begin_by_regression(model, dataset, steps=1)
    _, nearest, runs = by_hand(model, dataset, epoch=2**20 + 3)
    assert begun.named == pytest.approx(np.mean([one in run for one, run in zip(nearest, runs, strict=True)]))

    later = regression.begin_by_regression(model, dataset, steps=200)
    assert begun.named is not None and later.named is not None
    assert later.named > begun.named + 0.1
    after = tiny_training.weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("projector.")}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_steps_pass_over_the_texts_in_an_order_of_the_seed(tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "BATCH", 10)

    def passes_of(seed: int) -> tuple[dict[int, list[int]], torch.Tensor]:
        """Rows read in each epoch of the noise, and the first layer that comes out."""
        model, dataset = make(tiny_llm), tiny_training.make_dataset(tiny_llm)
        rows: Any = dataset.rows
        many, read = rows.many, []

        def noted(some: list[int]) -> torch.Tensor:
            read.append((rows._turn, some))
            return many(some)

        with monkeypatch.context() as patch:
            patch.setattr(rows, "many", noted)
            regression.begin_by_regression(model, dataset, steps=7, seed=seed)
        passes: dict[int, list[int]] = {}
        for turn, some in read[3:]:  # behind the three draws of the closed form
            passes.setdefault(turn, []).extend(some)
        return passes, model.projector.layers[0].weight.detach()

    (first, weight), (again, same), (other, another) = (passes_of(seed) for seed in (0, 0, 1))
    everything = [row for row in range(SAMPLES) if row % 5]
    assert list(first) == [2**20 + 3, 2**20 + 4, 2**20 + 5]
    assert [sorted(first[2**20 + turn]) for turn in (3, 4)] == [everything, everything]
    assert first[2**20 + 3] != first[2**20 + 4]
    assert first == again != other
    assert torch.equal(weight, same)
    assert not torch.equal(weight, another)


def test_blocks_do_not_matter(tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (2048, 5):
        monkeypatch.setattr(regression, "_CHUNK", size)
        model = make(tiny_llm)
        regression.begin_by_regression(model, tiny_training.make_dataset(tiny_llm))
        found.append(model.projector.layers[-1].weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_epoch_is_as_it_was(tiny_llm: Path) -> None:
    dataset = tiny_training.make_dataset(tiny_llm)
    first = dataset[1]["image_embed"]
    regression.begin_by_regression(tiny_training.make_model(tiny_llm), dataset)
    assert torch.equal(dataset[1]["image_embed"], first)


@pytest.mark.parametrize(
    ("tokens", "count", "runs"),
    [
        ([1, 2, 3, 4, 5], 2, [[1, 2], [3, 4, 5]]),
        ([1, 2, 3], 3, [[1], [2], [3]]),
        ([1, 2], 4, [[1], [1], [2], [2]]),
        ([7], 3, [[7], [7], [7]]),
        ([1, 2, 3, 4], 1, [[1, 2, 3, 4]]),
    ],
)
def test_runs(tokens: list[int], count: int, runs: list[list[int]]) -> None:
    assert words.runs_of(tokens, count) == runs


def test_texts_that_are_all_alike_are_one_sentence(tiny_llm: Path) -> None:
    dataset = tiny_training.make_dataset(tiny_llm)
    turns = [Message("user", "<image> what?"), Message("assistant", "a red square")]
    dataset.samples = [Sample(f"s-{row}", turns, row) for row in range(SAMPLES)]
    with pytest.raises(
        ValueError, match=r"start=regression: all texts have the same tokens, .* set pretrain\.start=random"
    ):
        regression.begin_by_regression(tiny_training.make_model(tiny_llm), dataset)


def test_visual_tokens_are_nearer_to_the_words_of_their_own_text(tiny_llm: Path) -> None:
    model, dataset = make(tiny_llm), tiny_training.make_dataset(tiny_llm)
    places = [place for place in range(len(dataset)) if dataset.sample(place).row is not None]
    embeds = torch.stack([dataset[place]["image_embed"] for place in places])
    table = model.get_input_embeddings().weight.detach()
    labels = [dataset[place]["labels"] for place in places]
    words = torch.stack([table[one[one != IGNORED]].mean(dim=0) for one in labels])
    own = []
    for begin in (lambda: None, lambda: regression.begin_by_regression(model, dataset)):
        begin()
        with torch.no_grad():
            tokens = model.projector(embeds).mean(dim=1)
        alike = torch.nn.functional.cosine_similarity(tokens - tokens.mean(dim=0), words - words.mean(dim=0))
        own.append(float(alike.mean()))
    assert own[1] > 0.3 > own[0]


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"parts": ["projector"], "regress": 3, "save_steps": 2}
    whole, _ = tiny_training.run(tiny_llm, tmp_path / "whole", **options)
    step = StageTrainer.training_step

    def failing(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", failing)
        with pytest.raises(KeyboardInterrupt):
            tiny_training.run(tiny_llm, tmp_path / "cut", **options)
    with monkeypatch.context() as patch:
        patch.setattr(
            "revision.training.stage.begin_by_regression", lambda *_, **__: pytest.fail("it has begun already")
        )
        cut, _ = tiny_training.run(tiny_llm, tmp_path / "cut", **options)
    first, second = (tiny_training.weights(one) for one in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["instruct.start=regression"], "instruct.start = regression: must be random"),
        (["pretrain.start=regression", "pretrain.init=some/folder"], "must be random where pretrain.init is set"),
        (
            ["pretrain.start=random", "pretrain.start_steps=5"],
            "pretrain.start_steps = 5: must be 0, or pretrain.start=r",
        ),
        (["pretrain.start_steps=-1"], "pretrain.start_steps = -1: must be at least 0"),
    ],
)
def test_where_there_is_nothing_to_begin(words: list[str], why: str) -> None:
    with pytest.raises(Exception, match=why):
        composed("experiment=nano", *words)
