"""Engines and launchers: what is started, what is refused, and that each engine trains what one process does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import tiny_engines
import torch
from accelerate.commands import launch
from accelerate.utils import launch as launchers
from conftest import build_tiny_llm
from test_configs import composed
from tiny_corpus import make_corpus, make_groups
from torch.distributed.run import get_args_parser
from torch.nn.parallel import DistributedDataParallel

from revision import building, training
from revision.cli import main
from revision.costs import memory
from revision.runs import launching, processes
from revision.schema import EngineKind
from revision.shipped import shipped
from revision.training import engines, sharding, stage

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
FILES = sorted((SCRIPTS / "accelerate").glob("*.yaml"))
STAGE_1, STAGE_2 = ["projector"], ["projector", "llm"]
# What engines are held against one process by. Twelve samples a step, of 32: an epoch ends within an accumulation.
TRAININGS: dict[str, dict[str, Any]] = {
    "stage1": {"parts": STAGE_1},
    "stage2": {"parts": STAGE_2},
    "packed": {"parts": STAGE_2, "pack_tokens": 150, "gradient_accumulation_steps": 2, "max_steps": 6},
    "partial": {
        "parts": STAGE_2, "gradient_accumulation_steps": 3, "max_steps": 7, "max_grad_norm": 0.5,
        "lr_scheduler_type": "linear", "warmup_steps": 2,
    },
}  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
OURS = [sys.executable, "-m", "revision.runs.launching", "--standalone"]
# So small a model would else be kept whole for speed.
IN_PIECES = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
PREFETCH = {"stage3_prefetch_bucket_size": 1000}
VARIABLES = (
    "ACCELERATE_USE_CPU", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_TORCH_DEVICE", "FSDP_VERSION", "RANK",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if started plainly; what a test changes in the environment is undone."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def left_by_accelerate(file: Path) -> dict[str, str]:
    """The environment that `accelerate launch` makes of one of our files, by its own code."""
    words = ["--config_file", str(file), "-m", "revision", "pretrain"]
    arguments, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return dict(launchers.prepare_deepspeed_cmd_env(arguments)[1])
    if arguments.use_fsdp or arguments.multi_gpu:
        return dict(launchers.prepare_multi_gpu_env(arguments))
    return dict(launchers.prepare_simple_launcher_cmd_env(arguments)[1])


def test_there_is_a_file_for_each_engine() -> None:
    names = {file.stem for file in FILES}
    assert names == {"cpu", "one_gpu", *engines.ENGINES}
    assert {kind.value for kind in EngineKind} == set(engines.ENGINES)
    assert names < {file.stem for file in (shipped("configs") / "engine").glob("*.yaml")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_takes_each_file_and_the_engine_of_that_name_fits(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(f"engine={file.stem}")
    assert config.engine.kind.value == (file.stem if file.stem in engines.ENGINES else "ddp")
    loaded = launch.load_config_from_file(str(file))
    assert loaded.num_processes == config.engine.processes
    for name, value in left_by_accelerate(file).items():
        if name in VARIABLES:
            monkeypatch.setenv(name, value)
    engines.prepare_environment(config.engine.kind.value, bf16=True, on_cpu=False)
    assert "ACCELERATE_CONFIG_DS_FIELDS" not in os.environ, "accelerate refuses its fields beside arguments"
    if file.stem.startswith(("zero", "fsdp")):
        for other in {"ddp", "zero2", "zero3"} - {file.stem}:
            with pytest.raises(ValueError, match=rf"engine\.kind={other}, but accelerate was started for {file.stem};"):
                engines.prepare_environment(other, bf16=False, on_cpu=False)
    if file.stem == "cpu":
        with pytest.raises(ValueError, match=r"engine\.kind=zero2, but ACCELERATE_USE_CPU is set, .* drops the engine"):
            engines.prepare_environment("zero2", bf16=False, on_cpu=True)


def test_a_precision_of_accelerate_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    engines.prepare_environment("ddp", bf16=True, on_cpu=False)
    with pytest.raises(ValueError, match=r"mixed_precision=bf16, but trainer\.bf16=False decides"):
        engines.prepare_environment("ddp", bf16=False, on_cpu=False)


@pytest.mark.parametrize(("engine", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_settings_of_deepspeed(engine: str, stage: int) -> None:
    options = {"zero_optimization": {"overlap_comm": True}, "gradient_clipping": 0.5}
    plain, changed = (engines.engine_arguments(engine, one, on_cpu=False)["deepspeed"] for one in ({}, options))
    assert plain["zero_optimization"]["stage"] == changed["zero_optimization"]["stage"] == stage
    assert (plain["gradient_clipping"], changed["gradient_clipping"]) == ("auto", 0.5)
    assert "overlap_comm" not in plain["zero_optimization"] and changed["zero_optimization"]["overlap_comm"] is True
    assert ("offload_param" in plain["zero_optimization"]) == engine.endswith("offload")
    assert plain["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save") == (True if stage == 3 else None)
    live = plain["zero_optimization"].get("stage3_max_live_parameters")
    assert live == (memory._LIVE if stage == 3 else None), "a plan counts what the engine is told"


def test_settings_of_the_others() -> None:
    assert engines.engine_arguments("ddp", {}, on_cpu=True) == {}
    fsdp = engines.engine_arguments("fsdp2", {"reshard_after_forward": False}, on_cpu=False)
    assert fsdp["fsdp"] is True
    assert (fsdp["fsdp_config"]["version"], fsdp["fsdp_config"]["reshard_after_forward"]) == (2, False)
    assert fsdp["accelerator_config"] == {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    with pytest.raises(ValueError, match=r"engine\.kind=fsdp2 runs on accelerators alone: .* choose engine=zero3"):
        engines.engine_arguments("fsdp2", {}, on_cpu=True)
    with pytest.raises(ValueError, match=r"engine\.kind=zero4 is no engine; choose one of ddp, zero1"):
        engines.engine_arguments("zero4", {}, on_cpu=True)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_no_accelerator_where_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.use_cpu=False, but torch sees no accelerator"):
        training.build_arguments({"use_cpu": False}, output=tmp_path, seed=0)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["engine.kind=zero4"], "engine.kind = zero4: must be one of ddp, zero1, zero2, zero3, zero3_offload, fsdp2"),
        (["engine.options.gradient_clipping=1"], "engine.options = {'gradient_clipping': 1}: must be {} where"),
        (
            ["engine=zero2", "engine.options.zero_optimization.stage=3"],
            "engine.options.zero_optimization.stage = 3: must be",
        ),
        (["trainer.deepspeed=x.json"], "trainer.deepspeed = x.json: must be left out: choose engine=zero2"),
        (["engine=fsdp2", "engine.options.version=1"], "engine.options.version = 1: must be left out"),
        (["trainer.deepspeed={}"], "trainer.deepspeed = {}: must be left out: choose engine=zero2 or the like"),
        (
            ["adapter=dora", "engine=zero3"],
            "engine.kind = zero3: must be ddp, zero1 or zero2 where instruct.train names adapter and adapter.method is",
        ),
        (
            ["adapter=lora", "engine=fsdp2"],
            "engine.kind = fsdp2: must be ddp, zero1 or zero2 where instruct.train names adapter and adapter.method is",
        ),
        (
            ["engine=zero2", "+engine.options.optimizer={}", "instruct.parts.llm.learning_rate=1e-4"],
            "engine.options.optimizer = {}: must be left out where instruct.parts.llm.learning_rate is",
        ),
        (["instruct.trainer.fsdp=true"], "instruct.trainer.fsdp = True: must be left out"),
    ],
)
def test_bad_engines_are_one_sentence(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *words]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


class DeepSpeedEngine(torch.nn.Linear):
    """As DeepSpeed's, for those who ask it."""

    def __init__(self, stage: int, offload: object = None) -> None:
        super().__init__(2, 2)
        self.stage, self.offload = stage, offload

    def zero_optimization_stage(self) -> int:
        return self.stage

    def zero_offload_param(self) -> object:
        return self.offload


