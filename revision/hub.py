"""Names of models: a folder, or what may be asked for on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path


def require_place(folder: Path) -> None:
    """Holds that a model is in a folder that exists, or may be on the hub, where a slip would cost a minute of waiting.

    Raises:
        ValueError: no folder, and no name that can be asked for.
    """
    if folder.is_dir():
        return
    if folder.exists():
        raise ValueError(f"{folder} is a file; give the folder that a training stage wrote")
    if not re.fullmatch(r"[\w.-]*\w/\w[\w.-]*", str(folder)) or folder.parent.is_dir():
        raise ValueError(f"there is no folder {folder}; give one that a training stage wrote, or owner/name of the hub")
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise ValueError(
            f"there is no folder {folder}, and HF_HUB_OFFLINE forbids to look for it on the hub; give a folder that a "
            "training stage wrote"
        )
