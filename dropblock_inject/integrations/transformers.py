"""DropBlock in the Trainer of Hugging Face's transformers: a callback that injects, schedules and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..training.schedule import KeepProbSchedule
from .callback_core import Driver, keep_prob_by_stage


class DropBlockCallback(TrainerCallback):
    """Puts DropBlocks into the Trainer's model, and moves their keep_prob with each update.

    Pass it to the Trainer's constructor, ``callbacks=[DropBlockCallback(...)]``: there the injection comes before the
    Trainer wraps or compiles the model. Updates are counted as the Trainer counts them (``state.global_step``), which
    is in its checkpoints; so is the keep_prob of each stage, among what is logged, as ``keep_prob/stage4`` and so on.

    Args:
        stages: as in :func:`dropblock_inject.inject_dropblock`; None: the model is injected already.
        schedule: arguments of :class:`dropblock_inject.KeepProbSchedule`, such as ``{"mode": "cosine"}``; its
            `total_steps` is by default the Trainer's ``state.max_steps``.
        verify: watch the first training steps; a DropBlock that drops nothing is an error.
        options: further arguments of ``inject_dropblock``.

    Attributes:
        schedule: the :class:`dropblock_inject.KeepProbSchedule`, from the start of the training on.

    Raises:
        DropBlockInjectError: in the Trainer, as ``inject_dropblock`` and ``KeepProbSchedule`` do.
    """

    def __init__(
        self,
        stages: int | Sequence[int] | None = (3, 4),
        *,
        schedule: Mapping[str, Any] | None = None,
        verify: bool = True,
        **options: Any,
    ) -> None:
        self._driver = Driver(stages, schedule, verify, options)

    @property
    def schedule(self) -> KeepProbSchedule | None:
        return self._driver.schedule

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._driver.inject(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._driver.inject(kwargs["model"])  # if the callback was added after construction
        self._driver.begin(kwargs["model"], state.max_steps, last_step=state.global_step - 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.schedule is not None
        self.schedule.step(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.log_history:
            state.log_history[-1].update(keep_prob_by_stage(kwargs["model"]))
