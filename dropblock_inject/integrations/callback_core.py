"""The core of the callbacks of all trainers: injection and schedule of the model that a trainer trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import AlreadyInjectedError, DropBlockTypeError, DropBlockValueError
from ..placement.inject import inject_dropblock, remove_dropblock
from ..surgery.status import check_dropblock, dropblock_sites
from ..training.schedule import KeepProbSchedule

logger = logging.getLogger(__name__)


class CallbackCore:
    """Injects the model of a trainer and schedules its keep_prob.

    Args:
        stages: as in :func:`dropblock_inject.inject_dropblock`. None without further options: the model is injected
            by other code.
        schedule: arguments of :class:`dropblock_inject.KeepProbSchedule`; the default of `total_steps` is the
            trainer's number of optimizer steps.
        verify: watch the first training steps; a DropBlock that drops nothing is an error.
        options: further arguments of ``inject_dropblock``.
    """

    def __init__(
        self,
        stages: int | Sequence[int] | None,
        schedule: Mapping[str, Any] | None,
        verify: bool,
        options: dict[str, Any],
    ) -> None:
        if schedule is not None and not isinstance(schedule, Mapping):
            raise DropBlockTypeError(
                "schedule must be a mapping of arguments of KeepProbSchedule, such as {'mode': 'cosine'}, got "
                f"{type(schedule).__name__}"
            )
        self.stages = stages
        self._is_injected_elsewhere = stages is None and not options
        self.settings = {"verify": verify, **(schedule or {})}
        self.options = options
        self.schedule: KeepProbSchedule | None = None
        self._sites: set[str] = set()  # names of the DropBlocks that this object injected

    def inject(self, model: nn.Module) -> None:
        """Injects the model. A model that this object has injected already is injected anew if a DropBlock is dead.

        A conversion to SyncBatchNorm kills DropBlocks, for example, because it replaces modules.

        Raises:
            AlreadyInjectedError: the model has DropBlocks that other code injected.
            The errors of :func:`dropblock_inject.inject_dropblock`.
        """
        if self._is_injected_elsewhere:
            return
        sites = dropblock_sites(model)
        if not {site.name for site in sites} <= self._sites:
            raise AlreadyInjectedError(
                f"{type(model).__name__} has {len(sites)} DropBlocks that this callback did not inject; pass "
                "stages=None to train with them as they are, or call remove_dropblock(model) first"
            )
        if sites and len(sites) == len(self._sites) and all(site.live for site in sites):
            return
        if sites:
            logger.info("modules of the model were replaced after the injection; injecting anew")
            remove_dropblock(model)
        logger.info("%s", inject_dropblock(model, self.stages, **self.options))
        self._sites = {site.name for site in dropblock_sites(model)}

    def begin(self, model: nn.Module, total_steps: float, **settings: Any) -> KeepProbSchedule:
        """The schedule of a training that begins, or continues from a checkpoint.

        Raises:
            DeadSiteError: a DropBlock no longer takes part in the forward pass.
            DropBlockValueError: the number of optimizer steps is not known.
            The errors of :class:`dropblock_inject.KeepProbSchedule`.
        """
        check_dropblock(model)
        settings = {"total_steps": total_steps, **self.settings, **settings}
        total_steps = settings["total_steps"]
        if not 0 < total_steps < float("inf"):
            raise DropBlockValueError(
                f"the trainer does not know how many optimizer steps there will be (it says {total_steps}); pass "
                "schedule={'total_steps': ...}"
            )
        settings["total_steps"] = int(total_steps)
        self.schedule = KeepProbSchedule(model, **settings)
        return self.schedule


def keep_prob_by_stage(model: nn.Module) -> dict[str, float]:
    """The keep_prob of each stage now, and of each part off the trunk, under the names for the log."""
    return {
        f"keep_prob/{site.part if site.stage is None else f'stage{site.stage}'}": site.keep_prob
        for site in dropblock_sites(model)
        if site.keep_prob is not None
    }
