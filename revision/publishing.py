"""A trained model on the Hugging Face hub: what would be uploaded, whether it is complete, and the upload itself."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from revision import folders, model_card

# Without these, the folder would not load with transformers alone.
_NEEDED = (
    "config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "configuration_revision.py", "modeling_revision.py", "processing_revision.py",
    model_card.CARD, model_card.HISTORY, folders.MANIFEST,
)  # fmt: skip
# What the hub's client lets through where there is no connection: an error of the HTTP library below it, which changes
# from version to version and is no OSError in the newer ones.
_NO_CONNECTION: type[Exception] = next(
    (kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError" and issubclass(kind, Exception)), OSError
)
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def check_folder(folder: Path) -> list[tuple[str, int]]:
    """The files of a model that is fit to be published, with their sizes in bytes, in order of their names.

    Raises:
        ValueError: a file that is missing, cut off or altered, or one that has no place in a published model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one that a training stage wrote, or a stage of this run")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    missing = [name for name in _needed(folder) if name not in names]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}; train the model again, or give a folder that a stage wrote"
        )
    for path in files:
        if path.suffix in _PICKLES:
            raise ValueError(f"{path} may be a pickle, which runs code when it is loaded; take it out of the folder")
        if path.suffix == ".safetensors":
            _require_whole(path)
    if faults := folders.faults(folder, folders.read_manifest(folder)):
        raise ValueError(f"{folder} is not what was written: {'; '.join(faults)}; train the model again")
    return [(name, path.stat().st_size) for name, path in zip(names, files, strict=True)]


def upload(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Uploads a checked folder and returns the address of its repository, which is made where there is none.

    Args:
        folder: of the model.
        repo: `owner/name`.
        private: of a new repository.
        message: of the commit.

    Raises:
        ValueError: nobody is logged in, or the hub refuses; the card names no licence.
    """
    if model_card.licence_of(folder) is None:
        raise ValueError(
            f"the card {folder / model_card.CARD} names no licence; choose one with push.license=..., or write it there"
        )
    try:
        client = HfApi()
        address = client.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        client.upload_folder(repo_id=repo, folder_path=folder, repo_type="model", commit_message=message)
    except (OSError, _NO_CONNECTION) as error:  # a refusal, a missing login; no connection
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the hub does not take {repo} ({reason}); log in with `hf auth login`, or look at name and connection"
        ) from error
    return str(address)


def _needed(folder: Path) -> list[str]:
    """Names of the files that must be there: the fixed ones, and the weights in one file or in shards."""
    index = folder / _INDEX
    if not index.is_file():
        return [*_NEEDED, _WEIGHTS]
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [*_NEEDED, *sorted(set(shards))]


def _require_whole(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:  # compares the size that its header tells with its own
            file.keys()
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or no safetensors file ({error}); train the model again") from error
