"""A new alignment is one file and one config: beside ours, or in another package by an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_package
import numpy as np
import pytest
from clouds import METHODS
from safetensors.numpy import load_file

from revision.alignment import build_alignment, load_alignment, methods
from revision.building import read_image_alignment
from revision.cli import main
from revision.model import RevisionConfig

DIM = 8
METHOD = '''
"""A share of the way between the two means."""

from revision.alignment import Alignment, MeanShift
from revision.alignment.rows import renormalise
from revision.alignment.settings import number


class Part(Alignment):
    """norm(e + share (mu_x - mu_y))."""

    method = "part"

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = number("share", share)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={share} must be from 0 to 1")

    def _solve(self, fitting):
        self._vectors = {"shift": self.share * (fitting.image.mean - fitting.text.mean)}

    def _map(self, rows, keys, epoch):
        return renormalise(rows.add_(self._vector("shift", rows)))


class Nameless(MeanShift):
    pass


class Needy(MeanShift):
    method = "needy"

    def __init__(self, share):
        super().__init__()
        self.share = share


class Bare(Alignment):
    method = "bare"
'''
CONFIG = "method: part\noptions:\n  share: 0.25\n"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder of configs with one for the new method."""
    folder = tmp_path / "configs/alignment"
    folder.mkdir(parents=True)
    (folder / "part.yaml").write_text(CONFIG)
    return folder.parent


@pytest.fixture
def beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file of the new method, as if it lay in `revision/alignment/methods`."""
    (tmp_path / "part.py").write_text(METHOD)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield
    sys.modules.pop("revision.alignment.methods.part", None)


@pytest.fixture
def in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution on the path with entry points: two good ones, others that are broken or take a name of ours."""
    points = {
        "part": "fake_maps:Part", "broken": "no_such_module:Part", "nameless": "fake_maps:Nameless",
        "number": "fake_maps:DIM", "realign": "fake_maps:Part", "needy": "fake_maps:Needy", "bare": "fake_maps:Bare",
    }  # fmt: skip
    place = fake_package.install(tmp_path, monkeypatch, "fake_maps", METHOD, methods.GROUP, points)
    # for the steps of `run`, which are processes of their own
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))


def words(root: Path, configs: Path, *further: str) -> list[str]:
    """A command line over the stores of the fixture `tiny_store`."""
    return [
        "alignment=part", f"runs={root / 'runs'}", "name=test", f"data.stores={root / 'stores'}",
        "data.name=tiny", "encoder.name=tiny", "encoder.model=none", "data.texts=texts", "data.statistics=statistics",
        "data.sources={texts:{kind:text,records:t},statistics:{kind:image,records:i}}", "data.recipe=null",
        "data.pairs=null",
        "--config-dir", str(configs), *further,
    ]  # fmt: skip


@pytest.mark.parametrize("home", ["beside_ours", "in_a_package"])
def test_a_file_and_a_config_make_a_method(
    home: str, request: pytest.FixtureRequest, tiny_store: Any, tmp_path: Path, configs: Path
) -> None:
    request.getfixturevalue(home)
    text = tiny_store("text", n=40, dim=DIM, name="tiny/texts")
    image = tiny_store("image", n=30, dim=DIM, name="tiny/statistics", seed=1, shift=0.3)
    assert main(["align", *words(tmp_path, configs)]) == 0
    found = load_alignment(tmp_path / "runs/test/align")
    assert type(found).__name__ == "Part" and found.parameters() == {"share": 0.25}
    rows = text.rows(slice(None)).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    goal = image.rows(slice(None)).astype(np.float64)
    goal /= np.linalg.norm(goal, axis=1, keepdims=True)
    moved = rows + 0.25 * (goal.mean(axis=0) - rows.mean(axis=0))
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(found.apply(rows), expected, atol=1e-12)
    assert main(["gap", *words(tmp_path, configs, "gap.compare=[realign]")]) == 0


