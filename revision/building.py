"""The multimodal LLM on disk: built fresh, read back, checked against what a stage expects, and saved whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import cached_file

from revision import folders, model_card
from revision.alignment import Alignment, load_alignment
from revision.alignment.files import FACTS_FILE, TENSORS_FILE
from revision.alignment.methods import method_class
from revision.data.conversation import build_processor, end_of_turn
from revision.data.templates import read_template
from revision.hub import require_place
from revision.model import RevisionConfig, RevisionForConditionalGeneration, RevisionProcessor

# Fields of RevisionConfig that decide the shapes and the meaning of the projector, by the config field that sets them.
_SHAPE = {
    "embed_dim": "the encoder",
    "num_visual_tokens": "model.num_visual_tokens",
    "visual_tokens": "model.visual_tokens",
    "projector_depth": "model.projector.depth",
    "projector_hidden_size": "model.projector.hidden_size",
    "input_scale": "model.projector.input_scale",
    "output_norm": "model.projector.output_norm",
}


IMAGE_ALIGNMENT = "image_alignment"  # folder beside the weights: below it, no loader takes its tensors for weights

# What transformers raises when a folder lets it down.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def build_model(
    llm: str, *, chat_template: Path | None, dtype: torch.dtype, seed: int, **shape: Any
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """A pretrained LLM behind a fresh projector, and its processor.

    Args:
        llm: folder or hub name.
        chat_template: Jinja file; None: the LLM's own template, marked by us where it marks no answer.
        dtype: of the LLM.
        seed: of the projector.
        **shape: `embed_dim`, `num_visual_tokens`, `visual_tokens` and the projector's fields, as
            `RevisionForConditionalGeneration.from_language_model` takes them.

    Raises:
        ValueError: the LLM cannot be read, or its template cannot be marked.
    """
    template = None if chat_template is None else read_template(chat_template)
    model, tokenizer = RevisionForConditionalGeneration.from_language_model(llm, dtype=dtype, seed=seed, **shape)
    processor = build_processor(tokenizer, num_visual_tokens=shape["num_visual_tokens"], chat_template=template)
    generation = model.generation_config
    known = generation.eos_token_id
    stops = set(known if isinstance(known, list) else [] if known is None else [known])
    generation.eos_token_id = sorted(stops | {end_of_turn(processor)})  # an answer ends where training ends it
    generation.pad_token_id = processor.tokenizer.pad_token_id
    generation.suppress_tokens = [processor.image_token_id]  # no answer has a picture in it
    return model, processor


def read_model(
    folder: Path, *, dtype: torch.dtype | None = None, spread: bool = False
) -> tuple[RevisionForConditionalGeneration, RevisionProcessor]:
    """A saved model and its processor.

    Args:
        folder: what `save_model` wrote, or the name of such a model on the hub, as `owner/name`.
        dtype: of the LLM; None: as it was saved.
        spread: over all GPUs of this machine, layer by layer, and the rest in the host's memory; else on the CPU.

    Raises:
        ValueError: there is no such folder, it is no model of this package, or a weight is missing from it.
    """
    require_place(folder)
    try:
        loaded: Any = RevisionForConditionalGeneration.from_pretrained(
            folder,
            dtype="auto" if dtype is None else dtype,
            device_map="auto" if spread else None,
            output_loading_info=True,
        )
        processor = RevisionProcessor.from_pretrained(folder)
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error
    model, info = loaded
    if info["missing_keys"] or info["unexpected_keys"]:
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        raise ValueError(f"{folder} lacks or has too many of the weights {', '.join(wrong[:3])}; train it again")
    return model, processor


def read_config(folder: Path) -> RevisionConfig:
    """The configuration of a saved model alone, without its weights.

    Raises:
        ValueError: there is no such folder, or it is no model of this package.
    """
    require_place(folder)
    try:
        return RevisionConfig.from_pretrained(folder)
    except _UNREADABLE as error:
        raise _unreadable(folder, error) from error


def read_image_alignment(folder: Path) -> Alignment | None:
    """The alignment that pictures have to be moved by before a saved model reads them; None: they stay as they are.

    Args:
        folder: as in `read_model`.

    Raises:
        ValueError: the model learned from texts of such an alignment, and the folder lacks it; or of one that no
            package here has.
    """
    config = read_config(folder)
    learned = (config.alignment or {}).get("method")
    if learned is None:
        return None
    method = method_class(learned)
    if not method.moves_images:
        return None
    try:
        facts, _ = (cached_file(str(folder), f"{IMAGE_ALIGNMENT}/{name}") for name in (FACTS_FILE, TENSORS_FILE))
    except OSError as error:
        raise ValueError(
            f"{folder} learned from texts that {method.method} moved, and lacks {IMAGE_ALIGNMENT}/, by which pictures "
            "are moved for it; train it again"
        ) from error
    alignment = load_alignment(Path(str(facts)).parent)
    if alignment.dim != config.embed_dim:
        raise ValueError(
            f"{folder}/{IMAGE_ALIGNMENT} is of dimension {alignment.dim}, but the model reads {config.embed_dim}; "
            "train it again"
        )
    return alignment


def read_history(folder: Path) -> list[model_card.Entry]:
    """The stages that a saved model went through, oldest first; none for a model without a history.

    Args:
        folder: as in `read_model`.
    """
    file = cached_file(str(folder), model_card.HISTORY, _raise_exceptions_for_missing_entries=False)
    return [] if file is None else model_card.read_history(Path(str(file)).parent)


def require_shape(model: RevisionForConditionalGeneration, folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuses a model whose projector is another than the one asked for.

    Args:
        model: read from `folder`.
        wanted: as `build_model` takes it; None stands for the same default as there.

    Raises:
        ValueError: names the field and both values.
    """
    config = model.config
    defaults = {"projector_hidden_size": config.text_config.hidden_size, "input_scale": wanted["embed_dim"] ** 0.5}
    has = {name: getattr(config, name) for name in _SHAPE}
    for name, asked in wanted.items():
        if name not in has:
            continue  # it says how a table grows while a model is built, and nothing of one that is there
        value = defaults[name] if asked is None else asked
        if has[name] != value:
            raise ValueError(
                f"the model in {folder} has {name}={has[name]}, but {_SHAPE[name]} asks for {value}; set it to that of "
                "the model, or run `revision pretrain` with this setting first"
            )


