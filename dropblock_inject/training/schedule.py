"""KeepProbSchedule: keep_prob as a function of the training step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import DropBlockTypeError, DropBlockValueError, DropBlockWarning, ScheduleError
from ..surgery.keep_prob import NEEDED, has_settable_keep_prob, keep_prob_of, set_keep_prob
from ..surgery.place import target_of
from ..surgery.splice import dropping_layers
from ..surgery.status import check_dropblock
from .inner_optimizer import innermost
from .modes import MODES, fraction_at
from .monitor import DropMonitor
from .schedule_state import check_int, differences, targets_in
from .step_check import StepCheck

logger = logging.getLogger(__name__)


class KeepProbSchedule:
    """Moves the keep_prob of every DropBlock of a model from `start` to its end, one step per optimizer step.

    An injected layer of another kind is moved too: its `keep_prob`, or else its `p` or `drop_prob` as 1 - keep_prob.

    The paper (section 3, "Scheduled DropBlock") found a fixed keep_prob to work less well than one that falls
    linearly from 1 to its target over the training.

    The first few updates of the model are looked at. A schedule that is not stepped, or stepped more than once per
    update, gives a :class:`dropblock_inject.errors.DropBlockWarning` that says how to mend it; so do several backward
    passes per update, where `total_steps` may count batches by mistake.

    Args:
        model: the model, injected (or with DropBlock layers of its own).
        total_steps: number of optimizer steps after which the end is reached; it stays there.
        start: keep_prob at the beginning, in (0, 1].
        end: keep_prob at the end, in (0, 1], for every DropBlock alike; None: each runs to the keep_prob it was
            injected (or constructed) with.
        mode: ``"linear"``; ``"cosine"`` (half a period: slow, fast, slow); ``"constant"`` (the end at once, after the
            warm-up); ``"step"`` (five equal treads, down a quarter of the way each); or a callable that maps progress
            in [0, 1] to the share of the way from start to end, in [0, 1].
        warmup_steps: so many steps stay at `start` before the way begins.
        last_step: the last step that was done before, as in torch's schedulers: -1 for a new training.
        verify: watch the first training steps until each DropBlock has really dropped something. One that the first
            of them does not run, or not in training mode, is an error at the end of that step. (What torch.compile
            runs is held to run through each of them; numbers are not looked at there.)

    Raises:
        ScheduleError: `model` has no DropBlock.
        DropBlockTypeError, DropBlockValueError: an argument is of a wrong type or out of range.

    >>> from dropblock_inject import DropBlock
    >>> model = nn.Sequential(DropBlock(0.9))
    >>> schedule = KeepProbSchedule(model, total_steps=100)
    >>> [round(schedule.value_at(step), 3) for step in (0, 50, 100, 1000)]
    [1.0, 0.95, 0.9, 0.9]
    >>> schedule.step(20)
    >>> model
    Sequential(
      (0): DropBlock(keep_prob=0.98, block_size=7)
    )
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        start: float = 1.0,
        end: float | None = None,
        mode: str | Callable[[float], float] = "linear",
        warmup_steps: int = 0,
        last_step: int = -1,
        verify: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise DropBlockTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_int("total_steps", total_steps, 1)
        check_int("warmup_steps", warmup_steps, 0)
        check_int("last_step", last_step, -1)
        if warmup_steps >= total_steps:
            raise DropBlockValueError(
                f"warmup_steps={warmup_steps} leaves nothing of total_steps={total_steps}; it must be smaller"
            )
        for name, value in (("start", start), ("end", start if end is None else end)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DropBlockTypeError(f"{name} must be a keep_prob in (0, 1], got {value!r}")
            if not 0 < value <= 1:
                raise DropBlockValueError(f"{name} must be a keep_prob in (0, 1], got {value!r}")
        if not callable(mode) and not (isinstance(mode, str) and mode in MODES):
            raise DropBlockValueError(
                f"mode must be one of {', '.join(map(repr, MODES))} or a callable of progress, got {mode!r}"
            )
        self.model = model
        self.total_steps = total_steps
        self.start = float(start)
        self.end = None if end is None else float(end)
        self.mode = mode
        self.warmup_steps = warmup_steps
        layers = dropping_layers(model).values()
        fixed = sorted({type(layer).__name__ for layer in layers if not has_settable_keep_prob(layer)})
        if fixed and any(map(has_settable_keep_prob, layers)):
            warnings.warn(
                f"the schedule does not move the injected {', '.join(fixed)}: such a layer needs {NEEDED}",
                DropBlockWarning,
                stacklevel=2,
            )
        self._checked = False
        self._handles: tuple[RemovableHandle, ...] = ()
        for step in (warmup_steps, (warmup_steps + total_steps) // 2, total_steps):
            self._fraction_at(step)  # a callable that does not fit is found now, not in the middle of the training
        self._go_to(last_step + 1)
        self._monitor = DropMonitor(model) if verify else None
        self._step_check = StepCheck(model, total_steps)

    def step(self, step: int | None = None) -> None:
        """Goes on to the next step, or to the given one, and sets every DropBlock's keep_prob.

        Raises:
            DeadSiteError: at the first call, if an injected DropBlock takes no part in the forward pass; with
                `verify`, if one did not run, or dropped nothing.
            ScheduleError: the model has no DropBlock any more.
        """
        if step is not None:
            check_int("step", step, 0)
        if not self._checked:
            check_dropblock(self.model)
            self._checked = True
        if self._monitor is not None and self._monitor.done():
            self._monitor = None
        self._step_check.count_step()
        self._go_to(self.last_step + 1 if step is None else step)

    def value_at(self, step: int, end: float | None = None) -> float:
        """The keep_prob at a step; changes nothing.

        Args:
            step: number of optimizer steps done; clamped at both ends of the schedule.
            end: where the DropBlock in question ends; default the schedule's `end`, or else the lowest target in
                the model, that of the deepest stage.
        """
        if end is None:
            end = min(map(target_of, self._layers())) if self.end is None else self.end
        fraction = self._fraction_at(step)
        return (1 - fraction) * self.start + fraction * end

    def get_last_keep_prob(self) -> list[float]:
        """The keep_prob in force now, one per DropBlock in the order of the model's modules."""
        return [keep_prob_of(layer) or 0.0 for layer in self._layers()]

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Steps the schedule after each step of `optimizer`, until the returned handle's ``remove()`` is called.

        Steps that a gradient scaler skips do not count, nor do the passes of gradient accumulation. (With a fused
        optimizer the scaler leaves the skipping to the device; to know of it costs a synchronisation per step.) Where
        an optimizer holds another one and steps it (SAM, a lookahead, Accelerate's wrapper), the steps of the inner one
        count. Where several optimizers step, attach to one of them. A schedule is attached to one optimizer at a time:
        attaching again takes it off the one before. A copy of an optimizer does not carry the hook.

        Raises:
            DeadSiteError: an injected DropBlock takes no part in the forward pass.
            DropBlockTypeError: `optimizer` is not a torch optimizer, or runs no hooks.
            ScheduleError: the model has no DropBlock.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise DropBlockTypeError(
                f"attach expects a torch.optim.Optimizer, got {type(optimizer).__name__}; "
                "without one, call schedule.step() after each update"
            )
        check_dropblock(self.model)
        self._layers()  # raises if there is none
        inner = innermost(optimizer)
        own = set(map(id, self.model.parameters()))
        stepped = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
        if own and stepped and own.isdisjoint(stepped):
            warnings.warn(
                f"the {type(inner).__name__} has no parameter of this schedule's model: attach to the optimizer that "
                "trains it",
                DropBlockWarning,
                stacklevel=2,
            )
        for handle in self._handles:
            handle.remove()
        after = inner.register_step_post_hook(self._after_step)
        self._handles = after, inner.register_step_pre_hook(self._before_step)
        return after

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        after = self._handles[0]
        self._step_check.is_in_step = after.id in (after.hooks_dict_ref() or {})

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._step_check.is_in_step = False
        skipped = getattr(optimizer, "found_inf", None)  # set by a gradient scaler around the step of a fused optimizer
        if skipped is not None and bool(skipped):
            return
        if torch._C._current_graph_task_id() == -1:
            self.step()
        else:  # within a backward pass, which may still recompute parts of the forward pass with the present keep_prob
            torch.autograd.Variable._execution_engine.queue_callback(self.step)

    def __repr__(self) -> str:
        now = sorted(set(self.get_last_keep_prob()))
        values = f"{now[0]:.4g}" if len(now) == 1 else f"{now[0]:.4g} to {now[-1]:.4g}"
        return (
            f"<KeepProbSchedule at step {self.last_step} of {self.total_steps}, {self._mode_name}: keep_prob {values} "
            f"at {len(self._layers())} DropBlocks in {type(self.model).__name__}>"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state as plain scalars, readable with ``torch.load(..., weights_only=True)``.

        Its targets are JSON, the keep_prob that each site was injected with. So the loading of it into a model that
        was injected otherwise is noticed.
        """
        return {
            "last_step": self.last_step,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "start": self.start,
            "end": self.end,
            "mode": self._mode_name,
            "targets": targets_in(self.model),
        }

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Goes on where the saved schedule stood, and puts its value on every DropBlock.

        Args:
            state: what :meth:`state_dict` returned.
            strict: if False, a schedule with other settings (a longer training, say) goes on from the step that was
                reached too, by its own settings, and logs a warning that says what that changes.

        Raises:
            ScheduleError: `state` is no state of a schedule; or, if strict, that of one with other settings, or of a
                model with other sites or targets.
        """
        changed = differences(state, self.state_dict())
        if changed and strict:
            raise ScheduleError(
                f"the saved schedule is another one: {changed}. Inject and construct with the settings it was saved "
                "with; or, to go on from there with the new ones, call load_state_dict(state, strict=False)"
            )
        self._go_to(state["last_step"])
        if changed:
            logger.warning(
                "went on at step %d with another schedule than the saved one: %s; keep_prob is %.6g now",
                self.last_step,
                changed,
                self.value_at(self.last_step),
            )

    @property
    def _mode_name(self) -> str:
        return self.mode if isinstance(self.mode, str) else getattr(self.mode, "__qualname__", "callable")

    def _fraction_at(self, step: int) -> float:
        """The fraction of the way from start to end at a step, in [0, 1]."""
        if step < self.warmup_steps:
            return 0.0
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return fraction_at(progress, self.mode)

    def _go_to(self, step: int) -> None:
        layers = self._layers()
        ends = [target_of(layer) if self.end is None else self.end for layer in layers]
        values = [self.value_at(step, end) for end in ends]
        for layer, value in zip(layers, values, strict=True):
            set_keep_prob(layer, value)
        self.last_step = step

    def _layers(self) -> list[nn.Module]:
        # Looked up each time, so that a model injected anew is driven too.
        layers = [layer for layer in dropping_layers(self.model).values() if has_settable_keep_prob(layer)]
        if not layers and (fixed := {type(layer).__name__ for layer in dropping_layers(self.model).values()}):
            raise ScheduleError(
                f"the schedule cannot move the injected {', '.join(sorted(fixed))}: such a layer needs {NEEDED}"
            )
        if not layers:
            raise ScheduleError(
                "the model has no DropBlock to schedule; call inject_dropblock(model, ...) first, and remove() the "
                "handle of a schedule before remove_dropblock(model)"
            )
        return layers