def require_engine(engine: str, wrapped: Any, *, processes: int = 2, batches: int = 8) -> None:
    arguments = SimpleNamespace(world_size=processes, train_batch_size=2, dataloader_drop_last=False)
    trainer = SimpleNamespace(args=arguments, model_wrapped=wrapped, model=wrapped, train_dataset=range(32))
    engines.require_engine(trainer, engine, batches)


def test_the_engine_that_runs_is_the_one_asked_for() -> None:
    require_engine("ddp", torch.nn.Linear(2, 2), processes=1, batches=16)
    require_engine("zero1", DeepSpeedEngine(1))
    require_engine("zero2", DeepSpeedEngine(2), processes=1, batches=16)
    for engine, wrapped, runs in (
        ("zero2", torch.nn.Linear(2, 2), "none"),  # DeepSpeed dropped
        ("ddp", torch.nn.Linear(2, 2), "none"),  # gradients of each process for itself
        ("ddp", DeepSpeedEngine(2), "zero2"),
        ("zero2", DeepSpeedEngine(3), "zero3"),
        ("zero3_offload", DeepSpeedEngine(3), "zero3"),
        ("zero3", DeepSpeedEngine(3, {}), "zero3_offload"),
    ):
        with pytest.raises(ValueError, match=rf"engine\.kind={engine} on 2 process.*the engine that runs is {runs};"):
            require_engine(engine, wrapped)


