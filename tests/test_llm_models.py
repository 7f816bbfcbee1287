"""Random LLMs of each family behind a projector: tables, scales, loss, generation, and life on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from llm_families import FAMILIES, MODELS, build_llm
from torch.nn import functional
from transformers import AutoModelForCausalLM

from revision import building
from revision.data.conversation import IGNORED, encode
from revision.model import RevisionForConditionalGeneration, loss_revision
from revision.model.loss_revision import Shaping, linear_cross_entropy, output_loss
from revision.records import Message
from revision.training.agreement import require_own_logits

K, DIM = 3, 16
SHAPE: dict[str, Any] = {"embed_dim": DIM, "num_visual_tokens": K, "visual_tokens": "slots"}
EMBEDS = functional.normalize(torch.randn(1, DIM, generator=torch.Generator().manual_seed(1)), dim=-1)
TALK = [Message("user", "<image>\nWhat?"), Message("assistant", "A brown dog.")]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of LLMs whose tables have room for the image token, each made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = build_llm(name, tmp_path_factory.mktemp("llm") / "llm", spare_rows=5)
        return made[name]

    return folder


def built(folder: Path, **changes: Any) -> tuple[Any, Any]:
    settings = {"chat_template": None, "dtype": torch.float32, "seed": 0, **SHAPE, **changes}
    model, processor = building.build_model(str(folder), **settings)
    return model.eval(), processor


def sample(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = encode(processor, TALK, name="a")
    return torch.from_numpy(encoded.input_ids)[None], torch.from_numpy(encoded.labels)[None]


def by_hand(folder: Path, model: Any, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mean loss of the plain LLM, read anew, on embeddings put together by hand."""
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = list(plain.get_input_embeddings()(ids)[0])
    places = [place for place, token in enumerate(ids[0].tolist()) if token == model.config.image_token_id]
    for place, token in zip(places, model.projector(EMBEDS)[0], strict=True):
        rows[place] = token
    logits = plain(inputs_embeds=torch.stack(rows)[None], use_cache=False).logits.float()
    chosen = labels[0, 1:] != IGNORED
    loss = functional.cross_entropy(logits[0, :-1][chosen], labels[0, 1:][chosen])
    return logits, loss


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_the_llm_itself(
    name: str, llm: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llm(name)
    model, processor = built(folder)
    assert require_own_logits(model)
    ids, labels = sample(processor)
    logits, expected = by_hand(folder, model, ids, labels)
    wanted = torch.autograd.grad(expected, model.projector.layers[0].weight)[0]
    for bound in (2**27, 3 * logits.shape[-1]):  # at once, and in chunks
        monkeypatch.setattr(loss_revision, "MOST_LOGITS", bound)
        out = model(input_ids=ids, image_embeds=EMBEDS, labels=labels)
        torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-6)
        found = torch.autograd.grad(out.loss, model.projector.layers[0].weight)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
        assert (out.logits is None) == (bound < 2**27)
    whole = model(input_ids=ids, image_embeds=EMBEDS).logits
    torch.testing.assert_close(whole, logits, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(loss_revision, "MOST_LOGITS", 2**27)
    learned = model(input_ids=ids, image_embeds=EMBEDS, labels=labels).logits
    torch.testing.assert_close(learned, logits[0, :-1][labels[0, 1:] != IGNORED], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same_in_scale_and_logits(name: str, llm: Callable[[str], Path], tmp_path: Path) -> None:
    """Gemma's scale of embeddings is a buffer that no checkpoint holds."""
    model, processor = built(llm(name))
    building.save_model(model, processor, tmp_path / "model", alignment=None)
    again, other = building.read_model(tmp_path / "model")
    again.eval()
    ids, labels = sample(other)
    assert torch.equal(ids, sample(processor)[0])
    one, two = (each(input_ids=ids, image_embeds=EMBEDS).logits for each in (model, again))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
    losses = [each(input_ids=ids, image_embeds=EMBEDS, labels=labels).loss for each in (model, again)]
    torch.testing.assert_close(losses[1], losses[0])
    assert require_own_logits(again)
    attention = [each.language_model.config._attn_implementation for each in (model, again)]
    assert attention[0] == attention[1]


@pytest.mark.parametrize("name", MODELS)
def test_visual_tokens_have_the_spread_of_what_the_embedding_layer_puts_out(
    name: str, llm: Callable[[str], Path]
) -> None:
    folder = llm(name)
    model, _ = built(folder)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    table = plain.get_input_embeddings()
    spread = table(torch.arange(table.num_embeddings)).std().item()
    assert model.config.output_std == pytest.approx(spread)
    many = functional.normalize(torch.randn(64, DIM, generator=torch.Generator().manual_seed(2)), dim=-1)
    assert model.projector(many).std().item() == pytest.approx(spread, rel=0.02)
    scale = 32**0.5 if MODELS[name][0].startswith("gemma") else 1.0
    assert spread == pytest.approx(scale * table.weight.std().item(), rel=1e-3)


@pytest.mark.parametrize("name", ["llama 3", "qwen 2.5", "qwen 3", "gemma 2", "gemma 3", "phi 3", "smollm 2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("multiple", [None, 64])
def test_the_image_token_is_a_row_more_and_no_other_changes(
    name: str, tied: bool, multiple: int | None, tmp_path: Path
) -> None:
    folder = build_llm(name, tmp_path / "llm", tie_word_embeddings=tied)
    before: Any = AutoModelForCausalLM.from_pretrained(folder)
    model, _ = built(folder, table_multiple=multiple)
    rows = before.get_input_embeddings().num_embeddings
    count = rows + 1 if multiple is None else -(-(rows + 1) // multiple) * multiple
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) is tied
    assert model.config.image_token_id == rows
    assert model.config.text_config.vocab_size == count
    for table, old in zip(
        tables, (before.get_input_embeddings().weight, before.get_output_embeddings().weight), strict=True
    ):
        assert len(table) == count
        assert torch.equal(table[:rows], old)
        torch.testing.assert_close(table[rows:], old.mean(dim=0).expand(count - rows, -1))


def test_a_bias_of_the_output_layer_grows_along(tmp_path: Path) -> None:
    name = "phi with a bias"
    MODELS[name] = ("phi", "smollm 2", {})
    try:
        model, _ = built(build_llm(name, tmp_path / "llm"))
    finally:
        del MODELS[name]
    head = model.get_output_embeddings()
    assert len(head.bias) == len(head.weight) == model.config.image_token_id + 1
    assert require_own_logits(model)


@pytest.mark.parametrize(
    ("name", "known"),
    [("llama 3", [1, 4]), ("llama 3", 1), ("gemma 2", 1), ("qwen 2.5", None), ("phi 3", [2, 5])],
)
def test_generation_stops_where_training_ends_an_answer(name: str, known: Any, tmp_path: Path) -> None:
    """The LLM's own ends stay: Llama 3 lists two, Gemma names one that no answer of its template ends with."""
    folder = build_llm(name, tmp_path / "llm")
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    plain.generation_config.eos_token_id = known
    plain.save_pretrained(folder)
    model, processor = built(folder)
    end = processor.tokenizer.convert_tokens_to_ids(FAMILIES[MODELS[name][1]].end)
    own = {known} if isinstance(known, int) else set(known or [])
    assert set(model.generation_config.eos_token_id) == own | {end}
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    building.save_model(model, processor, tmp_path / "model", alignment=None)
    again, _ = building.read_model(tmp_path / "model")
    assert set(again.generation_config.eos_token_id) == own | {end}
    head = again.get_output_embeddings()
    ids, _ = sample(processor)
    biased = head.register_forward_hook(lambda _m, _i, out: out.index_fill(-1, torch.tensor([end]), 1e4))
    made = cast(Any, again).generate(input_ids=ids, image_embeds=EMBEDS, max_new_tokens=5, do_sample=False)
    biased.remove()
    assert made[0, ids.shape[1] :].tolist() == [end]


SHAPINGS = [Shaping(scale=0.25), Shaping(cap=1.5), Shaping(scale=3.0, cap=2.0)]


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("chunk", [2, 7, 40])
def test_shaped_logits_in_chunks_have_the_loss_and_gradients_of_all_at_once(shaping: Shaping, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*size, generator=generator).double() for size in ((37, 8), (51, 8), (51,))]
    targets = torch.randint(51, (37,), generator=generator)
    inputs = [one.requires_grad_() for one in inputs]
    raw = functional.linear(*inputs) * shaping.scale
    logits = raw if shaping.cap is None else shaping.cap * torch.tanh(raw / shaping.cap)
    expected = functional.cross_entropy(logits, targets, reduction="sum")
    wanted = torch.autograd.grad(expected, inputs)
    single = [one.detach().float().requires_grad_() for one in inputs]
    found = linear_cross_entropy(single[0], single[1], targets, bias=single[2], chunk=chunk, shaping=shaping)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    for one, other in zip(torch.autograd.grad(found, single), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    head = torch.nn.Linear(8, 51)
    head.load_state_dict({"weight": single[1].detach(), "bias": single[2].detach()})
    total, shaped = output_loss(head, single[0], targets, shaping)
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(shaped.double(), logits.detach(), rtol=1e-4, atol=1e-5)


def test_the_kernel_of_plain_logits_is_not_used_for_shaped_ones(llm: Callable[[str], Path]) -> None:
    calls: list[int] = []

    def counted(_head: Any, hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        calls.append(len(wanted))
        return hidden.sum()

    for name in ("gemma 2", "llama 3"):
        model, processor = built(llm(name))
        model.fused_loss = counted
        ids, labels = sample(processor)
        model(input_ids=ids, image_embeds=EMBEDS, labels=labels)
    assert len(calls) == 1


def temper(model: Any) -> None:
    """Its forward pass divides the logits by what no config says."""
    own = model.language_model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = out.logits / 1.5
        return out

    model.language_model.forward = forward


def forbid(model: Any) -> None:
    """Its forward pass rules a word out."""
    own = model.language_model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = out.logits.index_fill(-1, torch.tensor([7]), float("-inf"))
        return out

    model.language_model.forward = forward


def scale_tokens(model: Any) -> None:
    """Its decoder scales the embeddings of tokens, but not those that it is given (Falcon H1)."""
    decoder = model.get_decoder()
    own = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("input_ids") is not None:
            kwargs["inputs_embeds"] = decoder.embed_tokens(kwargs.pop("input_ids")) * 5.0
        return own(*args, **kwargs)

    decoder.forward = forward


def want_tokens(model: Any) -> None:
    """Its decoder reads nothing but tokens."""
    decoder = model.get_decoder()
    own = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("input_ids") is None:
            raise ValueError("input_ids are needed")
        return own(*args, **kwargs)

    decoder.forward = forward


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (temper, "a factor and a soft cap from its config"),
        (forbid, "a factor and a soft cap from its config"),
        (scale_tokens, "treats the embeddings of tokens otherwise"),
        (want_tokens, r"cannot be given embeddings .*\(input_ids are needed\)"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_llm_that_answers_by_another_function_is_refused(
    change: Callable[[Any], None], why: str, dtype: torch.dtype, llm: Callable[[str], Path]
) -> None:
    model, _ = built(llm("llama 3"), dtype=dtype)
    assert require_own_logits(model)
    change(model)
    with pytest.raises(ValueError, match=f"model.llm is of type llama, .*{why}.*; choose another LLM") as caught:
        require_own_logits(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gemma 2", "cohere", "granite"])
def test_a_shaping_that_is_not_known_is_noticed(name: str, llm: Callable[[str], Path]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = built(llm(name), dtype=dtype)
        assert require_own_logits(model), "rounding is no difference"
        model.shaping = Shaping()
        with pytest.raises(ValueError, match="does more to the numbers"):
            require_own_logits(model)


def test_without_weights_nothing_is_compared(llm: Callable[[str], Path]) -> None:
    model, _ = built(llm("llama 3"))
    assert not require_own_logits(model.to("meta"))


def test_a_model_of_pictures_is_no_llm(tmp_path: Path) -> None:
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path)
    build_llm("gemma 3", tmp_path / "llm")
    for file in (tmp_path / "llm").glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"is of type gemma3, a model with parts beside its LLM; give one of text"):
        RevisionForConditionalGeneration.from_language_model(str(tmp_path), **SHAPE)
