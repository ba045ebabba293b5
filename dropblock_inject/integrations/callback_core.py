"""What the callbacks of all trainers share: injection and schedule, on a model that is theirs only for a while."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import AlreadyInjectedError, DropBlockTypeError, DropBlockValueError
from ..placement.plan import inject_dropblock, remove_dropblock
from ..surgery.status import dropblock_sites
from ..training.schedule import KeepProbSchedule

logger = logging.getLogger(__name__)


class Driver:
    """Injects and schedules when a trainer says so.

    Args:
        stages: as in :func:`dropblock_inject.inject_dropblock`; None: the model is injected by other code.
        schedule: arguments of :class:`dropblock_inject.KeepProbSchedule`; `total_steps` is else the trainer's.
        verify: whether the first training steps are watched: a DropBlock that drops nothing is an error.
        options: further arguments of ``inject_dropblock``.
    """

    def __init__(
        self,
        stages: int | Sequence[int] | None,
        schedule: Mapping[str, Any] | None,
        verify: bool,
        options: dict[str, Any],
    ) -> None:
        if stages is None and options:
            raise DropBlockValueError(
                f"stages=None says that the model is injected elsewhere; {', '.join(options)} would not be heeded"
            )
        if schedule is not None and not isinstance(schedule, Mapping):
            raise DropBlockTypeError(
                "schedule must be a mapping of arguments of KeepProbSchedule, such as {'mode': 'cosine'}, got "
                f"{type(schedule).__name__}"
            )
        self.stages = stages
        self.settings = {"verify": verify, **(schedule or {})}
        self.options = options
        self.schedule: KeepProbSchedule | None = None
        self._sites: set[str] = set()  # what was injected here, by name

    def inject(self, model: nn.Module) -> None:
        """Sees to it that the model has live DropBlocks, those asked for.

        Where modules were replaced since (by a conversion to SyncBatchNorm, say), they are injected anew.

        Raises:
            AlreadyInjectedError: it has others.
        """
        if self.stages is None:
            return
        sites = dropblock_sites(model)
        if not {site.name for site in sites} <= self._sites:
            raise AlreadyInjectedError(
                f"{type(model).__name__} has {len(sites)} DropBlocks that this callback did not inject; pass "
                "stages=None to train with them as they are, or call remove_dropblock(model) before"
            )
        if sites and len(sites) == len(self._sites) and all(site.live for site in sites):
            return
        if sites:
            logger.info("modules of the model were replaced after the injection; injecting anew")
            remove_dropblock(model)
        logger.info("%s", inject_dropblock(model, self.stages, **self.options))
        self._sites = {site.name for site in dropblock_sites(model)}

    def begin(self, model: nn.Module, total_steps: float, **settings: Any) -> KeepProbSchedule:
        """The schedule of a training that begins or goes on."""
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
    """What to log: the keep_prob of each stage as it is set now."""
    return {f"keep_prob/stage{site.stage}": site.keep_prob for site in dropblock_sites(model)}
