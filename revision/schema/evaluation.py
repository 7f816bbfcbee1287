"""What is done with a finished model."""

from __future__ import annotations

from dataclasses import dataclass, field

from revision.schema.choices import Dtype

SPREAD = "spread"  # a device of `evaluate`


@dataclass
class EvaluateConfig:
    """`evaluate`: scores on benchmark pictures."""

    models: list[str] = field(default_factory=lambda: ["pretrain", "instruct"])  # commands or folders
    asked: list[str] | None = None  # of the models, those that are asked questions; null: all
    split: str = "test"  # validation for choices, test for reports
    candidates: int = 100  # names that naming ranks against
    limit: int | None = None  # pictures that are named, a track; null: all
    question_limit: int | None = None  # questions that are asked, a track; null: all
    naming_prompt: str = "<image>"  # user turn before a name; `<image>` marks where the picture goes
    naming_answer: str = "{text}"  # what is scored for a name; {text}: its text in data.names, which the encoder reads
    bootstrap: int = 2000  # resamples for the 95 % intervals
    sheet: int = 24  # pictures on the contact sheet
    max_new_tokens: int = 24  # after which an answer ends
    spare_tokens: int = 2  # that an answer may have beyond the longest right one of its track, within max_new_tokens
    batch_size: int = 8  # samples a pass; the scores do not depend on it
    seed: int = 0  # of draws and resamples; not the run's seed, so that runs of all seeds meet the same test
    dtype: Dtype | None = None  # of weights and arithmetic; null: as saved, if the device has it
    device: str = "auto"  # auto, cpu, cuda, ...; or spread: over all GPUs, for a model that no single one holds


@dataclass
class ChatConfig:
    """`chat`: an answer in the terminal about a picture file, or another that the encoder reads."""

    model: str = "instruct"  # a stage of this run (pretrain, instruct), or a model's folder
    image: str | None = None  # the file asked about; null: none, or a dialogue's /image
    prompt: str | None = None  # one question, then exit; null: a dialogue
    max_new_tokens: int = 64  # after which an answer ends


@dataclass
class PushConfig:
    """`push`: a trained model to the Hugging Face hub."""

    model: str = "instruct"  # a stage of this run, or a model's folder
    repo: str | None = None  # owner/name on the hub
    license: str | None = None  # goes into the model card, such as apache-2.0 or other; the card must have one
    private: bool = True  # of a repository that does not exist yet
    upload: bool = False  # false: check the folder and say what would be uploaded


@dataclass
class VerifyConfig:
    """`verify`: checkpoints, models and stores against their checksums."""

    path: str | None = None  # a folder or one above several; null: everything that this run has made and reads
