"""`revision chat`: one question or a dialogue about picture files, from pixels to an answer in the terminal."""

import builtins
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import build_tiny_llm
from PIL import Image
from tiny_encoder import DIM, make_encoder_folder, make_picture

from revision import building
from revision.alignment import Unicorn
from revision.commands import chat
from revision.encoders import load_encoder
from revision.evaluation.reader import Reader
from revision.pictures import open_picture
from revision.schema import ChatConfig, Config, EncoderConfig

Asked = list[tuple[list[str], np.ndarray | None]]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_folder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def talkative_llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_llm(tmp_path_factory.mktemp("llm") / "untied", tied=False))


@pytest.fixture
def config(
    make_tiny_model: Callable[..., Any], talkative_llm: str, tiny_processor: Any, encoder_folder: Path, tmp_path: Path
) -> Config:
    make_tiny_model(llm=talkative_llm, embed_dim=DIM).save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    picture = make_picture(tmp_path / "picture.png", seed=0)
    return Config(
        runs=str(tmp_path / "runs"),
        encoder=EncoderConfig(name="tiny", model=f"local-dir:{encoder_folder}"),
        chat=ChatConfig(model=str(tmp_path / "model"), image=str(picture), prompt="what is it?", max_new_tokens=6),
    )


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a user type lines and then end the input."""

    def type_lines(*lines: str) -> None:
        waiting = iter(lines)

        def read(prompt: object = "") -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", read)

    return type_lines


def changed(config: Config, **changes: Any) -> Config:
    return replace(config, chat=replace(config.chat, **changes))


def answer(config: Config, capsys: pytest.CaptureFixture[str]) -> str:
    chat.run(config)
    return capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the model is asked, as it happens: the turns and the embedding."""
    seen: Asked = []
    prompt = Reader.prompt

    def spy(self: Reader, turns: Any, picture: np.ndarray | None) -> Any:
        seen.append(([turn.content for turn in turns], picture))
        return prompt(self, turns, picture)

    monkeypatch.setattr(Reader, "prompt", spy)
    return seen


def embedding(encoder_folder: Path, picture: Path) -> np.ndarray:
    encoder = load_encoder(
        kind="open_clip",
        model=f"local-dir:{encoder_folder}",
        pretrained=None,
        dtype="float32",
        device="cpu",
        name="tiny",
    )
    return encoder.encode_images([open_picture(picture)])[0]


def test_one_question_one_answer(
    config: Config, encoder_folder: Path, capsys: pytest.CaptureFixture[str], asked: Asked, tmp_path: Path
) -> None:
    first = answer(config, capsys)
    assert first.strip()
    assert first == answer(config, capsys)
    ((turns, picture), _) = asked
    assert turns == ["<image>\nwhat is it?"]
    assert picture == pytest.approx(embedding(encoder_folder, tmp_path / "picture.png"), abs=1e-6)
    answer(changed(config, image=None), capsys)
    assert asked[-1] == (["what is it?"], None)


def test_dialogue_keeps_turns_and_changes_pictures(
    config: Config,
    encoder_folder: Path,
    capsys: pytest.CaptureFixture[str],
    say: Callable[..., None],
    asked: Asked,
    tmp_path: Path,
) -> None:
    other = make_picture(tmp_path / "other.png", seed=1)
    say("what is it?", "", "how many?", f"/image {other}", "and <image> now?", "/quit", "never")
    said = answer(changed(config, prompt=None), capsys).splitlines()
    assert "/image PATH shows another one" in said[0]
    spoken = [line.removeprefix("you: ").strip() for line in said[1:]]
    first, second, third = asked
    assert first[0] == ["<image>\nwhat is it?"]
    assert second[0] == ["<image>\nwhat is it?", spoken[0], "how many?"]
    assert spoken[0]
    assert third[0] == ["and <image> now?"]  # afresh with each picture
    np.testing.assert_array_equal(first[1], second[1])
    assert third[1] == pytest.approx(embedding(encoder_folder, other), abs=1e-6)


def test_dialogue_survives_slips_and_ends_with_the_input(
    config: Config, capsys: pytest.CaptureFixture[str], say: Callable[..., None], tmp_path: Path
) -> None:
    far = tmp_path / "a folder whose name is longer than a line of many a terminal" / "notes.png"
    far.parent.mkdir()
    far.write_text("no pixels")
    say(f"/image {far}", "/image nowhere.png", "/help")
    said = answer(changed(config, prompt=None), capsys)
    assert f"{far} is not a picture of a format that is read" in said
    assert "picture nowhere.png does not exist" in said
    assert said.count("/quit leaves") == 2


