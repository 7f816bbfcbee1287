"""What becomes of a step whose loss is no number, or far above those before it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import TrainingArguments

Policy = Literal["stop", "skip", "roll_back"]

_SIGMA = 1.4826  # of a normal distribution, in median absolute deviations
_LEAST_SPREAD = 0.01  # share of the median that counts as the spread of losses that hardly differ


@dataclass(frozen=True)
class Guard:
    """How a bad step is dealt with: one whose loss or gradient is no number, or whose loss is a spike.

    Attributes:
        policy: "stop"; "skip": the update is left out, and the schedule goes on; "roll_back": weights and optimizer
            return to the last regular checkpoint, and the data goes on, so that the steps since are left out (PaLM,
            2204.02311, Sec. 5.1, passes over some hundred batches around a spike).
        spike: a loss is a spike that lies more than so many standard deviations above the median of the last
            `window`, the deviation being estimated from the median absolute one; None: none is.
        window: steps that the median is taken over; until there are so many, nothing is a spike.
        limit: bad steps a run may have before it stops whatever the policy.
    """

    policy: Policy = "stop"
    spike: float | None = None
    window: int = 100
    limit: int = 10

    def require_possible(self, arguments: TrainingArguments) -> None:
        """Holds the policy against what the engine can do.

        Raises:
            ValueError: it cannot.
        """
        if self.policy != "stop" and arguments.fp16:
            raise ValueError(
                f"guard.policy={self.policy} cannot be had with trainer.fp16, whose gradient scaler updates by a rule "
                "of its own; set trainer.bf16 in its place, or guard.policy=stop"
            )
        if self.policy != "roll_back":
            return
        if arguments.save_strategy != "steps":
            raise ValueError(
                "guard.policy=roll_back returns to a checkpoint, which must be at the same step in every repetition of "
                "the run; set trainer.save_steps"
            )
        if arguments.save_steps < 1:
            raise ValueError(
                f"guard.policy=roll_back returns to a checkpoint of whole steps, and trainer.save_steps="
                f"{arguments.save_steps} is a share of the run; set it to a number of steps"
            )


class LossWindow:
    """The losses of the last steps, and whether a new one stands out above them."""

    def __init__(self, size: int, spike: float | None) -> None:
        self._spike = spike
        self.losses: deque[float] = deque(maxlen=size)

    def ceiling(self) -> float:
        """What a loss must not exceed; infinite while there is too little to compare with."""
        if self._spike is None or len(self.losses) < (self.losses.maxlen or 0):
            return math.inf
        losses = np.array(self.losses)
        median = float(np.median(losses))
        spread = _SIGMA * float(np.median(np.abs(losses - median)))
        return median + self._spike * max(spread, _LEAST_SPREAD * abs(median))

    def add(self, loss: float) -> None:
        """Takes the loss of a good step in."""
        if self._spike is not None:
            self.losses.append(loss)
