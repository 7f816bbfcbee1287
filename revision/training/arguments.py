"""`TrainingArguments` from the open mapping of the configuration."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from revision import precision
from revision.files import write_text
from revision.training import ranks
from revision.training.engines import DDP, engine_arguments, join_group, merge, prepare_environment
from revision.training.order import STRATEGIES

# What a stage decides itself: its collator needs every field, its own bar and log replace the Trainer's, a loss that is
# no number is shown as it is, checkpoints and resuming are our own (`states`), so is the order of samples (`order`),
# tokens are counted by our own watch without waiting for the device, and the finished model is saved whole by the
# command. Smoothed labels would be those of the wrong positions: transformers shifts them for its own classes only.
_OURS: dict[str, Any] = {
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "logging_nan_inf_filter": False,
    "include_num_input_tokens_seen": "no",
    "label_smoothing_factor": 0.0,
    "ignore_data_skip": False,
    "data_seed": None,
    "save_only_model": False,
    "save_on_each_node": False,
    "enable_jit_checkpoint": False,
    "resume_from_checkpoint": None,
    "load_best_model_at_end": False,
    "auto_find_batch_size": False,
    "push_to_hub": False,
    "average_tokens_across_devices": True,  # the loss is over all labels of a step, whichever process has them
}
_DEFAULTS: dict[str, Any] = {
    "save_strategy": "no",  # none of the Trainer's: StageConfig says how many minutes apart they are
    "save_total_limit": 2,
    "project": "revision",  # trackio's; wandb takes it from the environment
    "logging_steps": 10,
    "ddp_find_unused_parameters": False,  # there are none: the projector takes part in every step
}
WANDB_RUN = "wandb_run.txt"  # id of the stage's run in wandb, in its folder
_named_by_us: dict[str, str] = {}  # what a stage has set in the environment: a later one must not take it for yours
# What each optimizer of transformers needs besides torch: the beginning of its name, the module, what installs it.
_OPTIMIZERS = (
    ("galore_", "galore_torch", "galore-torch"),
    ("apollo_", "apollo_torch", "apollo-torch"),
    ("lomo", "lomo_optim", "lomo-optim"),
    ("adalomo", "lomo_optim", "lomo-optim"),
    ("grokadamw", "grokadamw", "grokadamw"),
    ("schedule_free_", "schedulefree", "schedulefree"),
    ("stable_adamw", "optimi", "torch-optimi"),
    ("adamw_torch_4bit", "torchao", "torchao"),
    ("adamw_torch_8bit", "torchao", "torchao"),
    ("adamw_torch_xla", "torch_xla", "torch-xla"),
    ("adamw_torch_npu", "torch_npu", "torch-npu"),
    ("adamw_anyprecision", "torchdistx", "git+https://github.com/pytorch/torchdistx"),
    ("adamw_bnb_8bit", "bitsandbytes", "bitsandbytes"),
    ("adamw_8bit", "bitsandbytes", "bitsandbytes"),
    ("ademamix", "bitsandbytes", "bitsandbytes"),
    ("lion_", "bitsandbytes", "bitsandbytes"),
    ("paged_", "bitsandbytes", "bitsandbytes"),
    ("rmsprop_bnb", "bitsandbytes", "bitsandbytes"),
)


def build_arguments(
    mapping: Mapping[str, Any],
    *,
    output: Path,
    seed: int,
    tracker: str = "none",
    run_name: str | None = None,
    engine: str = DDP,
    engine_options: Mapping[str, Any] = MappingProxyType({}),
) -> TrainingArguments:
    """`TrainingArguments` from a config mapping.

    Args:
        mapping: names and values of TrainingArguments; without a GPU `use_cpu` is set, since otherwise several
            processes would silently count as one. `bf16` may also be "auto": where the device has its arithmetic.
        output: folder of the stage; checkpoints and the tracker's files go below it.
        seed: of data order, dropout and everything else.
        tracker: "none", "wandb", "tensorboard" or "trackio".
        run_name: name of the run in the tracker.
        engine: one of `engines.ENGINES`.
        engine_options: further settings of that engine.

    Raises:
        ValueError: a name that TrainingArguments does not have, one that the stage sets itself, a refused value, an
            engine that could not run here, torch_compile without a compiler, or an optimizer or a tracker that is not
            installed.
    """
    if tracker == "trackio" and importlib.util.find_spec("trackio") is None:
        raise ValueError("tracker = trackio: it is not installed; `pip install 'revision-mllm[trackio]'`.")
    _require_known(mapping)
    in_steps = {"save_strategy": "steps"} if "save_steps" in mapping else {}
    has_device = torch.accelerator.is_available()
    values = {"use_cpu": not has_device, "dataloader_pin_memory": has_device, **_DEFAULTS, **in_steps}
    values = {**values, **mapping, **_OURS}
    on_cpu = bool(values["use_cpu"])
    if not on_cpu and not has_device and "ACCELERATE_TORCH_DEVICE" not in os.environ:
        raise ValueError("trainer.use_cpu=False, but torch sees no accelerator; leave it out, or look at its driver")
    if "bf16" in values:
        values["bf16"] = precision.settle(values["bf16"], _device(on_cpu))
    values = merge(engine_arguments(engine, engine_options, on_cpu=on_cpu), values)
    prepare_environment(engine, bf16=bool(values.get("bf16")), on_cpu=on_cpu)
    try:
        arguments = TrainingArguments(
            output_dir=str(output / "checkpoints"),
            seed=seed,
            report_to=[] if tracker == "none" else [tracker],
            run_name=run_name,
            **values,
        )
    except (ValueError, TypeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"trainer: transformers.TrainingArguments refuses its values: {reason}") from error
    _require_compiler(arguments)
    _require_optimizer(arguments)
    join_group(engine)
    ranks.gather(None)  # makes its group now: to be made, all must come within half an hour
    _place_trackers(output)
    if tracker == "wandb" and arguments.process_index == 0:
        _name_wandb_run(output)
    return arguments


def _require_known(mapping: Mapping[str, Any]) -> None:
    """Holds names, and values that transformers would take and a stage cannot keep, against what a stage knows."""
    known = set(inspect.signature(TrainingArguments.__init__).parameters) - {"self"}
    fixed = {"output_dir", "seed", "report_to", "run_name", "deepspeed", "fsdp", "fsdp_config", *_OURS}
    for name in mapping:
        if name in fixed:
            raise ValueError(f"trainer.{name}={mapping[name]!r} is set by the stage itself; leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known - fixed, 1)
            hint = f"; did you mean trainer.{near[0]}?" if near else ""
            raise ValueError(f"trainer.{name} is no argument of transformers.TrainingArguments{hint}")
    strategy = mapping.get("train_sampling_strategy", STRATEGIES[0])
    if strategy not in STRATEGIES:
        raise ValueError(f"trainer.train_sampling_strategy={strategy!r}: must be one of {', '.join(STRATEGIES)}")
    limit = mapping.get("save_total_limit", 1)
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"trainer.save_total_limit={limit!r}: must be at least 1, the checkpoints that are kept")
    _require_possible(mapping)


def _require_possible(mapping: Mapping[str, Any]) -> None:
    """Refuses what transformers takes here and stumbles over once the model is loaded, or never trains by."""
    for name, off in (("eval_strategy", "no"), ("eval_on_start", False)):
        if name in mapping and mapping[name] != off:
            raise ValueError(
                f"trainer.{name}={mapping[name]!r}: a stage has no data to evaluate on while it trains; leave it out, "
                "and run `revision evaluate` on the model that comes out"
            )
    if mapping.get("save_strategy") == "best":
        raise ValueError(
            "trainer.save_strategy='best': nothing is evaluated while a stage trains, so no checkpoint is the best; "
            "leave it out, or choose steps or epoch"
        )
    if mapping.get("use_liger_kernel"):
        raise ValueError(
            f"trainer.use_liger_kernel={mapping['use_liger_kernel']!r}: Liger knows no model of this type; leave it "
            "out: where liger-kernel is installed, its loss is used on a GPU by itself"
        )
    steps, epochs = mapping.get("max_steps", -1), mapping.get("num_train_epochs", 1)
    if steps == 0:
        raise ValueError("trainer.max_steps=0: must be at least 1, or left out, so that trainer.num_train_epochs holds")
    if isinstance(epochs, int | float) and epochs <= 0 and not (isinstance(steps, int) and steps > 0):
        raise ValueError(f"trainer.num_train_epochs={epochs}: must be above 0 where trainer.max_steps is not set")


def _place_trackers(output: Path) -> None:
    """Trackers take the folders of their files from the environment alone."""
    folders = {
        "TENSORBOARD_LOGGING_DIR": output / "tensorboard",
        "WANDB_DIR": output,
        "TRACKIO_DIR": output / "trackio",
    }
    os.environ.update({name: str(folder.absolute()) for name, folder in folders.items()})
    os.environ.setdefault("WANDB_PROJECT", "revision")


def _name_wandb_run(output: Path) -> None:
    """Has a run that goes on from a checkpoint go on as the same run in wandb; one that begins anew is a new one.

    Left alone where the environment says something of its own about it.
    """
    if any(os.environ.get(name) not in (None, _named_by_us.get(name)) for name in ("WANDB_RUN_ID", "WANDB_RESUME")):
        return
    file, checkpoints = output / WANDB_RUN, output / "checkpoints"
    # One that is damaged stops the run, or is passed over for the one before it: neither begins anew.
    goes_on = any(checkpoints.glob("checkpoint-*")) or any(checkpoints.glob("damaged-checkpoint-*"))
    if not (goes_on and file.is_file()):
        output.mkdir(parents=True, exist_ok=True)
        name = secrets.token_hex(4)  # not of the seed: two runs of one seed are two
        write_text(file, name)
    _named_by_us.update(WANDB_RUN_ID=file.read_text(encoding="utf-8").strip(), WANDB_RESUME="allow")
    os.environ.update(_named_by_us)


def _device(on_cpu: bool) -> torch.device:
    """Where training will run, before `TrainingArguments` knows it."""
    current = None if on_cpu else torch.accelerator.current_accelerator()
    return torch.device("cpu") if current is None else current


def _require_compiler(arguments: TrainingArguments) -> None:
    """torch.compile would find out in the first step, in a traceback of its own."""
    if not arguments.torch_compile or arguments.torch_compile_backend != "inductor":
        return
    gpu = arguments.device.type != "cpu"
    names = [os.environ.get("CC", "gcc"), "clang"] if gpu else [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, names)):
        raise ValueError(
            f"trainer.torch_compile=True: needs a compiler, and neither {names[0]} nor {names[1]} is here; install "
            "one, or leave torch_compile out"
        )
    if gpu and importlib.util.find_spec("triton") is None:
        raise ValueError("trainer.torch_compile=True: needs triton on a GPU; install it, or leave torch_compile out")


def _require_optimizer(arguments: TrainingArguments) -> None:
    """transformers would look for the optimizer's package once the model is loaded."""
    name = OptimizerNames(arguments.optim).value
    for beginning, module, package in _OPTIMIZERS:
        if name.startswith(beginning) and importlib.util.find_spec(module) is None:
            raise ValueError(
                f"trainer.optim={name}: needs {module}, which is not installed; `pip install {package}`, or leave "
                "optim out"
            )
