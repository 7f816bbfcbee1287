"""Data sets of the `datasets` library: on the hub, streamed or not, and saved to disk."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from revision.embeddings.foreign.parts import file_sample
from revision.records.spans import Spans
from revision.records.tables import picture_columns, with_blobs

_SCHEME = "hf://"
_OPTIONS = {"split", "config", "revision", "streaming"}


def is_hub(location: Path | str) -> bool:
    """Whether a location names a data set of the hub."""
    return str(location).startswith((_SCHEME, "hf:/"))  # a Path swallows one of the slashes


def is_saved(path: Path) -> bool:
    """Whether `datasets` has saved a data set, or several splits of one, in a folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def saved_rows(path: Path, *, pictures: bool, wanted: Spans) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) of a data set that `save_to_disk` wrote. Raises ValueError where it cannot be read."""
    import datasets

    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / "state.json").is_file())
        if len(splits) != 1:
            raise ValueError(f"{path} holds the splits {', '.join(splits) or 'none'}; name one: {path}/SPLIT")
        path = path / splits[0]
    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{path} is not a readable data set of `datasets`: {error}") from error
    yield from _rows(dataset, str(path), pictures=pictures, wanted=wanted)


def hub_rows(location: str, *, pictures: bool, wanted: Spans) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) of `hf://owner/name?split=train&config=...&revision=...&streaming=true`.

    Raises:
        ValueError: there is no such data set, configuration or split, or the hub cannot be reached.
    """
    yield from _rows(_load(location), location, pictures=pictures, wanted=wanted)


def hub_fingerprint(location: str, sample: Callable[[Path], str] = file_sample) -> str:
    """The sha256 of the data set's files where they are at hand, of its revision where it is streamed.

    sample: what stands for a file.

    Raises:
        ValueError: it cannot be had.
    """
    name, options = _parse(location)
    if Path(name).is_dir():
        files = [file for file in sorted(Path(name).rglob("*")) if file.is_file() and not _is_hidden(file, Path(name))]
    elif options.get("streaming") == "true":
        return hashlib.sha256(f"{location} {_revision(name, options)}".encode()).hexdigest()
    else:
        files = [Path(cache["filename"]) for cache in _load(location).cache_files]
    listed = "".join(f"{file.name} {sample(file)}\n" for file in files)
    return hashlib.sha256(f"{location} {listed}".encode()).hexdigest()


def _is_hidden(file: Path, folder: Path) -> bool:
    """Whether a file is not of the data, as what `hf download --local-dir` keeps in `.cache`."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _parse(location: str) -> tuple[str, dict[str, str]]:
    """Name and options of a location."""
    url = urlsplit(_SCHEME + location.split(":", 1)[1].removeprefix("/").removeprefix("/"))
    # A plus joins splits here; in the query of a web page it would be a blank.
    options = dict(parse_qsl(url.query.replace("+", "%2B"), keep_blank_values=True))
    name = f"{url.netloc}{url.path}"
    if location.startswith((_SCHEME + "/", "hf:///")):  # a folder of this machine
        name = "/" + name.lstrip("/")
    unknown = options.keys() - _OPTIONS
    if unknown or not name:
        raise ValueError(
            f"{location}: write hf://owner/name?split=train, with {', '.join(sorted(_OPTIONS))} as options"
            + (f", not {sorted(unknown)[0]!r}" if unknown else "")
        )
    return name, options


def _load(location: str) -> Any:
    import datasets
    from huggingface_hub.errors import HTTPError

    name, options = _parse(location)
    streaming = options.get("streaming") == "true"
    try:
        return datasets.load_dataset(
            name,
            options.get("config"),
            split=options.get("split", "train"),
            revision=options.get("revision"),
            streaming=streaming,
        )
    # Whatever the hub, the network or a builder says about a data set that cannot be had.
    except (
        OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, HTTPError,
        datasets.exceptions.DatasetsError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise ValueError(f"{location} cannot be loaded: {reason}; look at its name, split and config") from error


def _revision(name: str, options: dict[str, str]) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return str(HfApi().dataset_info(name, revision=options.get("revision")).sha)
    # HTTPError is that of the client below the hub's library: what it says without an answer is none of the others.
    except (OSError, HTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"hf://{name}: the hub does not tell its revision ({reason}); try again") from error


def _rows(dataset: Any, name: str, *, pictures: bool, wanted: Spans) -> Iterator[tuple[str, Any]]:
    import datasets
    import pyarrow as pa
    from huggingface_hub.errors import HTTPError

    read = 0
    try:
        dataset = _undecoded(dataset)
        schema = None if dataset.features is None else dataset.features.arrow_schema
        held = [] if schema is None else picture_columns(schema)
        spared = [] if pictures or schema is None else picture_columns(schema, lists=False)
        found = _numbered(dataset, wanted)
        if spared and {*spared} != {*dataset.features}:
            found = _numbered(dataset.remove_columns(spared), wanted)
        elif spared and isinstance(dataset, datasets.Dataset):  # without columns it would have no rows
            found = ((number, {}) for number in itertools.takewhile(lambda n: n < len(dataset), wanted))
        for number, row in found:
            where = f"{name}, row {number + 1}"
            yield where, with_blobs(row, held, where)
            read = number + 1
    except (
        OSError, RuntimeError, UnicodeDecodeError, ImportError, HTTPError, pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read (after row {read}): {reason}") from error


def _undecoded(dataset: Any) -> Any:
    """The data set with pictures, sounds, videos and the like as bytes, in columns and inside of them."""
    import datasets

    features = copy.deepcopy(dataset.features)
    media = [leaf for leaf in _leaves(features) if hasattr(leaf, "decode") and type(leaf).__name__ != "Json"]
    if not media:
        return dataset
    for leaf in media:
        leaf.decode = False
    if not isinstance(dataset, datasets.Dataset):
        return dataset.decode(False).cast(features)  # `decode` takes away threads that decode ahead
    # What is stored is the same: `cast` would write all of a nested column anew.
    dataset = dataset.with_format(None)
    dataset.info.features = features
    return dataset


def _leaves(feature: Any) -> Iterator[Any]:
    """The features that hold values, out of columns, structs and lists."""
    import datasets

    if isinstance(feature, dict):
        for inner in feature.values():
            yield from _leaves(inner)
    elif isinstance(feature, datasets.List | datasets.LargeList):
        yield from _leaves(feature.feature)
    else:
        yield feature


def _numbered(dataset: Any, wanted: Spans) -> Iterator[tuple[int, Any]]:
    """The wanted rows with their numbers; of a data set that is streamed, those between them come by all the same."""
    import datasets

    if isinstance(dataset, datasets.Dataset):
        for span in wanted.ranges():
            rows = range(span.start, min(span.stop, len(dataset)))
            yield from zip(rows, dataset.select(rows), strict=True)
        return
    first = next(iter(wanted), 0)
    for number, row in enumerate(dataset.skip(first) if first else dataset, start=first):
        if number >= wanted.end:
            return
        if number in wanted:
            yield number, row
