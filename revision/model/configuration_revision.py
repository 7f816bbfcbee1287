"""Configuration of the multimodal LLM."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

AUTO_MAP = {
    "AutoConfig": "configuration_revision.RevisionConfig",
    "AutoModel": "modeling_revision.RevisionForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_revision.RevisionForConditionalGeneration",
    "AutoProcessor": "processing_revision.RevisionProcessor",
}
_PARTS = ("configuration", "language", "loss", "modeling", "processing")
_CODE = tuple(f"{part}_revision.py" for part in _PARTS)


def copy_code(folder: Path) -> None:
    """Puts the code of configuration, model and processor into a checkpoint folder.

    Where it was itself loaded from a checkpoint, transformers holds the files of model and processor in folders of
    their own; both together are complete.
    """
    here = Path(__file__).parent
    for name in _CODE:
        if (here / name).is_file() and here.resolve() != folder.resolve():
            shutil.copyfile(here / name, folder / name)


class RevisionConfig(PreTrainedConfig):
    """A causal LM, a projector from the sphere, and how one embedding becomes visual tokens.

    Args:
        text_config: configuration of the causal LM, or its dictionary with `model_type`.
        embed_dim: dimension d of the dual encoder's sphere.
        num_visual_tokens: K, positions that one picture takes in the LLM.
        visual_tokens: "repeat" copies one projection K times (ReVision's released code, K = 576); "slots" projects to K
            different tokens.
        projector_depth: linear layers with GELU between them (2 in ReVision v3, App. H.2).
        projector_hidden_size: width between the layers.
        input_scale: factor on the unit vector; sqrt(d) gives coordinates of order one.
        output_norm: a LayerNorm after the last layer, times `output_std`.
        output_std: spread of the LLM's token embeddings, which normed visual tokens take on.
        image_token_id: token that stands for a visual position in `input_ids`.
        alignment: lineage of the text embeddings that the projector was trained on; free form.
    """

    model_type = "revision"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        embed_dim: int = 1280,
        num_visual_tokens: int = 576,
        visual_tokens: str = "repeat",
        projector_depth: int = 2,
        projector_hidden_size: int = 4096,
        input_scale: float = 1.0,
        output_norm: bool = False,
        output_std: float = 1.0,
        image_token_id: int = 0,
        alignment: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kind = kwargs.pop("model_type", self.model_type)
        if kind != self.model_type:  # transformers would only warn, and make up a model of random weights
            raise ValueError(f"model_type={kind!r} is no model of this kind; give a folder that a training stage wrote")
        if visual_tokens not in ("repeat", "slots"):
            raise ValueError(f"visual_tokens={visual_tokens!r} is unknown; choose 'repeat' or 'slots'")
        for name, value in (("num_visual_tokens", num_visual_tokens), ("projector_depth", projector_depth)):
            if value < 1:
                raise ValueError(f"{name}={value} is too small; it must be at least 1")
        if isinstance(text_config, dict):
            fields = dict(text_config)
            text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.text_config = AutoConfig.for_model("llama") if text_config is None else text_config
        self.embed_dim = embed_dim
        self.num_visual_tokens = num_visual_tokens
        self.visual_tokens = visual_tokens
        self.projector_depth = projector_depth
        self.projector_hidden_size = projector_hidden_size
        self.input_scale = input_scale
        self.output_norm = output_norm
        self.output_std = output_std
        self.image_token_id = image_token_id
        self.alignment = alignment
        kwargs["auto_map"] = AUTO_MAP
        kwargs.setdefault("tie_word_embeddings", bool(self.text_config.tie_word_embeddings))
        super().__init__(**kwargs)
