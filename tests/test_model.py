"""The multimodal model: visual tokens, loss, generation, and life on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_EMBED_DIM, TINY_VISUAL_TOKENS, build_tiny_llm
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, pipeline

from revision.model import RevisionConfig, RevisionForConditionalGeneration, RevisionProcessor

K, DIM = TINY_VISUAL_TOKENS, TINY_EMBED_DIM


def embeds(n: int, seed: int = 1) -> torch.Tensor:
    return functional.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sequence(model: Any, *pieces: int | str) -> list[int]:
    """Token ids, with "image" for the K tokens of a picture."""
    image = model.config.image_token_id
    return [token for piece in pieces for token in ([image] * K if piece == "image" else [int(piece)])]


def labelled(ids: torch.Tensor, first: int) -> torch.Tensor:
    labels = ids.clone()
    labels[:, :first] = -100
    return labels


def test_image_tokens_become_projected_embeddings(tiny_model: Any) -> None:
    ids = torch.tensor([sequence(tiny_model, 5, "image", 7), sequence(tiny_model, "image", 8, 9)])
    pictures = embeds(2)
    inputs = tiny_model.embed_inputs(ids, pictures)
    table, projected = tiny_model.get_input_embeddings().weight, tiny_model.projector(pictures)
    assert torch.equal(inputs[0], torch.cat([table[[5]], projected[0], table[[7]]]))
    assert torch.equal(inputs[1], torch.cat([projected[1], table[[8, 9]]]))
    whole = tiny_model(input_ids=ids, image_embeds=pictures).logits
    by_hand = tiny_model.language_model(inputs_embeds=inputs).logits
    assert torch.equal(whole, by_hand)
    assert torch.equal(tiny_model(input_ids=ids, image_embeds=pictures, logits_to_keep=2).logits, by_hand[:, -2:])


@pytest.mark.parametrize("pictures", [None, embeds(1), embeds(3)])
def test_another_number_of_pictures_is_refused(tiny_model: Any, pictures: torch.Tensor | None) -> None:
    ids = torch.tensor([sequence(tiny_model, 5, "image"), sequence(tiny_model, "image", 8)])
    given = 0 if pictures is None else len(pictures)
    with pytest.raises(ValueError, match=rf"{2 * K} image tokens, but image_embeds has {given} pictures of {K} tokens"):
        tiny_model(input_ids=ids, image_embeds=pictures)


def test_no_input_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        tiny_model()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_repeat_projects_once_and_copies(make_tiny_model: Callable[..., Any], depth: int) -> None:
    projector = make_tiny_model(visual_tokens="repeat", projector_depth=depth).projector
    pictures = embeds(2)
    tokens = projector(pictures)
    copies = projector(pictures.repeat_interleave(K, dim=0)).view(2, K, K, -1)[:, :, 0]
    assert tokens.shape == (2, K, 32)
    torch.testing.assert_close(tokens, copies, rtol=0, atol=1e-6)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in projector.modules()) == depth
    calls: list[torch.Size] = []
    projector.layers.register_forward_hook(lambda _m, inputs, _o: calls.append(inputs[0].shape))
    projector(pictures)
    assert calls == [torch.Size([2, DIM])]


def test_slots_differ_and_have_the_spread_of_token_embeddings(tiny_model: Any, tiny_llm: Path) -> None:
    tokens = tiny_model.projector(embeds(64))
    assert (tokens[:, 0] - tokens[:, 1]).abs().mean() > tokens.std() / 2
    llm: Any = AutoModelForCausalLM.from_pretrained(tiny_llm)
    table = llm.get_input_embeddings().weight
    assert tokens.std().item() == pytest.approx(table.std().item(), rel=0.01)


def test_the_input_is_scaled_by_the_root_of_its_dimension(make_tiny_model: Callable[..., Any]) -> None:
    projector = make_tiny_model(projector_depth=1, output_norm=False, visual_tokens="repeat").projector
    picture, layer = embeds(1), projector.layers[0]
    by_hand = picture * DIM**0.5 @ layer.weight.T + layer.bias
    torch.testing.assert_close(projector(picture)[:, 0], by_hand)


def test_the_projector_depends_on_its_seed_alone(make_tiny_model: Callable[..., Any]) -> None:
    weights: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(weights))
        weights.append(make_tiny_model(seed=seed).projector.layers[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 5])
def test_the_image_token_leaves_the_tables_whole(
    tmp_path: Path, make_tiny_model: Callable[..., Any], tied: bool, spare_rows: int
) -> None:
    folder = build_tiny_llm(tmp_path / "llm", tied=tied, spare_rows=spare_rows)
    before: Any = AutoModelForCausalLM.from_pretrained(folder)
    model = make_tiny_model(llm=str(folder))
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    rows = before.get_input_embeddings().num_embeddings
    assert (inputs is outputs) is tied
    assert torch.equal(inputs[:rows], before.get_input_embeddings().weight)
    assert torch.equal(outputs[:rows], before.get_output_embeddings().weight)
    assert model.config.image_token_id < len(inputs)
    if spare_rows:
        assert len(inputs) == rows
    else:
        for table in (inputs, outputs):
            torch.testing.assert_close(table[rows:], table[:rows].mean(dim=0).expand(len(table) - rows, -1))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model(input_ids=ids).logits[..., :rows], before(input_ids=ids).logits)


def test_the_loss_is_cross_entropy_over_labels_and_only_they_get_logits(tiny_model: Any) -> None:
    ids = torch.tensor([sequence(tiny_model, 5, "image", 7, 8, 9), sequence(tiny_model, 6, "image", 4, 3, 2)])
    labels, pictures = labelled(ids, 1 + K), embeds(2)
    out = tiny_model(input_ids=ids, image_embeds=pictures, labels=labels)
    full = tiny_model(input_ids=ids, image_embeds=pictures).logits.log_softmax(-1)
    by_hand = -torch.stack([full[row, place - 1, ids[row, place]] for row in (0, 1) for place in range(1 + K, 4 + K)])
    torch.testing.assert_close(out.loss, by_hand.mean())
    assert out.logits.shape[0] == 6
    summed = tiny_model(input_ids=ids, image_embeds=pictures, labels=labels, num_items_in_batch=torch.tensor(24)).loss
    torch.testing.assert_close(summed, by_hand.sum() / 24)


def test_a_tuple_comes_back_when_asked_for(tiny_model: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    loss, logits = tiny_model(input_ids=ids, labels=labelled(ids, 1), return_dict=False)
    assert loss.ndim == 0
    assert logits.shape[0] == 2


def test_padding_changes_nothing(tiny_model: Any) -> None:
    ids = torch.tensor([sequence(tiny_model, 5, "image", 7, 8, 9)])
    labels, picture = labelled(ids, 1 + K), embeds(1)
    plain = tiny_model(input_ids=ids, image_embeds=picture, labels=labels).loss
    for side in ((0, 4), (4, 0)):
        mask = functional.pad(torch.ones_like(ids), side)
        padded = tiny_model(
            input_ids=functional.pad(ids, side, value=3),
            image_embeds=picture,
            labels=functional.pad(labels, side, value=-100),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        ).loss
        torch.testing.assert_close(padded, plain, rtol=0, atol=1e-6)


def test_the_projector_takes_part_in_a_batch_without_pictures(tiny_model: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    quiet = tiny_model(input_ids=ids, labels=labelled(ids, 1)).loss
    tiny_model.train()
    for nothing in (None, torch.empty(0, DIM)):
        tiny_model.zero_grad()
        loss = tiny_model(input_ids=ids, image_embeds=nothing, labels=labelled(ids, 1)).loss
        loss.backward()
        assert torch.equal(loss, quiet)
        assert all(torch.count_nonzero(one.grad) == 0 for one in tiny_model.projector.parameters())


def test_generation_with_cache_equals_greedy_decoding_without(tiny_model: Any) -> None:
    ids, picture = sequence(tiny_model, 5, "image", 7), embeds(1)
    by_hand = list(ids)
    for _ in range(6):
        logits = tiny_model(input_ids=torch.tensor([by_hand]), image_embeds=picture, use_cache=False).logits
        by_hand.append(int(logits[0, -1].argmax()))
    tiny_model.generation_config.eos_token_id = None
    made = tiny_model.generate(
        input_ids=torch.tensor([ids]), image_embeds=picture, max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert made[0].tolist() == by_hand
    other = tiny_model.generate(
        input_ids=torch.tensor([ids]), image_embeds=embeds(1, seed=9), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert other.tolist() != made.tolist(), "the answer must depend on the picture"


def test_generation_in_a_batch_and_by_beams(tiny_model: Any) -> None:
    pictures = embeds(3)
    rows = [sequence(tiny_model, 5, "image", 7, "image"), sequence(tiny_model, 6, "image", 9)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    tiny_model.generation_config.eos_token_id = None
    for beams in (1, 2):
        options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "num_beams": beams}
        together = tiny_model.generate(input_ids=ids, attention_mask=mask, image_embeds=pictures, **options)[
            :, longest:
        ]
        alone = [
            tiny_model.generate(input_ids=torch.tensor([row]), image_embeds=some, **options)[0, len(row) :]
            for row, some in zip(rows, pictures.split([2, 1]), strict=True)
        ]
        assert together.tolist() == [one.tolist() for one in alone]


def test_a_checkpoint_comes_back_through_the_auto_classes(
    tmp_path: Path, make_tiny_model: Callable[..., Any], tiny_processor: Any
) -> None:
    model = make_tiny_model(dtype=torch.bfloat16).eval()
    model.config.alignment = {"method": "realign"}
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), RevisionConfig)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, RevisionForConditionalGeneration)
    assert isinstance(processor, RevisionProcessor)
    assert again.config.alignment == {"method": "realign"}
    assert again.dtype == torch.bfloat16
    assert {one.dtype for one in again.projector.parameters()} == {torch.float32}
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert (processor.num_visual_tokens, processor.chat_template) == (K, tiny_processor.chat_template)
    written = {file.name for file in tmp_path.iterdir()}
    assert not [name for name in written if name.endswith((".bin", ".pt", ".pkl"))]
    assert str(Path.home()) not in (tmp_path / "config.json").read_text()
    assert "/" not in json.loads((tmp_path / "config.json").read_text())["text_config"].get("_name_or_path", "")


REMOTE = """
import json, pathlib, sys, torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
for auto in (AutoModel, AutoModelForImageTextToText):
    model = auto.from_pretrained(folder, trust_remote_code=True)
