"""Where and with what a command ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = (
    "revision-mllm", "torch", "transformers", "accelerate", "deepspeed", "peft", "open_clip_torch", "timm", "numpy",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Time, command line, commit, versions of packages and hardware, as JSON values."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": shlex.join(sys.orig_argv),
        "git": _git(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": {"cpus": os.cpu_count(), "memory_bytes": _memory(), "cuda": _cuda_devices()},
    }


def _git() -> dict[str, Any] | None:
    """Commit and state of the checkout that the package is imported from; None for an installed wheel."""
    checkout = Path(__file__).resolve().parent.parent.parent
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None

    def ask(*words: str) -> str:
        """What git answers."""
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True)
        return done.stdout.strip()

    return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cuda_devices() -> list[str]:
    """Names of the visible GPUs; torch is asked only where the command has imported it already."""
    torch = sys.modules.get("torch")
    return [] if torch is None else [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
