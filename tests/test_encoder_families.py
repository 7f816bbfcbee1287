"""Encoders of transformers and LLM2CLIP: what the library's own forward gives, whatever the batch; end to end."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece as spm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_encoder import WORDS, make_picture
from tiny_towers import (
    MARKS,
    align_folder,
    altclip_folder,
    clip_folder,
    llama_folder,
    llm2clip_folder,
    naflex_folder,
    siglip_folder,
)
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPVisionModelWithProjection,
    LlamaModel,
    SiglipTokenizer,
)

from revision.commands import align, embed
from revision.embeddings import EmbeddingStore
from revision.encoders import load_encoder
from revision.encoders.huggingface import TransformersEncoder
from revision.encoders.llm2clip import LLM2ClipEncoder
from revision.encoders.llm2vec import bidirectional_states
from revision.schema import Config, DataConfig, Dtype, EmbedConfig, EncoderConfig, Modality, SourceConfig

TEXTS = ["a red cat", "dog", "Dog", "a green tree a house a red dog a blue cat a tree", "blue blue blue", "a red cat"]
MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": clip_folder, "siglip": siglip_folder, "naflex": naflex_folder, "align": align_folder,
    "llm2clip": llm2clip_folder,
}  # fmt: skip
CONTEXT = {"clip": 10, "align": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("towers")
    return {name: make(place / name) for name, make in MAKERS.items()} | {"llama": llama_folder(place / "llama")}


def settings(folders: dict[str, Path], family: str, **changes: Any) -> dict[str, Any]:
    own = {"kind": "transformers", "model": str(folders[family])}
    if family == "llm2clip":
        own = {"kind": "llm2clip", "model": str(folders[family]), "text_model": str(folders["llama"])}
    return {**own, "dtype": "float32", "device": "cpu", "name": "tiny", **changes}


def pictures() -> list[Image.Image]:
    """Of several shapes, one so low that its height could pass for channels."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    shapes = [(20, 28), (60, 30), (33, 90)]
    return [Image.fromarray(noise[:height, :width]) for height, width in shapes] + [Image.new("RGB", (40, 3), "green")]


def words(tokenizer: Any, *parts: str) -> list[int]:
    known = tokenizer.get_vocab()
    return [known.get(word, known["<unk>"]) for word in parts]


def forward_texts(folder: Path, family: str, texts: Sequence[str]) -> np.ndarray:
    """Each text alone through the whole model in float64, its ids put together by hand."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        if family in ("siglip", "naflex"):
            pieces = text.lower().split() if family == "siglip" else text.lower().replace(" ", "▁")
            own = words(tokenizer, *pieces, tokenizer.eos_token)
            ids = torch.tensor([own + words(tokenizer, tokenizer.pad_token) * (64 - len(own))])
        else:
            own = words(tokenizer, "<start>", *text.split())[: CONTEXT[family] - 1]
            ids = torch.tensor([own + words(tokenizer, "<end>")])
        pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures()[:1], return_tensors="pt")
        pixels["pixel_values"] = pixels["pixel_values"].double()
        with torch.no_grad():
            rows.append(torch.nn.functional.normalize(model(input_ids=ids, **pixels).text_embeds, dim=-1)[0])
    return torch.stack(rows).numpy()


def forward_images(folder: Path, family: str) -> np.ndarray:
    """Each picture alone through the whole model, in float64."""
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    rows = []
    for picture in pictures():
        pixels = AutoImageProcessor.from_pretrained(folder)(images=[picture], return_tensors="pt")
        pixels["pixel_values"] = pixels["pixel_values"].double()
        ids = torch.tensor([[4, 3] + [1] * 62 if family in ("siglip", "naflex") else [2, 4, 3]])
        with torch.no_grad():
            rows.append(torch.nn.functional.normalize(model(input_ids=ids, **pixels).image_embeds, dim=-1)[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("family", ["clip", "siglip", "naflex", "align"])
def test_features_are_those_of_the_librarys_forward(folders: dict[str, Path], family: str) -> None:
    encoder = load_encoder(**settings(folders, family))
    assert isinstance(encoder, TransformersEncoder)
    texts, images = forward_texts(folders[family], family, TEXTS), forward_images(folders[family], family)
    assert encoder.dim == texts.shape[1] == images.shape[1]
    for batch_size in (1, 2, 64):
        done: list[int] = []
        found = encoder.encode_texts(TEXTS, batch_size, on_batch=done.append)
        assert found.dtype == np.float32 and sum(done) == len(TEXTS) and max(done) == min(batch_size, len(TEXTS))
        np.testing.assert_allclose(found, texts, atol=2e-6)
        np.testing.assert_allclose(encoder.encode_images(pictures(), batch_size), images, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert encoder.cut_texts == (3 if family in CONTEXT else 0)  # once in each of three calls
    assert np.abs(found[0] - found[1]).max() > 1e-2
    lowercases = np.allclose(found[1], found[2], atol=1e-6)
    assert lowercases == (family in ("siglip", "naflex"))
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, encoder.dim)


def test_positions_behind_the_paddings_are_fewer_than_the_tower_has(tmp_path: Path) -> None:
    """RoBERTa's text of n tokens takes positions 2 to n + 1, so that 12 of 14 are left."""
    encoder = load_encoder(**settings({"altclip": altclip_folder(tmp_path)}, "altclip"))
    long, fitting = " ".join(["red"] * 40), " ".join(["red"] * 10)
    rows = encoder.encode_texts([long, fitting, "a red cat"])
    assert encoder.cut_texts == 1
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"encoder.max_length = 13: must be at most 12, which .* reads"):
        load_encoder(**settings({"altclip": tmp_path}, "altclip", max_length=13))


