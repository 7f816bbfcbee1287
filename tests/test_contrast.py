"""`revision contrast`: heads trained on cached features are the heads that training the whole model would give."""

import copy
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import WORDS, make_encoder_folder, make_picture
from torch.nn.functional import normalize

from revision import contrastive
from revision.commands import contrast
from revision.contrastive import ContrastSettings, PairInputs
from revision.encoders import load_encoder
from revision.encoders.openclip_folder import head_parameters, read_weights
from revision.schema import Config, ContrastConfig, DataConfig, EncoderConfig

SETTINGS = ContrastSettings(
    epochs=1, batch_size=4, learning_rate=1e-2, weight_decay=0.1, warmup=0.1, logit_scale=100.0,
    learn_logit_scale=False, probe_interval=2, seed=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_folder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def model(encoder_folder: Path) -> open_clip.CustomTextCLIP:
    return open_clip.create_model(f"local-dir:{encoder_folder}")


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """Texts of the tiny vocabulary as ids [count, 6], all different, the last position padding in some."""
    ids = torch.randint(5, 5 + len(WORDS), (count, 6), generator=torch.Generator().manual_seed(seed))
    ids[::2, -1] = 0
    return ids


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def features_of(model: open_clip.CustomTextCLIP, count: int, seed: int = 0) -> PairInputs:
    return PairInputs(
        contrastive.head_inputs(model.visual.head, model.encode_image, pixels(count, seed)),
        contrastive.head_inputs(model.text.proj, model.encode_text, tokens(count, seed)),
        torch.arange(count),
        torch.arange(count),
    )


def test_cached_features_give_the_whole_model(model: open_clip.CustomTextCLIP) -> None:
    part = contrastive.heads_of(model)
    features = features_of(model, 5)
    images, texts = contrastive.project(part, features.images, features.texts)
    with torch.no_grad():
        torch.testing.assert_close(images, model.encode_image(pixels(5), normalize=True), atol=0, rtol=0)
        torch.testing.assert_close(texts, model.encode_text(tokens(5), normalize=True), atol=0, rtol=0)


def test_training_on_cached_features_is_training_the_whole_model(model: open_clip.CustomTextCLIP) -> None:
    """Against a plain loop through the towers, with the same batches, loss, optimizer and schedule."""
    whole = copy.deepcopy(model)
    part = contrastive.heads_of(model)
    train = features_of(model, 8)
    contrastive.train(
        part, pairs=train, validation=train, settings=SETTINGS, report=lambda _: None, advance=lambda *_: None
    )
    batches = list(contrastive.distinct_batches(train, 4, torch.Generator().manual_seed(0)))
    assert len(batches) == 2

    whole.eval().lock_image_tower()
    whole.lock_text_tower()
    parameters = [(name, value) for name, value in whole.named_parameters() if value.requires_grad]
    heads = [(name, value) for name, value in parameters if name != "logit_scale"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [value for name, value in heads if not name.endswith("bias")], "weight_decay": 0.1},
            {"params": [value for name, value in heads if name.endswith("bias")], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    for batch, rate in zip(batches, (1e-2, 0.5e-2 * (1 + math.cos(0))), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = normalize(whole.encode_image(pixels(8)[batch]), dim=-1)
        texts = normalize(whole.encode_text(tokens(8)[batch]), dim=-1)
        logits = 100 * images @ texts.T
        target = torch.arange(4)
        loss = (torch.nn.functional.cross_entropy(logits, target)
                + torch.nn.functional.cross_entropy(logits.T, target)) / 2  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = dict(heads)
    for name, value in head_parameters(model).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


def test_locking_leaves_the_heads(model: open_clip.CustomTextCLIP) -> None:
    model.train()
    contrastive.lock_towers(model)
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainable == {
        "visual.head.mlp.fc1.weight", "visual.head.mlp.fc1.bias", "visual.head.mlp.fc2.weight",
        "text.proj.0.weight", "text.proj.2.weight",
    }  # fmt: skip
    assert not any(module.training for module in model.modules())


def test_models_without_two_heads(model: open_clip.CustomTextCLIP) -> None:
    model.text.proj = torch.nn.Identity()
    for other in (model, torch.nn.Linear(2, 2)):
        with pytest.raises(
            ValueError, match=r"whose heads cannot be trained alone; it needs an open_clip CustomTextCLIP"
        ):
            contrastive.lock_towers(other)


def test_training_learns_and_repeats_itself(model: open_clip.CustomTextCLIP) -> None:
    part = contrastive.heads_of(model)
    settings = replace(SETTINGS, epochs=60, batch_size=8, probe_interval=25)
    train = features_of(model, 16)
    before = copy.deepcopy(model.state_dict())
    results = []
    for _ in range(2):
        model.load_state_dict(before)
        reports: list[dict[str, float]] = []
        steps: list[tuple[int, int]] = []
        last = contrastive.train(
            part, pairs=train, validation=train, settings=settings, report=reports.append,
            advance=lambda done, total: steps.append((done, total)),  # noqa: B023 - called before the loop goes on
        )  # fmt: skip
        assert [report.get("step") for report in reports] == [0, 25, 50, 75, 100, 120]
        assert last == {**reports[-1], "left_out": 0} and steps == [(number, 120) for number in range(1, 121)]
        results.append((last, copy.deepcopy(model.state_dict())))
    assert reports[0]["image_to_text_r1"] < 0.3 < 0.6 < last["image_to_text_r1"]
    assert "loss" not in reports[0] and last["loss"] < reports[1]["loss"]
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name], atol=0, rtol=0)
        moved = not torch.equal(value, before[name])
        assert moved == name.startswith(("visual.head.", "text.proj.", "logit_scale")), name


@pytest.mark.parametrize(("start", "learn"), [(100.0, False), (150.0, False), (20.0, True), (100.0, True)])
def test_temperature(model: open_clip.CustomTextCLIP, start: float, learn: bool) -> None:
    part = contrastive.heads_of(model)
    train = features_of(model, 16)
    settings = replace(SETTINGS, epochs=8, logit_scale=start, learn_logit_scale=learn)
    last = contrastive.train(
        part, pairs=train, validation=train, settings=settings, report=lambda _: None, advance=lambda *_: None
    )
    if learn:
        assert last["logit_scale"] != pytest.approx(start, rel=1e-4) and last["logit_scale"] <= 100 * (1 + 1e-5)
    else:
        assert last["logit_scale"] == pytest.approx(start, rel=1e-5)


def test_loss_that_is_not_finite(model: open_clip.CustomTextCLIP) -> None:
    part = contrastive.heads_of(model)
    train = features_of(model, 8)
    train.images[3] = torch.nan
    with pytest.raises(ValueError, match=r"the loss is nan at step 1; lower contrast.learning_rate=0.01"):
        contrastive.train(
            part, pairs=train, validation=features_of(model, 4), settings=replace(SETTINGS, batch_size=8),
            report=lambda _: None, advance=lambda *_: None,
        )  # fmt: skip


def test_nothing_to_contrast(model: open_clip.CustomTextCLIP) -> None:
    part = contrastive.heads_of(model)
    features = replace(features_of(model, 4), text_of=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"at least two training pairs that differ in picture and text"):
        contrastive.train(
            part, pairs=features, validation=features, settings=SETTINGS, report=lambda _: None,
            advance=lambda *_: None,
        )  # fmt: skip


def pairs(image_of: list[int], text_of: list[int]) -> PairInputs:
    return PairInputs(torch.empty(0), torch.empty(0), torch.tensor(image_of), torch.tensor(text_of))


def test_batches_hold_no_picture_or_text_twice() -> None:
    rng = np.random.default_rng(0)
    features = pairs(rng.integers(0, 40, 200).tolist(), rng.integers(0, 60, 200).tolist())
    batches = list(contrastive.distinct_batches(features, 16, torch.Generator().manual_seed(0)))
    used = torch.cat(batches)
    assert len(used.unique()) == len(used) > 100
    for batch in batches:
        assert len(batch) == len(features.image_of[batch].unique()) == len(features.text_of[batch].unique()) == 16
    again = list(contrastive.distinct_batches(features, 16, torch.Generator().manual_seed(0)))
    other = list(contrastive.distinct_batches(features, 16, torch.Generator().manual_seed(1)))
    assert torch.equal(torch.cat(again), used) and not torch.equal(torch.cat(other), used)


def plain_batches(features: PairInputs, size: int, generator: torch.Generator) -> list[list[int]]:
    """What `distinct_batches` says it gives, by going through all that wait for each batch."""
    image_of, text_of = features.image_of.tolist(), features.text_of.tolist()
    waiting = torch.randperm(len(features), generator=generator).tolist()
    batches: list[list[int]] = []
    while waiting:
        batch: list[int] = []
        for pair in waiting:
            clash = any(image_of[pair] == image_of[one] or text_of[pair] == text_of[one] for one in batch)
            if len(batch) < size and not clash:
                batch.append(pair)
        if len(batch) < size and batches:
            break
        batches.append(batch)
        waiting = [pair for pair in waiting if pair not in batch]
    return batches


def test_batches_are_those_of_one_pass_after_the_other() -> None:
    rng = np.random.default_rng(0)
    for seed in range(150):
        count, pictures, texts, size = (int(rng.integers(1, most)) for most in (60, 40, 40, 12))
        features = pairs(rng.integers(0, pictures, count).tolist(), rng.integers(0, texts, count).tolist())
        found = contrastive.distinct_batches(features, size, torch.Generator().manual_seed(seed))
        expected = plain_batches(features, size, torch.Generator().manual_seed(seed))
        assert [batch.tolist() for batch in found] == expected


def test_a_caption_that_half_of_the_pairs_share_costs_no_square_of_them() -> None:
    """Looking through all that wait for each batch is 10^8 looks here; each pair is looked at a few times."""
    count = 40_000

    class Counted(list[int]):
        looks = 0

        def __getitem__(self, place: Any) -> Any:
            Counted.looks += 1
            return super().__getitem__(place)

    features = pairs(list(range(count)), [0] * (count // 2) + list(range(1, count // 2 + 1)))
    with pytest.MonkeyPatch.context() as patch:
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        order = Counted(drawn.tolist())
        patch.setattr(torch, "randperm", lambda *_, **__: type("", (), {"tolist": lambda self: order})())
        batches = list(contrastive.distinct_batches(features, 32, torch.Generator()))
    assert len(batches) > 600 and Counted.looks < 5 * count


def test_batches_use_every_pair_where_nothing_clashes() -> None:
    features = pairs(list(range(12)), list(range(12)))
    batches = list(contrastive.distinct_batches(features, 4, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(batches).tolist()) == list(range(12))
    (batch,) = contrastive.distinct_batches(features, 50, torch.Generator().manual_seed(0))
    assert sorted(batch.tolist()) == list(range(12))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_that_are_no_numbers_are_refused_and_not_ranked_first(model: open_clip.CustomTextCLIP) -> None:
    part = contrastive.heads_of(model)
    train = features_of(model, 8)
    with torch.no_grad():
        next(iter(part.parameters.values())).fill_(math.nan)
    with pytest.raises(ValueError, match=r"embeddings of the validation pairs are NaN or infinite at step 0; lower "):
        contrastive.train(
            part, pairs=train, validation=train, settings=SETTINGS, report=lambda _: None, advance=lambda *_: None
        )


def test_a_bias_of_the_logits_does_not_train(model: open_clip.CustomTextCLIP) -> None:
    """SigLIP's loss has one; in CLIP's it cancels, so it gets no gradient and must not be expected to move."""
    model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    part = contrastive.whole(model)
    assert {"logit_scale", "logit_bias"}.isdisjoint(part.parameters)
    inputs = PairInputs(pixels(8), tokens(8), torch.arange(8), torch.arange(8))
    contrastive.train(
        part, pairs=inputs, validation=inputs, settings=SETTINGS, report=lambda _: None, advance=lambda *_: None
    )
    assert float(model.logit_bias.detach()) == -10.0


def test_distinct_values() -> None:
    values, which = contrastive.distinct(["b", "a", "b", "c", "a"])
    assert values == ["b", "a", "c"] and which.tolist() == [0, 1, 0, 2, 1]


def test_learning_rate_rises_and_falls() -> None:
    rates = [contrastive.learning_rate_at(step, steps=100, warmup=0.1, peak=2.0) for step in range(100)]
    np.testing.assert_allclose(rates[:11], [0.2 * step for step in range(1, 11)] + [2.0])
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.001
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    short = [contrastive.learning_rate_at(step, steps=3, warmup=0.0, peak=2.0) for step in range(3)]
    assert short[0] == 2.0 and short == sorted(short, reverse=True)


def test_ranks_against_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = normalize(torch.randn(9, 4, generator=generator), dim=-1)
    candidates = normalize(torch.randn(7, 4, generator=generator), dim=-1)
    query_of = torch.tensor([*range(9), 0, 3, 3])
    candidate_of = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 1, 4, 5, 6])
    expected = []
    for query in range(9):
        own = {c for q, c in zip(query_of.tolist(), candidate_of.tolist(), strict=True) if q == query}
        ordered = sorted(range(7), key=lambda c: -float(queries[query] @ candidates[c]))
        first = next(place for place, candidate in enumerate(ordered) if candidate in own)
        expected.append(first)
    assert contrastive.retrieval_ranks(queries, candidates, query_of, candidate_of).tolist() == expected


def test_ties_count_against() -> None:
    same = torch.ones(4, 2) / math.sqrt(2)
    assert contrastive.retrieval_ranks(same, same, torch.arange(4), torch.arange(4)).tolist() == [3, 3, 3, 3]


def test_probe_measures(model: open_clip.CustomTextCLIP) -> None:
    part = contrastive.heads_of(model)
    features = replace(features_of(model, 10), image_of=torch.tensor([*range(10), 0]),
                       text_of=torch.tensor([*range(10), 5]))  # fmt: skip
    found = contrastive.probe(*contrastive.unit_rows(part, features), features)
    with torch.no_grad():
        images = model.encode_image(pixels(10), normalize=True).double().numpy()
        texts = model.encode_text(tokens(10), normalize=True).double().numpy()
    assert found["gap"] == pytest.approx(np.linalg.norm(images.mean(0) - texts.mean(0)), abs=1e-6)
    assert found["trace_image"] == pytest.approx(1 - np.linalg.norm(images.mean(0)) ** 2, abs=1e-6)
    assert found["trace_text"] == pytest.approx(1 - np.linalg.norm(texts.mean(0)) ** 2, abs=1e-6)
    order = np.argsort(-(images @ texts.T), axis=1)
    own = [{number} for number in range(10)]
    own[0].add(5)
    for k in (1, 5):
        hits = [bool(own[number] & set(order[number, :k].tolist())) for number in range(10)]
        assert found[f"image_to_text_r{k}"] == pytest.approx(np.mean(hits))


def make_config(root: Path, encoder_folder: Path, **changes: Any) -> Config:
    root.mkdir(exist_ok=True)
    for split, count in (("train", 24), ("validation", 6)):
        rows = []
        for number in range(count):
            make_picture(root / split / f"{number % (count - 2)}.png", seed=number % (count - 2) + 100 * count)
            text = " ".join(np.random.default_rng(number).choice(WORDS, 4))
            rows.append({"id": f"{number}", "image": f"{split}/{number % (count - 2)}.png", "text": text})
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"init": str(encoder_folder), "epochs": 3, "batch_size": 8, "probe_interval": 4, **changes}
    return Config(
        name="test",
        runs=str(root / "runs"),
        data=DataConfig(
            name="tiny",
            stores=str(root / "stores"),
            contrast_train=str(root / "train.jsonl"),
            contrast_validation=str(root / "validation.jsonl"),
        ),
        encoder=EncoderConfig(name="tiny", model=f"local-dir:{root}/runs/test/contrast/encoder", batch_size=5),
        contrast=ContrastConfig(device="cpu", **settings),
    )


def test_command(tmp_path: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path, encoder_folder, heads=str(tmp_path / "heads" / "h.safetensors"))
    contrast.run(config)
    printed = capsys.readouterr().out
    before, after = read_weights(encoder_folder), read_weights(tmp_path / "runs/test/contrast/encoder")
    heads = {name for name in before if name.startswith(("visual.head", "text.proj"))}
    assert {name for name in before if not torch.equal(before[name], after[name])} == heads | {"logit_scale"}
    assert float(after["logit_scale"].exp()) == pytest.approx(100)
    count = sum(before[name].numel() for name in heads)
    assert f"trains: {count:,} parameters of the heads" in printed and "temperature: fixed" in printed
    assert f"locked: {sum(value.numel() for value in load_model(encoder_folder).parameters()) - count - 1:,}" in printed

    folder = tmp_path / "runs/test/contrast"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 4, 8, 9]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training_pairs"] == 24 and metrics["trained_parameters"] == count
    assert metrics["gap"] == log[-1]["gap"]
    assert json.loads((folder / "finished.json").read_text())["facts"]["gap"] == metrics["gap"]

    # The trained folder is an encoder like any other, and the metrics are those of the encoder it holds.
    encoder = load_encoder(kind="open_clip", model=config.encoder.model, pretrained=None, dtype="float32", device="cpu",
                           name="tiny")  # fmt: skip
    texts = {json.loads(line)["text"] for line in (tmp_path / "validation.jsonl").read_text().splitlines()}
    mean = encoder.encode_texts(sorted(texts)).astype(np.float64).mean(axis=0)
    assert metrics["trace_text"] == pytest.approx(1 - mean @ mean, abs=1e-5)
    plain = open_clip.create_model(config.encoder.model)
    shipped = {name: plain.state_dict()[name] for name in heads}
    alone = load_file(tmp_path / "heads" / "h.safetensors")
    assert alone.keys() == heads | {"logit_scale"}
    for name, value in shipped.items():
        torch.testing.assert_close(alone[name], value, atol=0, rtol=0)