embeds = torch.ones(1, model.config.embed_dim)
turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
inputs = processor.apply_chat_template(
    turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    processor_kwargs={"image_embeds": embeds},
)
made = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()
pathlib.Path(sys.argv[2]).write_text(json.dumps(made))
model.save_pretrained(folder + "/again")
processor.save_pretrained(folder + "/again")
assert not any(name == "revision" or name.startswith("revision.") for name in sys.modules), "the package was imported"
"""


def test_trust_remote_code_needs_no_package(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "model"), str(tmp_path / "made.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    prompt = tiny_processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": "<image>" * K + "\nWhat is it?"}], add_generation_prompt=True, return_tensors="pt"
    )
    here = tiny_model.generate(**prompt, image_embeds=torch.ones(1, DIM), max_new_tokens=5, do_sample=False)
    assert json.loads((tmp_path / "made.json").read_text()) == here[0].tolist()
    again = {file.name for file in (tmp_path / "model" / "again").iterdir()}
    assert {"configuration_revision.py", "modeling_revision.py", "processing_revision.py"} <= again


def test_the_pipeline_reads_pictures_and_embeddings(tiny_model: Any, tiny_processor: Any) -> None:
    seen: list[Image.Image] = []

    def encode_images(images: list[Image.Image]) -> Any:
        seen.extend(images)
        return embeds(len(images)).numpy()

    tiny_processor.attach(encode_images)
    pipe: Any = pipeline("image-text-to-text", model=tiny_model, processor=tiny_processor)
    picture = Image.new("RGB", (4, 4), "red")
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]}]
    answer = pipe(text=chat, max_new_tokens=4, do_sample=False)[0]["generated_text"][-1]["content"]
    plain = pipe(
        images=picture, text="<|im_start|>system\nYou see pictures.<|im_end|>\n<|im_start|>user\n<image>\nWhat is it?"
        "<|im_end|>\n<|im_start|>assistant\n", max_new_tokens=4, do_sample=False, return_full_text=False,
    )[0]["generated_text"]  # fmt: skip
    assert answer == plain
    assert [image.size for image in seen] == [(4, 4), (4, 4)]


def test_an_attached_encoder_may_read_something_else(tiny_processor: Any) -> None:
    seen: list[str] = []

    def encode(opened: list[str]) -> Any:
        seen.extend(opened)
        return embeds(len(opened)).numpy()

    tiny_processor.attach(encode, lambda name: f"opened {name}")
    given = tiny_processor(text="<image> what?", images=["a.svg"])
    assert seen == ["opened a.svg"] and given["image_embeds"].shape == (1, DIM)


def test_the_processor_refuses_what_does_not_fit(tiny_processor: Any) -> None:
    with pytest.raises(ValueError, match="1 <image> marks, but 2 pictures"):
        tiny_processor(text="<image> what?", image_embeds=embeds(2))
    with pytest.raises(ValueError, match="attach"):
        tiny_processor(text="<image> what?", images=[Image.new("RGB", (2, 2))])
    with pytest.raises(ValueError, match="give one of them"):
        tiny_processor(text="<image>", images=[Image.new("RGB", (2, 2))], image_embeds=embeds(1))


def test_peft_wraps_it(tiny_model: Any) -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["projector"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(tiny_model, config)
    ids = torch.tensor([sequence(tiny_model, 5, "image", 7, 8)])
    wrapped(input_ids=ids, image_embeds=embeds(1), labels=labelled(ids, 1 + K)).loss.backward()
    trained = {name for name, one in wrapped.named_parameters() if one.grad is not None}
    assert any("lora_B" in name for name in trained)
    assert any("projector" in name for name in trained)
    assert all("lora" in name or "projector" in name for name in trained)
    assert (
        wrapped.generate(input_ids=ids, image_embeds=embeds(1), max_new_tokens=2, pad_token_id=0).shape[1]
        <= ids.shape[1] + 2
    )


@pytest.mark.parametrize("broken", ["missing", "no weights", "cut weights"])
def test_an_unreadable_llm_folder_is_one_sentence(
    tmp_path: Path, tiny_llm: Path, make_tiny_model: Callable[..., Any], broken: str
) -> None:
    folder = tmp_path / "llm"
    if broken != "missing":
        folder.mkdir()
        for file in tiny_llm.iterdir():
            data = file.read_bytes()
            if file.suffix == ".safetensors":
                data = data[: len(data) // 2]
                if broken == "no weights":
                    continue
            (folder / file.name).write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.llm=.*cannot be read as a causal LM") as caught:
        make_tiny_model(llm=str(folder))
    assert "\n" not in str(caught.value)
    assert ("(there is no such folder)" in str(caught.value)) == (broken == "missing")


@pytest.mark.parametrize("wrong", [{"visual_tokens": "many"}, {"num_visual_tokens": 0}, {"projector_depth": 0}])
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RevisionConfig(**wrong)
