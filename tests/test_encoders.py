"""Dual encoders: ours gives what open_clip gives, from folders that may move, and says what is missing."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_encoder import DIM, MODEL_CFG, PREPROCESS_CFG, SIZE, make_encoder_folder, make_picture, make_text_tower

from revision.encoders import OpenClipEncoder, load_encoder, resolve_device
from revision.encoders.openclip import require_architecture
from revision.encoders.openclip_folder import (
    build_open_clip_model,
    head_parameters,
    load_heads,
    read_config,
    read_weights,
    save_heads,
    save_open_clip_folder,
    state_sha256,
)
from revision.shipped import shipped

TEXTS = ["a red cat", "dog", "a green tree a house", "a red cat", "unheard-of words", "blue blue blue blue"]


def load(model: str | Path, /, **changes: Any) -> OpenClipEncoder:
    settings: dict[str, Any] = {
        "kind": "open_clip", "model": f"local-dir:{model}" if isinstance(model, Path) else model, "pretrained": None,
        "dtype": "float32", "device": "cpu", "name": "tiny",
    }  # fmt: skip
    encoder = load_encoder(**{**settings, **changes})
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder_folder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage. Its configuration still names the folder it was copied from."""
    return Path(shutil.copytree(shared_folder, tmp_path / "tiny"))


