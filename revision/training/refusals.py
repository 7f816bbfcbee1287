"""A record that cannot be learned from, met while training: its sentence travels as data.

Raised where it is found, it would come out of a process that loads data as a traceback of many lines, and of one of
several ranks as an end that the others wait for. So it takes the place of its batch, which teaches nothing, and the
ranks stop together at the exchange of the step (`sync`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from revision.data.dataset import ConversationDataset
from revision.data.packing import PackedDataset

REFUSED = "refused"  # entry of a batch: the sentence


@dataclass(frozen=True)
class Refusal:
    """Stands where an item of the data set would be."""

    sentence: str


class RefusingDataset(Dataset[Any]):
    """The items of a data set, and a `Refusal` for each that is a mistake of the user's."""

    def __init__(self, dataset: ConversationDataset | PackedDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except ValueError as error:
            return Refusal(str(error))


class RefusingCollator:
    """Items to batches as a collator makes them; a batch with a refused item is one of nothing, with the sentence.

    Args:
        collator: makes a batch that teaches nothing of no items.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self._collator = collator

    def __call__(self, items: list[Any]) -> dict[str, Any]:
        """A batch; with `REFUSED`, str, where an item was refused."""
        refusal = next((item for item in items if isinstance(item, Refusal)), None)
        return self._collator(items) if refusal is None else {**self._collator([]), REFUSED: refusal.sentence}
