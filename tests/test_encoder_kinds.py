"""Kinds of encoders: those that a package adds, the fields that ours take, and what is said where files are missing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_package
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_corpus import make_groups
from tiny_towers import align_folder, clip_folder, llama_folder, llm2clip_folder, siglip_folder
from transformers import LlamaConfig, LlamaModel

from revision.cli import main
from revision.commands import align, chat, embed
from revision.embeddings import EmbeddingStore
from revision.encoders import kinds, load_encoder, sources
from revision.encoders.sources import find_folder, weights_sha256
from revision.evaluation.reader import Reader
from revision.runs import rundir
from revision.schema import ChatConfig, Config, DataConfig, EmbedConfig, EncoderConfig, Modality, SourceConfig

# An encoder of sounds and texts from another package: waves as .npy files, vectors from moments and letters.
PACKAGE = """
from pathlib import Path
import numpy as np, torch
from revision.encoders import EncoderSource

def open_wave(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"sound {path} does not exist")
    return np.load(path, allow_pickle=False)

def moments(wave: np.ndarray) -> torch.Tensor:
    return torch.tensor([float((wave ** k).mean()) for k in (1, 2, 3, 4)])

class Waves:
    dim, preprocess, open_file, cut_texts = 4, staticmethod(moments), staticmethod(open_wave), 0
    def __init__(self, source): self.source = source
    def encode_texts(self, texts, batch_size=64, on_batch=None):
        rows = np.array([[len(text), text.count("a"), 1, self.source.options["gain"]] for text in texts], "float32")
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    def encode_pixels(self, pixels):
        return (pixels / pixels.norm(dim=1, keepdim=True)).numpy()
    def encode_images(self, images, batch_size=64):
        return self.encode_pixels(torch.stack([moments(one) for one in images]))
    def describe(self):
        gain = str(self.source.options["gain"])
        return {"name": self.source.name, "kind": "waves", "weights": gain}

def load(source: EncoderSource) -> Waves:
    return Waves(source)

class Deaf:
    dim = 4
    def __init__(self, source): pass

class Nameless(Waves):
    def describe(self): return {"name": self.source.name}
"""


@pytest.fixture
def waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution on the path with five entry points; one has no module, one takes the name of ours."""
    points = {
        "waves": "fake_waves:load", "broken": "no_such_module:load", "nameless": "fake_waves:Nameless",
        "deaf": "fake_waves:Deaf", "llm2clip": "fake_waves:load",
    }  # fmt: skip
    return fake_package.install(tmp_path, monkeypatch, "fake_waves", PACKAGE, kinds.GROUP, points)


