"""Token lengths of all samples of a stage, counted once and kept in a file, and what happens to those that do not fit.

Packing plans with them, grouping by length sorts by them, and samples that are too long are found before training
starts. The file is named after what the lengths depend on (texts, tokenizer, template, visual tokens, limits, and the
versions of what counts), so that a resumed run and every run of a sweep read it instead of counting again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from revision.cores import usable_cores
from revision.data.conversation import UnfitError
from revision.data.dataset import ConversationDataset
from revision.data.samples import KeptSamples, TextSamples
from revision.files import HashingFile, write_whole
from revision.progress import progress_bar, say

_COUNTING = 1  # version of how samples become tokens: higher where the same records come out otherwise
_BLOCK = 1024  # samples that a process counts at a time
_WORKERS = 32  # at most: more than read text as fast as one process collects
_BLOCKS_A_WORKER = 8  # fewer are not worth a process


@dataclass(frozen=True)
class _Change:
    """A sample that is learned otherwise than it stands in the records."""

    place: int
    id: str
    action: str  # dropped or cut
    reason: str


_Counted = tuple[np.ndarray, list[_Change]]


def settle_lengths(
    dataset: ConversationDataset,
    folder: Path,
    *,
    drop: bool,
    reject_budget: float,
    listing: Path,
    workers: int | None = None,
    main: bool = True,
) -> None:
    """Tells a data set the token lengths of its samples, and leaves out those that cannot be learned.

    Args:
        dataset: of the stage; cuts turns or not.
        folder: of length files, shared by runs.
        drop: leave out samples that are too long or have no label; otherwise the first is an error.
        reject_budget: share of samples that may be left out.
        listing: file to list those left out or cut in, as rows {"id", "action", "reason"}; not there when there are
            none.
        workers: processes that count, where there is no file yet; None: for a large corpus one a core, up to 32.
        main: whether this process writes the listing and speaks.

    Raises:
        ValueError: a sample does not fit; more are left out than the budget allows, or all.
    """
    key = _key(dataset, drop)
    array, changed = folder / f"{key}.npy", folder / f"{key}.jsonl"
    if not (array.is_file() and changed.is_file() and _whole(array, len(dataset))):
        tokens, changes = _count(dataset, drop, workers, visible=main)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(changed, _lines(changes))
        write_whole(array, lambda file: np.save(file, tokens, allow_pickle=False))  # last: it says that both are there
    tokens = np.load(array, mmap_mode="r", allow_pickle=False)
    if main:
        _report(changed, listing, samples=len(tokens))
    dropped = int((tokens == 0).sum())
    if dropped > reject_budget * len(tokens):
        first = next(change for change in _read(changed) if change["action"] == "dropped")
        raise ValueError(
            f"{dropped} of {len(tokens)} samples cannot be learned, more than reject_budget={reject_budget} allows; "
            f"the first: {first['reason']}; mend them (all are in {listing}), raise max_length or the budget"
        )
    dataset.keep(tokens, counted=array)


def _whole(array: Path, samples: int) -> bool:
    """Whether a file of lengths holds one for each sample; a damaged one is counted anew."""
    try:
        return len(np.load(array, mmap_mode="r", allow_pickle=False)) == samples
    except (OSError, ValueError, EOFError):
        return False


def _report(changed: Path, listing: Path, *, samples: int) -> None:
    """Lists the samples left out or cut beside the run, and says how many there are."""
    rows = list(_read(changed))
    if not rows:
        listing.unlink(missing_ok=True)
        return
    listing.parent.mkdir(parents=True, exist_ok=True)
    write_whole(listing, lambda file: file.write(changed.read_bytes()))
    dropped = sum(row["action"] == "dropped" for row in rows)
    say(f"of {samples:,} samples {dropped:,} are left out and {len(rows) - dropped:,} cut: {listing}")


def _key(dataset: ConversationDataset, drop: bool) -> str:
    """Name of the file: sha256 of everything that the lengths depend on."""
    processor, samples = dataset.processor, dataset.samples
    texts = hashlib.sha256()
    if isinstance(samples, TextSamples | KeptSamples):
        texts.update(samples.fingerprint().encode())
        texts.update(b"all" if dataset.chosen is None else dataset.chosen.astype("<i8").tobytes())
    else:
        for place in range(len(dataset)):
            sample = dataset.sample(place)
            turns = [[turn.role, turn.content] for turn in sample.messages]
            texts.update(json.dumps([str(sample.name), sample.row is None, turns]).encode())
    content = {
        "texts": texts.hexdigest(),
        "tokenizer": hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "special": {name: str(token) for name, token in processor.tokenizer.special_tokens_map.items()},
        "template": processor.chat_template,
        "visual": processor.num_visual_tokens,
        "max_length": dataset.max_length,
        "policy": [drop, dataset.cut_turns],
        "versions": [_COUNTING, *(f"{name} {version(name)}" for name in ("tokenizers", "transformers"))],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class _Blocks(Dataset[_Counted]):
    """Blocks of samples, counted when asked for, in whatever process."""

    def __init__(self, dataset: ConversationDataset, drop: bool) -> None:
        self._dataset, self._drop = dataset, drop

    def __len__(self) -> int:
        return -(-len(self._dataset) // _BLOCK)

    def __getitem__(self, block: int) -> _Counted:
        """Tokens of the block's samples, int32, 0 for one left out; and the samples that are changed."""
        if not 0 <= block < len(self):
            raise IndexError(f"block {block} of {len(self)}")
        start = block * _BLOCK
        tokens = np.zeros(min(_BLOCK, len(self._dataset) - start), dtype=np.int32)
        changes = []
        for place in range(start, start + len(tokens)):
            sample = self._dataset.sample(place)
            try:
                encoded, turns = self._dataset.fit(sample)
            except ValueError as error:  # raised in a process that counts, it would arrive as a traceback
                unfit = isinstance(error, UnfitError) and self._drop
                changes.append(_Change(place, str(sample.name), "dropped" if unfit else "refused", str(error)))
                continue
            tokens[place - start] = len(encoded.input_ids)
            if turns < len(sample.messages):
                reason = f"{turns} of {len(sample.messages)} turns fit into max_length={self._dataset.max_length}"
                changes.append(_Change(place, str(sample.name), "cut", reason))
        return tokens, changes


def _count(dataset: ConversationDataset, drop: bool, workers: int | None, *, visible: bool) -> _Counted:
    """Encodes every sample once; with several processes where that pays."""
    blocks = _Blocks(dataset, drop)
    if workers is None:
        workers = min(usable_cores(), _WORKERS, len(blocks) // _BLOCKS_A_WORKER)
    loader: Any = DataLoader(blocks, batch_size=None, num_workers=workers if workers > 1 else 0)
    parts: list[np.ndarray] = []
    changes: list[_Change] = []
    with progress_bar("samples", visible=visible) as bar:
        task = bar.add_task("counting tokens", total=len(dataset))
        for tokens, found in loader:
            for change in found:
                if change.action == "refused":
                    raise ValueError(change.reason)
            parts.append(np.asarray(tokens))
            changes += found
            bar.advance(task, len(tokens))
    return np.concatenate(parts), changes


def _lines(changes: list[_Change]) -> Callable[[HashingFile], None]:
    rows = ({"id": one.id, "action": one.action, "reason": one.reason} for one in changes)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def write(file: HashingFile) -> None:
        """Writes the content."""
        file.write(content.encode())

    return write


def _read(changed: Path) -> Iterator[dict[str, str]]:
    with changed.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
