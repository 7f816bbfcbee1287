"""Mistakes in the configuration: each is one sentence with field, value, rule and nearest name, and exit code 2."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from revision.alignment.methods import built_in
from revision.cli import main

METHODS = ", ".join(built_in())
FILES = {
    "alignment/misspelt.yaml": "methd: realign\n",
    "alignment/enum.yaml": "method: realgn\n",
    "model/enum.yaml": "visual_tokens: slot\n",
    "alignment/syntax.yaml": "method: realign\ncentroid_steps: [1\n",
    "alignment/twice.yaml": "method: c3\nmethod: none\n",
    "model/types.yaml": "llm: x\nnum_visual_tokens: many\n",
    "model/scalar.yaml": "llm: x\nprojector: 3\n",
    "model/list.yaml": "- llm\n",
    "model/dangling.yaml": "llm: ${no.such.field}\n",
    "model/silent.yaml": "num_visual_tokens: 4\n",
    "encoder/folder.yaml": "name: x\nmodel: local-dir:x\npretrained: openai\n",
    "experiment/option.yaml": "# @package _global_\ndefaults:\n  - override /alignment: realing\n",
    "experiment/group.yaml": "# @package _global_\ndefaults:\n  - override /alignmnt: c3\n",
    "experiment/root.yaml": "# @package _global_\nseeed: 1\n",
    "experiment/open.yaml": "# @package _global_\ntrainer: fast\n",
    "experiment/steps.yaml": "# @package _global_\nrun: {steps: align}\n",
    "experiment/kind.yaml": "# @package _global_\ndata: {sources: {more: {kind: imag, records: x}}}\n",
    "experiment/list.yaml": "# @package _global_\n- seed\n",
    "experiment/bare.yaml": "seed: 3\nname: bare\n",
    "experiment/late.yaml": "# My own.\n# @package _global_\nseed: 3\n",
    "experiment/bare_choice.yaml": "defaults:\n  - override /alignment: c3\n",
    "experiment/nested/bare.yaml": "name: bare\n",
    "adapter/inside.yaml": "adapter: {rank: 3}\n",
    "adapter/beside.yaml": "rank: 3\ninstruct: {max_length: 9}\n",
    "experiment/again.yaml": "# @package _global_\ndefaults:\n  - /data: records\n",
    "experiment/beside.yaml": "# @package _global_\ndefaults:\n  - data: records\n",
    "experiment/slash.yaml": "# @package _global_\ndefaults:\n  - override data: records\n",
    "experiment/nested/deep.yaml": "# @package _global_\npretrain: {input: txt}\n",
}

ON_THE_COMMAND_LINE = [
    # unknown names
    ("seeed=1", "'seeed=1' on the command line", "no field 'seeed' (did you mean 'seed'?)"),
    ("+seeed=1", "no field 'seeed'", "'seed'"),
    ("alignment.methd=c3", "alignment has no field 'methd' (did you mean 'method'?)"),
    ("model.projector.dept=3", "model.projector has no field 'dept' (did you mean 'depth'?)"),
    ("learning_rate=1", "did you mean 'contrast.learning_rate'?"),
    ("pretrain.learning_rate=1e-3", "no field 'learning_rate' (did you mean 'pretrain.trainer.learning_rate'?)"),
    ("instruct.max_step=9", "instruct has no field 'max_step' (did you mean 'instruct.trainer.max_steps'?)"),
    ("pretrain.maxlength=9", "pretrain has no field 'maxlength' (did you mean 'max_length'?)"),
    ("instruct.gradient_checkpoint=true", "(did you mean 'instruct.trainer.gradient_checkpointing'?)"),
    ("embed.batch_size=3", "embed has no field 'batch_size' (did you mean 'encoder.batch_size'?)"),
    ("per_device_train_batch_size=8", "(did you mean 'trainer.per_device_train_batch_size'?)"),
    ("seed.deep=1", "seed is an integer and has no field 'deep'"),
    ("alignment={methd: c3}", "alignment has no field 'methd' (did you mean 'method'?)"),
    ("experimnt=nano", "no field 'experimnt' (did you mean 'experiment'?)"),
    ("hydra.foo=1", "Hydra has no setting 'hydra.foo'"),
    # wrong types
    ("seed=abc", "seed = abc: must be an integer"),
    ("seed=1.5", "seed = 1.5: must be an integer"),
    ("seed=", "must be an integer"),
    ("contrast.learning_rate=fast", "contrast.learning_rate = fast: must be a number"),
    ("model.projector.output_norm=maybe", "must be true or false"),
    ("pretrain.limit=all", "pretrain.limit = all: must be an integer or null"),
    ("run.steps=align", "run.steps = align: must be a list of strings"),
    ("gap.neighbours=[a]", "gap.neighbours = a: must be a list of integers"),
    ("model.projector=3", "model.projector = 3: must be a mapping with the fields depth, hidden_size"),
    ("data.sources=3", "data.sources = 3: must be a mapping"),
    # wrong enum values
    ("alignment.method=realing", f"must be one of {METHODS} (did you mean 'realign'?)"),
    ("tracker=wandbb", "must be one of none, wandb, tensorboard, trackio (did you mean 'wandb'?)"),
    ("evaluate.dtype=fp16", "evaluate.dtype = fp16: must be one of float32, bfloat16, float16 or null"),
    ("data.sources.texts.kind=imag", "data.sources.texts.kind = imag: must be one of text, image"),
    # groups
    ("alignment=realing", "group 'alignment' has no option 'realing' (did you mean 'realign'?); it has: blockwise, c3"),
    ("experiment=nanoo", "group 'experiment' has no option 'nanoo' (did you mean 'nano'?); it has: "),
    ("experiment=null", "group 'experiment' has no option 'null'"),
    ("engine=2", "group 'engine' has no option '2'"),
    ("~alignment", "group 'alignment' cannot be removed"),
    ("hydra/launcher=nope", "group 'hydra/launcher' has no option 'nope'"),
    # forms
    ("seed", "'seed' on the command line is not an override: write field=value"),
    ("=3", "names no field"),
    ("~seed", "seed cannot be removed"),
    ("seed=0,1", "holds several values: add -m to sweep over them"),
    ("experiment=nano,nano_tokens", "'experiment=nano,nano_tokens' on the command line holds several values: add -m"),
    ("trainer.max_steps=1,2", "'trainer.max_steps=1,2' on the command line holds several values"),
    ("--fast", "unrecognized arguments: --fast"),
    ("--cfg=jb", "invalid choice: 'jb'"),
    ("--config-dir=nowhere", "--config-dir nowhere is not a folder"),
    # values that are missing or lead nowhere
    ("model.llm=???", "model.llm has no value: it must be a string"),
    ("seed=${oc.env:NO_SUCH_VARIABLE}", "seed: its interpolation does not resolve", "NO_SUCH_VARIABLE"),
    ("data.sources.new.kind=image", "data.sources.new is not there yet: add the source whole"),
    # rules between fields and ranges
    ("name=../other", "name = ../other: must be letters"),
    ("name='two words'", "name = two words: must be letters"),
    ("run.steps=[]", "run.steps = []: must be at least one of contrast, embed, align"),
    ("run.steps=[align,gapp]", "run.steps = gapp: must be one of contrast, embed", "(did you mean 'gap'?)"),
    ("run.steps=[align,align]", "run.steps = ['align', 'align']: must be each step once"),
    ("encoder.name=a/b", "encoder.name = a/b"),
    ("embed.device=gpu", "embed.device = gpu: must be auto, cpu, mps, cuda or cuda:<number>"),
    ("embed.device=spread", "embed.device = spread: must be auto, cpu"),
    ("evaluate.device=gpu", "evaluate.device = gpu: must be spread, auto, cpu"),
    ("evaluate.asked=[instruckt]", "evaluate.asked = instruckt: must be one of pretrain, instruct"),
    ("evaluate.spare_tokens=-1", "evaluate.spare_tokens = -1: must be at least 0"),
    ("embed.shard_size=0", "embed.shard_size = 0: must be at least 1"),
    ("data.sources.texts.fields.caption=x", "data.sources.texts.fields = caption: must be one of id, text"),
    ("data.conversation_fields.text=x", "data.conversation_fields = text: must be one of id, image, messages"),
    ("inspect.sample=0", "inspect.sample = 0: must be at least 1"),
    ("embed.reject_budget=2", "embed.reject_budget = 2.0: must be at most 1"),
    ("embed.sources=[text]", "embed.sources = text: must be one of", "(did you mean 'texts'?)"),
    ("contrast.logit_scale=0", "contrast.logit_scale = 0.0: must be greater than 0"),
    ("alignment.until=0", "alignment.until = 0.0: must be greater than 0"),
    ("gap.neighbours=[]", "gap.neighbours = []: must be a list of numbers of neighbours"),
    ("model.num_visual_tokens=0", "model.num_visual_tokens = 0: must be at least 1"),
    ("data.texts=statistics", "data.texts = statistics: must be a source of kind text", "is of kind image"),
    ("data.pictures=nope", "data.pictures = nope: must be one of"),
    ("data.pictures=null", "data.pictures = null: must be an image source, since data.naming asks"),
    ("pretrain.train=[]", "pretrain.train = []: must be at least one of projector, llm, adapter, each once"),
    ("pretrain.train=[llm,llm]", "pretrain.train = ['llm', 'llm']: must be at least one of", "each once"),
    ("instruct.train=[lm]", "instruct.train = lm: must be one of projector, llm, adapter (did you mean 'llm'?)"),
    ("instruct.train=['projector.(0']", "instruct.train = projector.(0: must be a part or a regular expression, which"),
    (
        "instruct.train=[adapter]",
        "adapter.method = none: must be lora, dora or qlora where instruct.train names adapter",
    ),
    ("instruct.parts.projectr.learning_rate=1", "instruct.parts has no field 'projectr' (did you mean 'projector'?)"),
    ("pretrain.parts.llm.learning_rate=1", "must be null, since pretrain.train = ['projector'] leaves llm out"),
    (
        "instruct.parts.llm.weight_decay=-1",
        "instruct.parts.llm.weight_decay = -1.0: must be a finite number of",
    ),
    (
        "adapter.method=lora",
        "adapter.method = lora: must be none where neither pretrain.train nor instruct.train",
    ),
    ("adapter.method=lorra", "must be one of none, lora, dora, qlora (did you mean 'lora'?)"),
    ("adapter.rank=0", "adapter.rank = 0: must be at least 1"),
    ("adapter.targets=[]", "adapter.targets = []: must be [all-linear], or names of linear layers"),
    ("pretrain.unfit=cut_turns", "pretrain.unfit = cut_turns: must be error or drop: a caption is one turn"),
    ("instruct.reject_budget=2", "instruct.reject_budget = 2.0: must be at most 1"),
    ("instruct.pack_tokens=4096", "instruct.pack_tokens = 4096: must be null where instruct.packing is none"),
    ("instruct.packing=pack", "must be one of none, packed (did you mean 'packed'?)"),
    ("pretrain.max_length=4", "pretrain.max_length = 4: must be more than model.num_visual_tokens"),
    ("pretrain.prompts=[describe]", "pretrain.prompts = describe: must be <image> exactly once"),
    ("pretrain.prompts=[]", "pretrain.prompts = []: must be at least one user turn"),
    ("pretrain.init=instruct", "pretrain.init = instruct: must be null or a model's folder"),
    ("instruct.init=instruct", "instruct.init = instruct: must be pretrain, null"),
    (
        "chat.model=instrct",
        "chat.model = instrct: must be one of pretrain, instruct, a model's folder, or owner/name of the hub; there is "
        "no folder instrct (did you mean 'instruct'?).",
    ),
    ("push.model=pretrian", "push.model = pretrian: must be one of pretrain, instruct, a model's folder; there is no"),
    (
        "evaluate.models=[pretrain,embed]",
        "evaluate.models = embed: must be one of pretrain, instruct, a model's folder",
    ),
    ("instruct.init=align", "instruct.init = align: must be one of null, pretrain, a model's folder"),
    ("pretrain.init=align", "pretrain.init = align: must be one of null, a model's folder"),
    ("evaluate.split=tests", "evaluate.split = tests: must be one of validation, test (did you mean 'test'?)"),
    ("evaluate.models=[]", "evaluate.models = []: must be at least one of pretrain, instruct"),
    ("evaluate.naming_prompt=this", "evaluate.naming_prompt = this: must be <image> exactly once"),
    ("seed=-1", "seed = -1: must be at least 0"),
    ("alignment.until=nan", "alignment.until = nan: must be a finite number"),
    ("alignment.noise_std=inf", "alignment.noise_std = inf: must be a finite number"),
    ("guard.policy=skipp", "guard.policy = skipp: must be one of stop, skip, roll_back (did you mean 'skip'?)"),
    ("guard.window=2", "guard.window = 2: must be at least 10"),
    ("checkpoint.minutes=0", "checkpoint.minutes = 0.0: must be greater than 0"),
    ("plan.mfu=1.5", "plan.mfu = 1.5: must be at most 1"),
    ("plan.gpus=0", "plan.gpus = 0: must be at least 1"),
    ("search.trials=0", "search.trials = 0: must be at least 1"),
    ("search.sampler=grid", "search.sampler = grid: must be one of tpe, random"),
    ("engine.peak_tflops=0", "engine.peak_tflops = 0.0: must be greater than 0"),
    ("hydra/launcher=ray", "group 'hydra/launcher' has no option 'ray'", "pip install 'revision-mllm[sweeps]'"),
    ("evaluate.naming_answer=this", "evaluate.naming_answer = this: must be {text} exactly once"),
    (
        "instruct.trainer.lerning_rate=1",
        "instruct.trainer.lerning_rate = 1: must be left out, since transformers.",
        "TrainingArguments has no such argument (did you mean 'learning_rate'?)",
    ),
    ("trainer.nonsense=1", "trainer.nonsense = 1: must be left out, since transformers.TrainingArguments has no such"),
]

IN_A_FILE = [
    ("alignment=misspelt", "alignment/misspelt.yaml: alignment has no field 'methd' (did you mean 'method'?)"),
    ("alignment=enum", f"alignment.method = realgn: must be one of {METHODS} (did you mean 'realign'?)"),
    ("model=enum", "model/enum.yaml: model.visual_tokens = slot: must be one of repeat, slots (did you mean 'slots'?)"),
    ("alignment=syntax", "alignment/syntax.yaml, line 3: not valid YAML"),
    ("alignment=twice", "alignment/twice.yaml, line 2: not valid YAML"),
    ("model=types", "model/types.yaml: model.num_visual_tokens = many: must be an integer"),
    ("model=scalar", "model/scalar.yaml: model.projector = 3: must be a mapping with the fields depth"),
    ("model=list", "model/list.yaml: model = ['llm']: must be a mapping with the fields llm"),
    ("model=dangling", "model.llm: its interpolation does not resolve", "no.such.field"),
    ("model=silent", "model.llm has no value: it must be a string; set it with model.llm=..."),
    ("encoder=folder", "encoder.pretrained = openai: must be null where encoder.model is a local-dir: folder"),
    (
        "experiment=option",
        "experiment/option.yaml: group 'alignment' has no option 'realing' (did you mean 'realign'?)",
    ),
    ("experiment=group", "experiment/group.yaml: no group is named 'alignmnt' (did you mean 'alignment'?)"),
    ("experiment=root", "experiment/root.yaml: the configuration has no field 'seeed' (did you mean 'seed'?)"),
    ("experiment=open", "experiment/open.yaml: trainer = fast: must be a mapping"),
    ("experiment=steps", "experiment/steps.yaml: run.steps = align: must be a list of strings"),
    ("experiment=kind", "experiment/kind.yaml: data.sources.more.kind = imag: must be one of text, image"),
    ("experiment=list", "experiment/list.yaml: the file must be a mapping of fields"),
    ("experiment=bare", "experiment/bare.yaml: its first line must be `# @package _global_`."),
    ("experiment=late", "experiment/late.yaml: its first line must be `# @package _global_`."),
    ("experiment=bare_choice", "experiment/bare_choice.yaml: its first line must be `# @package _global_`."),
    ("experiment=nested/bare", "experiment/nested/bare.yaml: its first line must be `# @package _global_`."),
    (
        "adapter=inside",
        "adapter/inside.yaml: its first line must be `# @package _global_`, or else its fields must stand without "
        "`adapter:` above them.",
    ),
    (
        "adapter=beside",
        "adapter/beside.yaml: its first line must be `# @package _global_`, since it sets instruct, which is no field",
    ),
    (
        "experiment=again",
        "experiment/again.yaml: data has been chosen before; write `- override /data: records`.",
    ),
    ("experiment=beside", "experiment/beside.yaml: a group that does not lie in", "write `- override /data: records`."),
    ("experiment=slash", "experiment/slash.yaml: a group that does not lie in", "write `- override /data: ...`."),
    ("experiment=nested/deep", "experiment/nested/deep.yaml: pretrain.input = txt: must be one of text, pairs"),
]


@pytest.fixture(scope="module")
def bad_configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of config groups, each file with one mistake."""
    folder = tmp_path_factory.mktemp("configs")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command line ends in, after checking that it is one and that the exit code is 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("revision: ") and err.endswith(".\n"), err
    assert err.count("\n") == 1, f"more than one line: {err}"
    return err


