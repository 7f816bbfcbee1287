"""The alignments in the configuration: each method and setting can be chosen, wrong values are refused; `align`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clouds import METHODS
from rich.console import Console
from test_configs import composed

from revision import rules
from revision.alignment import build_alignment, load_alignment
from revision.commands import align
from revision.fields import alignment_settings
from revision.schema import (
    AlignmentConfig,
    Config,
    DataConfig,
    EncoderConfig,
    Modality,
    SourceConfig,
)
from revision.shipped import shipped

GROUP = shipped("configs") / "alignment"
DIM = 16


def test_every_method_can_be_chosen() -> None:
    assert {file.stem for file in GROUP.glob("*.yaml")} == {*METHODS}


def test_every_setting_is_a_field_and_every_field_a_setting() -> None:
    settings = {name for cls in METHODS.values() for name in cls.settings}
    assert {field.name for field in fields(AlignmentConfig)} == settings - {"seed"} | {"method", "options"}


@pytest.mark.parametrize("method", METHODS)
def test_the_file_of_a_method_holds_its_settings_at_their_defaults(method: str) -> None:
    values = yaml.safe_load((GROUP / f"{method}.yaml").read_text())
    assert values.pop("method") == method
    assert {*values} <= {*METHODS[method].settings}
    chosen = build_alignment(method=method, **alignment_settings(composed(f"alignment={method}"), method))
    expected = METHODS[method]().parameters()
    assert chosen.parameters() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alignment.centroid_steps=-1", "alignment.centroid_steps = -1: must be at least 0."),
        ("alignment.rank=0", "alignment.rank = 0: must be at least 1."),
        ("alignment.ridge=-1", "alignment.ridge = -1.0: must be at least 0."),
        ("alignment.energy=0", "alignment.energy = 0.0: must be greater than 0."),
        ("alignment.energy=1.5", "alignment.energy = 1.5: must be at most 1."),
        ("alignment.shrinkage=-0.1", "alignment.shrinkage = -0.1: must be at least 0."),
        ("alignment.shrinkage=2", "alignment.shrinkage = 2.0: must be at most 1."),
        ("alignment.noise_scale=-1", "alignment.noise_scale = -1.0: must be at least 0."),
        ("alignment.jitter=-1", "alignment.jitter = -1.0: must be at least 0."),
    ],
)
def test_values_out_of_range_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        composed(override)
    assert str(caught.value) == message


def test_an_odd_rank_is_refused_where_quantile_would_meet_it() -> None:
    message = "alignment.rank = 7: must be even for quantile, which matches pairs of coordinates."
    with pytest.raises(ValueError) as caught:
        composed("alignment=quantile", "alignment.rank=7")
    assert str(caught.value) == message
    composed("alignment=blockwise", "alignment.rank=7")
    composed("alignment=quantile", "alignment.rank=8")


def make_config(root: Path, method: str, **settings: Any) -> Config:
    sources = {"texts": SourceConfig(Modality.text, "t"), "statistics": SourceConfig(Modality.image, "i")}
    config = composed(f"runs={root / 'runs'}", "name=test", "seed=4")
    config.data = DataConfig(name="tiny", folder=str(root), stores=str(root / "stores"), sources=sources)
    config.encoder = EncoderConfig(name="tiny", model="none")
    config.alignment = AlignmentConfig(method, **settings)
    rules.check(config)
    return config


@pytest.mark.parametrize("method", METHODS)
def test_align_fits_the_method_that_is_set(
    method: str, tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(width=120, record=True)
    monkeypatch.setattr("rich.get_console", lambda: console)
    text = tiny_store("text", n=90, dim=DIM, name="tiny/texts")
    image = tiny_store("image", n=80, dim=DIM, name="tiny/statistics", seed=1, shift=0.3)
    settings = {"shrinkage": 0.25, "energy": 0.8, "noise_scale": 0.5, "jitter": 0.1, "noise_std": 0.2}
    own = {name: value for name, value in {**settings, "seed": 4}.items() if name in METHODS[method].settings}
    align.run(make_config(tmp_path, method, **settings))
    found = load_alignment(tmp_path / "runs/test/align")
    expected = build_alignment(method=method, **own).fit(text, image)
    assert found.parameters() == expected.parameters()
    rows = text.rows(slice(None))
    np.testing.assert_array_equal(found.apply(rows, row_ids=range(90)), expected.apply(rows, row_ids=range(90)))
    shown = console.export_text()
    for name in expected.details():
        assert name.replace("_", " ") in shown
