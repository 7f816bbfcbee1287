"""A training that is killed again and again: a program that forks one life after another from a warm process.

Forking spares each life the seconds of importing torch. In each life but the last, every process counts the places
where a kill could hurt (each step, each file written, forced to the disk or renamed) and one of them kills itself at
the place drawn for it, with the file at hand cut in half; or all are killed at a moment drawn from the clock.

Reads one JSON object from the command line and writes `report.json` into its folder; see `Plan`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  (the Trainer imports it: once for all lives)
import safetensors.torch
import tiny_engines
import tiny_training
import torch

from revision.interrupts import Interrupted
from revision.training.guard import Guard, Policy
from revision.training.trainer import StageTrainer

LEAST_REACH = 60  # places: enough for a checkpoint or two


@dataclass
class Plan:
    """What to do.

    Attributes:
        llm, folder: of the tiny LLM, and where everything goes.
        kills: lives that end in a kill; every third by the clock. A run that comes to its end before is followed by
            another, in `killed-1` and so on.
        processes, workers: of each life in turn, the last entry for all that follow.
        batch: samples a micro-batch over all processes.
        pack_tokens: of a packed row, which a micro-batch then is; None: samples are padded.
        rank: of LoRA matrices that train in the LLM's place, with dropout; None: all of the LLM trains.
        trainer: TrainingArguments.
        engine: one of `revision.training.engines.ENGINES`.
        options: of the engine.
        policy: for bad steps, of which there are none.
        seed: of the kills.
    """

    llm: str
    folder: str
    kills: int
    processes: list[int] = field(default_factory=lambda: [1])
    workers: list[int] = field(default_factory=lambda: [0])
    batch: int = 4
    pack_tokens: int | None = None
    rank: int | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    engine: str = "ddp"
    options: dict[str, Any] = field(default_factory=dict)
    policy: Policy = "stop"
    seed: int = 0


def at(values: list[int], life: int) -> int:
    """The value for a life; the last one stays."""
    return values[min(life, len(values) - 1)]


class Places:
    """Counts the places of a life where it can be killed; at number `fatal` it is."""

    def __init__(self, fatal: int | None) -> None:
        self.count, self.fatal = 0, fatal

    def come_by(self, hurt: Callable[[], None] = lambda: None) -> None:
        self.count += 1
        if self.count == self.fatal:
            hurt()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, module: Any, name: str, half: Callable[..., None] | None = None) -> None:
        """Makes calls of a function places, before it and after it."""
        original = getattr(module, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.come_by()
            result = original(*args, **kwargs)
            self.come_by(lambda: half(*args) if half is not None else None)
            return result

        setattr(module, name, watched)


def cut_in_half(_tensors: Any, path: Path) -> None:
    """What a crash leaves of a file whose second half was still in memory."""
    with open(path, "r+b") as file:
        file.truncate(Path(path).stat().st_size // 2)


def live(plan: Plan, output: Path, life: int, rank: int, fatal: int | None, port: int) -> None:
    """One process of one life; ends the process."""
    processes, workers = at(plan.processes, life), at(plan.workers, life)
    log = os.open(output / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if processes > 1 or plan.engine != "ddp":
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    places = Places(fatal)
    places.watch(os, "replace")
    places.watch(os, "fsync")
    places.watch(safetensors.torch, "save_file", cut_in_half)
    dataset = tiny_training.make_dataset(Path(plan.llm))
    names = {tuple(dataset[place]["input_ids"].tolist()): place for place in range(len(dataset))}
    keep_samples(names, output / f"samples-{rank}.jsonl", life, places)
    settings = dict(plan.trainer)
    settings["per_device_train_batch_size"] = plan.batch // processes
    settings["dataloader_num_workers"] = workers
    settings |= tiny_engines.prepare(plan.engine)
    try:
        tiny_training.run(
            Path(plan.llm),
            output,
            parts=["projector", "llm" if plan.rank is None else "adapter"],
            processes=processes,
            engine=plan.engine,
            options=plan.options,
            dataset=dataset,
            pack_tokens=plan.pack_tokens,
            rank=plan.rank,
            guard=Guard(plan.policy),
            **settings,
        )
    except Interrupted as stop:
        os._exit(stop.exit_code)
    (output / f"places-{rank}.txt").write_text(str(places.count))
    os._exit(0)  # without the farewells of a forked interpreter


def keep_samples(names: dict[tuple[int, ...], int], path: Path, life: int, places: Places) -> None:
    """Has each micro-batch that is learned from written down: life, step, samples."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, model: Any, inputs: Any, *rest: Any) -> torch.Tensor:
        places.come_by()
        ids = [names[tuple(row.tolist())] for row, labels in samples_of(inputs) if (labels != -100).any()]
        with path.open("a") as file:
            file.write(json.dumps([life, self.state.global_step, ids]) + "\n")
        return original(self, model, inputs, *rest)

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def samples_of(inputs: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels of each sample of a micro-batch, padded or packed."""
    if "attention_mask" in inputs:
        for row, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], strict=True):
            yield row[mask.bool()], labels
        return
    starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()[1:]
    yield from zip(inputs["input_ids"][0].tensor_split(starts), inputs["labels"][0].tensor_split(starts), strict=True)


def start(plan: Plan, output: Path, life: int, fatal: list[int | None]) -> list[int]:
    """Forks the processes of a life and returns their ids."""
    output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(at(plan.processes, life)):
        child = os.fork()
        if child == 0:
            live(plan, output, life, rank, fatal[rank], port)
        children.append(child)
    return children


def end(children: list[int]) -> list[int]:
    """Waits for all; once one was killed, the others are, as a launcher does. Exit codes, negative for a signal."""
    codes = []
    left = set(children)
    while left:
        child, status = os.waitpid(-1, 0)
        code = os.waitstatus_to_exitcode(status)
        left.discard(child)
        codes.append(code)
        if code != 0:
            for other in left:
                os.kill(other, signal.SIGKILL)
    return codes


def main(plan: Plan) -> None:
    """The uninterrupted life, the killed ones, and the one that comes to the end."""
    folder, rng = Path(plan.folder), random.Random(plan.seed)
    began = time.monotonic()
    world = plan.processes[0]
    assert set(end(start(plan, folder / "whole", 0, [None] * world))) == {0}, "the uninterrupted life failed"
    seconds = time.monotonic() - began
    count = int((folder / "whole" / "places-0.txt").read_text())
    lives: list[list[int]] = []
    rounds = 0
    while len([life for life in lives if set(life) != {0}]) < plan.kills or set(lives[-1]) != {0}:
        life, output = len(lives), folder / f"killed-{rounds}"
        world = at(plan.processes, life)
        fatal: list[int | None] = [None] * world
        enough = sum(set(life) != {0} for life in lives) >= plan.kills
        by_clock = not enough and life % 3 == 2
        if not enough and not by_clock:
            fatal[rng.randrange(world)] = rng.randint(1, max(2 * count // plan.kills, LEAST_REACH))
        children = start(plan, output, life, fatal)
        if by_clock:
            time.sleep(rng.uniform(0.2, 0.7) * seconds)
            for child in children:
                os.kill(child, signal.SIGKILL)
        lives.append(end(children))
        assert not enough or set(lives[-1]) == {0}, f"a life that nobody ended did not come to its end: {lives}"
        rounds += set(lives[-1]) == {0}
    (folder / "report.json").write_text(json.dumps({"places": count, "lives": lives, "rounds": rounds}))


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
