"""Answer in the terminal about a picture file, or about another file that the encoder reads.

`revision chat FILE` is `chat.image=FILE`. With `chat.prompt` one question is answered; without it a dialogue follows,
in which `/image PATH` shows another file (and starts afresh) and `/quit` leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from revision.schema import Config

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from revision.encoders import DualEncoder
    from revision.evaluation.reader import Reader
    from revision.records import Message

HELP = "Ask about the file shown. /image PATH shows another one, /quit leaves."


def run(config: Config) -> None:
    """Answers `chat.prompt` about `chat.image`, or holds a dialogue."""
    folder = _model_folder(config)  # before anything heavy is loaded

    from rich import get_console

    from revision.assembly import load_encoder
    from revision.encoders import resolve_device
    from revision.evaluation.reader import Reader
    from revision.progress import hide_bars_of_transformers

    hide_bars_of_transformers()
    encoder = cache(lambda: load_encoder(config, "auto"))
    if config.chat.image is not None:
        encoder().open_file(Path(config.chat.image))  # what it cannot read should not cost the loading of an LLM
    reader = Reader.load(folder, device=resolve_device("auto"), dtype=None, batch_size=1)
    dialogue = _Dialogue(
        reader, lambda: _fitting(encoder(), config, reader.embed_dim), get_console(), config.chat.max_new_tokens
    )
    if config.chat.image is not None:
        dialogue.show(Path(config.chat.image))
    if config.chat.prompt is not None:
        dialogue.ask(config.chat.prompt)
    else:
        dialogue.hold()


def _model_folder(config: Config) -> Path:
    from revision.hub import require_place
    from revision.stages.starting import model_folder

    folder = model_folder(config, config.chat.model, wanted_by="chat")
    require_place(folder)
    return folder


def _fitting(encoder: DualEncoder, config: Config, dim: int) -> DualEncoder:
    """The configured encoder, whose vectors the model must have been trained to read."""
    if encoder.dim != dim:
        raise ValueError(
            f"encoder {config.encoder.name} gives embeddings of {encoder.dim} dimensions, the model reads {dim}; set "
            "encoder to the one that the model was trained on"
        )
    return encoder


class _Dialogue:
    """The turns so far, about the file shown last. The encoder is loaded with the first file."""

    def __init__(
        self, reader: Reader, load_encoder: Callable[[], DualEncoder], console: Console, max_new_tokens: int
    ) -> None:
        self._reader = reader
        self._load_encoder = load_encoder
        self._console = console
        self._max_new_tokens = max_new_tokens
        self._encoder: DualEncoder | None = None
        self._shown: np.ndarray | None = None
        self._turns: list[Message] = []

    def show(self, path: Path) -> None:
        """Makes a file the subject, and forgets the turns about the one before.

        Raises ValueError where it cannot be read, or where encoder and model do not fit; the dialogue stays as it was.
        """
        self._encoder = self._encoder or self._load_encoder()
        self._shown = self._encoder.encode_images([self._encoder.open_file(path)])[0]
        self._turns = []

    def ask(self, question: str) -> None:
        """Streams the answer to one question to the terminal and keeps both.

        Raises ValueError for a question that marks more than the one file; the dialogue stays as it was.
        """
        from revision.evaluation.questions import with_mark
        from revision.records import IMAGE_MARK, Message

        opening = self._shown is not None and not self._turns
        turns = [*self._turns, Message("user", with_mark(question) if opening else question)]
        marks = sum(turn.content.count(IMAGE_MARK) for turn in turns if turn.role == "user")
        if marks > 1:
            raise ValueError(
                f"the questions have {marks} marks {IMAGE_MARK}, but one file is shown at a time; leave them out"
            )
        answer = self._reader.stream(
            self._reader.prompt(turns, self._shown),
            lambda text: self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True),
            max_new_tokens=self._max_new_tokens,
        )
        self._console.print()
        self._turns = [*turns, Message("assistant", answer)]

    def hold(self) -> None:
        """Asks for questions until /quit or the end of the input."""
        self._say(HELP, style="dim")
        while True:
            try:
                line = self._console.input("[bold]you:[/bold] ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            command, _, rest = line.partition(" ")
            if command == "/quit":
                return
            if command == "/image":
                try:
                    self.show(Path(rest.strip()))
                except ValueError as error:  # a slip of the user's should not end the dialogue
                    self._say(str(error), style="red")
            elif command.startswith("/"):
                self._say(HELP, style="dim")
            elif line:
                try:
                    self.ask(line)
                except ValueError as error:
                    self._say(str(error), style="red")

    def _say(self, sentence: str, style: str) -> None:
        """The terminal wraps it, so that a sentence stays one line where there is none (a pipe, a log)."""
        self._console.print(sentence, style=style, markup=False, highlight=False, soft_wrap=True)
