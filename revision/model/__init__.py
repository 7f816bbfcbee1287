"""The multimodal LLM: configuration, model and processor, registered with the Auto classes of transformers.

The files import torch and transformers only, since they are copied into every checkpoint.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from revision.model.configuration_revision import RevisionConfig
from revision.model.modeling_revision import RevisionForConditionalGeneration, RevisionProjector
from revision.model.processing_revision import RevisionProcessor

AutoConfig.register("revision", RevisionConfig, exist_ok=True)
AutoModel.register(RevisionConfig, RevisionForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(RevisionConfig, RevisionForConditionalGeneration, exist_ok=True)
AutoProcessor.register(RevisionConfig, RevisionProcessor, exist_ok=True)

__all__ = ["RevisionConfig", "RevisionForConditionalGeneration", "RevisionProcessor", "RevisionProjector"]