class Wrapped(DistributedDataParallel):
    """As DDP's, without a process group."""

    def __init__(self, module: torch.nn.Module) -> None:
        torch.nn.Module.__init__(self)
        self.module = module


def test_an_engine_is_known_when_it_is_compiled() -> None:
    compiled: Any = torch.compile(Wrapped(torch.nn.Linear(2, 2)), backend="eager")
    assert not isinstance(compiled, DistributedDataParallel)
    require_engine("ddp", compiled)
    with pytest.raises(ValueError, match=r"engine\.kind=ddp on 2 process.*the engine that runs is none;"):
        require_engine("ddp", torch.compile(torch.nn.Linear(2, 2), backend="eager"))


def test_weights_and_data_are_in_pieces() -> None:
    with pytest.raises(ValueError, match=r"engine\.kind=zero3, but every process holds all of weight \(2 parameters"):
        require_engine("zero3", DeepSpeedEngine(3))
    with pytest.raises(ValueError, match="each of 2 processes would read 16 batches .* instead of its share of 8"):
        require_engine("zero2", DeepSpeedEngine(2), batches=16)


def test_one_process_of_an_engine_wants_a_launcher() -> None:
    arguments: Any = SimpleNamespace(world_size=1, n_gpu=0)
    engines.require_processes(arguments, "ddp", 1)
    with pytest.raises(ValueError, match=r"engine\.kind=zero2 needs a launcher also for one process"):
        engines.require_processes(arguments, "zero2", 1)
    with pytest.raises(ValueError, match=r"engine\.processes=8, but 1 are running"):
        engines.require_processes(arguments, "zero2", 8)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of child processes, none of which is started."""
    lines: list[list[str]] = []

    def attend(words: list[str]) -> tuple[int, None]:
        lines.append(words)
        return 0, None

    monkeypatch.setattr(processes, "attend", attend)
    return lines


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["engine=zero2", "engine.processes=8"], 8),
        (["engine=fsdp2"], 2),
        (["engine=gpus8"], 8),
        (["engine=zero3_offload", "engine.processes=1"], 1),
    ],
)
def test_a_plain_command_starts_its_launcher(started: list[list[str]], words: list[str], number: int) -> None:
    assert main(["instruct", *words]) == 0
    (line,) = started
    command = [f"--nproc_per_node={number}", "-m", "revision", "instruct", *words]
    assert line[: len(OURS)] == OURS and line[-len(command) :] == command


def test_jobs_of_a_sweep_start_theirs(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "-m", "engine=zero2", "engine.processes=8", "seed=0,1"]) == 0
    assert [line[:4] for line in started] == [[sys.executable, "-m", "revision", "pretrain"]] * 2
    jobs = [line[4:] for line in started]
    assert all({"engine=zero2", "engine.processes=8", "hydra.mode=RUN"} <= set(job) for job in jobs)
    started.clear()
    for job in jobs:
        assert main(["pretrain", *job]) == 0
    assert [line[: len(OURS)] for line in started] == [OURS] * 2
    assert all("--nproc_per_node=8" in line for line in started)


def test_under_a_launcher_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("engine=zero2")
    assert processes.needs_launcher(config, "pretrain")
    assert not processes.needs_launcher(config, "evaluate")
    monkeypatch.setenv("RANK", "0")
    assert not processes.needs_launcher(config, "pretrain")


def slurm(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PROCESSES"))}
    script = str(SCRIPTS / "slurm.sh")
    return subprocess.run([script, *words], capture_output=True, text=True, env={**clean, **environment})


def assert_lets_processes_save(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun, and accelerate in its place, read from these variables what our own launcher gives as options."""
    options = get_args_parser().parse_args([*processes._TO_LEAVE_WELL.values(), "script"])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    plain = get_args_parser().parse_args(["script"])
    started = launch.launch_command_parser().parse_args(["script"])
    below = launchers._filter_args(started, get_args_parser(), ["--training_script", "script"])
    for given in (plain, below):
        assert (given.signals_to_handle, given.shutdown_timeout) == (
            options.signals_to_handle, options.shutdown_timeout
        )  # fmt: skip


