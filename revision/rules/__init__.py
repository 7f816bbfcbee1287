"""Rules of the configuration that types cannot express: ranges, choices among names, agreement between fields."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from revision.alignment.methods import require_method, settings_of
from revision.encoders.kinds import check_kind
from revision.fields import nearest
from revision.rules.ranges import ABOVE, AT_LEAST, AT_MOST
from revision.rules.sentences import IMAGE, broken, one_of, require_source, value_of
from revision.rules.trainer import check_trainer
from revision.rules.training import check_engine, check_parts, check_stages
from revision.schema import MODEL_STEPS, SPREAD, STEPS, AlignmentConfig, BadRows, Config, ContrastPart, Modality

SPLITS = ("validation", "test")
NAME = "{text}"


def check(config: Config) -> None:
    """Hold the configuration against every rule.

    Raises:
        ValueError: the first broken rule, in one sentence.
    """
    _check_names(config)
    _check_numbers(config)
    _check_encoder(config)
    _check_contrast(config)
    _check_recipes(config)
    _check_sources(config)
    _check_alignment(config)
    _check_gap(config)
    check_stages(config)
    _check_models(config)
    check_trainer(config)
    check_engine(config)
    check_parts(config)
    _check_evaluation(config)


def _check_names(config: Config) -> None:
    # The name becomes folders and an override of child processes, so it keeps to characters safe in both.
    if not re.fullmatch(r"[\w.=,+-]+(/[\w.=,+-]+)*", config.name) or {".", ".."} & set(config.name.split("/")):
        raise broken("name", config.name, "letters, digits and . _ - = , + only, with / between folders")
    if not re.fullmatch(r"[\w.-]+", config.encoder.name):
        raise broken("encoder.name", config.encoder.name, "letters, digits and . _ - only, since it names a folder")
    if config.encoder.model.startswith("local-dir:") and config.encoder.pretrained is not None:
        raise broken("encoder.pretrained", config.encoder.pretrained, "null where encoder.model is a local-dir: folder")
    for step in config.run.steps:
        one_of("run.steps", step, STEPS)
    if not config.run.steps:
        raise broken("run.steps", "[]", f"at least one of {', '.join(STEPS)}")
    if len(set(config.run.steps)) < len(config.run.steps):
        raise broken("run.steps", config.run.steps, "each step once")
    for name, device in (("embed", config.embed), ("contrast", config.contrast), ("evaluate", config.evaluate)):
        spread = "spread, " if name == "evaluate" else ""
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device.device) and not (spread and device.device == SPREAD):
            raise broken(f"{name}.device", device.device, f"{spread}auto, cpu, mps, cuda or cuda:<number>")


def _check_numbers(config: Config) -> None:
    for name in (*AT_LEAST, *ABOVE, *AT_MOST):
        value = value_of(config, name)
        if value is not None and not math.isfinite(value):
            raise broken(name, value, "a finite number")
    for name, low in AT_LEAST.items():
        value = value_of(config, name)
        if value is not None and value < low:
            raise broken(name, value, f"at least {low}")
    for name, low in ABOVE.items():
        value = value_of(config, name)
        if value is not None and value <= low:
            raise broken(name, value, f"greater than {low}")
    for name, high in AT_MOST.items():
        value = value_of(config, name)
        if value is not None and value > high:
            raise broken(name, value, f"at most {high}")


def _check_encoder(config: Config) -> None:
    names = ("pretrained", "text_model", "max_length", "options")
    check_kind(config.encoder.kind, {name: value_of(config, f"encoder.{name}") for name in names})


def _check_contrast(config: Config) -> None:
    contrast = config.contrast
    if contrast.train is ContrastPart.heads and contrast.architecture:
        raise broken("contrast.train", "heads", "all where contrast.architecture is set: random towers are not locked")
    if contrast.train is ContrastPart.all and contrast.heads is not None:
        raise broken("contrast.heads", contrast.heads, "null where contrast.train is all: more than the heads trains")
    if contrast.init is not None and contrast.architecture:
        raise broken("contrast.init", contrast.init, "null where contrast.architecture gives a model to start anew")


def _check_recipes(config: Config) -> None:
    lines = [("data.needs", line) for line in config.data.needs]
    if config.data.benchmark_recipe is not None:
        lines.append(("data.benchmark_recipe", config.data.benchmark_recipe))
    for field, line in lines:
        try:
            words = shlex.split(line)
        except ValueError:  # a quotation that does not end
            words = []
        if not words:
            raise broken(field, repr(line), "a command line, such as data_recipes/bunny.py --out data/bunny")


def _check_sources(config: Config) -> None:
    data = config.data
    known = data.sources
    for name, source in known.items():
        if (source.records is None) == (source.embeddings is None):
            raise broken(
                f"data.sources.{name}.records", source.records,
                f"a file of records, or else null with data.sources.{name}.embeddings naming existing embeddings; "
                f"embeddings is {source.embeddings or 'null'}",
            )  # fmt: skip
        allowed = ("id", "text") if source.kind is Modality.text else ("id", "image")
        for ours in source.fields:
            one_of(f"data.sources.{name}.fields", ours, allowed)
    for ours in data.conversation_fields:
        one_of("data.conversation_fields", ours, ("id", "image", "messages", "conversations"))
    if known:  # a corpus of pairs for `contrast` alone has none
        require_source("data.texts", data.texts, known, Modality.text)
        require_source("data.statistics", data.statistics, known, Modality.image)
    if data.pictures is not None:
        require_source("data.pictures", data.pictures, known, Modality.image)
    if data.names is not None:
        require_source("data.names", data.names, known, Modality.text)
    for name in data.conversation_sources:
        one_of("data.conversation_sources", name, known)
    for name in config.embed.sources or []:
        one_of("embed.sources", name, known)
        if known[name].records is None:
            raise broken("embed.sources", name, f"a source of records; {known[name].embeddings} is embedded already")


def _check_alignment(config: Config) -> None:
    alignment = config.alignment
    if config.align.bad_rows is BadRows.skip and config.align.export is not None:
        rule = "error where align.export is set, which owes a row to every id; drop such rows from the files first"
        raise broken("align.bad_rows", "skip", rule)
    require_method(alignment.method, "alignment.method")
    for method in config.gap.compare:
        require_method(method, "gap.compare")
    methods = [alignment.method, *config.gap.compare]
    _check_alignment_options(alignment, methods)
    if "quantile" in methods and alignment.rank is not None and alignment.rank % 2:
        raise broken("alignment.rank", alignment.rank, "even for quantile, which matches pairs of coordinates")


def _check_alignment_options(alignment: AlignmentConfig, methods: list[str]) -> None:
    if not alignment.options:
        return
    known = {name for method in methods for name in settings_of(method)}
    for name, value in alignment.options.items():
        field = f"alignment.options.{name}"
        if name == "seed" or name in vars(alignment):
            raise broken(field, value, f"set as {name if name == 'seed' else f'alignment.{name}'}")
        if name not in known:
            rule = f"left out, since {' and '.join(methods)} {'have' if len(methods) > 1 else 'has'} no such setting"
            raise broken(field, value, rule + nearest(name, known))


def _check_gap(config: Config) -> None:
    gap, known = config.gap, config.data.sources
    if gap.neighbours is not None and (not gap.neighbours or min(gap.neighbours) < 1):
        raise broken("gap.neighbours", gap.neighbours, "a list of numbers of neighbours, each at least 1")
    if gap.sizes and min(gap.sizes) < 2:
        raise broken("gap.sizes", gap.sizes, "a list of numbers of rows, each at least 2")
    if not 0 < gap.energy < 1:
        raise broken("gap.energy", gap.energy, "a share of the trace between 0 and 1, such as 0.9")
    if gap.captions is not None:
        require_source("gap.captions", gap.captions, known, Modality.text)
    if len(gap.domains) == 1 or len(set(gap.domains)) < len(gap.domains):
        raise broken("gap.domains", gap.domains, "two or more different <text source>/<image source>, or []")
    for domain in gap.domains:
        text, slash, image = domain.partition("/")
        if not slash:
            raise broken("gap.domains", domain, "<text source>/<image source>, such as texts/statistics")
        require_source("gap.domains", text, known, Modality.text)
        require_source("gap.domains", image, known, Modality.image)


def _check_models(config: Config) -> None:
    # A name of one word is a stage or a folder from here; any other may be a folder still to come, or on the hub.
    fields: Mapping[str, Sequence[str | None]] = {
        "pretrain.init": [config.pretrain.init],
        "instruct.init": [config.instruct.init],
        "evaluate.models": config.evaluate.models,
        "chat.model": [config.chat.model],
        "push.model": [config.push.model],
    }
    for field, models in fields.items():
        earlier: Mapping[str, Sequence[str]] = {"pretrain.init": (), "instruct.init": ("pretrain",)}
        stages = earlier.get(field, MODEL_STEPS)
        for model in models:
            if model is None or model in stages or "/" in model or Path(model).is_dir():
                continue
            hub = "" if field == "push.model" else ", or owner/name of the hub"
            others = [*(["null"] if field.endswith(".init") else []), *stages]
            rule = f"one of {', '.join(others)}, a model's folder{hub}; there is no folder {model}"
            raise broken(field, model, rule + nearest(model, stages))


def _check_evaluation(config: Config) -> None:
    evaluate = config.evaluate
    one_of("evaluate.split", evaluate.split, SPLITS)
    if not evaluate.models:
        raise broken("evaluate.models", "[]", f"at least one of {', '.join(MODEL_STEPS)}, or a model's folder")
    for model in evaluate.asked or []:
        one_of("evaluate.asked", model, dict.fromkeys([*MODEL_STEPS, *evaluate.models]))
    if evaluate.naming_prompt.count(IMAGE) != 1:
        raise broken("evaluate.naming_prompt", evaluate.naming_prompt, f"{IMAGE} exactly once")
    if evaluate.naming_answer.count(NAME) != 1:
        raise broken("evaluate.naming_answer", evaluate.naming_answer, f"{NAME} exactly once")
    for name in ("naming", "questions"):
        if value_of(config, f"data.{name}") is not None and config.data.pictures is None:
            raise broken("data.pictures", None, f"an image source, since data.{name} asks about its pictures")
