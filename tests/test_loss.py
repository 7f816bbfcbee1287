"""Cross-entropy in chunks: the same sum and gradients as from all logits at once, and never all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from revision.model import loss_revision
from revision.model.loss_revision import is_whole_linear, linear_cross_entropy, output_loss

N, H, V = 37, 16, 301


def parts(dtype: torch.dtype = torch.float32, *, bias: bool = False, table_trains: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator).to(dtype).requires_grad_(table_trains)
    shift = torch.randn(V, generator=generator).to(dtype).requires_grad_() if bias else None
    return [hidden, weight, shift]


TARGETS = torch.randint(V, (N,), generator=torch.Generator().manual_seed(1))


def plain(hidden: Any, weight: Any, bias: Any) -> torch.Tensor:
    logits = functional.linear(hidden, weight, bias).float()
    return functional.cross_entropy(logits, TARGETS, reduction="sum")


def gradients(loss: torch.Tensor, inputs: list[Any]) -> list[torch.Tensor]:
    (loss / 7).backward()
    found = [one.grad for one in inputs if one is not None and one.requires_grad]
    for one in inputs:
        if one is not None:
            one.grad = None
    return found


@pytest.mark.parametrize("chunk", [1, 5, 37, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("table_trains", [False, True])
def test_the_sum_and_its_gradients_are_those_of_all_logits(chunk: int, bias: bool, table_trains: bool) -> None:
    inputs = parts(bias=bias, table_trains=table_trains)
    expected = plain(*inputs)
    wanted = gradients(expected, inputs)
    hidden, weight, shift = inputs
    got = linear_cross_entropy(hidden, weight, TARGETS, bias=shift, chunk=chunk)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    found = gradients(got, inputs)
    assert len(found) == len(wanted) == 1 + table_trains + bias
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_it_is_right_where_float64_says_so() -> None:
    double: Any = [None if one is None else one.detach().double().requires_grad_() for one in parts(bias=True)]
    wanted = gradients(functional.cross_entropy(functional.linear(*double), TARGETS, reduction="sum"), double)
    inputs = parts(bias=True)
    got = linear_cross_entropy(inputs[0], inputs[1], TARGETS, bias=inputs[2], chunk=8)
    for one, other in zip(gradients(got, inputs), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_products_are_those_of_the_output_layer(autocast: bool) -> None:
    """A bfloat16 model, and float32 weights under autocast: types and values of the gradients are the plain ones."""
    inputs = parts(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = plain(*inputs)
        got = linear_cross_entropy(inputs[0], inputs[1], TARGETS, chunk=8)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    wanted = gradients(expected, inputs)
    for one, other in zip(gradients(got, inputs), wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


class Widths(TorchDispatchMode):
    """Notes how many rows of logits each operation puts out, in float32 or of any type."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.tables = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor) and one.ndim == 2 and one.shape[-1] == V:
                self.rows.append(one.shape[0])
            if isinstance(one, torch.Tensor) and one.shape == (V, H):
                self.tables += 1
        return out


def test_only_a_chunk_of_logits_exists_and_a_frozen_table_has_no_gradient() -> None:
    hidden, weight, _ = parts(table_trains=False)
    with Widths() as seen:
        linear_cross_entropy(hidden, weight, TARGETS, chunk=5).backward()
    # The transposed table, an input, is [H, V] too; nothing is as long as all positions.
    assert set(seen.rows) - {H} == {5, 2}
    assert seen.tables <= 1, "nothing but the table itself, seen through a cast, has its shape"
    with Widths() as seen:
        plain(hidden, weight, None).backward()
    assert N in seen.rows, "the mode sees the logits of the plain way"
    hidden, weight, _ = parts()
    with Widths() as seen:
        linear_cross_entropy(hidden, weight, TARGETS, chunk=5).backward()
    assert seen.tables > 1


def test_without_gradients_there_is_the_sum_alone() -> None:
    inputs = parts()
    with torch.no_grad():
        loss = linear_cross_entropy(inputs[0], inputs[1], TARGETS, chunk=5)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(*inputs).detach(), rtol=1e-6, atol=0)


def test_few_logits_are_computed_at_once_and_many_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    head = torch.nn.Linear(H, V)
    hidden = parts()[0]
    at_once, logits = output_loss(head, hidden, TARGETS)
    assert logits.shape == (N, V)
    monkeypatch.setattr(loss_revision, "MOST_LOGITS", 5 * V + 1)
    chunked, none = output_loss(head, hidden, TARGETS)
    assert none is None
    torch.testing.assert_close(chunked, at_once, rtol=1e-6, atol=0)
    wrapped = torch.nn.Sequential(head)
    assert output_loss(wrapped, hidden, TARGETS)[1] is not None, "an adapter's or engine's layer is called as it is"


def test_a_shard_is_no_whole_layer() -> None:
    head = torch.nn.Linear(H, V)
    assert is_whole_linear(head)
    head.weight = torch.nn.Parameter(head.weight[: V // 2])
    assert not is_whole_linear(head)
    assert not is_whole_linear(torch.nn.Identity())


class HeldElsewhere(torch.nn.Linear):
    """A layer as an engine may make it: its weights are whole during its own call and no longer."""


def put_elsewhere(head: torch.nn.Linear) -> None:
    whole, piece = head.weight, torch.nn.Parameter(head.weight[:0])
    head.__class__ = HeldElsewhere
    head.register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", whole))
    head.register_forward_hook(lambda layer, *_: setattr(layer, "weight", piece))
    head.weight = piece


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_whose_weights_are_there_in_its_call_alone(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks are computed within one call of it, whatever their number, and what it computes stays its own."""
    head, hidden = torch.nn.Linear(H, V, bias=bias), parts()[0]
    inputs = [hidden, *head.parameters()]
    expected, _ = output_loss(head, hidden, TARGETS)
    wanted = gradients(expected, inputs)
    put_elsewhere(head)
    assert not is_whole_linear(head)
    few, logits = output_loss(head, hidden, TARGETS)
    assert logits.shape == (N, V)
    monkeypatch.setattr(loss_revision, "MOST_LOGITS", 5 * V + 1)
    calls: list[Any] = []
    head.register_forward_hook(lambda *_: calls.append(head.weight.shape))
    chunked, none = output_loss(head, hidden, TARGETS)
    assert none is None and len(calls) == 1
    for loss in (few, chunked):
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for one, other in zip(gradients(chunked, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert head(hidden).shape == (N, V)


def test_a_layer_with_a_pass_of_its_own_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    monkeypatch.setattr(loss_revision, "MOST_LOGITS", 5 * V + 1)
    head, hidden = Doubled(H, V), parts()[0]
    loss, logits = output_loss(head, hidden, TARGETS)
    torch.testing.assert_close(logits, 2 * functional.linear(hidden, head.weight, head.bias))
    torch.testing.assert_close(loss, functional.cross_entropy(logits, TARGETS, reduction="sum"))


def test_the_model_trains_alike_with_and_without_chunks(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    found = []
    for bound in (2**27, 2 * tiny_model.get_output_embeddings().out_features):
        monkeypatch.setattr(loss_revision, "MOST_LOGITS", bound)
        tiny_model.zero_grad()
        out = tiny_model(input_ids=ids, labels=ids, num_items_in_batch=30)
        out.loss.backward()
        found.append((out.loss.detach(), [one.grad.clone() for one in tiny_model.language_model.parameters()]))
        assert (out.logits is None) == (bound < 2**27)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