def test_texts_equal_plain_open_clip(shared_folder: Path) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{shared_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{shared_folder}")
    with torch.no_grad():
        expected = model.eval().encode_text(tokenizer(TEXTS), normalize=True).numpy()
    for batch_size in (1, 2, 64):
        done: list[int] = []
        found = load(shared_folder).encode_texts(TEXTS, batch_size, on_batch=done.append)
        assert found.dtype == np.float32 and found.shape == (6, DIM)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert sum(done) == 6 and max(done) == min(batch_size, 6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_images_equal_plain_open_clip(shared_folder: Path, tmp_path: Path) -> None:
    pictures = [Image.open(make_picture(tmp_path / f"{seed}.png", seed)).convert("RGB") for seed in range(3)]
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{shared_folder}")
    with torch.no_grad():
        pixels = torch.stack([preprocess(picture) for picture in pictures])
        expected = model.eval().encode_image(pixels, normalize=True).numpy()
    found = load(shared_folder).encode_images(pictures, batch_size=2)
    assert found.dtype == np.float32 and found.shape == (3, DIM)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_nothing_to_encode(shared_folder: Path) -> None:
    encoder = load(shared_folder)
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, DIM)


def test_preprocessing_pads_with_white_and_scales(shared_folder: Path) -> None:
    """(x - 127) / 128 on a square padded with white, as the tower was trained."""
    pixels = load(shared_folder).preprocess(Image.new("RGB", (2 * SIZE, SIZE), (0, 127, 191)))
    assert pixels.shape == (3, SIZE, SIZE)
    border = SIZE // 4
    for channel, value in enumerate((0, 127, 191)):
        inside = pixels[channel, border:-border]
        torch.testing.assert_close(inside, torch.full_like(inside, (value - 127) / 128), atol=1e-6, rtol=0)
    outside = torch.cat([pixels[:, :border], pixels[:, -border:]], dim=1)
    torch.testing.assert_close(outside, torch.ones_like(outside), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_near(shared_folder: Path, dtype: str) -> None:
    low = load(shared_folder, dtype=dtype).encode_texts(TEXTS)
    assert low.dtype == np.float32
    difference = np.abs(low - load(shared_folder).encode_texts(TEXTS)).max()
    assert 0 < difference < 0.02


def test_moved_folder(folder: Path, shared_folder: Path) -> None:
    named = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]["hf_model_name"]
    assert named == str(shared_folder)  # a copy still points at the original: make sure that it is not what is read
    moved = folder.rename(folder.with_name("moved"))
    config = json.loads((moved / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].update(hf_model_name="/nowhere", hf_tokenizer_name="/nowhere")
    (moved / "open_clip_config.json").write_text(json.dumps(config))
    encoder = load(moved)
    assert encoder.describe() == load(shared_folder).describe()
    np.testing.assert_array_equal(encoder.encode_texts(TEXTS), load(shared_folder).encode_texts(TEXTS))


def test_description_follows_what_vectors_depend_on(folder: Path) -> None:
    first = load(folder).describe()
    assert first["weights"] == hashlib.sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert {key for key in first if load(folder, dtype="bfloat16").describe()[key] != first[key]} == {"dtype"}

    def changed_by(edit: dict[str, dict[str, Any]]) -> set[str]:
        file = folder / "open_clip_config.json"
        before = file.read_text()
        config = json.loads(before)
        for part, values in edit.items():
            target = config["model_cfg"]["text_cfg"] if part == "text_cfg" else config[part]
            target.update(values)
        file.write_text(json.dumps(config))
        second = load(folder).describe()
        file.write_text(before)
        return {key for key in first if first[key] != second[key]}

    assert changed_by({"preprocess_cfg": {"fill_color": 0}}) == {"preprocessing"}
    assert changed_by({"text_cfg": {"context_length": 8}}) == {"architecture", "tokenizer"}
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.head.mlp.fc1.bias"] += 1
    save_file(weights, folder / "open_clip_model.safetensors")
    assert changed_by({}) == {"weights"}


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Registers an architecture of open_clip's own classes and returns weights for it."""
    place = tmp_path_factory.mktemp("clip")
    (place / "revision-tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(place / "revision-tiny-clip.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("revision-tiny-clip").state_dict(), place / "weights.safetensors")
    return place / "weights.safetensors"


def test_architecture_with_weights_file(tiny_clip: Path) -> None:
    encoder = load("revision-tiny-clip", pretrained=str(tiny_clip))
    rows = encoder.encode_texts(["a cat", "a much longer text about a dog", "b"], batch_size=2)
    model = open_clip.create_model("revision-tiny-clip", pretrained=str(tiny_clip)).eval()
    tokenizer = open_clip.get_tokenizer("revision-tiny-clip")
    with torch.no_grad():
        expected = model.encode_text(tokenizer(["a cat", "a much longer text about a dog", "b"]), normalize=True)
    np.testing.assert_allclose(rows, expected.numpy(), atol=1e-6)
    assert encoder.cut_texts == 0
    fits, over = "a " * 10, "a " * 11  # between start and end token, in a context of 12
    np.testing.assert_allclose(encoder.encode_texts([fits]), encoder.encode_texts([over, "a"])[:1], atol=1e-6)
    assert encoder.cut_texts == 1
    assert encoder.describe()["model"] == "revision-tiny-clip"
    assert encoder.describe()["weights"] == state_sha256(load_file(tiny_clip))


def test_a_word_without_end_is_cut_before_it_is_tokenized(tiny_clip: Path) -> None:
    """open_clip's tokenizer alone takes a time that grows with the square of a word."""
    encoder = load("revision-tiny-clip", pretrained=str(tiny_clip))
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), size=100_000))
    assert isinstance(encoder.tokenizer, open_clip.SimpleTokenizer)
    read = encoder.tokenizer.clean_fn(letters)
    assert len(read) < 1000 and letters.startswith(read)
    ((_, found),) = encoder.token_batches([letters], 1)
    assert encoder.cut_texts == 1
    ((_, expected),) = encoder.token_batches([read], 1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        "the quick brown fox, &amp;amp; its 3 friends " * 200,
        "  \n" * 5000 + "a cat" + " " * 5000 + "and a dog " * 20,
        "&CounterClockwiseContourIntegral;" * 100 + " a cat",
        "thinkbigsundaywithmarsha " * 100,  # one token a word, the longest of the vocabulary
        "\N{FACE WITH TEARS OF JOY}" * 80 + " a cat",
        "Donaudampfschifffahrtsgesellschaftskapitänsmütze " * 50,
    ],
)
def test_long_texts_have_the_ids_of_the_whole(tiny_clip: Path, text: str) -> None:
    encoder = load("revision-tiny-clip", pretrained=str(tiny_clip))
    ((_, found),) = encoder.token_batches([text], 1)
    whole = open_clip.get_tokenizer("revision-tiny-clip")
    assert torch.equal(found, whole([text]))
    assert encoder.cut_texts == int(len(whole.encode(text)) > 10), "start and end token take two of twelve"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "open_clap"}, r"encoder.kind = open_clap: must be one of open_clip, .*did you mean 'open_clip'\?"),
        ({"dtype": "int8"}, "encoder.dtype is 'int8'; known are float32"),
        ({"device": "gpu"}, "device 'gpu' is unknown; use auto, cpu"),
        ({"device": "cuda:97"}, "device 'cuda:97' is not there: this machine has"),
        ({"model": "ViT-B-23"}, r"encoder.model 'ViT-B-23' is not known to open_clip; did you mean ViT-B-32\?"),
        ({"model": "qqqq"}, "is not known to open_clip; name an architecture"),
        ({"model": "ViT-B-32"}, "encoder.pretrained is null, so ViT-B-32 would have random weights"),
        ({"model": "ViT-B-32", "pretrained": "mine"}, "neither a file nor a tag of ViT-B-32; tags are openai"),
        (
            {"model": "ViT-L-14", "pretrained": "openai"},
            "trained with QuickGELU, .* set encoder.model to ViT-L-14-quickgelu",
        ),
        ({"model": "local-dir:/no/such"}, "open_clip folder /no/such does not exist"),
    ],
)
def test_unknown_names(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load("ViT-B-32", **changes)


def test_shipped_architectures_have_their_weights_and_activation() -> None:
    files = {file.stem: yaml.safe_load(file.read_text()) for file in (shipped("configs") / "encoder").glob("*.yaml")}
    named = {name: file for name, file in files.items() if file.get("pretrained")}
    assert {"openclip_vit_l14", "openclip_vit_l14_336", "openclip_vit_h14", "openclip_vit_bigg14"} == set(named)
    for file in named.values():
        require_architecture(file["model"], file["pretrained"])


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be loaded from the hub: .* give a local weights file"):
        load("ViT-B-32", pretrained="laion2b_s34b_b79k")
    with pytest.raises(
        ValueError, match=r"encoder hf-hub:some/repo cannot be loaded from the hub: .*if it cannot be reached"
    ):
        load("hf-hub:some/repo")


def test_weights_of_another_architecture(tiny_clip: Path, shared_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"revision-tiny-clip cannot be loaded from .*; give the weights of this"):
        load("revision-tiny-clip", pretrained=str(shared_folder / "open_clip_model.safetensors"))


def test_local_folder_takes_no_pretrained(shared_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder.pretrained is 'laion', but local-dir:.* has its own weights"):
        load(shared_folder, pretrained="laion")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no config", "is not a finished open_clip folder: it has no open_clip_config.json"),
        ("bad config", "is not an open_clip configuration"),
        ("no model_cfg", "is not an open_clip configuration .KeyError: 'model_cfg'"),
        ("no text_cfg", "lacks text_cfg, vision_cfg in its model_cfg"),
        ("no tokenizer", "has no tokenizer of its text tower"),
        ("no weights", "cannot be loaded: .*; make the folder again"),
        ("truncated weights", "cannot be loaded: .*; make the folder again"),
        ("other weights", "cannot be loaded: .*; make the folder again"),
    ],
)
def test_damaged_folder(folder: Path, damage: str, sentence: str) -> None:
    config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    match damage:
        case "no config":
            config.unlink()
        case "bad config":
            config.write_text("{")
        case "no model_cfg":
            config.write_text("{}")
        case "no text_cfg":
            config.write_text('{"model_cfg": {"embed_dim": 8}}')
        case "no tokenizer":
            for name in ("tokenizer.json", "vocab.txt"):
                (folder / name).unlink()
        case "no weights":
            weights.unlink()
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "other weights":
            save_file({"logit_scale": torch.zeros(())}, weights)
    with pytest.raises(ValueError, match=sentence):
        load(folder)


