"""One alignment a file, which bears the method's name; its config is `configs/alignment/<name>.yaml`.

Whatever lies here is a method, and so is what other installed packages add by the entry point group
`revision.alignments`: its name is what `alignment.method` says, the object a class of `revision.alignment.Alignment`.
Nothing heavy is imported here: names are those of files and entry points, settings of ours are read from their source,
and a class is loaded when it is asked for.

Notation in all files: e a unit text row; mu_y, mu_x the means of text and image; Sigma_y, Sigma_x their covariances and
T_y, T_x the traces of these; norm(v) = v / ||v||.
"""

from __future__ import annotations

import ast
import pkgutil
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revision.alignment.base import Alignment

GROUP = "revision.alignments"


def built_in() -> list[str]:
    """The methods of this package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def added() -> dict[str, EntryPoint]:
    """The methods of other packages by name. One that bears the name of one of ours is left out."""
    ours = built_in()
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in ours}


def names() -> list[str]:
    """All methods: ours, then those of other packages."""
    return [*built_in(), *sorted(added())]


def require_method(name: str, place: str = "alignment method") -> None:
    """Holds that there is a method of that name; nothing is loaded.

    Args:
        name: of the method.
        place: what the sentence calls it, such as the field that holds it.

    Raises:
        ValueError: names the nearest method.
    """
    known = names()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(
            f"{place} = {name}: must be one of {', '.join(known)}{hint}; install the package that adds another."
        )


def method_class(name: str) -> type[Alignment]:
    """The class of a method.

    Raises:
        ValueError: there is no such method, or what bears its name is none: a module or object that cannot be imported,
            or no subclass of `Alignment` whose `method` is that name.
    """
    require_method(name)
    ours = name in built_in()
    place = f"revision/alignment/methods/{name}.py" if ours else added()[name].value
    try:
        held = list(vars(import_module(f"{__name__}.{name}")).values()) if ours else [added()[name].load()]
    except (ImportError, AttributeError, NameError, SyntaxError, TypeError) as error:
        raise ValueError(
            f"alignment method {name!r} of {place} cannot be imported ({type(error).__name__}: {error}); mend it, or "
            "install what it needs"
        ) from error
    found = [one for one in held if _is_method(one, name)]
    if not found:
        raise ValueError(
            f"{place} is no alignment method {name!r}: it must be a subclass of revision.alignment.Alignment whose "
            f"`method` is {name!r}"
        )
    return found[0]


def settings_of(name: str) -> tuple[str, ...]:
    """Names of a method's settings, the arguments of its constructor. Of ours nothing is loaded.

    Raises:
        ValueError: as `method_class`.
    """
    require_method(name)
    if name in built_in():
        module = f"{__name__}.{name}"
        try:
            for line in _tree(module).body:
                if isinstance(line, ast.ClassDef) and any(_names(part, name) for part in line.body):
                    found = _arguments(module, line.name)
                    if found is not None:
                        return found
        except SyntaxError:
            pass  # told when it is loaded
    return method_class(name).settings


def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _names(line: ast.stmt, method: str) -> bool:
    """Whether a line of a class is `method = "<name>"`."""
    return (
        isinstance(line, ast.Assign)
        and [ast.unparse(target) for target in line.targets] == ["method"]
        and isinstance(line.value, ast.Constant)
        and line.value.value == method
    )


def _arguments(module: str, name: str) -> tuple[str, ...] | None:
    """Arguments of a class's constructor, or of the first that it inherits; None where its source lies elsewhere."""
    if not module.startswith("revision."):
        return None
    tree = _tree(module)
    classes = {line.name: line for line in tree.body if isinstance(line, ast.ClassDef)}
    homes = {
        alias.asname or alias.name: (str(line.module), alias.name)
        for line in ast.walk(tree) if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }  # fmt: skip
    if name not in classes:  # a room that hands on the names of its files
        return _arguments(*homes.get(name, ("", name)))
    for line in classes[name].body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            return tuple(one.arg for one in [*line.args.args[1:], *line.args.kwonlyargs])
    bases = [ast.unparse(base) for base in classes[name].bases]
    return _arguments(module, bases[0]) if bases else ()


def _is_method(value: Any, name: str) -> bool:
    from revision.alignment.base import Alignment

    return isinstance(value, type) and issubclass(value, Alignment) and vars(value).get("method") == name