def test_low_picture_is_not_taken_for_channels(folders: dict[str, Path]) -> None:
    pixels = load_encoder(**settings(folders, "siglip")).preprocess(pictures()[3])
    expected = torch.tensor([0, 128, 0]) / 255 * 2 - 1
    torch.testing.assert_close(pixels, expected[:, None, None].expand(3, 32, 32), atol=1e-6, rtol=0)


def test_siglip_with_its_own_sentencepiece_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    """The class that google/siglip-* are saved with: capitals and punctuation go, 64 positions, no mask."""
    folder = Path(shutil.copytree(folders["siglip"], tmp_path / "siglip"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    (tmp_path / "corpus.txt").write_text("\n".join([*TEXTS, *WORDS] * 20))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=40, minloglevel=2,
        bos_id=-1, pad_id=0, eos_id=1, unk_id=2, pad_piece="<pad>", eos_piece="</s>", hard_vocab_limit=False,
    )  # fmt: skip
    SiglipTokenizer(str(tmp_path / "spiece.model"), model_input_names=["input_ids"]).save_pretrained(folder)
    encoder = load_encoder(**settings({"siglip": folder}, "siglip"))
    assert isinstance(encoder, TransformersEncoder) and isinstance(encoder.tokenizer, SiglipTokenizer)
    found = encoder.encode_texts(["A red, CAT!", "a red cat", "dog", "a cat " * 60], batch_size=2)
    pieces = spm.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    for row, text in ((1, "a red cat"), (2, "dog"), (3, "a cat " * 60)):
        ids = [*pieces.encode(text)[:63], 1]
        with torch.no_grad():
            features = model.get_text_features(torch.tensor([ids + [1] * (64 - len(ids))])).pooler_output[0]
        np.testing.assert_allclose(found[row], (features / features.norm()).numpy(), atol=2e-6)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert encoder.cut_texts == 1


def adapter_by_hand(weights: dict[str, torch.Tensor], mean: torch.Tensor) -> torch.Tensor:
    functional, part = torch.nn.functional, {name: value.double() for name, value in weights.items()}
    x = mean / mean.norm()
    for block in range(4):
        own = {name.removeprefix(f"{block}."): value for name, value in part.items() if name.startswith(f"{block}.")}
        normed = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * own["ln.weight"] + own["ln.bias"]
        inner = own["fn.0.weight"] @ normed + own["fn.0.bias"]
        gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + own["fn.3.weight"] @ gelu + own["fn.3.bias"]
    normed = functional.layer_norm(x, x.shape, part["4.weight"], part["4.bias"])
    projected = part["5.weight"] @ normed + part["5.bias"]
    return projected / projected.norm()


def test_llm2clip_by_hand(folders: dict[str, Path]) -> None:
    """Turn, attention in both directions, mean over text and end, adapter: one text at a time in float64."""
    llama: Any = LlamaModel.from_pretrained(folders["llama"], dtype=torch.float64, attn_implementation="eager").eval()
    llama.config.is_causal = False
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    adapter = {name.removeprefix("text_adapter.adaptor."): value
               for name, value in load_file(folders["llm2clip"] / "model-2.safetensors").items()}  # fmt: skip
    expected = []
    for text in TEXTS:
        head = words(tokenizer, MARKS[0], MARKS[1], "user", MARKS[2], "\n\n")
        own = words(tokenizer, *text.split(), MARKS[3])
        with torch.no_grad():
            states = llama(input_ids=torch.tensor([head + own]), use_cache=False).last_hidden_state[0]
        expected.append(adapter_by_hand(adapter, states[len(head) :].mean(dim=0)))
    encoder = load_encoder(**settings(folders, "llm2clip"))
    for batch_size in (1, 2, 64):
        found = encoder.encode_texts(TEXTS, batch_size)
        np.testing.assert_allclose(found, torch.stack(expected).numpy(), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_texts(["a red cat \n"]), found[:1], atol=1e-6)
    assert encoder.cut_texts == 0 and np.abs(found[0] - found[1]).max() > 1e-2


def test_llm2clip_pictures(folders: dict[str, Path], tmp_path: Path) -> None:
    """The tower alone, and without a look at the language model."""
    encoder = load_encoder(**settings(folders, "llm2clip"))
    assert isinstance(encoder, LLM2ClipEncoder)
    found = encoder.encode_images(pictures(), batch_size=3)
    assert "language_model" not in vars(encoder)
    own = tmp_path / "tower"
    shutil.copytree(folders["llm2clip"], own)
    (own / "model.safetensors.index.json").unlink()
    (own / "model-1.safetensors").rename(own / "model.safetensors")
    tower = CLIPVisionModelWithProjection.from_pretrained(own, dtype=torch.float64, projection_dim=encoder.dim).eval()
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures()]).double()
    with torch.no_grad():
        expected = torch.nn.functional.normalize(tower(pixels).image_embeds, dim=-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    green = [(value / 255 - m) / s for value, m, s in zip((0, 128, 0), mean, deviation, strict=True)]
    expected = torch.tensor(green).double()[:, None, None].expand(3, 32, 32)
    torch.testing.assert_close(pixels[3], expected, atol=1e-6, rtol=0)


def test_a_late_token_reaches_an_early_state(folders: dict[str, Path]) -> None:
    llama: Any = LlamaModel.from_pretrained(folders["llama"], attn_implementation="sdpa").eval()
    ids, real = torch.tensor([[5, 6, 7, 8]] * 2), torch.ones(2, 4, dtype=torch.bool)
    ids[1, 3] = 9
    with torch.no_grad():
        both, causal = bidirectional_states(llama, ids, real), llama(input_ids=ids).last_hidden_state
        alone = bidirectional_states(llama, ids[:1, :2], real[:1, :2])
        padded = bidirectional_states(llama, ids[:1], torch.tensor([[True, True, False, False]]))
    assert (both[0, 0] - both[1, 0]).abs().max() > 1e-3
    torch.testing.assert_close(causal[0, 0], causal[1, 0])
    torch.testing.assert_close(padded[:, :2], alone)


def test_llm2clip_cuts_the_text_and_keeps_its_end(folders: dict[str, Path]) -> None:
    encoder = load_encoder(**settings(folders, "llm2clip", max_length=9))  # a head of 5, three words, the end
    found = encoder.encode_texts(["a red cat", "a red cat house tree", "a red dog"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert encoder.cut_texts == 1 and np.abs(found[0] - found[2]).max() > 1e-3
    with pytest.raises(ValueError, match=r"max_length = 5: must leave room for text"):
        load_encoder(**settings(folders, "llm2clip", max_length=5)).encode_texts(["a red cat"])


@pytest.mark.parametrize("family", ["naflex", "llm2clip"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_near(folders: dict[str, Path], family: str, dtype: str) -> None:
    low, full = (load_encoder(**settings(folders, family, dtype=kind)) for kind in (dtype, "float32"))
    for found, expected in ((low.encode_texts(TEXTS), full.encode_texts(TEXTS)),
                            (low.encode_images(pictures()), full.encode_images(pictures()))):  # fmt: skip
        assert found.dtype == np.float32
        assert 0 < np.abs(found - expected).max() < 0.1


def test_description_follows_what_vectors_depend_on(folders: dict[str, Path], tmp_path: Path) -> None:
    copies = {name: Path(shutil.copytree(folders[name], tmp_path / name)) for name in ("siglip", "llm2clip", "llama")}

    def described(family: str, **changes: Any) -> dict[str, str]:
        return load_encoder(**settings(copies, family, **changes)).describe()

    def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
        return {key for key in before if before[key] != after[key]}

    first, other = described("siglip"), described("llm2clip")
    assert first == load_encoder(**settings(folders, "siglip")).describe()
    assert changed(first, described("siglip", dtype="float16")) == {"dtype"}
    assert changed(other, described("llm2clip", max_length=20)) == {"text"}
    processor = copies["siglip"] / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("0.5", "0.4"))
    assert changed(first, described("siglip")) == {"preprocessing"}
    for folder, file, key in ((copies["llama"], "model.safetensors", "text_weights"),
                              (copies["llm2clip"], "model-2.safetensors", "weights")):  # fmt: skip
        weights = load_file(folder / file)
        name = next(iter(weights))
        save_file({**weights, name: weights[name] + 1}, folder / file, metadata={"format": "pt"})
        after = described("llm2clip")
        assert changed(other, after) == {key}
        other = after


def corpus(root: Path, encoder: EncoderConfig) -> Config:
    """Texts and pictures to embed and to align."""
    rows = [{"id": f"t{number}", "text": text} for number, text in enumerate(TEXTS)]
    (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": f"p{number}", "image": f"p/{number}.png"} for number in range(5)]
    (root / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(5):
        make_picture(root / "p" / f"{number}.png", number)
    sources = {"texts": SourceConfig(Modality.text, str(root / "texts.jsonl")),
               "statistics": SourceConfig(Modality.image, str(root / "pictures.jsonl"))}  # fmt: skip
    data = DataConfig(name="tiny", folder=str(root), stores=str(root / "stores"), sources=sources)
    return Config(name="test", runs=str(root / "runs"), data=data, encoder=encoder,
                  embed=EmbedConfig(shard_size=4, device="cpu"))  # fmt: skip


@pytest.mark.parametrize("family", list(MAKERS))
def test_from_records_to_an_alignment(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    own = settings(folders, family)
    encoder = EncoderConfig(name="tiny", kind=own["kind"], model=own["model"], text_model=own.get("text_model"),
                            dtype=Dtype.float32, batch_size=2)  # fmt: skip
    config = corpus(tmp_path, encoder)
    embed.run(config)
    align.run(config)
    loaded = load_encoder(**own)
    store = EmbeddingStore.open(tmp_path / "stores/tiny/texts")
    np.testing.assert_allclose(store.rows(slice(None)), loaded.encode_texts(TEXTS), atol=1e-3)
    assert store.manifest.encoder == loaded.describe()
    facts = json.loads((tmp_path / "runs/test/embed/finished.json").read_text())["facts"]["stores"]
    assert facts["texts"]["cut"] == (1 if family in CONTEXT else 0) and facts["statistics"]["cut"] == 0
    assert next((tmp_path / "runs/test/align").glob("*.safetensors"), None)


def test_stores_of_two_encoders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """The same name and dimension, other weights."""
    config = corpus(tmp_path, EncoderConfig(name="tiny", kind="transformers", model=str(folders["siglip"])))
    config.embed.sources = ["texts"]
    embed.run(config)
    config.encoder.model, config.embed.sources = str(siglip_folder(tmp_path / "other", seed=1)), ["statistics"]
    embed.run(config)
    config.embed.sources = ["texts"]
    with pytest.raises(ValueError, match=r"was made with other settings .changed: encoder weights."):
        embed.run(config)
    with pytest.raises(ValueError, match=r"differ in weights.: embed both with one encoder"):
        align.run(config)
