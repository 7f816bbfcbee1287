"""Say what the training stages will cost: parameters, memory, FLOPs, hours. Needs neither a GPU nor weights.

Of the LLM its config.json is enough. Tokens are counted on a sample of the records where they are there, else taken
from `plan.pretrain` and `plan.instruct`. A stage that does not fit into the GPUs is refused, with what would make it
fit. Everything printed is in `plan.json` of the run too. What is assumed: docs/costs.md.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.fields import sources_read, stage_of, trainer_of
from revision.schema import MODEL_STEPS, Config, Packing, StageConfig, StageInput, Unfit

if TYPE_CHECKING:
    from torch.nn import Parameter

    from revision.costs.devices import Device
    from revision.costs.lengths import Lengths
    from revision.costs.setting import Setting
    from revision.costs.sketch import Language
    from revision.costs.stage import StagePlan
    from revision.model import RevisionForConditionalGeneration
    from revision.records import Message


def run(config: Config) -> None:
    """Plans each training stage among `run.steps`.

    Raises:
        ValueError: something that has to be known cannot be read, or a stage does not fit.
    """
    from revision.costs.devices import device_named
    from revision.costs.report import show
    from revision.costs.sketch import read_language
    from revision.progress import say
    from revision.runs import rundir

    device = device_named(config.plan.gpu)
    stages = [step for step in config.run.steps if step in MODEL_STEPS]
    if not stages:
        raise ValueError(f"run.steps = {config.run.steps}: `plan` needs one of {', '.join(MODEL_STEPS)} among them.")
    language = read_language(config.model.llm)
    for remark in language.remarks:
        say(f"assumed: {remark}")
    plans = {stage: _plan(config, stage, language, device) for stage in stages}
    for stage, plan in plans.items():
        show(stage, plan, device, embeddings=_embeddings(config, stage), mfu=config.plan.mfu)
    folder = rundir.start(config, "plan")
    rundir.write_json(folder / "plan.json", _as_json(config, plans, device, language.remarks))
    say(f"written to {folder / 'plan.json'}")
    for stage, plan in plans.items():
        if not plan.fits:
            raise ValueError(_refusal(config, stage, plan, device))


def _plan(config: Config, stage: str, language: Language, device: Device) -> StagePlan:
    from revision.assembly import model_shape
    from revision.costs.flops import work_of
    from revision.costs.memory import Memory
    from revision.costs.setting import setting_of
    from revision.costs.sketch import sketch
    from revision.costs.stage import Part, plan_stage
    from revision.training import PARTS, select_parts
    from revision.training.parts import ADAPTER, part_of

    settings, trainer = stage_of(config, stage), trainer_of(config, stage)
    half = bool(trainer.get("bf16") or trainer.get("fp16"))  # bf16=auto too: every GPU of the table has it
    engine = config.engine
    setting = setting_of(
        trainer, config.plan.gpus or engine.processes, engine=engine.kind.value, options=engine.options
    )
    lengths = _lengths(
        config, stage, setting, language, grouped=trainer.get("train_sampling_strategy") == "group_by_length"
    )
    if settings.packing is Packing.packed:
        setting = setting.in_rows(settings.pack_tokens, mean=lengths.tokens, longest=lengths.longest)
    setting = replace(setting, adapter=config.adapter.method.value if ADAPTER in settings.train else None)
    model = sketch(language, **model_shape(config, _embed_dim(config)))
    four_bit = _adapted(config, settings, model)
    select_parts(model, settings.train, bf16=bool(trainer.get("bf16")))  # fp16 leaves what is frozen in float32
    optimizer = str(trainer.get("optim", "adamw_torch_fused"))
    memory = Memory(model, half=half, optimizer=optimizer, four_bit=four_bit)
    members: dict[str, list[Parameter]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        members.setdefault(part_of(name), []).append(parameter)
    return plan_stage(
        setting,
        lengths,
        parts=[Part.of(name, some, four_bit) for name, some in members.items()],
        work=work_of(model),
        memory=memory,
        device=device,
        mfu=config.plan.mfu,
        reserve_gib=config.plan.reserve_gib,
    )


def _adapted(config: Config, settings: StageConfig, model: RevisionForConditionalGeneration) -> Sequence[Parameter]:
    """Attaches the adapter that a stage trains, and says which parameters it keeps in four bits."""
    from revision.training.adapters import sketch_adapter
    from revision.training.parts import ADAPTER

    if ADAPTER not in settings.train:
        return ()
    adapter = config.adapter
    return sketch_adapter(model, method=adapter.method.value, rank=adapter.rank, targets=adapter.targets)


def _embed_dim(config: Config) -> int:
    from revision.assembly import open_sources
    from revision.encoders import embed_dim

    if config.plan.embed_dim is not None:
        return config.plan.embed_dim
    if _has_store(config, config.data.texts):
        return int(open_sources(config, [config.data.texts])[0].dim)
    settings = config.encoder
    return embed_dim(kind=settings.kind, model=settings.model, pretrained=settings.pretrained)


def _has_store(config: Config, source: str) -> bool:
    from revision.assembly import store_path

    if source not in config.data.sources:
        return False
    return (
        config.data.sources[source].embeddings is not None or (store_path(config, source) / "manifest.json").is_file()
    )


def _lengths(config: Config, stage: str, setting: Setting, language: Language, *, grouped: bool) -> Lengths:
    """Of the records of a stage: measured on a sample of those that are there, else stated."""
    from revision.assembly import template_file
    from revision.costs import lengths

    settings, visual = stage_of(config, stage), config.model.num_visual_tokens
    stated = {"pretrain": config.plan.pretrain, "instruct": config.plan.instruct}[stage]
    if stated.records is not None and stated.text_tokens is not None and not _are_there(config, stage):
        return lengths.assumed(
            records=min(stated.records, settings.limit or stated.records),
            text=stated.text_tokens,
            labels=stated.text_tokens if stated.label_tokens is None else stated.label_tokens,
            visual=visual,
            longest=stated.longest or settings.max_length,
            source=f"stated in plan.{stage}",
        )
    talks, count = _sample(config, stage)
    count = min(count, settings.limit or count)
    count_one = lengths.counter(
        language.tokenizer, template_file(config), visual=visual, max_length=settings.max_length,
        cut_turns=settings.unfit is Unfit.cut_turns,
    )  # fmt: skip
    sizes = []
    for talk in talks:
        try:
            sizes.append(count_one(talk))
        except ValueError:
            if settings.unfit is Unfit.error:
                raise
    if not sizes:
        raise ValueError(f"{stage}.max_length = {settings.max_length}: none of {len(talks):,} records fits into it")
    count = round(count * len(sizes) / len(talks))
    how = "tokenized" if language.tokenizer is not None else f"at {lengths.CHARACTERS} characters a token"
    return lengths.measured(
        sizes,
        records=count,
        batch=None if settings.packing is Packing.packed else setting.batch,
        grouped=grouped,
        seed=config.seed,
        source=f"{len(sizes):,} of {count:,} records {how}",
    )


def _are_there(config: Config, stage: str) -> bool:
    """Whether the records of a stage lie here, in a store or in a file; those of a hub are not fetched for a plan."""
    data = config.data
    if stage == "instruct":
        name = data.conversations
    elif config.pretrain.input is StageInput.pairs:
        name = data.pairs
    elif _has_store(config, data.texts):
        return True
    else:
        name = data.sources[data.texts].records if data.texts in data.sources else None
    return name is not None and (Path(name).exists() or bool(glob.glob(name)))


def _sample(config: Config, stage: str) -> tuple[list[Sequence[Message]], int]:
    """Conversations of a stage, drawn at random, and how many records there are.

    Raises:
        ValueError: they are not there.
    """
    import numpy as np

    from revision.assembly import open_sources
    from revision.costs.lengths import sampled
    from revision.records import Message, read_conversations, read_pairs, read_texts

    size, data = config.plan.sample, config.data
    texts: list[str]
    if stage == "instruct":
        file = _records(stage, data.conversations, "data.conversations")
        talks, count = sampled(read_conversations(file, data.conversation_fields), size, config.seed)
        return [talk.messages for talk in talks], count
    if config.pretrain.input is StageInput.pairs:
        file = _records(stage, data.pairs, "data.pairs")
        pairs, count = sampled(read_pairs(file), size, config.seed)
        texts = [pair.text for pair in pairs]
    elif _has_store(config, data.texts):
        store = open_sources(config, [data.texts])[0]
        count = len(store)
        chosen = np.random.default_rng(config.seed).choice(count, min(size, count), replace=False)
        texts = store.payload(np.sort(chosen))
    else:
        source = data.sources.get(data.texts)
        file = _records(stage, source.records if source else None, f"data.sources.{data.texts}.records")
        found, count = sampled(read_texts(file, source.fields if source else None), size, config.seed)
        texts = [text.text for text in found]
    prompts = config.pretrain.prompts
    return [
        [Message("user", prompts[place % len(prompts)]), Message("assistant", text)] for place, text in enumerate(texts)
    ], count


def _records(stage: str, name: str | None, field: str) -> str:
    from revision.records.huggingface import is_hub

    if name is None or not (is_hub(name) or Path(name).exists() or glob.glob(name)):
        raise ValueError(
            f"{field} = {name or 'null'}: there is nothing to count the tokens of `{stage}` in; make it, or state "
            f"plan.{stage}.records and plan.{stage}.text_tokens"
        )
    return name


def _refusal(config: Config, stage: str, plan: StagePlan, device: Device) -> str:
    from revision.costs.memory import GIB

    needs = (
        f"`{stage}` needs {plan.peak.total / GIB:.1f} GiB on each GPU in its worst step, but {device.title} has "
        f"{device.memory_gib:g} less plan.reserve_gib = {config.plan.reserve_gib:g}"
    )
    if plan.remedy:
        return f"{needs}: set {plan.remedy}."
    return (
        f"{needs}, and no ZeRO stage, checkpointing or micro-batch helps (at best {plan.least / GIB:.1f} GiB): "
        "take more or larger GPUs."
    )


def _embeddings(config: Config, stage: str) -> str:
    """What the stage reads in the place of pictures, or as pictures."""
    read = sources_read(config, stage)
    texts, pictures = (", ".join(read[kind]) for kind in ("text", "image"))
    found = [f"texts ({texts}), moved by {config.alignment.method}" if texts else ""]
    found += [f"pictures ({pictures})" if pictures else ""]
    return "; ".join(filter(None, found)) or "nothing"


def _as_json(config: Config, plans: dict[str, StagePlan], device: Device, remarks: Sequence[str]) -> dict[str, Any]:
    """Everything, in bytes, FLOPs and hours."""
    stages = {stage: {**plan.as_json(), "embeddings": sources_read(config, stage)} for stage, plan in plans.items()}
    assumed = {"mfu": config.plan.mfu, "reserve_gib": config.plan.reserve_gib, "remarks": list(remarks)}
    return {"gpu": {"name": config.plan.gpu, **asdict(device)}, "assumed": assumed, "stages": stages}