def test_automatic_device_is_the_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert resolve_device("auto") == torch.device("cuda", 2)


def test_interrupted_save_leaves_no_folder_that_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("safetensors.torch.save_file", no_space)
    with pytest.raises(OSError, match=r"no space"):
        save_open_clip_folder(
            folder, model_cfg=MODEL_CFG, preprocess_cfg=PREPROCESS_CFG, state_dict=read_weights(folder),
            text_tower=folder,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"is not a finished open_clip folder"):
        load(folder)


def test_save_needs_a_whole_text_tower(tmp_path: Path) -> None:
    tower = make_text_tower(tmp_path / "tower")

    def save(text_tower: Path | None) -> None:
        save_open_clip_folder(
            tmp_path / "out", model_cfg=MODEL_CFG, preprocess_cfg=PREPROCESS_CFG, state_dict={}, text_tower=text_tower
        )

    with pytest.raises(ValueError, match=r"text_tower must name its folder"):
        save(None)
    for name in ("tokenizer.json", "vocab.txt"):
        (tower / name).unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer"):
        save(tower)
    (tower / "config.json").unlink()
    with pytest.raises(ValueError, match=r"text tower .* has no config\.json"):
        save(tower)


def test_saved_folder(tmp_path: Path) -> None:
    before = json.dumps(MODEL_CFG)
    folder = make_encoder_folder(tmp_path / "tiny")
    assert json.dumps(MODEL_CFG) == before
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    model_cfg, preprocess_cfg = read_config(folder)
    assert model_cfg["text_cfg"]["hf_model_name"] == model_cfg["text_cfg"]["hf_tokenizer_name"] == str(folder)
    assert preprocess_cfg == PREPROCESS_CFG


