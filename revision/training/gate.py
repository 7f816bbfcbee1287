"""A gate before the updates of DeepSpeed, which come within its backward pass, where the Trainer has no say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class UpdateGate:
    """Asks, before each update of a ZeRO optimizer, whether it is to be made.

    One that is not takes the way of a step whose gradients overflowed in float16: gradients are dropped, weights and
    moments stay.

    Args:
        engine: DeepSpeed's.
        ask: called by all processes alike, with whether a gradient is no number on any of them; gives the same answer
            on all.

    Raises:
        ValueError: an optimizer that has no such way.
    """

    def __init__(self, engine: Any, ask: Callable[[bool], bool]) -> None:
        self._optimizer, self._ask, self._left_out = engine.optimizer, ask, False
        later = hasattr(self._optimizer, "_loss_scale_update_and_overflow_cleanup")  # ZeRO-3
        if not hasattr(self._optimizer, "has_overflow") or not (
            later or hasattr(self._optimizer, "check_grad_overflow")
        ):
            raise ValueError(
                f"guard.policy cannot leave an update of DeepSpeed's {type(self._optimizer).__name__} out; set "
                "engine.kind to zero1, zero2 or zero3, or guard.policy=stop"
            )
        if later:
            self._optimizer._overflow_check_and_loss_scale_update = self._check_later
        else:
            self._optimizer.check_grad_overflow = True
            self._optimizer.check_overflow = self._check

    def _check(self, *args: Any, **kwargs: Any) -> None:
        """In the place of ZeRO-1's and ZeRO-2's own check, which sets this attribute."""
        self._optimizer.overflow = self._left_out = not self._ask(bool(self._optimizer.has_overflow()))

    def _check_later(self, update_scale: bool = True) -> Any:
        """In the place of ZeRO-3's own check, which drops the gradients too, unless told to leave that for later."""
        self._check()
        return self._optimizer._loss_scale_update_and_overflow_cleanup() if update_scale else self._optimizer.overflow

    def pass_by(self) -> bool:
        """Whether the last update was left out; nobody else is to take it for an overflow from now on."""
        left_out, self._left_out = self._left_out, False
        if left_out:
            self._optimizer.overflow = False
        return left_out
