"""What callers of the alignments hold besides plain arrays: lists, masks, other byte orders, paths, odd settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clouds import METHODS

from revision.alignment import C3, ImageSide, MeanShift, ReAlign, Unicorn, build_alignment, load_alignment

DIM = 8


def sides(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows with a gap, float32."""
    rng = np.random.default_rng(0)
    found = [rng.normal(size=(count, DIM)) + middle for middle in (0.7, -0.7)]
    text, image = ((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in found)
    return text, image


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_another_byte_order_gives_the_same_values(dtype: str) -> None:
    text, image = (rows.astype(dtype) for rows in sides())
    native = text.astype(text.dtype.newbyteorder("="))
    found = ReAlign().fit(text, image)
    expected = ReAlign().fit(native, image.astype(image.dtype.newbyteorder("=")))
    for name, vector in expected._vectors.items():
        assert torch.equal(found._vectors[name], vector)
    mapped = found.apply(text)
    assert mapped.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(mapped, expected.apply(native))


@pytest.mark.parametrize(("offset", "size"), [(1, 1 + 4 * DIM), (2, 4 + 4 * DIM), (4, 4 + 4 * DIM)])
def test_a_field_of_a_structured_array_is_taken(offset: int, size: int) -> None:
    """Its rows are apart by no multiple of an entry, by one but within an entry, or by one."""
    record = np.dtype(
        {"names": ["id", "row"], "formats": ["i1", ("f4", DIM)], "offsets": [0, offset], "itemsize": size}
    )
    text, image = sides()
    records = np.zeros(len(text), record)
    records["row"] = text
    found, expected = ReAlign().fit(records["row"], image), ReAlign().fit(text, image)
    for name, vector in expected._vectors.items():
        assert torch.equal(found._vectors[name], vector)
    np.testing.assert_array_equal(found.apply(records["row"]), expected.apply(text))


def test_a_row_that_a_map_takes_to_the_origin_is_named() -> None:
    """By its number in the source, skipped rows and blocks before it included."""
    end = "is mapped onto the zero vector, which has no direction: choose another alignment$"
    text = [np.array([[np.nan, 0.0], [0.0, 1.0], [0.0, -1.0]]), np.array([[-1.0, 0.0], [1.0, 0.0]])]
    image = np.array([[-1.0, 0.0]] * 2)
    with pytest.raises(ValueError, match=f"^text row 4 {end}"):
        MeanShift().fit(text, image, skip_invalid=True)
    alignment = MeanShift().fit(text, image, skip_invalid=True, measure_gap=False)
    with pytest.raises(ValueError, match=f"^text row 1 {end}"):
        alignment.apply(text[1])
    with pytest.raises(ValueError, match=f"^text row 2 {end}"):
        list(alignment.apply([text[1][:1], text[1]], row_ids=range(3)))


def test_a_list_is_looked_at_at_once() -> None:
    text, image = sides()
    alignment = ReAlign().fit([text[:20], text[20:]], image)
    pieces = list(alignment.apply([text[:20], text[20:]]))
    np.testing.assert_array_equal(np.concatenate(pieces), alignment.apply(text))
    with pytest.raises(
        ValueError, match=r"^rows\[0\] is a list; rows must be a numpy array or a torch tensor \[n, d\]"
    ):
        alignment.apply(text.tolist())
    with pytest.raises(ValueError, match=r"^rows\[1\] has shape \(8,\); rows must be \[n, d\]"):
        alignment.apply((text, text[0]))
    with pytest.raises(ValueError, match="^text is a list; rows must be"):
        ReAlign().fit(text.tolist(), image)
    with pytest.raises(ValueError, match="^rows is a str; rows must be"):
        alignment.apply("texts.npy")  # type: ignore[arg-type]


def test_rows_without_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^text has shape \(5, 0\); a row has at least one column"):
        ReAlign().fit(np.empty((5, 0)), np.empty((5, 0)))


@pytest.mark.parametrize("side", ["text", "image"])
def test_a_side_without_spread_is_refused_by_unicorn(side: str) -> None:
    """What is left of a row that lies at the mean is rounding, and would be put on the sphere."""
    rng = np.random.default_rng(0)
    same, other = rng.uniform(1, 9, size=(90, 1)) * rng.normal(size=6), rng.normal(size=(80, 6))
    with pytest.raises(ValueError, match=f"the {side} rows are all equal, so Unicorn finds no scale"):
        Unicorn().fit(*((same, other) if side == "text" else (other, same)))


@pytest.mark.parametrize("method", METHODS)
def test_autocast_does_not_matter(method: str) -> None:
    rng = np.random.default_rng(0)
    alignment = build_alignment(method=method).fit(rng.normal(size=(300, 12)) + 1, rng.normal(size=(200, 12)) - 1)
    rows = torch.from_numpy(rng.normal(size=(50, 12)) + 1).half()
    expected = alignment.apply(rows, row_ids=range(50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(alignment.apply(rows, row_ids=range(50)), expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"row_ids": 5}, "row_ids is a int; give one id a row"),
        ({"row_ids": "abc"}, "row_ids is a str; give one id a row"),
        ({"epoch": 1.5}, "epoch=1.5 must be a whole number from 0 on"),
        ({"epoch": 2**64}, f"epoch={2**64} must be a whole number from 0 on"),
    ],
)
def test_ids_and_epochs_of_another_kind_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 4))
    with pytest.raises(ValueError, match=sentence):
        C3().fit(rows, rows + 1).apply(rows, **arguments)