def test_its_options_are_part_of_what_the_run_depends_on(
    in_a_package: None, tiny_store: Any, tmp_path: Path, configs: Path
) -> None:
    tiny_store("text", n=40, dim=DIM, name="tiny/texts")
    tiny_store("image", n=30, dim=DIM, name="tiny/statistics", seed=1, shift=0.3)
    run = [*words(tmp_path, configs), "run.steps=[align]"]
    file = tmp_path / "runs/test/align/alignment.safetensors"
    shifts = []
    for share in ("0.25", "0.25", "0.75"):
        assert main(["run", *run, f"alignment.options.share={share}"]) == 0
        shifts.append((file.stat().st_mtime_ns, load_file(file)["shift"]))
    assert shifts[0][0] == shifts[1][0] < shifts[2][0]  # the second run had nothing to do
    np.testing.assert_allclose(shifts[2][1], 3 * shifts[0][1], rtol=1e-12)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alignment.options.shar=1", "alignment.options.shar = 1: must be left out, since part has no such setting "
         "(did you mean 'share'?)."),
        ("alignment.options.until=1", "alignment.options.until = 1: must be set as alignment.until."),
        ("alignment.options.seed=1", "alignment.options.seed = 1: must be set as seed."),
        ("alignment.method=parrt", "alignment.method = parrt: must be one of blockwise, c3, "),
        ("alignment.method=parrt", "unicorn, bare, broken, nameless, needy, number, part (did you mean 'part'?); "),
        ("gap.compare=[parrt]", "gap.compare = parrt: must be one of "),
        ("alignment.options.share=2", "share=2 must be from 0 to 1"),
        ("alignment.method=broken", "alignment method 'broken' of no_such_module:Part cannot be imported"),
        ("alignment.method=number", "alignment method 'number' of fake_maps:DIM cannot be imported"),
        ("alignment.method=nameless", "fake_maps:Nameless is no alignment method 'nameless': it must be a subclass of"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_a_sentence(
    override: str, message: str, in_a_package: None, tiny_store: Any, tmp_path: Path, configs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tiny_store("text", n=40, dim=DIM, name="tiny/texts")
    tiny_store("image", n=30, dim=DIM, name="tiny/statistics", seed=1, shift=0.3)
    assert main(["align", *words(tmp_path, configs, override)]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "runs/test/align").exists()


@pytest.mark.parametrize("code", ["import no_such_module\n", "def (:\n", "x = undefined_name\n"])
def test_a_file_that_cannot_be_imported_is_a_sentence(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    place = r"^alignment method 'damaged' of .*damaged\.py"
    with pytest.raises(ValueError, match=rf"{place} cannot be imported \(\w+Error: .*\); mend it, or install what"):
        build_alignment(method="damaged")


LACKING = [
    ("needy", r"Needy\.__init__\(\) missing 1 required positional argument: 'share'"),
    ("bare", "Can't instantiate abstract class Bare .*"),
]


@pytest.mark.parametrize(("method", "reason"), LACKING)
def test_a_class_that_cannot_be_made_is_a_sentence(method: str, reason: str, in_a_package: None) -> None:
    with pytest.raises(ValueError, match=rf"^alignment method {method} cannot be made \({reason}\); its class needs a"):
        build_alignment(method=method)


def test_a_package_takes_no_name_of_ours(in_a_package: None) -> None:
    assert "realign" not in methods.added()
    assert type(build_alignment(method="realign")).__name__ == "ReAlign"


def test_an_alignment_of_a_package_that_is_gone_is_refused(tiny_store: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path / "part.py"
        place.write_text(METHOD)
        patch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
        text = tiny_store("text", n=40, dim=DIM, name="tiny/texts")
        image = tiny_store("image", n=30, dim=DIM, name="tiny/statistics", seed=1, shift=0.3)
        build_alignment(method="part").fit(text, image).save(tmp_path / "saved")
    sys.modules.pop("revision.alignment.methods.part", None)
    with pytest.raises(ValueError, match="is of alignment method 'part'; there are blockwise, .*install the package"):
        load_alignment(tmp_path / "saved")
    RevisionConfig(alignment={"method": "part"}).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="alignment method = part: must be one of .*install the package"):
        read_image_alignment(tmp_path / "model")


def test_a_setting_that_a_method_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="method realign has no setting 'noise_std'; it has centroid_steps, until, "):
        build_alignment(method="realign", noise_std=0.1)
    with pytest.raises(ValueError, match="method none has no setting 'seed'; it has none"):
        build_alignment(method="none", seed=1)


def test_settings_are_read_from_the_source() -> None:
    assert {name: methods.settings_of(name) for name in METHODS} == {
        name: cls.settings for name, cls in METHODS.items()
    }
    assert methods.settings_of("blockwise") == ("rank", "energy", "ridge", "centroid_steps", "until")  # inherited


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("from revision.alignment import C3 as Base\n", ("noise_std", "seed")),  # through the room
        ("from revision.alignment import MeanShift as Base\n", ()),
        ("from revision.alignment.methods.realign import ReAlign as Base\n",
         ("centroid_steps", "until", "anchor", "trace")),
        ("import revision.alignment as room\nBase = room.C3\n", ("noise_std", "seed")),  # asked of the class
    ],
)  # fmt: skip
def test_settings_that_are_inherited(
    base: str, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heir.py").write_text(f'{base}\n\nclass Heir(Base):\n    method = "heir"\n')
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "revision.alignment.methods.heir", raising=False)
    assert methods.settings_of("heir") == settings
    monkeypatch.delitem(sys.modules, "revision.alignment.methods.heir", raising=False)
    assert methods.method_class("heir").settings == settings
    monkeypatch.delitem(sys.modules, "revision.alignment.methods.heir", raising=False)


def test_names_and_settings_are_known_without_loading_a_method() -> None:
    """Rules and help ask for them."""
    code = (
        "import sys; from revision.alignment.methods import names, settings_of; [settings_of(one) for one in names()]; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
