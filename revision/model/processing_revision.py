"""Processor: messages and pictures, or their embeddings, to what the model's `forward` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

IMAGE_TOKEN = "<image>"

EmbedImages = Callable[[Sequence[Any]], Any]


class RevisionProcessor(ProcessorMixin):
    """A tokenizer that expands each `<image>` into K image tokens, beside the embeddings of the pictures.

    Pictures are given as unit vectors of the dual encoder (`image_embeds`), or as PIL images once an encoder is
    attached by `attach(encode_images)`.

    Args:
        tokenizer: of the LLM, with the image token added.
        num_visual_tokens: K of the model.
        image_token: its text.
        chat_template: Jinja template with `{% generation %}` around answers.
    """

    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: Any = None,
        num_visual_tokens: int = 576,
        image_token: str = IMAGE_TOKEN,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_visual_tokens = num_visual_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self._embed_images: EmbedImages | None = None
        super().__init__(tokenizer, chat_template=chat_template, **kwargs)

    def attach(self, encode_images: EmbedImages) -> None:
        """Let `images=` be pictures: `encode_images` maps n of them to unit rows [n, d]."""
        self._embed_images = encode_images

    def expand(self, text: str) -> str:
        """The text with each image token repeated K times."""
        return text.replace(self.image_token, self.image_token * self.num_visual_tokens)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        image_embeds: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize rendered text and embed its pictures.

        Args:
            images: PIL images in the order of their tokens; needs an attached encoder.
            text: one text or several, already rendered by the chat template.
            image_embeds: unit vectors [n, d] instead of `images`.
            **kwargs: for the tokenizer (`padding`, `return_tensors`, ...).

        Returns:
            input_ids, attention_mask and, where there are pictures, image_embeds float32 [n, d].

        Raises:
            ValueError: both kinds of picture, pictures without an encoder, or a number of pictures other than that of
                the image tokens.
        """
        if images is not None and image_embeds is not None:
            raise ValueError("give images or image_embeds, not both")
        texts = [text] if isinstance(text, str) else list(text or [])
        if images is not None:
            image_embeds = self._embed(images)
        wanted = sum(one.count(self.image_token) for one in texts)
        given = 0 if image_embeds is None else len(image_embeds)
        if wanted != given:
            raise ValueError(f"the text has {wanted} {self.image_token} tokens, but {given} pictures are given")
        kwargs.setdefault("return_tensors", "pt")
        kwargs = {name: value for name, value in kwargs.items() if name in _TOKENIZER_ARGUMENTS}
        encoded = dict(self.tokenizer([self.expand(one) for one in texts], **kwargs))
        if image_embeds is not None:
            encoded["image_embeds"] = torch.as_tensor(image_embeds, dtype=torch.float32)
        return BatchFeature(encoded)

    def _embed(self, images: Any) -> Any:
        if self._embed_images is None:
            raise ValueError(
                "pictures need the dual encoder: processor.attach(encoder.encode_images) first, or pass image_embeds"
            )
        flat = images if isinstance(images, (list, tuple)) else [images]
        flat = [image for entry in flat for image in (entry if isinstance(entry, (list, tuple)) else [entry])]
        return self._embed_images(flat)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `forward` takes."""
        return ["input_ids", "attention_mask", "image_embeds"]


_TOKENIZER_ARGUMENTS = frozenset(
    "padding padding_side truncation max_length return_tensors add_special_tokens pad_to_multiple_of "
    "return_offsets_mapping return_special_tokens_mask return_attention_mask".split()
)
