"""From the configuration to the plain arguments of the model, the same for both stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revision.schema import Config
from revision.shipped import shipped


def model_shape(config: Config, dim: int) -> dict[str, Any]:
    """The shape of projector and visual tokens that the config asks for."""
    projector = config.model.projector
    return {
        "embed_dim": dim,
        "num_visual_tokens": config.model.num_visual_tokens,
        "visual_tokens": config.model.visual_tokens.value,
        "projector_depth": projector.depth,
        "projector_hidden_size": projector.hidden_size,
        "input_scale": projector.input_scale,
        "output_norm": projector.output_norm,
    }


def template_file(config: Config) -> Path | None:
    """The chat template that the config names, in the working folder or shipped with the package."""
    if config.model.chat_template is None:
        return None
    named = Path(config.model.chat_template)
    return named if named.is_file() else shipped(config.model.chat_template)
