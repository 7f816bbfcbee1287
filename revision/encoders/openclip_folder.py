"""An open_clip model as a folder on disk: `open_clip_config.json`, safetensors weights, and all a text tower needs.

Such a folder is what open_clip calls `local-dir`. The configuration and tokenizer of a Hugging Face text tower lie in
the folder itself, so it needs no hub, and `revision.encoders.load_encoder` reads it wherever it is moved to.

The heads are the projections behind the two towers: what `contrast` trains, and what is small enough to be shipped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import safetensors
import torch
from safetensors.torch import load_file

from revision.files import write_tensors, write_text

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# A text tower's own files: its configuration, and every file a tokenizer of transformers may consist of.
_TOWER_CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_HEAD_PREFIXES = ("visual.head.", "text.proj.")
_LOGIT_SCALE = "logit_scale"

Tensors = dict[str, torch.Tensor]


def save_open_clip_folder(
    folder: Path,
    *,
    model_cfg: Mapping[str, Any],
    preprocess_cfg: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    text_tower: Path | None,
) -> None:
    """Writes a model as a folder that open_clip loads by `local-dir:FOLDER`, offline.

    The configuration file is written last and atomically: a folder that was interrupted has none, so nothing loads it.

    Args:
        folder: made if it is missing; files of an earlier model there are replaced.
        model_cfg: open_clip's "embed_dim", "vision_cfg" and "text_cfg"; paths inside are replaced by this folder.
        preprocess_cfg: open_clip's "size", "mean", "std", "interpolation", "resize_mode", "fill_color".
        state_dict: of the model that `model_cfg` describes.
        text_tower: folder with the configuration and tokenizer of the Hugging Face text tower, where there is one.

    Raises:
        ValueError: `text_tower` lacks its configuration or its tokenizer, or is missing where `model_cfg` needs one.
    """
    config = deepcopy(dict(model_cfg))
    wants_tower = "hf_model_name" in config["text_cfg"]
    if wants_tower and text_tower is None:
        raise ValueError(f"the text tower of {folder} is a Hugging Face model; text_tower must name its folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    if wants_tower and text_tower is not None:
        _copy_text_tower(text_tower, folder)
    _point_at_folder(config, folder)
    # Safetensors refuses tensors that share or skip memory, which tied or sliced weights of a live model do.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    write_tensors(folder / WEIGHTS, weights)
    text = json.dumps({"model_cfg": config, "preprocess_cfg": dict(preprocess_cfg)}, indent=2) + "\n"
    write_text(folder / CONFIG, text)


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model_cfg` and `preprocess_cfg` of a folder, with the text tower found in the folder wherever it lies now.

    Raises:
        ValueError: the folder or its configuration is missing or malformed, or the text tower lacks its tokenizer.
    """
    if not folder.is_dir():
        raise ValueError(f"open_clip folder {folder} does not exist; make it first or correct the path")
    file = folder / CONFIG
    if not file.is_file():
        raise ValueError(f"{folder} is not a finished open_clip folder: it has no {CONFIG}")
    try:
        config = json.loads(file.read_bytes())
        model_cfg, preprocess_cfg = dict(config["model_cfg"]), dict(config.get("preprocess_cfg", {}))
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - model_cfg.keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not an open_clip configuration ({type(error).__name__}: {error})") from error
    if missing:
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))} in its model_cfg")
    if "hf_tokenizer_name" in model_cfg["text_cfg"]:
        _require_tokenizer(folder)
    _point_at_folder(model_cfg, folder)
    return model_cfg, preprocess_cfg


def read_weights(folder: Path) -> Tensors:
    """The weights of a folder that `save_open_clip_folder` wrote. Raises ValueError when missing or damaged."""
    return _load(folder / WEIGHTS)


