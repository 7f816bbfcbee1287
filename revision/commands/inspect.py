"""Show what a corpus holds and how long its samples are in tokens, before anyone pays for a GPU.

Counts, histograms of lengths through the LLM's tokenizer and template, duplicates, missing pictures, tokens in total,
and samples as the LLM reads them, with what is learned in colour; as JSON too, in runs/<name>/inspect/inspect.json.
Needs records and the tokenizer of `model.llm`; neither embeddings nor weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.fields import sources_read, stage_of, trainer_of
from revision.schema import Config, Modality, Packing, SourceConfig, StageInput

if TYPE_CHECKING:
    import numpy as np
    from rich.text import Text as RichText

    from revision.data.inspection import Lengths, Sampled, Shown
    from revision.model import RevisionProcessor
    from revision.records import Conversation

    Known = list[tuple[str, np.ndarray]]  # kind of each source of the conversations, and the sorted hashes of its ids

Report = dict[str, Any]


def run(config: Config) -> None:
    """1 tokenizer, 2 pictures, 3 texts or pairs of stage 1, 4 conversations of stage 2, 5 tables and file.

    Raises:
        ValueError: there is nothing to inspect, a record is malformed, or the tokenizer cannot be read.
    """
    from rich import get_console

    from revision.runs import rundir

    data = config.data
    if not data.sources and data.conversations is None:
        raise ValueError(f"corpus {data.name} has neither data.sources nor data.conversations to inspect")
    processor = _processor(config)
    folder = rundir.start(config, "inspect")
    images, known = _images(config)
    report: Report = {"corpus": data.name, "llm": config.model.llm, "images": images, "stages": {}}
    shown: list[tuple[str, Shown]] = []
    stages = {"pretrain": _first(config, processor, known), "instruct": _second(config, processor, known)}
    present = {stage: found for stage, found in stages.items() if found is not None}
    for place, (stage, found) in enumerate(present.items(), start=1):
        report["stages"][stage], lengths = found
        shown += [(stage, one) for one in lengths.shown][: -(-config.inspect.show * place // len(present)) - len(shown)]
    report["tokens_trained"] = sum(one.get("tokens_trained", 0) for one in report["stages"].values())
    for stage, one in shown:
        get_console().rule(f"{stage}: {one.id}", align="left")
        get_console().print(_coloured(one, processor), soft_wrap=True)
    _print(report)
    rundir.write_json(folder / "inspect.json", report)


def _processor(config: Config) -> RevisionProcessor:
    from transformers import AutoTokenizer

    from revision.assembly import template_file
    from revision.data.conversation import build_processor
    from revision.data.templates import read_template
    from revision.model.language_revision import why_unreadable

    file = template_file(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model.llm)
    except (OSError, ValueError, KeyError) as error:
        reason = why_unreadable(config.model.llm, error)
        raise ValueError(f"model.llm={config.model.llm} has no readable tokenizer ({reason})") from error
    template = None if file is None else read_template(file)
    return build_processor(tokenizer, num_visual_tokens=config.model.num_visual_tokens, chat_template=template)


def _images(config: Config) -> tuple[Report, Known]:
    """Every source of pictures, and the ids that conversations may name."""
    import numpy as np

    from revision.data.inspection import images_summary
    from revision.embeddings import hash_id
    from revision.records import read_images, read_texts

    reports: Report = {}
    known: dict[str, np.ndarray] = {}
    for name, source in config.data.sources.items():
        if source.records is None:
            continue  # embeddings that somebody else made: their files are the matter of `align`
        wanted = name in config.data.conversation_sources
        if source.kind is Modality.image:
            root = None if source.image_root is None else Path(source.image_root)
            images = read_images(_records(source), root, source.fields)
            reports[name], ids = images_summary(images, look=config.inspect.check_images)
        elif wanted:
            texts = read_texts(source.records, source.fields)
            ids = np.unique(np.fromiter((hash_id(text.id) for text in texts), dtype=np.uint64))
        if wanted:
            known[name] = ids
    ordered = [name for name in config.data.conversation_sources if name in known]
    return reports, [(config.data.sources[name].kind.value, known[name]) for name in ordered]


def _records(source: SourceConfig) -> str:
    assert source.records is not None, "sources without records are left out"
    return source.records


def _first(config: Config, processor: RevisionProcessor, known: Known) -> tuple[Report, Lengths] | None:
    """Stage 1: texts, where they are records, or pairs."""
    from revision.data.inspection import lengths_of, pair_talks, sample_of, text_samples
    from revision.records import read_pairs, read_texts

    stage = config.pretrain
    if stage.input is StageInput.pairs:
        assert config.data.pairs is not None, "the rules between fields have seen to it"
        pictures = [one for one in known if one[0] == Modality.image.value]
        return _talks(config, "pretrain", pair_talks(read_pairs(config.data.pairs), stage.prompts), processor, pictures)
    source = config.data.sources.get(config.data.texts)
    if source is None or source.records is None:
        return None
    texts = read_texts(source.records, source.fields)
    sample = sample_of(texts, config.inspect.sample, config.seed, lambda text: text.text)
    lengths = lengths_of(text_samples(sample, stage.prompts), processor, config.inspect.show)
    found = _summary(config, "pretrain", sample, lengths)
    return {**found, "embeddings": sources_read(config, "pretrain")}, lengths


def _second(config: Config, processor: RevisionProcessor, known: Known) -> tuple[Report, Lengths] | None:
    """Stage 2, where the corpus has one."""
    from revision.records import read_conversations

    if config.data.conversations is None:
        return None
    talks = read_conversations(config.data.conversations, config.data.conversation_fields)
    return _talks(config, "instruct", talks, processor, known)


def _talks(
    config: Config, stage: str, talks: Iterable[Conversation], processor: RevisionProcessor, known: Known
) -> tuple[Report, Lengths]:
    """Conversations of a stage, and whose pictures the sources have."""
    from revision.data.inspection import Pictured, lengths_of, said, sample_of

    pictured = Pictured(known)
    sample = sample_of(pictured(talks), config.inspect.sample, config.seed, said)
    lengths = lengths_of(((talk.id, talk.messages) for _, talk in sample.kept), processor, config.inspect.show)
    found = _summary(config, stage, sample, lengths)
    foreign = [name for name in config.data.conversation_sources if config.data.sources[name].records is None]
    return {**found, "embeddings": sources_read(config, stage), **({} if foreign else pictured.summary())}, lengths


def _summary(config: Config, command: str, sample: Sampled[Any], lengths: Lengths) -> Report:
    from revision.costs.setting import setting_of
    from revision.costs.stage import extent

    stage, records = stage_of(config, command), sample.count
    found = lengths.summary(records, stage.max_length)
    found |= {"duplicates": sample.duplicates, "repeated_ids": sample.repeated_ids, "max_length": stage.max_length}
    if "mean" in found:
        used = min(records, stage.limit or records)
        setting = setting_of(trainer_of(config, command), config.engine.processes)
        if stage.packing is Packing.packed:
            setting = setting.in_rows(stage.pack_tokens, mean=found["mean"], longest=found["longest"])
        samples = extent(setting, records=used, tokens=found["mean"]).records
        found |= {
            "samples_trained": samples,
            "tokens_trained": round(found["tokens_an_epoch"] / records * samples),
        }
    return found


def _coloured(shown: Shown, processor: RevisionProcessor) -> RichText:
    """A sample as the LLM reads it: what is learned in green, pictures in blue, the rest dim."""
    import numpy as np
    from rich.text import Text as RichText

    from revision.model.modeling_revision import IGNORED

    ids, labels = shown.encoded.input_ids, shown.encoded.labels
    kinds = np.where(ids == processor.image_token_id, 2, labels != IGNORED)
    text = RichText()
    borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(ids)]
    for start, end in pairwise(borders):
        if kinds[start] == 2:
            text.append(f"{processor.image_token}×{end - start}", style="bold blue")
        else:
            words = processor.tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=False)
            text.append(words, style="green" if kinds[start] else "dim")
    return text


def _print(report: Report) -> None:
    from rich import get_console
    from rich.table import Table

    from revision.progress import say

    console = get_console()
    for stage, found in report["stages"].items():
        table = Table(title=f"{stage}: {found['records']:,} records", title_justify="left", show_header=False)
        rows = ("tokenized", "refused", "duplicates", "repeated_ids", "with_picture", "with_text", "picture_unknown",
                "mean", "median", "p95", "p99", "longest", "max_length", "above_max_length", "learned_share",
                "tokens_an_epoch", "learned_an_epoch", "samples_trained", "tokens_trained")  # fmt: skip
        for name in (name for name in rows if name in found):
            value = found[name]
            estimated = name.startswith(("tokens_", "learned_an")) and not found["exact"]
            shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
            table.add_row(name.replace("_", " "), ("about " if estimated else "") + shown)
        console.print(table)
        most = max((count for _, _, count in found.get("histogram", [])), default=0)
        for low, high, count in found.get("histogram", []):
            say(f"{low:>7,} to {high:>7,} tokens  {'█' * round(40 * count / most):<40} {count:,}")
        for problem in found["first_refused"]:
            say(f"refused: {problem['reason']}")
        for name in found.get("first_unknown", []):
            say(f"no source has the picture of {name}")
    for name, found in report["images"].items():
        state = "not looked for" if found["missing"] is None else f"{found['missing']:,} missing"
        say(f"{name}: {found['records']:,} pictures, {state}, {found['repeated_ids']:,} repeated ids")
        for missing in found["first_missing"]:
            say(f"missing: {missing}")
    say(f"tokens trained in all: about {report['tokens_trained']:,}")