def load_model(folder: Path) -> torch.nn.Module:
    return open_clip.create_model(f"local-dir:{folder}")


def test_output_folder_of_ones_own(tmp_path: Path, encoder_folder: Path) -> None:
    contrast.run(make_config(tmp_path, encoder_folder, output=str(tmp_path / "mine"), epochs=1))
    assert (tmp_path / "mine/open_clip_config.json").is_file()
    assert not (tmp_path / "runs/test/contrast/encoder").exists()


@pytest.mark.parametrize("field", ["contrast.init", "data.contrast_train", "data.contrast_validation"])
def test_missing_inputs(tmp_path: Path, encoder_folder: Path, field: str) -> None:
    config = make_config(tmp_path, encoder_folder)
    group, name = field.split(".")
    setattr(config.contrast if group == "contrast" else config.data, name, None)
    with pytest.raises(ValueError, match=rf"{field} is null, but `contrast` needs it"):
        contrast.run(config)


def test_no_pairs_and_empty_text(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder)
    file = tmp_path / "train.jsonl"
    row = {"id": "x", "image": "train/0.png", "text": " "}
    for content, sentence in (
        ("", "training pairs: the file holds no pairs"),
        (json.dumps(row), "of pair 'x' is empty"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=sentence):
            contrast.run(config)


def test_unreadable_picture(tmp_path: Path, encoder_folder: Path) -> None:
    config = make_config(tmp_path, encoder_folder)
    (tmp_path / "validation" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"validation pairs: .*2\.png is not a picture .*mend the file or leave"):
        contrast.run(config)
    assert not (tmp_path / "runs/test/contrast/finished.json").exists()


def test_a_refused_one_costs_no_finished_one(tmp_path: Path, encoder_folder: Path) -> None:
    contrast.run(make_config(tmp_path, encoder_folder, epochs=1))
    folder = tmp_path / "runs/test/contrast"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert folder / "finished.json" in before

    def refused(sentence: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            contrast.run(make_config(tmp_path, encoder_folder, **changes))
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before

    refused("frame_step = 99: must be at most the 9 steps", frame_step=99)
    refused("nowhere", init=str(tmp_path / "nowhere"))
    refused("at least two that differ", batch_size=1)
    config = make_config(tmp_path, encoder_folder)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(ValueError, match=r"train\.jsonl"):
        contrast.run(config)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