def build_open_clip_model(
    model_cfg: Mapping[str, Any], *, text_tower: Path | None = None, pretrained_text: bool = False
) -> open_clip.CustomTextCLIP:
    """Builds the model that a configuration describes, with random weights, offline.

    Args:
        model_cfg: as in `save_open_clip_folder`.
        text_tower: folder of the Hugging Face text tower; None: where `model_cfg` says.
        pretrained_text: load the text tower's weights from that folder.
    """
    config = deepcopy(dict(model_cfg))
    if text_tower is not None:
        _point_at_folder(config, text_tower)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = pretrained_text
    return open_clip.CustomTextCLIP(**config)


def head_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The projections behind the towers of a CustomTextCLIP, by name, without the temperature."""
    return {name: value for name, value in model.named_parameters() if name.startswith(_HEAD_PREFIXES)}


def save_heads(model: torch.nn.Module, file: Path) -> None:
    """Writes heads and temperature alone to a safetensors file."""
    heads = _heads(model.state_dict())
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, {name: tensor.detach().cpu().contiguous().clone() for name, tensor in heads.items()})


def load_heads(model: torch.nn.Module, file: Path) -> None:
    """Replaces heads and temperature of a model by those of a file.

    Raises:
        ValueError: the file is missing or damaged, or its tensors are not those of this model's heads.
    """
    model.load_state_dict(_matching_heads(model.state_dict(), file), strict=False)


def state_sha256(state_dict: Mapping[str, torch.Tensor]) -> str:
    """sha256 of tensors with their names, dtypes and shapes, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _heads(state_dict: Mapping[str, torch.Tensor]) -> Tensors:
    return {
        name: tensor for name, tensor in state_dict.items() if name.startswith(_HEAD_PREFIXES) or name == _LOGIT_SCALE
    }


def _matching_heads(state_dict: Mapping[str, torch.Tensor], file: Path) -> Tensors:
    heads = _load(file)
    wanted = {name: tuple(tensor.shape) for name, tensor in _heads(state_dict).items()}
    given = {name: tuple(tensor.shape) for name, tensor in heads.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ValueError(
                f"heads {file} do not fit the model: {name} has shape {given.get(name, 'none')} in the "
                f"file and {wanted.get(name, 'none')} in the model; train them for these towers"
            )
    return heads


def _point_at_folder(model_cfg: dict[str, Any], folder: Path) -> None:
    """Makes a Hugging Face text tower come from the folder, and lets nothing be fetched from a hub."""
    text_cfg = model_cfg["text_cfg"] = dict(model_cfg["text_cfg"])
    vision_cfg = model_cfg["vision_cfg"] = dict(model_cfg["vision_cfg"])
    if "hf_model_name" in text_cfg:
        text_cfg["hf_model_pretrained"] = False
        if (folder / _TOWER_CONFIG).is_file():
            text_cfg["hf_model_name"] = str(folder.resolve())
    if "hf_tokenizer_name" in text_cfg:
        text_cfg["hf_tokenizer_name"] = str(folder.resolve())
    if "timm_model_name" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False


def _copy_text_tower(source: Path, folder: Path) -> None:
    if not (source / _TOWER_CONFIG).is_file():
        raise ValueError(f"text tower {source} has no {_TOWER_CONFIG}; name a folder of a Hugging Face model")
    _require_tokenizer(source)
    if source.resolve() == folder.resolve():
        return
    for name in (_TOWER_CONFIG, *TOKENIZER_FILES, *TOKENIZER_EXTRAS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _require_tokenizer(folder: Path) -> None:
    """transformers makes a tokenizer that knows no word, without complaint, where the vocabulary is missing."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} has no tokenizer of its text tower (none of {', '.join(TOKENIZER_FILES)}); "
            "copy the tokenizer's files there"
        )


def _load(file: Path) -> Tensors:
    if not file.is_file():
        raise ValueError(f"weights {file} do not exist")
    try:
        return load_file(file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights {file} are damaged or not safetensors: {error}") from error
