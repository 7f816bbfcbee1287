"""Stage 2 without pictures, or with some: rows of texts are aligned as in stage 1, those of pictures are left alone."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_EMBED_DIM as DIM
from test_stages import TRAINER, config, model_folder, turns  # noqa: F401

from revision import building, model_card, rules
from revision.alignment import C3, ReAlign, Unicorn, load_alignment
from revision.commands import align, instruct, pretrain
from revision.commands.run import _steps
from revision.data.dataset import ConversationDataset
from revision.data.rows import Rows
from revision.embeddings import EmbeddingStore
from revision.interrupts import Interrupted
from revision.runs import rundir
from revision.schema import AlignmentConfig, Config, Modality, RunConfig, SourceConfig, StageInput
from revision.training.trainer import StageTrainer

Store = Callable[..., Any]
Seen = dict[str, list[Any]]  # what stage 2 read, by the id of the conversation: tensors, or None


@pytest.fixture
def mixed(config: Config, tiny_store: Store) -> Config:  # noqa: F811
    """Four conversations about captions, which are no texts of stage 1, two about pictures, and one about neither."""
    tiny_store(name="tiny/captions", shift=0.3, seed=2)
    talks = []
    for number, image in enumerate(["text-3", "image-1", "text-0", "text-23", "image-20", "text-7"]):
        talks.append({"id": f"talk-{number}", "image": image, "messages": turns("<image> what?", f"a tree {number}")})
    talks.append({"id": "plain", "messages": turns("1?", "2.")})
    Path("talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    config.data.sources["captions"] = SourceConfig(Modality.text, "captions.jsonl")
    config.data.conversation_sources = ["statistics", "captions"]
    config.instruct = replace(config.instruct, init=None)
    return config


def of_method(config: Config, method: str, name: str) -> Config:  # noqa: F811
    made = replace(config, name=name, alignment=AlignmentConfig(method=method))
    align.run(made)
    return made


def read_by(config: Config, monkeypatch: pytest.MonkeyPatch) -> Seen:  # noqa: F811
    """Runs stage 2 and notes what each conversation was about."""
    seen: Seen = {}
    kept = ConversationDataset.__getitem__

    def spy(self: ConversationDataset, index: int) -> Any:
        example = kept(self, index)
        seen.setdefault(str(self.sample(index).name), []).append(example["image_embed"])
        return example

    with monkeypatch.context() as patch:
        patch.setattr(ConversationDataset, "__getitem__", spy)
        instruct.run(config)
    return seen


def raw(source: str, row: int) -> np.ndarray:
    return EmbeddingStore.open(Path("stores/tiny") / source).rows(row).astype(np.float32)


def test_texts_are_aligned_and_pictures_are_not(mixed: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain.run(mixed)
    mixed.instruct = replace(mixed.instruct, init="pretrain")
    seen = read_by(mixed, monkeypatch)
    alignment = load_alignment(rundir.folder(mixed, "align"))
    for talk, row in {"talk-0": 3, "talk-2": 0, "talk-3": 23, "talk-5": 7}.items():
        for found in seen[talk]:
            torch.testing.assert_close(found, torch.from_numpy(alignment.apply(raw("captions", row))[0]))
            assert (found - torch.from_numpy(raw("captions", row)[0])).abs().max() > 0.05
    for talk, row in {"talk-1": 1, "talk-4": 20}.items():
        for found in seen[talk]:
            assert torch.equal(found, torch.from_numpy(raw("statistics", row)[0])), "to the last bit"
    assert seen["plain"][0] is None and len(seen) == 7
    first, second = (building.read_config(model_folder(mixed, stage)).alignment for stage in ("pretrain", "instruct"))
    assert first is not None and first == second
    assert building.read_image_alignment(model_folder(mixed, "instruct")) is None


def test_what_was_text_and_what_was_picture_is_told(mixed: Config, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.run(mixed)
    mixed.instruct = replace(mixed.instruct, init="pretrain")
    assert "samples: 24 about texts, moved by realign\n" in capsys.readouterr().out
    instruct.run(mixed)
    told = "samples: 4 about texts, moved by realign; 2 about pictures; 1 about neither\n"
    assert told in capsys.readouterr().out
    facts = {"samples": 7, "about_texts": 4, "about_pictures": 2, "about_neither": 1}
    folder = model_folder(mixed, "instruct")
    mark = json.loads((rundir.folder(mixed, "instruct") / "finished.json").read_text())
    for found in (mark["facts"], model_card.read_history(folder)[1]["facts"]):
        assert facts.items() <= found.items()
    card = (folder / "README.md").read_text()
    assert "- pretrain: 24 samples; 24 with embeddings of texts in the place of pictures (`texts.jsonl`)." in card
    assert (
        "- instruct: 7 samples from `talks.jsonl`; 4 with embeddings of texts in the place of pictures "
        "(`captions.jsonl`); 2 with embeddings of pictures (`statistics.jsonl`); 1 without." in card
    )


def test_unicorn_moves_both_sides_and_hands_its_own_on(mixed: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    made = of_method(mixed, "unicorn", "unicorn")
    seen = read_by(made, monkeypatch)
    unicorn = load_alignment(rundir.folder(made, "align"))
    assert isinstance(unicorn, Unicorn)
    torch.testing.assert_close(seen["talk-0"][0], torch.from_numpy(unicorn.apply(raw("captions", 3))[0]))
    moved = torch.from_numpy(unicorn.apply_to_images(raw("statistics", 1))[0])
    torch.testing.assert_close(seen["talk-1"][0], moved)
    saved = building.read_image_alignment(model_folder(made, "instruct"))
    assert saved is not None and saved.facts() == unicorn.facts(), "what evaluate and chat move pictures by"


def test_noise_of_stage_2_is_for_texts_alone(mixed: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.instruct = replace(mixed.instruct, noise_std=0.1)
    seen = read_by(mixed, monkeypatch)
    aligned = torch.from_numpy(load_alignment(rundir.folder(mixed, "align")).apply(raw("captions", 3))[0])
    assert 0.1 < (seen["talk-0"][0] - aligned).norm() < 1.0
    assert torch.equal(seen["talk-1"][0], torch.from_numpy(raw("statistics", 1)[0]))
    rules.check(mixed)
    mixed.data.conversation_sources = ["statistics"]
    with pytest.raises(ValueError, match=r"instruct\.noise_std = 0\.1: must be 0 where none of data\.conversation_sou"):
        rules.check(mixed)


def test_rows_of_both_kinds_in_one(tiny_store: Store) -> None:
    text, image = tiny_store(shift=0.3), tiny_store("image", shift=-0.4, seed=1)
    rows = Rows([image, text], embed_dim=DIM, alignment=ReAlign().fit(text, image))
    assert [rows.kind_of(row) for row in (0, 23, 24, 47, None)] == ["image", "image", "text", "text", "none"]
    mean = torch.stack([rows[row] for row in range(24, 48)]).mean(0) - torch.stack(
        [rows[row] for row in range(24)]
    ).mean(0)
    assert (
        mean.norm()
        < 0.05
        < 0.5
        < torch.from_numpy(text.rows(slice(None)).mean(0) - image.rows(slice(None)).mean(0)).norm()
    )


def test_drawn_noise_depends_on_seed_epoch_and_row_alone(tiny_store: Store) -> None:
    text, image = tiny_store(), tiny_store("image", seed=1)
    first, second = (
        Rows([image, text], embed_dim=DIM, alignment=C3(noise_std=0.1, seed=3).fit(text, image)) for _ in range(2)
    )
    forwards = [first[row] for row in range(20, 30)]
    backwards = [second[row] for row in reversed(range(20, 30))]
    assert all(torch.equal(*both) for both in zip(forwards, reversed(backwards), strict=True))
    first.set_epoch(1)
    assert torch.equal(first[20], forwards[0]), "a picture"
    assert not torch.equal(first[29], forwards[-1]), "a text"


def test_a_killed_stage_and_other_batches_end_alike(mixed: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_method(mixed, "c3", "whole")
    straight = read_by(whole, monkeypatch)
    halved = of_method(mixed, "c3", "halved")
    halved.trainer = {**TRAINER, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    other = read_by(halved, monkeypatch)
    assert straight.keys() == other.keys()
    for talk in straight.keys() - {"plain"}:
        assert all(torch.equal(*both) for both in zip(straight[talk], other[talk], strict=True)), talk

    killed = of_method(mixed, "c3", "killed")
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="saved after step 1 of 2 in"):
        patch.setattr(StageTrainer, "training_step", training_step)
        instruct.run(killed)
    identity = next(rundir.folder(killed, "instruct").rglob("identity.json")).read_text()
    assert load_alignment(rundir.folder(killed, "align")).fingerprint() in identity
    instruct.run(killed)
    models: list[Any] = [building.read_model(model_folder(one, "instruct"))[0] for one in (whole, killed)]
    for (name, one), (_, two) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(one, two), name


def test_no_alignment_or_that_of_another_store_is_refused(mixed: Config, tiny_store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`instruct` reads .*, but `align` never ran there: run `revision align`"):
        instruct.run(replace(mixed, name="new"))
    with pytest.raises(ValueError, match=r"`align` ran there with other settings \(alignment\.method was realign"):
        instruct.run(replace(mixed, alignment=AlignmentConfig(method="c3")))
    store = tmp_path / "stores" / "tiny" / "texts"
    store.rename(store.with_name("before"))
    tiny_store(name="tiny/texts", seed=7)
    with pytest.raises(ValueError, match="was fitted on another text store than .*run `revision align` again"):
        instruct.run(mixed)


def test_the_alignment_of_another_encoder_is_refused(mixed: Config, tiny_store: Store, tmp_path: Path) -> None:
    for name, kind in (("captions", "text"), ("statistics", "image")):
        store = tmp_path / "stores" / "tiny" / name
        store.rename(store.with_name(f"{name}-before"))
        tiny_store(kind, name=f"tiny/{name}", encoder={"name": "other"})
    with pytest.raises(ValueError, match="was fitted on .*texts, and .*statistics comes from another encoder; embed"):
        instruct.run(mixed)


def test_a_source_that_holds_another_kind_is_refused(mixed: Config) -> None:
    mixed.data.sources["captions"] = SourceConfig(Modality.image, "captions.jsonl")
    with pytest.raises(
        ValueError, match=r"sources\.captions\.kind = image, but the store .*captions holds .* kind text"
    ):
        instruct.run(mixed)


def test_a_model_of_another_alignment_is_refused(mixed: Config) -> None:
    pretrain.run(mixed)
    from_it = replace(mixed.instruct, init=str(model_folder(mixed, "pretrain")))
    shifted = replace(of_method(mixed, "mean_shift", "shifted"), instruct=from_it)
    with pytest.raises(ValueError, match=r"another alignment than the one .*\(method was realign, is now mean_shift;"):
        instruct.run(shifted)
    further = replace(mixed, name="further", alignment=AlignmentConfig(centroid_steps=3), instruct=from_it)
    align.run(further)
    with pytest.raises(ValueError, match=re.escape("'centroid_steps': 1") + ".*" + re.escape("'centroid_steps': 3")):
        instruct.run(further)
    again = replace(mixed, name="again", instruct=from_it)
    align.run(again)
    instruct.run(again)


def test_texts_after_pairs(mixed: Config) -> None:
    """A projector of real pairs reads texts moved to where pictures are, but not where pictures would have to move."""
    pairs = replace(mixed, pretrain=replace(mixed.pretrain, input=StageInput.pairs))
    pairs.instruct = replace(mixed.instruct, init="pretrain")
    rules.check(pairs)
    moved = of_method(pairs, "unicorn", "moved")
    for one in (pairs, moved):
        pretrain.run(one)
    with pytest.raises(ValueError, match="learned from pictures as they are, but unicorn would move them; take an"):
        instruct.run(moved)
    instruct.run(pairs)
    learned = building.read_config(model_folder(pairs, "instruct")).alignment
    assert learned is not None and learned["method"] == "realign"


def test_pairs_are_never_read_from_texts(mixed: Config) -> None:
    """Where captions have the ids of their pictures, stage 1 on pairs still reads the pictures."""
    mixed.pretrain = replace(mixed.pretrain, input=StageInput.pairs)
    mixed.data.conversation_sources = ["captions"]
    with pytest.raises(ValueError, match=r"pretrain\.input = pairs: must be backed by .* of kind image"):
        rules.check(mixed)
    mixed.data.conversation_sources = ["captions", "statistics"]
    rows, alignment = pretrain._rows(mixed)
    assert [store.manifest.kind for store in rows.stores] == ["image"] and alignment is None
    before = rundir.fingerprint(mixed, "pretrain")
    mixed.data.sources["captions"] = SourceConfig(Modality.text, "others.jsonl")
    assert rundir.fingerprint(mixed, "pretrain") == before


@pytest.mark.parametrize(
    ("steps", "started"),
    [
        (["embed", "instruct", "evaluate"], ["embed", "align", "instruct", "evaluate"]),
        (["embed", "instruct", "align"], ["embed", "align", "instruct"]),
        (["align", "instruct"], ["align", "instruct"]),
        (["embed", "evaluate"], ["embed", "evaluate"]),
    ],
)
def test_run_aligns_before_texts_are_read(mixed: Config, steps: list[str], started: list[str]) -> None:
    mixed.run = RunConfig(steps=steps)
    assert _steps(mixed) == started
    mixed.data.conversation_sources = ["statistics"]
    assert _steps(mixed) == steps, "pictures need no alignment"
