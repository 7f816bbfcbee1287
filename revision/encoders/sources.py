"""Where a Hugging Face model comes from, a folder or the hub, and the fingerprint of what was found there."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from revision.encoders.openclip_folder import TOKENIZER_EXTRAS, TOKENIZER_FILES
from revision.files import file_sha256, write_text

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Weights in pickles and other frameworks, which make up half of many repositories, are not fetched.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]
_PROBE_SECONDS = 5
_WORTH_KEEPING = 64 * 2**20  # bytes of a file from which its hash is kept: below, it is computed in a blink
# Keys of a config.json that say where and with what it was saved, not what the model computes.
_PLACES = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map", "_commit_hash")


@contextmanager
def quick_hub(needed: bool = True) -> Iterator[None]:
    """Within, a hub that does not answer counts as offline: what is not in the cache fails at once.

    Left alone, each of many files is asked for several times over, with growing pauses, before the sentence comes.

    Args:
        needed: False where nothing of the hub is wanted; then nothing is asked.
    """
    before = constants.HF_HUB_OFFLINE
    if needed and not before:
        constants.HF_HUB_OFFLINE = not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it has something to say
    except OSError:
        return False


def find_folder(field: str, model: str) -> Path:
    """The folder of a Hugging Face model, fetched from the hub where it is not on this machine.

    Args:
        field: of the configuration, for the error.
        model: a folder, or `owner/name` on the hub, with `@revision` behind it for a commit, branch or tag.

    Raises:
        ValueError: neither a folder nor a model of the hub, a hub that cannot be reached, or one that refuses.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name, _, revision = model.partition("@")
    if model.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ValueError(f"{field} = {model}: there is no such folder; give one, or a name of the hub as owner/name")
    try:
        with quick_hub():
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except GatedRepoError as error:
        raise ValueError(
            f"{field} = {model}: the hub asks for its licence to be accepted; do so on its page and set HF_TOKEN"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        state = "is switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "cannot be reached"
        raise ValueError(
            f"{field} = {model}: it is not in the cache of the hub ({constants.HF_HUB_CACHE}), and the hub {state}; "
            "fetch it where there is a network, or give a folder"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"{field} = {model}: the hub refuses it ({_first_line(error)}); correct the name") from error
    except OSError as error:
        raise ValueError(f"{field} = {model}: it cannot be fetched ({_first_line(error)}); try again") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def read_json(field: str, file: Path) -> dict[str, Any]:
    """The content of a JSON file of a model. Raises ValueError where it is missing or no mapping."""
    if not file.is_file():
        raise ValueError(f"{field}: {file.parent} is no model of transformers, it has no {file.name}; correct the path")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{field}: {file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{field}: {file} is not a mapping; fetch it again")
    return content


def weight_files(field: str, folder: Path) -> list[Path]:
    """The safetensors files that a model's weights lie in, by name.

    Raises:
        ValueError: there are none, or one that the index names is missing.
    """
    names = {_SINGLE}
    if (folder / _INDEX).is_file():
        names = set(read_json(field, folder / _INDEX).get("weight_map", {}).values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing or not names:
        pickled = next(folder.glob("pytorch_model*.bin"), None)
        why = "only pickled weights, which are not read; convert them to safetensors" if pickled else "fetch it again"
        raise ValueError(f"{field}: {folder} has no {', '.join(missing) or 'weights in its index'}; {why}")
    return [folder / name for name in sorted(names)]


def weights_sha256(files: list[Path]) -> str:
    """sha256 of the weights of a model: of its one file, or of the names and hashes of several."""
    if len(files) == 1:
        return _kept_sha256(files[0])
    listed = "".join(f"{file.name} {_kept_sha256(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def architecture_sha256(config: dict[str, Any]) -> str:
    """sha256 of a config.json without what says where and with what it was saved."""

    def content(value: Any) -> Any:
        """A description without the places where its files lie."""
        if not isinstance(value, dict):
            return value
        return {key: content(entry) for key, entry in value.items() if key not in _PLACES}

    return hashlib.sha256(json.dumps(content(config), sort_keys=True).encode()).hexdigest()


def tokenizer_sha256(field: str, folder: Path) -> str:
    """sha256 of all files of a tokenizer.

    Raises:
        ValueError: there is no vocabulary; transformers makes a tokenizer that knows no word then, without complaint.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{field}: {folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy it there")
    digest = hashlib.sha256()
    for name in (*TOKENIZER_FILES, *TOKENIZER_EXTRAS):
        if (folder / name).is_file():
            digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def _kept_sha256(file: Path) -> str:
    """The sha256 of a file. That of a large one is kept, under its path, size and time of modification.

    16 GB take half a minute, which every start of `embed` and `chat` would pay again. A folder of weights can be
    read-only or shared, so the hashes lie in the user's own cache (REVISION_CACHE, or ~/.cache/revision).
    """
    stat = file.stat()
    if stat.st_size < _WORTH_KEEPING:
        return file_sha256(file)
    kept = Path(os.environ.get("REVISION_CACHE", "~/.cache/revision")).expanduser() / "weights-sha256"
    place = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    try:
        return (kept / place).read_text()
    except OSError:
        digest = file_sha256(file)
    with suppress(OSError):  # a cache that cannot be written costs time and nothing else
        write_text(kept / place, digest)
    return digest
