"""DropBlock in the Trainer of Hugging Face's transformers: a callback that injects, schedules and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..surgery.status import check_dropblock
from ..training.schedule import KeepProbSchedule
from .callback_core import CallbackCore, keep_prob_by_stage


class DropBlockCallback(TrainerCallback):
    """Injects DropBlocks into the Trainer's model, and moves their keep_prob with each update.

    Pass it to the Trainer's constructor, ``callbacks=[DropBlockCallback(...)]``, so that the injection comes before the
    Trainer wraps or compiles the model. The schedule follows the Trainer's count of updates (``state.global_step``),
    which its checkpoints contain. The keep_prob of each stage is logged as ``keep_prob/stage4`` and so on.
    :func:`dropblock_inject.check_dropblock` runs when a checkpoint is saved and when a training begins or continues.

    Args:
        stages: as in :func:`dropblock_inject.inject_dropblock`. None without further options: the model is injected
            already. None with options, such as `include`, reaches every block.
        schedule: arguments of :class:`dropblock_inject.KeepProbSchedule`, such as ``{"mode": "cosine"}``; the default
            of `total_steps` is the Trainer's ``state.max_steps``.
        verify: watch the first training steps; a DropBlock that drops nothing is an error.
        options: further arguments of ``inject_dropblock``.

    Attributes:
        schedule: the :class:`dropblock_inject.KeepProbSchedule`; None before the training starts.

    Raises:
        DropBlockInjectError: from the Trainer; the errors of ``inject_dropblock`` and ``KeepProbSchedule``.
        DeadSiteError: from the Trainer, when a training begins or a checkpoint has been saved, if a DropBlock no longer
            takes part in the forward pass.
    """

    def __init__(
        self,
        stages: int | Sequence[int] | None = (3, 4),
        *,
        schedule: Mapping[str, Any] | None = None,
        verify: bool = True,
        **options: Any,
    ) -> None:
        self._core = CallbackCore(stages, schedule, verify, options)

    @property
    def schedule(self) -> KeepProbSchedule | None:
        return self._core.schedule

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._core.inject(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._core.inject(kwargs["model"])  # for a callback that was added after construction
        self._core.begin(kwargs["model"], state.max_steps, last_step=state.global_step - 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.schedule is not None
        self.schedule.step(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        check_dropblock(kwargs["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.log_history:
            state.log_history[-1].update(keep_prob_by_stage(kwargs["model"]))
