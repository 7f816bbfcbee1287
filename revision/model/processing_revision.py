"""Processor: messages and pictures, or their embeddings, to what the model's `forward` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from .configuration_revision import AUTO_MAP, copy_code

IMAGE_TOKEN = "<image>"

EncodeImages = Callable[[Sequence[Any]], Any]


class RevisionProcessor(ProcessorMixin):
    """A tokenizer that expands each `<image>` into K image tokens, beside the embeddings of the pictures.

    Pictures are given as unit vectors of the dual encoder (`image_embeds`), or as PIL images, paths or addresses once
    an encoder is attached by `attach(encoder.encode_images)`.

    Args:
        tokenizer: of the LLM, with the image token added.
        num_visual_tokens: K of the model.
        image_token: its text.
        chat_template: Jinja template with `{% generation %}` around answers.
    """

    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "AutoTokenizer"
    __slots__ = (
        "_encode_images",
        "_open_image",
    )  # not in __dict__, which transformers copies deeply: an encoder and all

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
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        self._encode_images: EncodeImages | None = None
        self._open_image: Callable[[Any], Any] = load_image
        super().__init__(tokenizer, chat_template=chat_template, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `forward` takes."""
        return ["input_ids", "attention_mask", "image_embeds"]

    def attach(self, encode_images: EncodeImages, open_image: Callable[[Any], Any] = load_image) -> None:
        """Let pictures be pictures: `encode_images` maps n PIL images to unit rows [n, d].

        `open_image` makes a PIL image of what a user gives (a path, an address, an image), or, for an encoder of
        something else than pictures, whatever its `encode_images` takes.
        """
        self._encode_images = encode_images
        self._open_image = open_image

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
            images: pictures in the order of their tokens, nested or not; needs an attached encoder.
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
            raise ValueError("a call gives images and image_embeds; give one of them")
        texts = [text] if isinstance(text, str) else list(text or [])
        if images is not None:
            image_embeds = self._embed(images)
        wanted = sum(one.count(self.image_token) for one in texts)
        given = 0 if image_embeds is None else len(image_embeds)
        if wanted != given:
            raise ValueError(
                f"the text has {wanted} {self.image_token} marks, but {given} pictures are given; give one for each"
            )
        bos = self.tokenizer.bos_token
        if bos and texts and all(one.startswith(bos) for one in texts):
            kwargs.setdefault("add_special_tokens", False)  # the template wrote it; there must not be two
        encoded = dict(self.tokenizer([self.expand(one) for one in texts], **kwargs))
        if image_embeds is not None:
            encoded["image_embeds"] = torch.as_tensor(image_embeds, dtype=torch.float32)
        return BatchFeature(encoded)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; contents may be texts with `<image>` marks, or lists of parts of type text and image.

        Parts become text before the template sees them, so that a template written for text alone will do. To pass
        embeddings: `processor_kwargs={"image_embeds": rows}`.
        """
        batched = not isinstance(conversation[0], dict)
        several = conversation if batched else [conversation]
        flat, pictures = zip(*map(self._flatten, several), strict=True)
        if any(pictures) and kwargs.get("tokenize", False):
            images = list(pictures) if batched else pictures[0]
            kwargs["processor_kwargs"] = {**(kwargs.get("processor_kwargs") or {}), "images": images}
        if kwargs.get("tokenize", False):  # the template writes every special token, as in training
            kwargs["processor_kwargs"] = {"add_special_tokens": False, **(kwargs.get("processor_kwargs") or {})}
        return super().apply_chat_template(list(flat) if batched else flat[0], *args, **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with the code beside it, so that `trust_remote_code` needs no package."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        copy_code(Path(save_directory))
        return saved

    def _flatten(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
        """Messages with plain texts, and the pictures that their image parts bring along."""
        flat, pictures = [], []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                texts = []
                for part in content:
                    text, found = self._part(part)
                    texts.append(text)
                    pictures += found
                # As records are read for training: a mark stands on a line of its own, texts follow as they are.
                marked = [f"{text}\n" if text == self.image_token else text for text in texts]
                content = "".join([*marked[:-1], *texts[-1:]])
            flat.append({**message, "content": content})
        return flat, pictures

    def _part(self, part: dict[str, Any]) -> tuple[str, list[Any]]:
        """The text that a part of a content becomes, and the pictures that it brings along, none or one."""
        if part["type"] in ("text", "input_text", "output_text"):
            return part["text"], []
        if part["type"] not in ("image", "image_url", "input_image"):
            raise ValueError(f"a part of a message is of type {part['type']!r}; known are text, image and image_url")
        found = [part[key] for key in ("image_url", "image", "url", "path") if part.get(key) is not None][:1]
        return self.image_token, [one["url"] if isinstance(one, dict) else one for one in found]

    def _embed(self, images: Any) -> Any:
        if self._encode_images is None:
            raise ValueError(
                "pictures need the dual encoder: call processor.attach(encoder.encode_images), or give image_embeds"
            )
        nested = images if isinstance(images, list | tuple) else [images]
        flat = [one for entry in nested for one in (entry if isinstance(entry, list | tuple) else [entry])]
        return self._encode_images([self._open_image(one) for one in flat])
