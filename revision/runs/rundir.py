"""The folder of a run: `<runs>/<name>/<command>/`, its resolved config, provenance and finish mark.

A command counts as finished when its finish mark carries the fingerprint of the settings asked for now
(`dependencies`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from revision.runs.dependencies import (
    GUARDED,
    contrast_output,
    fingerprint,
    folder,
    identity,
    models_read,
    reads_alignment,
    settings,
)
from revision.runs.provenance import provenance
from revision.schema import Config

__all__ = [
    "CONFIG",
    "FINISHED",
    "PROVENANCE",
    "fingerprint",
    "finish",
    "folder",
    "identity",
    "is_finished",
    "is_main_process",
    "reads_alignment",
    "require",
    "settings",
    "start",
    "write_json",
    "write_text",
]  # fmt: skip

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
FINISHED = "finished.json"
_ONWARD = "start the same command again"


def start(config: Config, command: str) -> Path:
    """Make the folder of `command`, write config and provenance into it, and take an old finish mark away.

    Every rank may call it; only the main process writes.

    Raises:
        ValueError: the folder cannot be made or written.
    """
    from revision import folders  # here, since the command line's help needs nothing that imports numpy

    path = folder(config, command)
    with folders.writing(path, _ONWARD):
        path.mkdir(parents=True, exist_ok=True)
    if is_main_process():
        with folders.writing(path, _ONWARD):
            (path / FINISHED).unlink(missing_ok=True)
        write_text(path / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)))
        write_json(path / PROVENANCE, provenance())
    return path


def reopen(config: Config, command: str) -> None:
    """Take the finish mark of `command` away, where there is one: what it has read is no longer what it was."""
    (folder(config, command) / FINISHED).unlink(missing_ok=True)


def finish(config: Config, command: str, **facts: Any) -> None:
    """Write the finish mark of `command`; `facts` are numbers and names worth reading at a glance.

    Of a stage, `bad_steps` among them says how many the guard has dealt with.
    """
    if is_main_process():
        mark = {
            "command": command,
            "fingerprint": fingerprint(config, command),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": facts,
            "guarded": _is_guarded(config, command, facts),
            "settings": settings(config, command),
        }
        write_json(folder(config, command) / FINISHED, mark)


def is_finished(config: Config, command: str) -> bool:
    """Whether `command` finished with exactly the settings asked for now, and its output elsewhere is still there."""
    if not (folder(config, command) / FINISHED).is_file() or _differing(config, command):
        return False
    return all(output.is_file() for output in _shared_outputs(config, command))


def waiting(config: Config, command: str, later: Iterable[str]) -> str | None:
    """The first of the commands after `command` that is not finished and reads its model, or alignment; None: none."""
    readers = (one for one in later if command in [*models_read(config, one), *(["align"] * _aligned(config, one))])
    return next((one for one in readers if not is_finished(config, one)), None)


def require(config: Config, command: str, wanted_by: str) -> Path:
    """The folder of the finished `command`.

    Raises:
        ValueError: it never ran, did not finish, ran with other settings, or lost its output; the sentence says which.
    """
    path = folder(config, command)
    if not (path / CONFIG).is_file() and not (path / FINISHED).is_file():
        state = "never ran there"
    elif not (path / FINISHED).is_file():
        state = "did not finish there"
    elif different := _difference(config, command):
        state = f"ran there with other settings ({different})"
    elif lost := [output for output in _shared_outputs(config, command) if not output.is_file()]:
        state = f"finished there and its output {lost[0]} is gone"
    else:
        return path
    raise ValueError(
        f"`{wanted_by}` reads {path}, but `{command}` {state}: run `revision {command}` with the same overrides first."
    )


def is_main_process() -> bool:
    """Whether this process is the one that writes: rank 0 of a launcher's processes, or the only one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def write_text(path: Path, text: str) -> None:
    """Write `path` so that it is there in full or not at all.

    Raises:
        ValueError: the disk is full or refuses it.
    """
    from revision import files, folders

    with folders.writing(path, _ONWARD):
        files.write_text(path, text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, in full or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _shared_outputs(config: Config, command: str) -> list[Path]:
    """The last file of each output that `command` leaves outside of the run, where it can be lost by itself."""
    if command == "contrast":
        return [contrast_output(config) / "open_clip_config.json"]
    if command == "embed":
        stores = Path(config.data.stores) / config.encoder.name
        records = [name for name, source in config.data.sources.items() if source.embeddings is None]
        return [stores / name / "manifest.json" for name in config.embed.sources or records]
    if command == "align" and config.align.export:
        return [Path(config.align.export) / "export.json"]
    return []


def _aligned(config: Config, command: str) -> bool:
    """Whether `command` reads the alignment of the run."""
    return command == "gap" or reads_alignment(config, command)


def _is_guarded(config: Config, command: str, facts: Mapping[str, Any]) -> bool:
    """Whether the guard may have dealt with a bad step of the command, or of a stage of this run that it reads."""
    marks = [folder(config, model) / FINISHED for model in models_read(config, command)]
    before = [not mark.is_file() or json.loads(mark.read_text()).get("guarded", True) for mark in marks]
    return bool(facts.get("bad_steps")) or any(before)


def _differing(config: Config, command: str) -> list[str]:
    """The fields in which the finished command and the settings asked for now differ, those that matter."""
    mark = json.loads((folder(config, command) / FINISHED).read_text())
    if mark["fingerprint"] == fingerprint(config, command):
        return []
    then, now = mark["settings"], settings(config, command)
    free = () if mark.get("guarded", True) else GUARDED
    return [name for name in sorted({*then, *now}) if name not in free and then.get(name) != now.get(name)]


def _difference(config: Config, command: str) -> str:
    """The first fields in which the finished command and the settings asked for now differ.

    A field that only one of them has, such as one of another alignment's, is named where there is no other.
    """
    then = json.loads((folder(config, command) / FINISHED).read_text())["settings"]
    now = settings(config, command)
    fields = _differing(config, command)
    fields = [name for name in fields if name in then and name in now] or fields
    shown = [f"{name} was {then.get(name)}, is now {now.get(name)}" for name in fields[:3]]
    return "; ".join(shown) + (f"; and {len(fields) - 3} more" if len(fields) > 3 else "")
