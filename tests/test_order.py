"""The order of samples: each once an epoch, the same global batches whoever shares them, and a start anywhere."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate import skip_first_batches

from revision.data.collators import Collator
from revision.training.order import STRATEGIES, Batches, GlobalBatches, make_order

SAMPLES, GLOBAL = 53, 8
LENGTHS = [place * 7 % 10 for place in range(SAMPLES)]


def batches(strategy: str = "random", *, micro: int = 2, accumulation: int = 2, **changes: Any) -> GlobalBatches:
    order = make_order(strategy, SAMPLES, batch=GLOBAL, seed=3, lengths=lambda: LENGTHS)
    return GlobalBatches(order, SAMPLES, micro=micro, accumulation=accumulation, **changes)


def global_batches(strategy: str, processes: int, micro: int, accumulation: int, epoch: int) -> list[set[int]]:
    """What each step learns from, over all processes."""
    shared = [
        batches(strategy, micro=micro, accumulation=accumulation, processes=processes, rank=rank)
        for rank in range(processes)
    ]
    assert len({len(one) for one in shared}) == 1, "as many micro-batches on each process"
    steps = shared[0].steps
    places = range(epoch * steps, (epoch + 1) * steps)
    found = [[index for one in shared for micro in one.of_step(step) for index in micro] for step in places]
    assert all(len(set(one)) == len(one) for one in found), "no sample twice"
    return [set(one) for one in found]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("epoch", [0, 2])
def test_global_batches_are_the_same_however_they_are_shared(strategy: str, epoch: int) -> None:
    first = global_batches(strategy, 1, 8, 1, epoch)
    assert sorted(index for batch in first for index in batch) == list(range(SAMPLES))
    assert [len(batch) for batch in first] == [8] * 6 + [5]
    for processes, micro, accumulation in ((1, 2, 4), (2, 2, 2), (4, 2, 1), (8, 1, 1), (2, 4, 1)):
        assert global_batches(strategy, processes, micro, accumulation, epoch) == first


def test_the_order_depends_on_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[int]:
        return list(make_order("random", SAMPLES, batch=GLOBAL, seed=seed, lengths=list)(epoch))

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(1, 1) != drawn(2, 1)
    assert list(make_order("sequential", 4, batch=2, seed=0, lengths=list)(5)) == [0, 1, 2, 3]


def test_samples_of_like_length_come_together() -> None:
    lengths = [place % 10 for place in range(400)]
    order = make_order("group_by_length", 400, batch=8, seed=1, lengths=lambda: lengths)
    first = list(order(0))
    assert sorted(first) == list(range(400))
    spreads = [max(batch) - min(batch) for batch in zip(*[iter([lengths[place] for place in first])] * 8, strict=True)]
    assert sum(spreads) / len(spreads) < 2
    assert list(order(0)) == first != list(order(1))


@pytest.mark.parametrize("rank", [0, 1])
def test_iteration_is_what_the_steps_say(rank: int) -> None:
    ours = batches(processes=2, rank=rank)
    ours.set_epoch(1)
    told = [micro for step in range(ours.steps, 2 * ours.steps) for micro in ours.of_step(step)]
    assert list(ours) == told
    assert len(told) == len(ours) == 14


@pytest.mark.parametrize(("processes", "micro", "accumulation"), [(1, 8, 1), (1, 2, 4), (2, 2, 2), (8, 1, 1)])
def test_a_last_global_batch_that_is_not_full_can_be_left_out(processes: int, micro: int, accumulation: int) -> None:
    """The same samples, however they are shared, or a resumed run would go on in another place of the order."""
    sizes: dict[str, Any] = {"micro": micro, "accumulation": accumulation, "processes": processes}
    ours = [batches(rank=rank, drop_last=True, **sizes) for rank in range(processes)]
    assert {len(one) for one in ours} == {6 * accumulation}
    assert {one.steps for one in ours} == {6}
    learned = [index for one in ours for micro in one for index in micro]
    assert sorted(learned) == sorted(list(batches()._order(0))[:48])


def test_a_start_in_the_middle_reads_nothing_before_it() -> None:
    class Known:
        """Counts what is read."""

        def __init__(self) -> None:
            self.read: list[int] = []
            self.epochs: list[int] = []

        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> int:
            self.read.append(index)
            return index

    data: Any = Known()
    ours = batches(announce=data.epochs.append)
    loader = skip_first_batches(Batches(data, batch_sampler=ours, collate_fn=list), 9)  # as the Trainer does
    loader.batch_sampler.batch_sampler.set_epoch(1)
    learned = [index for micro in loader for index in micro]
    ours.set_epoch(1)
    assert data.read == learned == [index for micro in list(ours)[9:] for index in micro]
    assert data.epochs == [1, 1]


def test_an_empty_share_teaches_nothing(make_tiny_model: Any) -> None:
    batch = Collator(pad_token_id=0)([])
    model = make_tiny_model()
    loss = model(**batch, num_items_in_batch=5).loss
    loss.backward()
    assert loss.item() == 0
    gradients = [one.grad for one in model.parameters()]
    assert all(one is not None and one.abs().max() == 0 for one in gradients), "each takes part, as DDP wants"