def other_model(folder: Path, seed: int, **vision: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    model_cfg, _ = read_config(folder)
    return build_open_clip_model({**model_cfg, "vision_cfg": {**model_cfg["vision_cfg"], **vision}})


def test_heads_travel_alone(folder: Path, tmp_path: Path) -> None:
    donor = other_model(folder, seed=5)
    save_heads(donor, tmp_path / "new" / "heads.safetensors")
    saved = load_file(tmp_path / "new" / "heads.safetensors")
    assert saved.keys() == head_parameters(donor).keys() | {"logit_scale"}
    assert {name.rsplit(".", 2)[0] for name in saved} == {"visual.head.mlp", "text.proj", "logit_scale"}

    before = read_weights(folder)
    taker = other_model(folder, seed=9)
    taker.load_state_dict(before)
    load_heads(taker, tmp_path / "new" / "heads.safetensors")
    after = taker.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, saved.get(name, before[name]), atol=0, rtol=0)
    assert any(not torch.equal(before[name], after[name]) for name in saved)


def test_heads_of_other_towers(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "heads.safetensors"
    with pytest.raises(ValueError, match=r"weights .* do not exist"):
        load_heads(other_model(folder, seed=0), file)
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"are damaged or not safetensors"):
        load_heads(other_model(folder, seed=0), file)
    save_heads(other_model(folder, seed=0, timm_proj="linear"), file)
    with pytest.raises(ValueError, match=r"do not fit the model: visual.head.mlp.fc1.bias has shape none in the file"):
        load_heads(other_model(folder, seed=0), file)
    heads = {name: value.detach() for name, value in head_parameters(other_model(folder, seed=0)).items()}
    save_file({**heads, "logit_scale": torch.zeros(()), "text.proj.0.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ValueError, match=r"text.proj.0.weight has shape \(2, 2\) in the file and \(12, 16\)"):
        load_heads(other_model(folder, seed=0), file)


def test_state_hash_sees_names_shapes_and_values() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0)}
    same = {"b": torch.tensor(1.0), "a": torch.zeros(3, 2).T}
    others = [
        {**base, "a": torch.zeros(3, 2)},
        {**base, "b": torch.tensor(2.0)},
        {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {"c": base["a"], "b": base["b"]},
    ]
    hashes = [state_sha256(one) for one in (base, same, *others)]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 5