def wave_config(root: Path) -> Config:
    rows = [{"id": f"t{n}", "text": "a bird " * (n + 1)} for n in range(5)]
    (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": f"w{n}", "image": f"{n}.npy"} for n in range(5)]
    (root / "sounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(4):
        np.save(root / f"{number}.npy", np.random.default_rng(number).normal(size=50).astype("float32"))
    data = DataConfig(
        name="sounds", folder=str(root), stores=str(root / "stores"),
        sources={"texts": SourceConfig(Modality.text, str(root / "texts.jsonl")),
                 "statistics": SourceConfig(Modality.image, str(root / "sounds.jsonl"))},
    )  # fmt: skip
    encoder = EncoderConfig(name="tiny", kind="waves", model="moments", options={"gain": 2.0})
    return Config(name="test", runs=str(root / "runs"), data=data, encoder=encoder,
                  embed=EmbedConfig(shard_size=2, device="cpu", reject_budget=0.5))  # fmt: skip


def test_encoder_of_another_package(waves: Path, tmp_path: Path) -> None:
    """Sounds through the whole road: its own reading of files, its own options, stores, and an alignment."""
    config = wave_config(tmp_path)
    embed.run(config)
    align.run(config)
    store = EmbeddingStore.open(tmp_path / "stores/tiny/statistics")
    assert store.ids() == ["w0", "w1", "w2", "w3"] and store.dim == 4
    waves_read = [np.load(tmp_path / f"{number}.npy", allow_pickle=False) for number in range(4)]
    moments = np.array([[(wave**k).mean() for k in (1, 2, 3, 4)] for wave in waves_read])
    moments /= np.linalg.norm(moments, axis=1, keepdims=True)
    np.testing.assert_allclose(store.rows(slice(None)), moments, atol=1e-3)
    (rejected,) = (store.path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["id"] == "w4" and "sound" in json.loads(rejected)["reason"]
    before = rundir.fingerprint(config, "align")
    config.encoder.options["gain"] = 3.0
    assert rundir.fingerprint(config, "align") != before
    with pytest.raises(ValueError, match=r"was made with other settings .changed: encoder weights."):
        embed.run(config)


def test_chat_reads_a_file_as_the_encoder_does(
    waves: Path, make_tiny_model: Callable[..., Any], tiny_processor: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = wave_config(tmp_path)
    make_tiny_model(embed_dim=4).save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    config.chat = ChatConfig(model=str(tmp_path / "model"), image=str(tmp_path / "2.npy"), prompt="what?",
                             max_new_tokens=3)  # fmt: skip
    shown: list[Any] = []
    prompt = Reader.prompt

    def spy(self: Reader, turns: Any, seen: Any) -> Any:
        shown.append(seen)
        return prompt(self, turns, seen)

    monkeypatch.setattr(Reader, "prompt", spy)
    chat.run(config)
    assert capsys.readouterr().out  # the answer; a tiny model's may be blank
    assert len(shown) == 1
    wave = np.load(tmp_path / "2.npy", allow_pickle=False)
    moments = np.array([(wave**k).mean() for k in (1, 2, 3, 4)])
    np.testing.assert_allclose(shown[0], moments / np.linalg.norm(moments), atol=1e-5)
    config.chat.image = str(tmp_path / "9.npy")
    monkeypatch.setattr(Reader, "load", None)  # the LLM is not loaded for what cannot be read
    with pytest.raises(ValueError, match=r"^sound .*9\.npy does not exist"):
        chat.run(config)


def test_kinds_of_other_packages(waves: Path) -> None:
    added = set(kinds.added())
    assert added >= {"waves", "broken", "nameless", "deaf"}
    assert "llm2clip" not in added  # a package does not take the place of ours
    source: dict[str, Any] = {"model": "x", "dtype": "float32", "device": "cpu", "name": "t", "options": {"gain": 1.0}}
    with pytest.raises(ValueError, match=r"encoder.kind = wave: must be one of open_clip, .*waves.*mean 'waves'"):
        load_encoder(kind="wave", **source)
    with pytest.raises(ValueError, match=r"'broken' of no_such_module:load cannot be imported .No module named"):
        load_encoder(kind="broken", **source)
    with pytest.raises(ValueError, match=r"'deaf' gives a Deaf, which is no DualEncoder; its package must give one"):
        load_encoder(kind="deaf", **source)
    with pytest.raises(ValueError, match=r"'nameless' describes itself as .*`weights` that change with the model"):
        load_encoder(kind="nameless", **source)


def test_the_command_line_knows_kinds(
    waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    groups = str(make_groups(tmp_path / "configs", tmp_path / "corpus"))
    words = ["embed", "data=tiny", "encoder=tiny", "--config-dir", groups]

    def said(*overrides: str) -> str:
        assert main([*words, *overrides]) == 2
        return capsys.readouterr().err

    assert "encoder.kind = wavse: must be one of open_clip, transformers, llm2clip" in said("encoder.kind=wavse")
    assert "(did you mean 'waves'?)" in said("encoder.kind=wavse")
    assert "encoder.text_model = null: must be set" in said("encoder.kind=llm2clip")
    assert "encoder.options = {'fps': 8}: must be null" in said("encoder.options.fps=8")
    assert "encoder.max_length = 9: must be null, since the kind open_clip" in said("encoder.max_length=9")
    assert "encoder.max_length = 1: must be at least 3" in said("encoder.kind=transformers", "encoder.max_length=1")
    assert main([*words, "encoder.kind=waves", "encoder.options.gain=2", "--cfg", "job"]) == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("towers")
    makers: dict[str, Callable[[Path], Path]] = {
        "clip": clip_folder, "siglip": siglip_folder, "align": align_folder, "llm2clip": llm2clip_folder,
        "llama": llama_folder,
    }  # fmt: skip
    return {name: make(place / name) for name, make in makers.items()}


@pytest.fixture
def folders(shared: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies that a test may damage."""
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in shared.items()}


def load(kind: str, model: Path | str, **changes: Any) -> Any:
    return load_encoder(
        **{"kind": kind, "model": str(model), "dtype": "float32", "device": "cpu", "name": "t", **changes}
    )


def without(folder: Path, *starts: str, file: str = "model.safetensors") -> None:
    weights = {name: value for name, value in load_file(folder / file).items() if not name.startswith(starts)}
    save_file(weights, folder / file, metadata={"format": "pt"})


def no_file(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def own_code(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": {"AutoConfig": "new.New"}}))


def no_dual_encoder(folder: Path) -> None:
    LlamaModel(LlamaConfig(vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                           num_attention_heads=1)).save_pretrained(folder)  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no model of transformers, it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (no_file, "has no model.safetensors; only pickled weights, which are not read; convert them"),
        (no_vocabulary, "has no tokenizer .none of tokenizer.json, "),
        (lambda folder: without(folder, "text_projection"), "lacks 1 weights of a CLIPModel, text_projection.weight"),
        (own_code, "cannot be read: it needs code from the hub, which is never run"),
        (no_dual_encoder, "LlamaModel is no dual encoder"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "the image processor in .* cannot be read"),
    ],
)
def test_damaged_folder_of_transformers(
    folders: dict[str, Path], damage: Callable[[Path], object], sentence: str
) -> None:
    damage(folders["clip"])
    with pytest.raises(ValueError, match=sentence):
        load("transformers", folders["clip"])


def test_contexts(folders: dict[str, Path]) -> None:
    assert load("transformers", folders["clip"], max_length=5).context == 5
    with pytest.raises(ValueError, match=r"encoder.max_length = 11: must be at most 10"):
        load("transformers", folders["clip"], max_length=11)
    with pytest.raises(ValueError, match=r"encoder.max_length = 20: must be null for SigLIP, which reads 64"):
        load("transformers", folders["siglip"], max_length=20)


def test_sides_without_a_shared_space(folders: dict[str, Path]) -> None:
    from PIL import Image

    encoder = load("transformers", folders["clip"])
    encoder.model.visual_projection = encoder.model.visual_projection.__class__(16, 5)
    with pytest.raises(ValueError, match=r"gives image features of shape \[1, 5\] where one vector of 8 dimensions"):
        encoder.encode_images([Image.new("RGB", (32, 32))])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda own: without(own["llm2clip"], "text_adapter", file="model-2.safetensors"), "has no text adapter"),
        (lambda own: without(own["llm2clip"], "text_adapter.adaptor.1.ln", file="model-2.safetensors"),
         "its adapter is not LLM2CLIP's: .*Missing key.*1.ln"),
        (lambda own: (own["llm2clip"] / "model-1.safetensors").unlink(), "has no model-1.safetensors; fetch it again"),
        (lambda own: (own["llm2clip"] / "model-2.safetensors").write_bytes(b"x" * 20), "is damaged"),
        (lambda own: shutil.copyfile(own["clip"] / "config.json", own["llama"] / "config.json"),
         "is a clip model: LLM2CLIP's are llama"),
        (lambda own: shutil.copyfile(own["clip"] / "tokenizer.json", own["llama"] / "tokenizer.json"),
         "its tokenizer has no token <|start_header_id|>".replace("|", r"\|")),
        (lambda own: without(own["llama"], "norm"), "lacks 1 weights of a LlamaModel, norm.weight"),
    ],
)  # fmt: skip
def test_damaged_folders_of_llm2clip(
    folders: dict[str, Path], damage: Callable[[dict[str, Path]], object], sentence: str
) -> None:
    damage(folders)
    with pytest.raises(ValueError, match=sentence):
        load("llm2clip", folders["llm2clip"], text_model=str(folders["llama"])).encode_texts(["a cat"])


def test_language_model_of_another_width(folders: dict[str, Path], tmp_path: Path) -> None:
    wide = llama_folder(tmp_path / "wide", width=24)
    with pytest.raises(ValueError, match=r"is 24 wide, the adapter in .* reads 16"):
        load("llm2clip", folders["llm2clip"], text_model=str(wide)).encode_texts(["a cat"])


def test_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model in ("/no/such", "./no", "vit-b", "a/b/c"):
        with pytest.raises(ValueError, match=r"encoder.model = .*: there is no such folder; give one, or a name"):
            find_folder("encoder.model", model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"encoder.model = some/model@v1: it is not in the cache .* HF_HUB_OFFLINE"):
        load("transformers", "some/model@v1")


def test_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at this address; without the question, each file would be asked for with pauses between."""
    asked: list[str] = []
    answers = sources._answers

    def counting(endpoint: str) -> bool:
        asked.append(endpoint)
        return answers(endpoint)

    monkeypatch.setattr(sources, "_answers", counting)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ValueError, match=r"encoder.model = some/model: .* and the hub cannot be reached; fetch it"):
        load("transformers", "some/model")
    with pytest.raises(ValueError, match=r"ViT-B-32 cannot be loaded from the hub"):
        load("open_clip", "ViT-B-32", pretrained="laion2b_s34b_b79k")
    assert asked == ["http://127.0.0.1:9"] * 2


def test_model_in_the_cache_of_the_hub(
    shared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--some--clip"
    shutil.copytree(shared["clip"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for model in ("some/clip", f"some/clip@{commit}"):
        assert load("transformers", model).describe() == load("transformers", shared["clip"]).describe()


def test_hash_of_a_large_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    plain = weights_sha256([file])
    monkeypatch.setenv("REVISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_WORTH_KEEPING", 1)
    assert weights_sha256([file]) == plain
    monkeypatch.setattr(sources, "file_sha256", None)
    assert weights_sha256([file]) == plain  # read back, not computed
    monkeypatch.undo()
    monkeypatch.setenv("REVISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_WORTH_KEEPING", 1)
    file.write_bytes(b"others!")
    os.utime(file, ns=(1, 1))
    assert weights_sha256([file]) != plain
    assert weights_sha256([file, file]) != weights_sha256([file])
