"""The shape of the code: imports go one way, and what the project forbids itself is nowhere in it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "revision"
FILES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "data_recipes").rglob("*.py")) + sorted((ROOT / "scripts").rglob("*.py"))

# Top to bottom; a module imports only from lines below its own, or from its own package folder.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["commands"],
    ["stages"],
    ["assembly", "evaluation", "rules", "runs", "training", "verification"],
    ["building", "fields", "publishing"],
    ["schema"],
    ["costs"],
    ["data", "geometry"],
    ["contrastive"],
    ["alignment", "decoding", "encoders", "folders", "records"],
    ["embeddings", "pictures"],
    ["model"],
    ["locks"],
    ["cores", "files", "hub", "interrupts", "model_card", "precision", "progress", "shipped"],
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
# Rooms whose own modules lie in layers too.
WITHIN = {
    "cli": [["command_line"], ["helptext", "search"], ["multirun", "unread"], ["overrides"],
            ["composition", "proposals"], ["explaining", "loading", "quoting"]],
    "data": [["collators", "contents", "inspection", "lengths", "packing"], ["dataset"],
             ["samples"], ["conversation", "rows"], ["lines", "templates"]],
    "runs": [["launching"], ["processes", "rundir"], ["dependencies"], ["provenance"]],
}  # fmt: skip

# The only modules that know the configuration; all others take plain arguments.
KNOW_THE_CONFIG = {"assembly", "cli", "commands", "fields", "rules", "runs", "stages"}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LONGEST_FILE = 340  # lines


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def room(file: Path) -> str:
    """The module or package folder directly under `revision/` that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """Dotted names of all imported modules, those inside functions included; relative imports made absolute."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from names if module == "revision" or module.removeprefix("revision.") in WITHIN else [module]


def rooms_imported(file: Path) -> set[str]:
    ours = {name.split(".")[1] for name in imported(file) if name.startswith("revision.")}
    return {name for name in ours if name in DEPTH}  # the rest are names such as revision.__version__


def ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_every_module_has_its_layer() -> None:
    assert {room(file) for file in FILES} - {"__init__"} == set(DEPTH)


@pytest.mark.parametrize("file", [file for file in FILES if room(file) != "__init__"], ids=ids)
def test_imports_go_down(file: Path) -> None:
    own = room(file)
    upward = {name for name in rooms_imported(file) if name != own and DEPTH[name] <= DEPTH[own]}
    assert upward == set(), f"{own} imports from its own line or above"


@pytest.mark.parametrize("name", WITHIN)
def test_imports_go_down_within_a_room(name: str) -> None:
    depth = {module: place for place, modules in enumerate(WITHIN[name]) for module in modules}
    files = [file for file in FILES if room(file) == name and file.stem != "__init__"]
    assert {file.stem for file in files} == set(depth)
    for file in files:
        own = {part.split(".")[2] for part in imported(file) if part.startswith(f"revision.{name}.")}
        upward = {module for module in own if depth[module] <= depth[file.stem]}
        assert upward == set(), f"{file.stem} imports from its own line or above"


def test_the_test_sees_lazy_and_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "revision" / "model" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "def f():\n    from revision.cli import main\n    from .y import z\n    from revision import folders\n"
        "    from revision.runs import rundir\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert set(imported(file)) == {"revision.cli.main", "revision.model.y", "revision.folders", "revision.runs.rundir"}
    assert rooms_imported(file) == {"cli", "model", "folders", "runs"}


def test_commands_do_not_import_each_other() -> None:
    for file in sorted((PACKAGE / "commands").glob("*.py")):
        others = {name for name in imported(file) if name.startswith("revision.commands.")}
        assert others == set(), file.name


def test_only_the_entrance_knows_the_configuration() -> None:
    readers = {room(file) for file in FILES if "schema" in rooms_imported(file)}
    assert readers - {"schema"} <= KNOW_THE_CONFIG


def test_model_needs_transformers_and_what_it_brings_only() -> None:
    """Its files are copied into checkpoints, where the package is not."""
    for file in sorted((PACKAGE / "model").glob("*.py")):
        roots = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names)
        assert roots <= {"torch", "transformers", "safetensors", "packaging", "revision"}, file.name
        assert rooms_imported(file) <= {"model"}, file.name
        absolute = [
            node.module
            for node in ast.walk(tree(file))
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("revision")
        ]
        copied = file.name != "__init__.py"
        assert not (copied and absolute), f"{file.name}: imports between these files are relative"


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


@pytest.mark.parametrize("file", FILES + RECIPES, ids=ids)
def test_nothing_is_pickled(file: Path) -> None:
    used = {name.split(".")[0] for name in imported(file)} & PICKLES
    attributes = {ast.unparse(node) for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute)}
    named = {name for name in attributes if name.split(".")[0] in PICKLES}
    assert used <= {name.split(".")[0] for name in named}, "imported by name"
    assert named <= {"pickle.UnpicklingError"}, "torch raises it for a file that it refuses to read; no more is needed"
    for name, call in calls(file):
        assert name != "torch.save", "safetensors instead"
        if name == "torch.load":
            assert keyword(call, "weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") in (None, "False")


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_house_rules(file: Path) -> None:
    assert "print" not in {name for name, _ in calls(file)}, "rich or logging instead"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type is not None else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"line {node.lineno} catches {caught}"
    assert file.name not in ("utils.py", "helpers.py", "misc.py")
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_every_public_thing_says_what_it_is(file: Path) -> None:
    module = tree(file)
    silent = [] if ast.get_docstring(module) else ["the module"]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            silent += [] if ast.get_docstring(node) else [node.name]
    assert silent == []
