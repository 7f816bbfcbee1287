"""Which foreign format lies at a path, and its parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from revision.embeddings.foreign.arrays import numpy_part, safetensors_part
from revision.embeddings.foreign.parts import Part
from revision.embeddings.foreign.pickled import pickled_part
from revision.embeddings.foreign.tables import STATE, dataset_parts, dataset_splits, parquet_parts

UNFINISHED = "unfinished.json"  # in the folder of an export that has not come to its end

# clip-retrieval's folders of vectors, and the beginnings of the names of their files.
VECTORS = {"text": "text_emb", "image": "img_emb"}
METADATA = "metadata"
_PICKLES = (".pkl", ".pickle")
_ACCEPTED = ".npy, .safetensors, .parquet, .pkl, a data set saved by `datasets`, or clip-retrieval's folders"


def find_parts(path: Path, kind: str) -> list[Part]:
    """The parts of the embeddings at a path, in order.

    Args:
        path: a file, a folder of files of one format, or either followed by the name of a column, tensor or field.
        kind: "text" or "image": which of clip-retrieval's folders, and which names, are meant.

    Returns:
        At least one part.

    Raises:
        ValueError: nothing that can be read lies there, or its parts disagree; says what and where.
    """
    asked = None
    place = path
    if not place.exists() and _may_be_column(place):
        place, asked = place.parent, place.name
    try:
        parts = list(_parts(place, kind, asked))
    except OSError as error:
        raise ValueError(f"{error.filename or place} cannot be read: {error.strerror or error}") from error
    if not sum(part.rows for part in parts):
        raise ValueError(f"{place} holds no rows; give at least one")
    first = next(part for part in parts if part.rows)
    for part in parts:
        if part.rows and part.dim != first.dim:
            raise ValueError(
                f"{part.name} has rows of dimension {part.dim} but {first.name} {first.dim}; the embeddings of a "
                "source are of one encoder: keep others in another folder"
            )
    return [part for part in parts if part.rows]


def is_there(path: Path) -> bool:
    """Whether a path leads to anything: a file, a folder that is not empty, or perhaps a column of either."""
    if path.is_dir():
        return next(path.iterdir(), None) is not None
    return path.exists() or _may_be_column(path)


def _may_be_column(path: Path) -> bool:
    """Whether a path that does not exist can be a file or folder followed by the name of one of its columns."""
    place = path.parent
    if path.suffix in (".npy", ".parquet", ".safetensors", *_PICKLES) or not place.exists():
        return False
    if place.is_file():
        return place.suffix in (".parquet", ".safetensors", *_PICKLES)
    return any((place / STATE).is_file() or next(place.glob(f"*{s}"), None) for s in (".parquet", ".safetensors"))


def _parts(place: Path, kind: str, asked: str | None) -> Iterator[Part]:
    if not place.exists():
        raise ValueError(f"there is nothing at {place}; give {_ACCEPTED}")
    if place.is_file():
        yield from _file_parts(place, kind, asked)
    elif (place / UNFINISHED).is_file():
        raise ValueError(f"{place} is an unfinished export; run `revision align` with the same align.export again")
    elif splits := dataset_splits(place):
        raise ValueError(f"{place} has the splits {', '.join(splits)}; name one: {place / splits[0]}")
    elif (place / STATE).is_file():
        yield from dataset_parts(place, kind, asked)
    elif (place / VECTORS[kind]).is_dir():
        yield from _clip_retrieval(place, VECTORS[kind], kind)
    elif others := [name for name in VECTORS.values() if (place / name).is_dir()]:
        raise ValueError(f"{place} has {others[0]} but no {VECTORS[kind]}, and {kind} embeddings are needed")
    elif place.name in VECTORS.values() and _labels_of(place.parent):
        yield from _clip_retrieval(place.parent, place.name, kind)
    else:
        yield from _folder_parts(place, kind, asked)


def _file_parts(file: Path, kind: str, asked: str | None) -> Iterator[Part]:
    match file.suffix:
        case ".npy":
            yield numpy_part(file, kind)
        case ".safetensors":
            yield safetensors_part(file, kind, asked)
        case ".parquet":
            yield from parquet_parts(file, kind, asked)
        case ".pkl" | ".pickle":
            yield pickled_part(file, kind, asked)
        case _:
            raise ValueError(f"{file} is of no format that embeddings are read from; give {_ACCEPTED}")


def _folder_parts(folder: Path, kind: str, asked: str | None) -> Iterator[Part]:
    suffixes: dict[str, Callable[[str], bool]] = {
        ".npy": lambda suffix: suffix == ".npy",
        ".safetensors": lambda suffix: suffix == ".safetensors",
        ".pkl": lambda suffix: suffix in _PICKLES,
        ".parquet": lambda suffix: suffix == ".parquet",
    }
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    found = {name: [file for file in files if fits(file.suffix)] for name, fits in suffixes.items()}
    found = {name: some for name, some in found.items() if some}
    if len(found) > 1:
        found.pop(".parquet", None)  # the labels of the others
    if not found:
        raise ValueError(f"{folder} holds no embeddings; give {_ACCEPTED}")
    if len(found) > 1:
        raise ValueError(f"{folder} holds files of several formats ({', '.join(found)}); keep one of them there")
    for file in sorted(next(iter(found.values())), key=_natural):
        yield from _file_parts(file, kind, asked)


def _clip_retrieval(folder: Path, vectors: str, kind: str) -> Iterator[Part]:
    """`<vectors>/<vectors>_<n>.npy`, each with `metadata/metadata_<n>.parquet` where there is such a folder.

    LAION-5B calls that folder after the part of it: `laion2B-en-metadata`.

    Line i of one metadata file is row i of both sides, so a folder that lacks a file of one of them was not copied in
    full.
    """
    labels = _labels_of(folder)
    metadata = {} if labels is None else {_number(file): file for file in labels.glob("*.parquet")}
    files = sorted((folder / vectors).glob("*.npy"), key=_natural)
    if not files:
        raise ValueError(f"{folder / vectors} holds no .npy file; {_ACCEPTED} are read")
    numbers = {name: {_number(file) for file in (folder / name).glob("*.npy")} for name in VECTORS.values()}
    numbers = {name: some for name, some in {**numbers, METADATA: {*metadata}}.items() if some}
    for name, some in numbers.items():
        if lacking := sorted(set().union(*numbers.values()) - some):
            counts = ", ".join(f"{len(found)} files in {place}" for place, found in numbers.items())
            raise ValueError(
                f"{folder} is not whole: it has {counts}, and {name} lacks number {lacking[0]}; copy it again, or move "
                "the folders that are whole elsewhere"
            )
    for file in files:
        yield numpy_part(file, kind, metadata.get(_number(file)))


def _labels_of(folder: Path) -> Path | None:
    """The folder of labels beside those of vectors.

    Raises:
        ValueError: several folders could be meant.
    """
    if (folder / METADATA).is_dir():
        return folder / METADATA
    others = sorted(place for place in folder.glob(f"*-{METADATA}") if place.is_dir())
    if len(others) > 1:
        raise ValueError(f"{folder} has {others[0].name} and {others[1].name}; keep the one that belongs to the rows")
    return others[0] if others else None


def _number(file: Path) -> int:
    """The number at the end of a name: 7 of `img_emb_0007.npy`; -1 without one."""
    found = re.search(r"(\d+)$", file.stem)
    return int(found.group(1)) if found else -1


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts `part_10` behind `part_9`, as whoever numbered them meant it."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", file.name)]