def require_llm(model: RevisionForConditionalGeneration, folder: Path, llm: str) -> bool:
    """Refuses a model whose LLM is of another shape than the one asked for.

    Args:
        model: read from `folder`.
        llm: folder or hub name of the LLM that the configuration names.

    Returns:
        Whether there was something to compare with: the named LLM may not be on this machine any more.

    Raises:
        ValueError: names the field and both values.
    """
    try:
        asked = AutoConfig.from_pretrained(llm)
    except (OSError, ValueError):
        return False
    has = model.config.text_config
    for name in ("model_type", "hidden_size", "num_hidden_layers"):
        mine, other = (getattr(one, name) for one in (has, asked))
        if mine != other:
            raise ValueError(
                f"the LLM of the model in {folder} has {name}={mine}, but model.llm={llm} has {other}; set model.llm "
                "to the one that it was trained with, or run `revision pretrain` with this LLM first"
            )
    return True


def save_model(
    model: RevisionForConditionalGeneration,
    processor: RevisionProcessor,
    folder: Path,
    *,
    alignment: Mapping[str, Any] | None,
    aligned_by: Alignment | None = None,
    dtype: torch.dtype | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    history: Sequence[model_card.Entry] = (),
) -> None:
    """Writes one Hugging Face folder: weights, config, code, processor, template, card, and `manifest.json`.

    It is written aside, forced to the disk, and renamed; a model that was there stays until then. The manifest has a
    checksum of each file but the card, which people write into.

    Args:
        alignment: lineage of the embeddings that the projector learned from; goes into the config.
        aligned_by: what moved them; where it moves images too, it goes along, since the model has to be shown such.
        dtype: the LLM is turned into this type first; None leaves it.
        weights: by name, where the model itself holds pieces of them only.
        history: the stages it went through, from which the card is written; none, no card.

    Raises:
        ValueError: the disk is full or cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    if dtype is not None:
        model.language_model.to(dtype)
    if weights is not None:
        of_llm = model.dtype  # that of its first parameter, which is the LLM's; what trained was in float32 meanwhile
        weights = {name: one.to(of_llm) if name.startswith("language_model.") else one for name, one in weights.items()}
    model.config.alignment = None if alignment is None else dict(alignment)
    try:
        with folders.writing(folder):
            # A copy: transformers takes the second names of tied weights out of what it is given.
            model.save_pretrained(aside, state_dict=None if weights is None else dict(weights))
            processor.save_pretrained(aside)
            if aligned_by is not None and aligned_by.moves_images:
                aligned_by.save(aside / IMAGE_ALIGNMENT)
            if history:
                model_card.write(aside, history, config=model.config.to_dict(), parameters=_size(model, weights))
            entries = folders.record(aside, folders.names_of(aside))
            entries.pop(model_card.CARD, None)
            folders.write_manifest(aside, entries, kind="model")
            folders.publish(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # half of a model would keep a full disk full


def _size(model: RevisionForConditionalGeneration, weights: Mapping[str, torch.Tensor] | None) -> int:
    """Parameters of a model, tied ones once."""
    return sum((one if weights is None else weights[name]).numel() for name, one in model.named_parameters())


def _unreadable(folder: Path, error: BaseException) -> ValueError:
    reason = str(error).strip().split("\n")[0]
    return ValueError(f"{folder} cannot be read as a trained model ({reason}); train it again")