def test_slurm_script_shows_what_it_would_start(monkeypatch: pytest.MonkeyPatch) -> None:
    done = slurm("--print", "zero3", "instruct", "name=two words", SLURM_JOB_ID="7", SLURM_GPUS_ON_NODE="4")
    words = shlex.split(done.stdout)
    srun = words.index("srun")
    assert words[srun : srun + 3] == ["srun", "--nodes=2", "--ntasks=2"]
    assert_lets_processes_save(dict(word.split("=", 1) for word in words[srun - 2 : srun]), monkeypatch)
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv_endpoint=FIRST_NODE:20007", "--rdzv_id=revision-7"} < set(words)
    at = words.index("revision")
    assert words[at:] == ["revision", "instruct", "engine=zero3", "engine.processes=8", "name=two words"]
    assert words.count("srun") == 1 and "torch.distributed.run" in words
    for given, why in (
        (["zero3"], "usage: sbatch"),
        (["zero3", "instruct"], "is no job of Slurm; start it with sbatch"),
    ):
        refused = slurm(*given)
        assert refused.returncode == 2 and why in refused.stderr


def test_slurm_script_meets_at_the_first_of_many_nodes(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\nseq -f node%g 100000\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = slurm("--print", "ddp", "pretrain", SLURM_JOB_NODELIST="node[1-99]", SLURM_JOB_NUM_NODES="99", PATH=path)
    words = shlex.split(done.stdout)
    assert {"--rdzv_endpoint=node1:20000", "--nnodes=99", "engine.processes=792"} < set(words), done.stderr


def test_slurm_script_is_a_script_of_slurm() -> None:
    lines = (SCRIPTS / "slurm.sh").read_text().splitlines()
    assert lines[0].startswith("#!")
    first = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    directives = [place for place, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert len(directives) >= 4 and max(directives) < first, "Slurm reads no directive behind the first command"


def test_launch_script_starts_one_process_without_accelerate(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "python")}
    words = [str(SCRIPTS / "launch.sh"), "cpu", "pretrain", "name=two words"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["-m", "revision", "pretrain", "engine=cpu", "name=two words"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
@pytest.mark.parametrize("ends_with", [0, 1])
def test_scripts_pass_signals_on_and_say_so(number: signal.Signals, code: int, ends_with: int, tmp_path: Path) -> None:
    """Whatever code the launcher between makes of it."""
    launcher, ready = tmp_path / "accelerate", tmp_path / "ready"
    launcher.write_text(
        f"#!/bin/bash\ntrap 'echo got it; exit {ends_with}' {number.name.removeprefix('SIG')}\n"
        f"touch {ready}; while :; do sleep .05; done\n"
    )
    launcher.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [str(SCRIPTS / "launch.sh"), "ddp", "pretrain"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while not ready.exists():
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert said == "got it\n"
    assert process.returncode == (code if ends_with else 0)


def test_launch_script_takes_a_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = tmp_path / "accelerate"
    accelerate.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nenv | grep ^PET_\n')
    accelerate.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PROCESSES": "8"}
    words = [str(SCRIPTS / "launch.sh"), "zero3", "instruct", "name=x"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert lines[3:-2] == [
        "--num_processes", "8", "-m", "revision", "instruct", "engine=zero3", "engine.processes=8", "name=x"
    ]  # fmt: skip
    assert_lets_processes_save(dict(line.split("=", 1) for line in lines[-2:]), monkeypatch)


def test_each_process_gets_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "usable_cores", lambda: 9)
    assert [launching._threads(["--standalone", f"--nproc_per_node={many}", "-m", "x"]) for many in (1, 4, 16)] == [
        9,
        2,
        1,
    ]
    done = slurm("--print", "zero2", "instruct", SLURM_CPUS_ON_NODE="96", SLURM_GPUS_ON_NODE="8", OMP_NUM_THREADS="")
    assert shlex.split(done.stdout)[0] == "OMP_NUM_THREADS=12"
    (tmp_path / "accelerate").write_text('#!/bin/sh\necho "$OMP_NUM_THREADS"\n')
    (tmp_path / "nproc").write_text("#!/bin/sh\necho 9\n")
    for one in ("accelerate", "nproc"):
        (tmp_path / one).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for told, threads in (("", "4"), ("3", "3")):
        words = [str(SCRIPTS / "launch.sh"), "zero3", "instruct"]
        done = subprocess.run(
            words, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": told}, check=True
        )
        assert done.stdout.split() == [threads], "accelerate's file has two processes"


def test_weights_that_a_model_holds_itself_are_not_gathered(tiny_model: Any) -> None:
    assert sharding.whole_weights(tiny_model, keep=True) is None
    weight = tiny_model.projector.layers[0].weight
    by_hand = sum(int(one) for one in weight.detach().flatten().view(torch.int32).tolist())
    assert sharding.bit_sums([weight]) == [by_hand]
    assert sharding.size(weight) == weight.numel()


def test_weights_are_turned_into_the_type_they_are_saved_in(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "is_sharded", lambda one: True)
    monkeypatch.setattr(sharding, "_whole", lambda one: one.detach())
    for bf16, llm in ((True, torch.bfloat16), (False, torch.float32)):
        dtypes = stage._as_saved(tiny_model, SimpleNamespace(bf16=bf16))  # type: ignore[arg-type]
        found = sharding.whole_weights(tiny_model, keep=True, dtypes=dtypes)
        assert found is not None and found.keys() == tiny_model.state_dict().keys()
        for name, one in tiny_model.state_dict().items():
            assert found[name].dtype == (llm if name.startswith("language_model.") else torch.float32), name
            assert torch.equal(found[name], one.to(found[name].dtype))


def test_angles_of_rotary_embeddings_are_not_rounded(tiny_model: Any) -> None:
    before = tiny_model.language_model.model.rotary_emb.inv_freq.clone()
    training.select_parts(tiny_model, ["projector"], bf16=True)
    after = tiny_model.language_model.model.rotary_emb.inv_freq
    assert after.dtype == torch.float32 and torch.equal(before, after)
    assert {one.dtype for one in tiny_model.language_model.parameters()} == {torch.bfloat16}


def test_gathered_weights_take_the_place_of_the_models_own(tiny_llm: Path, tmp_path: Path) -> None:
    model, processor = building.build_model(
        str(tiny_llm), chat_template=None, dtype=torch.float32, seed=0, **tiny_engines.SHAPE
    )
    weights = {name: one.detach() + 1 for name, one in model.state_dict().items()}
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    building.save_model(
        model, processor, tmp_path / "model", alignment=None, dtype=torch.bfloat16, weights=dict(weights)
    )
    read, _ = building.read_model(tmp_path / "model")
    for name, one in read.state_dict().items():
        dtype = torch.float32 if name.startswith("projector.") else torch.bfloat16
        assert one.dtype == dtype and torch.equal(one, weights[name].to(dtype)), name


def losses(output: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (output / "log.jsonl").read_text().splitlines()]


def facts(output: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((output / "facts.json").read_text())
    return read


def on_two_processes(folder: Path, runs: dict[str, dict[str, Any]]) -> str:
    """Does the runs one after another and returns what they said."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    words = [
        *TORCHRUN,
        "--standalone",
        "--nproc_per_node=2",
        str(Path(tiny_engines.__file__)),
        str(folder / "runs.json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def references(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each training on one process, with the batches of both."""
    folder = tmp_path_factory.mktemp("references")
    for name, settings in TRAININGS.items():
        # A batch of packed rows is one row.
        both = {"gradient_accumulation_steps": 4} if name == "packed" else {"per_device_train_batch_size": 4}
        tiny_engines.run(folder / name, llm=str(tiny_llm), **{**settings, **both})
    return {name: folder / name for name in TRAININGS}


def assert_same(got: Path, expected: Path, *, initial: bool = True) -> None:
    """The losses, the model, and what it started from: the same table and projector, of the same spread."""
    assert losses(got) == pytest.approx(losses(expected), abs=1e-5)
    assert losses(got, "learning_rate") == losses(expected, "learning_rate")
    assert losses(got, "grad_norm") == pytest.approx(losses(expected, "grad_norm"), rel=1e-3)
    assert max(losses(got)) - min(losses(got)) > 0.05
    first, second = (safetensors.torch.load_file(one / "model" / "model.safetensors") for one in (got, expected))
    assert first.keys() == second.keys()
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-4
    building.read_model(got / "model")
    if initial:
        for name in ("output_std", "rows", "size", "sums"):
            assert facts(got)[name] == facts(expected)[name], name


def test_zero_trains_what_one_process_does(tiny_llm: Path, tmp_path: Path, references: dict[str, Path]) -> None:
    """ZeRO-3 with all parameters, ZeRO-2 with the projector; in each step one process has pictures, the other none."""
    llm = str(tiny_llm)
    said = on_two_processes(
        tmp_path,
        {
            "zero3": {"engine": "zero3", "parts": STAGE_2, "llm": llm, "options": IN_PIECES},
            "zero2": {"engine": "zero2", "parts": STAGE_1, "llm": llm},
        },
    )
    assert said.count("on 2 processes") == said.count("DeepSpeedEngine") == said.count("What trains") == 2
    assert_same(tmp_path / "zero3", references["stage2"])
    assert_same(tmp_path / "zero2", references["stage1"])
    assert facts(tmp_path / "zero3")["held"] < facts(tmp_path / "zero3")["size"] / 2, "the model was built in pieces"
    assert facts(tmp_path / "zero3")["gathered"]


@pytest.mark.slow
def test_every_engine_trains_what_one_process_does(tiny_llm: Path, tmp_path: Path, references: dict[str, Path]) -> None:
    llm = str(tiny_llm)
    runs = {
        f"{engine}-{name}": {"engine": engine, "llm": llm, "options": options, **settings}
        for engine, options in (
            ("ddp", {}), ("zero1", {}), ("zero2", {}), ("zero3", IN_PIECES), ("zero3_offload", IN_PIECES)
        )
        for name, settings in TRAININGS.items()
    }  # fmt: skip
    sharded = {f"fsdp2-{name}": {"engine": "fsdp2", "llm": llm, **settings} for name, settings in TRAININGS.items()}
    on_two_processes(tmp_path, runs)
    on_two_processes(tmp_path, sharded)
    for name in (*runs, *sharded):
        assert_same(tmp_path / name, references[name.rpartition("-")[2]])
        assert facts(tmp_path / name)["gathered"] == (not name.startswith("ddp"))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_processes_in_pieces_differ_in_their_labels(tmp_path: Path, tied: bool) -> None:
    """One has more logits in a micro-batch than exist at a time, and the other fewer, by turns."""
    llm = str(build_tiny_llm(tmp_path / "llm", tied=tied))
    shared = {"llm": llm, "most_logits": 12_500, "max_steps": 8}
    zero3 = {**shared, "engine": "zero3", "options": IN_PIECES}
    eager = {**zero3, "options": {"zero_optimization": {**IN_PIECES["zero_optimization"], **PREFETCH}}}
    fsdp2 = {**shared, "engine": "fsdp2"}
    runs: dict[str, dict[str, Any]] = {
        "zero3": {**zero3, "parts": STAGE_2},
        "eager": {**eager, "parts": STAGE_2},
        "zero3-stage1": {**zero3, "parts": STAGE_1},
    }
    sharded = {"fsdp2": {**fsdp2, "parts": STAGE_2}, "fsdp2-stage1": {**fsdp2, "parts": STAGE_1}}
    on_two_processes(tmp_path, runs)
    on_two_processes(tmp_path, sharded)
    for name in (*runs, *sharded):
        parts = {**runs, **sharded}[name]["parts"]
        alone = tmp_path / f"alone-{name}"
        tiny_engines.run(alone, llm=llm, parts=parts, per_device_train_batch_size=4, max_steps=8)
        assert losses(tmp_path / name) == pytest.approx(losses(alone), abs=1e-5)


@pytest.mark.slow
def test_stage_2_in_pieces_starts_from_a_saved_model(
    tiny_llm: Path, tmp_path: Path, references: dict[str, Path]
) -> None:
    init, llm = str(references["stage1"] / "model"), str(tiny_llm)
    run = {"engine": "zero3", "parts": STAGE_2, "llm": llm, "options": IN_PIECES, "init": init}
    on_two_processes(tmp_path, {"zero3": run})
    tiny_engines.run(tmp_path / "one", llm=llm, parts=STAGE_2, init=init, per_device_train_batch_size=4)
    assert_same(tmp_path / "zero3", tmp_path / "one")


@pytest.mark.slow
def test_a_projector_is_solved_for_under_any_engine(tiny_llm: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"parts": STAGE_1, "llm": str(tiny_llm), "regress": 3}
    runs: dict[str, dict[str, Any]] = {
        "ddp": {"engine": "ddp"},
        "zero2": {"engine": "zero2"},
        "zero3": {"engine": "zero3", "options": IN_PIECES},
    }
    on_two_processes(tmp_path, {name: {**more, **run} for name, run in runs.items()})
    tiny_engines.run(tmp_path / "one", **more, per_device_train_batch_size=4)
    for name in runs:
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_an_adapter_under_zero_is_merged_as_it_trained(tiny_llm: Path, tmp_path: Path, engine: str) -> None:
    """With rates of its own; in bfloat16 the matrices come from DeepSpeed's float32 copies."""
    more: dict[str, Any] = {
        "parts": ["projector", "adapter"], "llm": str(tiny_llm), "rank": 2,
        "options": IN_PIECES if engine == "zero3" else {},
        "rates": {"projector": {"learning_rate": 3e-3}, "adapter": {"learning_rate": 2e-2, "weight_decay": 0.1}},
    }  # fmt: skip
    on_two_processes(tmp_path, {"plain": {**more, "engine": engine}, "half": {**more, "engine": engine, "bf16": True}})
    tiny_engines.run(tmp_path / "one", **{**more, "options": {}}, per_device_train_batch_size=4)
    assert_same(tmp_path / "plain", tmp_path / "one", initial=False)
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "one"), abs=2e-2)
    saved: Any = building.read_model(tmp_path / "half" / "model")[0]
    assert saved.dtype == torch.bfloat16 and saved.projector.layers[0].weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_mixed_precision(tiny_llm: Path, tmp_path: Path, references: dict[str, Path], engine: str) -> None:
    """A frozen LLM beside a projector, and both trained: the losses, and a projector saved as exactly as it trained."""
    more: dict[str, Any] = {"engine": engine, "llm": str(tiny_llm), "bf16": True}
    on_two_processes(tmp_path, {"stage1": {**more, "parts": STAGE_1}, "stage2": {**more, "parts": STAGE_2}})
    for name in ("stage1", "stage2"):
        assert losses(tmp_path / name) == pytest.approx(losses(references[name]), abs=1e-2)
        saved: Any = building.read_model(tmp_path / name / "model")[0]
        assert saved.dtype == torch.bfloat16
        weight = saved.projector.layers[0].weight
        assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.slow
def test_launchers_train_for_real(tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1 plainly, under `accelerate launch`, and as two nodes of Slurm that both are this machine."""
    groups = make_groups(tmp_path / "configs", make_corpus(tmp_path / "corpus", tiny_llm))
    monkeypatch.chdir(tmp_path)
    shared = [
        "data=tiny", "encoder=tiny", "model.llm=${data.folder}/assets/llm", "model.num_visual_tokens=2",
        "trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.logging_steps=1",
        "trainer.per_device_train_batch_size=2", "pretrain.max_length=64", "--config-dir", str(groups),
    ]  # fmt: skip
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stubs = {
        "python": f'exec {sys.executable} "$@"\n',
        "scontrol": "echo localhost\necho elsewhere\n",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\n"$@" & first=$!\n"$@" && wait $first\n',
    }
    for name, body in stubs.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{body}")
        (bin_folder / name).chmod(0o755)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "11",
        "PROCESSES_PER_NODE": "1", "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip

    def ends_well(*words: str) -> None:
        done = subprocess.run([*words, *shared], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    for step in ("embed", "align"):
        ends_well("python", "-m", "revision", step)
    for name, words in {
        "plain": ["python", "-m", "revision", "pretrain", "engine=zero2"],
        "accelerate": [str(SCRIPTS / "launch.sh"), "zero3", "pretrain"],
        "slurm": [str(SCRIPTS / "slurm.sh"), "ddp", "pretrain"],
    }.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "align").symlink_to(tmp_path / "runs" / "default" / "align")
        ends_well(*words, f"name={name}")
        building.read_model(tmp_path / "runs" / name / "pretrain" / "model")
    seen = [losses(tmp_path / "runs" / name / "pretrain") for name in ("plain", "accelerate", "slurm")]
    for other in seen[1:]:
        assert other == pytest.approx(seen[0], abs=1e-5)
