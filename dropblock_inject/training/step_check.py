"""A look at the first updates: does the schedule go on once per update?"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import DropBlockWarning

_UPDATES = 5  # so many updates are looked at
_BACKWARD_PASSES = 100  # without an update that can be seen, so many backward passes are looked at


class StepCheck:
    """Counts backward passes, updates and steps of the schedule, and warns once if they do not fit.

    A hook on one parameter sees the backward passes. An update is seen by the parameter's version, which every in-place
    operation raises.
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self.is_in_step = False  # then backward passes are those of a closure, which belong to one update
        self._total_steps = total_steps
        self._steps = 0
        self._updates = 0
        self._backward_passes = 0
        self._version: int | None = None
        self._handle: RemovableHandle | None = None
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
        if trainable:
            method = weakref.WeakMethod(self._after_backward)

            def hook(parameter: Tensor) -> None:
                after_backward = method()
                if after_backward is not None:
                    after_backward(parameter)

            self._handle = trainable[-1].register_post_accumulate_grad_hook(hook)
            weakref.finalize(self, self._handle.remove)

    def count_step(self) -> None:
        """To be called at each step of the schedule."""
        self._steps += 1
        if self._is_over and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}  # the hook stays on the parameter that it was put on

    @property
    def _is_over(self) -> bool:
        return self._updates >= _UPDATES or (self._updates == 0 and self._backward_passes >= _BACKWARD_PASSES)

    def _after_backward(self, parameter: Tensor) -> None:
        if self._is_over or self.is_in_step:
            return
        if self._version not in (None, parameter._version):
            self._updates += 1
        self._version = parameter._version
        self._backward_passes += not self._is_over  # this pass belongs to the next update
        if self._is_over:
            self._judge()

    def _judge(self) -> None:
        updates, steps, passes = self._updates, self._steps, self._backward_passes
        if steps == 0:
            seen = f"{updates} updates" if updates else f"{passes} backward passes"
            _warn(
                f"the model had {seen} and its KeepProbSchedule was never stepped, so that keep_prob stays as it is: "
                "call schedule.attach(optimizer) once, or schedule.step() after each update"
            )
        elif updates and steps >= 1.6 * updates:
            _warn(
                f"the KeepProbSchedule went {steps} steps in {updates} updates of the model, so that keep_prob falls "
                "too fast: step it once per update, either by schedule.attach(optimizer) or by schedule.step()"
            )
        elif updates and passes >= 2 * updates:
            each = round(passes / updates)
            _warn(
                f"there are {each} backward passes per update (gradient accumulation?). Does "
                f"total_steps={self._total_steps} count updates? Then all is well. If it counts batches, keep_prob "
                f"goes only 1/{each} of its way: pass total_steps={self._total_steps // each}"
            )


def _warn(text: str) -> None:
    warnings.warn(text, DropBlockWarning, stacklevel=2)