def test_two_marks_are_one_too_many(
    config: Config, capsys: pytest.CaptureFixture[str], say: Callable[..., None], asked: Asked
) -> None:
    with pytest.raises(ValueError, match="the questions have 2 marks <image>, but one file is shown at a time"):
        chat.run(changed(config, prompt="<image> and <image>?"))
    say("<image> and <image>?", "what is it?", "and in <image>?")
    assert answer(changed(config, prompt=None), capsys).count("leave them out") == 2, "the first question has one too"
    assert [turns for turns, _ in asked] == [["<image>\nwhat is it?"]]


@pytest.mark.parametrize(
    ("model", "offline", "sentence"),
    [
        (
            "instrct",
            False,
            "^there is no folder instrct; give one that a training stage wrote, or owner/name of the hub",
        ),
        ("runs/nano/instruct/modl", False, "^there is no folder runs/nano/instruct/modl; give one"),
        ("mine/modl", False, "^there is no folder mine/modl; give one"),
        ("owner/name", True, "^there is no folder owner/name, and HF_HUB_OFFLINE forbids to look for it on the hub"),
        ("owner/name", False, "^owner/name cannot be read as a trained model .asked for config.json"),
    ],
)
def test_a_misspelt_model_is_not_looked_for_on_the_hub(
    config: Config, model: str, offline: bool, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where it was, a user would wait for a minute of attempts."""

    def ask(*_: object, **__: object) -> None:
        raise OSError("asked for config.json")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: offline)
    monkeypatch.setattr("revision.building.RevisionConfig.from_pretrained", ask)
    monkeypatch.setattr("revision.building.RevisionForConditionalGeneration.from_pretrained", ask)
    with pytest.raises(ValueError, match=sentence):
        chat.run(changed(config, model=model))


def test_transformers_shows_no_bars(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    chat.run(config)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (300, 2)])
def test_a_picture_that_is_too_narrow(config: Config, size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "narrow.png")
    with pytest.raises(ValueError, match=rf"^a picture of {size[0]} x {size[1]} pixels is too narrow for an encoder"):
        chat.run(changed(config, image=str(tmp_path / "narrow.png")))


def test_pictures_are_moved_where_the_model_learned_from_moved_ones(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unicorn's alignment travels with the model's folder, whatever that is called later."""
    seen: list[np.ndarray] = []
    stream = Reader.stream

    def spy(self: Reader, prompt: Any, *arguments: Any, **options: Any) -> str:
        seen.append(prompt.picture)
        return stream(self, prompt, *arguments, **options)

    monkeypatch.setattr(Reader, "stream", spy)
    chat.run(config)
    rng = np.random.default_rng(0)
    unicorn = Unicorn().fit(rng.normal(size=(20, DIM)) + 1, rng.normal(size=(20, DIM)) - 1)
    model, processor = building.read_model(Path(config.chat.model))
    building.save_model(model, processor, tmp_path / "moved", alignment={"method": "unicorn"}, aligned_by=unicorn)
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    chat.run(changed(config, model=str(tmp_path / "elsewhere")))
    raw, moved = seen
    np.testing.assert_allclose(moved, unicorn.apply_to_images(raw[None])[0], atol=1e-6)
    assert np.abs(moved - raw).max() > 0.1
    shutil.rmtree(tmp_path / "elsewhere" / building.IMAGE_ALIGNMENT)
    with pytest.raises(
        ValueError, match=r"learned from texts that unicorn moved, and lacks image_alignment/, by which"
    ):
        chat.run(changed(config, model=str(tmp_path / "elsewhere")))


def test_what_is_no_picture_is_a_sentence(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^picture {tmp_path} is a folder; name a file in it"):
        chat.run(changed(config, image=str(tmp_path)))
    (tmp_path / "notes.png").write_text("no pixels")
    with pytest.raises(ValueError, match=r"notes\.png is not a picture of a format that is read"):
        chat.run(changed(config, image=str(tmp_path / "notes.png")))
    with pytest.raises(ValueError, match=r"nowhere\.png does not exist"):
        chat.run(changed(config, image="nowhere.png"))
    with pytest.raises(ValueError, match=r"^picture x+\.png cannot be read: File name too long"):
        chat.run(changed(config, image="x" * 300 + ".png"))


def test_a_model_that_is_not_there_or_of_another_encoder(
    config: Config, make_tiny_model: Callable[..., Any], tiny_processor: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^there is no folder {tmp_path}/nowhere; give one that a training stage"):
        chat.run(changed(config, model=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"`chat` reads .*, but `instruct` never ran there"):
        chat.run(changed(config, model="instruct"))
    make_tiny_model(embed_dim=20).save_pretrained(tmp_path / "wide")
    tiny_processor.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="encoder tiny gives embeddings of 8 dimensions, the model reads 20"):
        chat.run(changed(config, model=str(tmp_path / "wide")))
