"""A look at the first optimizer steps: does the schedule go on once per update?"""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn, optim
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from ..errors import DropBlockWarning

if TYPE_CHECKING:
    from collections.abc import Callable

_UPDATES = 5  # so many updates are looked at
_BACKWARD_PASSES = 100  # so many passes without any update of a torch optimizer are too many without a step


class StepCheck:
    """Counts the updates of a model, its backward passes and the steps of its schedule, and warns once if they differ.

    Updates are those of any torch optimizer that has a parameter of the model. After a few of them the hooks are taken
    off.
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self.steps = 0
        self._total_steps = total_steps
        self._updates = 0
        self._backward_passes = 0
        self._nested = 0  # an optimizer that steps another one is one update
        self._model = weakref.ref(model)
        own = weakref.WeakMethod
        self._handles = [
            register_optimizer_step_pre_hook(_weakly(own(self._before_update))),
            register_optimizer_step_post_hook(_weakly(own(self._after_update))),
        ]
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
        if trainable:
            hook = _weakly(own(self._after_backward))
            self._handles.append(trainable[-1].register_post_accumulate_grad_hook(hook))
        weakref.finalize(self, _remove, self._handles)

    def stop(self) -> None:
        """Takes the hooks off."""
        _remove(self._handles)

    def _before_update(self, optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._nested += 1

    def _after_update(self, optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._nested -= 1
        model = self._model()
        if self._nested or model is None:
            return
        own = set(map(id, model.parameters()))
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            return
        self._updates += 1
        if self._updates == _UPDATES:
            self._judge()

    def _after_backward(self, parameter: Tensor) -> None:
        self._backward_passes += 1
        if self._backward_passes == _BACKWARD_PASSES and self._updates == 0:
            self._judge()

    def _judge(self) -> None:
        self.stop()
        updates, steps, passes = self._updates, self.steps, self._backward_passes
        if steps == 0:
            seen = f"{updates} updates" if updates else f"{passes} backward passes"
            _warn(
                f"the model had {seen} and the KeepProbSchedule was never stepped, so that keep_prob stays as it is: "
                "call schedule.attach(optimizer) once, or schedule.step() after each update"
            )
        elif updates and steps >= 1.6 * updates:
            _warn(
                f"the KeepProbSchedule went {steps} steps in {updates} updates of the model, so that keep_prob falls "
                "too fast: step it once per update, either by schedule.attach(optimizer) or by schedule.step()"
            )
        elif passes >= 2 * updates > 0:
            each = round(passes / updates)
            _warn(
                f"there are {each} backward passes per update (gradient accumulation?). "
                f"total_steps={self._total_steps} must count updates: if it counts batches, keep_prob goes only "
                f"1/{each} of its way: pass total_steps={self._total_steps // each}. If it counts updates, all is well"
            )


def _warn(text: str) -> None:
    warnings.warn(text, DropBlockWarning, stacklevel=2)


def _weakly(method: weakref.WeakMethod) -> Callable[..., None]:
    """A hook that does not keep the object of its method alive."""

    def hook(*args: Any) -> None:
        found = method()
        if found is not None:
            found(*args)

    return hook


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
