"""A trained model that reads prompts about pictures: what scorers ask of it, in its own chat template."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TextStreamer

from revision.alignment import Alignment
from revision.building import read_image_alignment, read_model
from revision.data.conversation import IGNORED, encode, end_of_turn, prompt_ids
from revision.evaluation.scoring import Prompt, Track, Trie, continuation_log_probs, greedy_answers
from revision.model.modeling_revision import RevisionForConditionalGeneration
from revision.model.processing_revision import RevisionProcessor
from revision.precision import computing_dtype
from revision.records import IMAGE_MARK, Message

GENERATED = 4  # prompts answered together for each one scored: a step of generation holds one position a prompt


class Reader:
    """Model, processor and batch size; `track` shows progress through batches, None shows nothing.

    moved_by: the alignment that pictures are moved by before the model reads them; None leaves them as they are.

    The model is put into eval mode. Prompts and answers are tokenised as in training: the processor's chat template
    renders them, and the answer is what the template marks as generated, end of turn included.
    """

    def __init__(
        self,
        model: RevisionForConditionalGeneration,
        processor: RevisionProcessor,
        *,
        batch_size: int = 8,
        track: Track | None = None,
        moved_by: Alignment | None = None,
    ) -> None:
        self._model: Any = model.eval()
        self._processor: Any = processor
        self._tokenizer: Any = processor.tokenizer
        self._batch_size = batch_size
        self._track = track
        self._moved_by = moved_by
        self.embed_dim: int = model.config.embed_dim
        self._end = end_of_turn(processor)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device | None,
        dtype: str | None = None,
        batch_size: int = 8,
        track: Track | None = None,
    ) -> Reader:
        """Loads a folder that a training stage has written.

        device: None spreads the model over all GPUs of this machine, for one that no single GPU holds.
        dtype: name of a torch dtype for the LLM; None: the one it was saved in, but float32 where the device has no
        arithmetic for bfloat16. Raises ValueError where the folder holds no such model.
        """
        model, processor = read_model(
            folder, dtype=None if dtype is None else getattr(torch, dtype), spread=device is None
        )
        module: torch.nn.Module = model
        if device is not None:
            if dtype is None:
                model.language_model.to(computing_dtype(model.dtype, device))
            module.to(device)
        return cls(model, processor, batch_size=batch_size, track=track, moved_by=read_image_alignment(folder))

    def prompt(self, turns: str | Sequence[Message], picture: np.ndarray | None) -> Prompt:
        """The prompt that asks for the next answer. turns: one user's turn, or all turns so far.

        picture: float [d] as the encoder gave it, for the one `<image>` in the turns; None takes the mark out and asks
        blindly.
        """
        messages = [Message("user", turns)] if isinstance(turns, str) else list(turns)
        if picture is None:
            messages = [Message(message.role, _without_mark(message.content)) for message in messages]
        elif self._moved_by is not None:
            picture = self._moved_by.apply_to_images(picture[None])[0]
        return Prompt(ids=prompt_ids(self._processor, messages).tolist(), picture=picture)

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of a whole answer as training learns it, end of turn included."""
        turns = [Message("user", ""), Message("assistant", answer)]
        labels = encode(self._processor, turns, name=f"of the answer {answer!r}").labels
        return labels[labels != IGNORED].tolist()

    def opening_ids(self, answer: str) -> list[int]:
        """Tokens of an answer that may go on: without the end of turn."""
        ids = self.answer_ids(answer)
        assert ids[-1] == self._end, "a template ends every answer with the same token"
        return ids[:-1]

    def log_probs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[Sequence[int]]], title: str
    ) -> list[np.ndarray]:
        """Log p(continuation | prompt), nats: for each prompt float64 [its continuations]. See `scoring`."""
        tries: list[Trie] = []
        for place, some in enumerate(continuations):
            shared = place > 0 and some is continuations[place - 1]
            tries.append(tries[-1] if shared else Trie.of(some))
        return continuation_log_probs(
            self._model,
            prompts,
            tries,
            pad_token_id=self._tokenizer.pad_token_id,
            batch_size=self._batch_size,
            track=self._track,
            title=title,
        )

    def answers(self, prompts: Sequence[Prompt], max_new_tokens: int, title: str) -> list[str]:
        """The greedy answer to each prompt."""
        return greedy_answers(
            self._model,
            self._tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=GENERATED * self._batch_size,
            track=self._track,
            title=title,
        )

    def stream(self, prompt: Prompt, write: Callable[[str], object], *, max_new_tokens: int) -> str:
        """The greedy answer to one prompt, handed to `write` word by word as it grows, and returned whole."""
        streamer = _Streamer(self._tokenizer, write)
        greedy_answers(
            self._model, self._tokenizer, [prompt], max_new_tokens=max_new_tokens, batch_size=1, streamer=streamer
        )
        return streamer.text.strip()


def release_memory() -> None:
    """Gives the memory of readers that are gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Streamer(TextStreamer):
    """Hands text on as soon as it is final, and keeps it."""

    def __init__(self, tokenizer: Any, write: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by `generate`."""
        self.text += text
        self._write(text)


def _without_mark(content: str) -> str:
    return content.replace(f"{IMAGE_MARK}\n", "").replace(IMAGE_MARK, "").strip()