@pytest.mark.parametrize(("override", "expected"), [(case[0], case[1:]) for case in ON_THE_COMMAND_LINE])
def test_mistake_on_the_command_line(
    override: str, expected: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    said = sentence(["align", override], capsys)
    for part in expected:
        assert part in said


@pytest.mark.parametrize(("override", "expected"), [(case[0], case[1:]) for case in IN_A_FILE])
def test_mistake_in_a_file(
    override: str, expected: tuple[str, ...], bad_configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = sentence(["align", override, "--config-dir", str(bad_configs)], capsys)
    for part in expected:
        assert part in said
    named = re.search(r"(\S+\.yaml)", said)
    if named:
        assert Path(named[1]).is_file(), f"no such file: {named[1]}"


def test_every_bad_file_has_a_case() -> None:
    covered = {case[0].replace("=", "/") + ".yaml" for case in IN_A_FILE}
    assert covered == set(FILES)


def test_one_bad_value_of_a_sweep_stops_all_of_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "alignment.method = c5: must be one of" in sentence(["align", "-m", "alignment.method=c3,c5"], capsys)
    assert "group 'alignment' has no option 'c5'" in sentence(["align", "-m", "alignment=c3,c5"], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--help"], ["--info"]])
@pytest.mark.parametrize("sweep", [["-m"], []])
def test_what_is_shown_is_one_job(option: list[str], sweep: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(["align", *sweep, "seed=0,1", *option], capsys)
    assert "'seed=0,1' on the command line holds several values, and --cfg, --help and --info show one job" in said


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command is named 'pretrian' (did you mean 'pretrain'?)" in sentence(["pretrian"], capsys)


def test_pairs_need_records_of_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(["pretrain", "pretrain.input=pairs", "data.pairs=null"], capsys)
    assert "pretrain.input = pairs: must be backed by data.pairs and data.conversation_sources" in said


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["instruct.train=[adapter,llm]"],
            "instruct.train = ['adapter', 'llm']: must be without llm or without adapter: an adapter trains in the",
        ),
        (["adapter.keep=true", "instruct.init=null"], "adapter.keep = true: must be false where instruct.init is null"),
        (
            ["adapter.keep=true", "instruct.train=[adapter,'projector\\..*']"],
            "instruct.train holds regular expr",
        ),
        (["instruct.train=[projector]"], "instruct.parts.adapter.learning_rate = 0.0002: must be null, since"),
    ],
)
def test_adapters_that_contradict(overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in sentence(["instruct", "adapter=lora", *overrides], capsys)


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVISION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no field 'seeed'"):
        main(["align", "seeed=1"])


def test_a_model_may_be_a_folder_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert main(["chat", "chat.model=mine", "evaluate.models=[owner/name,instruct]", "--cfg", "job"]) == 0
    assert main(["chat", "chat.model=mine", "evaluate.models=[owner/name,instruct]", "--help"]) == 0
    assert "cannot be shown" not in capsys.readouterr().out
