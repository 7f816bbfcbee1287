"""A distribution on the path that adds something by entry points, as a package that somebody has installed would."""

from __future__ import annotations

from pathlib import Path

import pytest


def install(root: Path, patch: pytest.MonkeyPatch, module: str, code: str, group: str, points: dict[str, str]) -> Path:
    """Writes a module and its entry points, name to object, below `root`; gives the folder that is on the path now."""
    place = root / "site"
    name = module.replace("_", "-")
    about = place / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (place / f"{module}.py").write_text(code)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{point} = {value}\n" for point, value in points.items())
    (about / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    patch.syspath_prepend(place)
    return place