def test_masks_are_refused() -> None:
    text, image = sides()
    masked = np.ma.masked_less(text, 0)
    sentence = "is a masked array, and a mask has no meaning here; give the rows that count, as .data"
    with pytest.raises(ValueError, match=f"text {sentence}"):
        ReAlign().fit(masked, image)
    with pytest.raises(ValueError, match=f"rows {sentence}"):
        ReAlign().fit(text, image).apply(masked)


def test_fit_takes_paths(tiny_store: Any, tmp_path: Path) -> None:
    text, image = sides()
    np.save(tmp_path / "text.npy", text)
    np.save(tmp_path / "image.npy", image)
    expected = ReAlign().fit(text, image)
    for paths in (
        (tmp_path / "text.npy", str(tmp_path / "image.npy")),
        (str(tmp_path / "text.npy"), image),
        (text, tmp_path / "image.npy"),
    ):
        found = ReAlign().fit(*paths)
        np.testing.assert_array_equal(found.apply(text), expected.apply(text))
    store = tiny_store("image", dim=DIM)
    opened = ReAlign().fit(tmp_path / "text.npy", store.path)
    assert opened.statistics.image_fingerprint == store.fingerprint()
    for other in (tmp_path / "text.npy", text):
        with pytest.raises(ValueError, match="text embeddings where image embeddings are needed"):
            ReAlign().fit(other, tiny_store("text", dim=DIM).path)
    with pytest.raises(ValueError, match=r"nowhere.npy does not exist"):
        ReAlign().fit(tmp_path / "nowhere.npy", image)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "realign", "until": "a"}, "until='a' must be a number"),
        ({"method": "realign", "until": True}, "until=True must be a number"),
        ({"method": "realign", "until": float("inf")}, "until=inf must be a positive distance"),
        ({"method": "realign", "until": float("nan")}, "until=nan must be a positive distance"),
        ({"method": "realign", "centroid_steps": 1.5}, "centroid_steps=1.5 must be a whole number"),
        ({"method": "realign", "anchor": "no"}, "anchor='no' must be True or False"),
        ({"method": "blockwise", "rank": "3"}, "rank='3' must be a whole number"),
        ({"method": "quantile", "energy": [0.9]}, r"energy=\[0.9\] must be a number"),
        ({"method": "gaussian_ot", "ridge": "x"}, "ridge='x' must be a number"),
        ({"method": "shrunk_ot", "shrinkage": "x"}, "shrinkage='x' must be a number"),
        ({"method": "c3", "noise_std": "x"}, "noise_std='x' must be a number"),
        ({"method": "diagonal", "seed": 1.0}, "seed=1.0 must be a whole number"),
        ({"method": "residual_noise", "noise_scale": "x"}, "noise_scale='x' must be a number"),
    ],
)
def test_settings_of_another_type_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        build_alignment(**settings)


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path: Path) -> None:
    text, image = sides()
    settings = {"rank": np.int64(4), "energy": np.float32(0.5), "centroid_steps": np.int32(2)}
    fitted = build_alignment(method="blockwise", **settings).fit(text, image)
    fitted.save(tmp_path)
    assert load_alignment(tmp_path).parameters() == fitted.parameters()


@pytest.mark.parametrize("method", METHODS)
def test_the_image_side_is_what_pictures_become(method: str) -> None:
    """A method says that it moves images if, and only if, it does."""
    text, image = sides()
    fitted = build_alignment(method=method).fit(text, image)
    side = ImageSide(fitted)
    found = side.apply(image, row_ids=range(len(image)), epoch=3)
    np.testing.assert_array_equal(found, fitted.apply_to_images(image))
    assert side.dim == DIM
    assert (np.abs(found - image).max() > 1e-6) == fitted.moves_images == isinstance(fitted, Unicorn)


def test_a_method_loads_its_own_alignments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(40, 6)) + 1, rng.normal(size=(30, 6)) - 1
    fitted = ReAlign(centroid_steps=2).fit(text, image)
    fitted.save(tmp_path / "a")
    found = ReAlign.load(tmp_path / "a")
    assert type(found) is ReAlign and found.fingerprint() == fitted.fingerprint()
    with pytest.raises(ValueError, match=r"a holds a ReAlign, not a C3; read it with load_alignment$"):
        C3.load(tmp_path / "a")
