"""``dropblock-inject schedule``: keep_prob over the steps of a training, as a picture."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from torch import nn

from ..errors import DropBlockValueError
from ..ops.functional import check_arguments
from ..ops.layer import DropBlock
from ..placement.plan import plan_dropblock
from ..placement.selection import targets_of
from ..plot import plot_schedule
from ..training.schedule import MODES, KeepProbSchedule
from .arguments import CommandParser, integer, options_of

_STAGES = (1, 2, 3, 4)


def add_arguments(parser: CommandParser) -> None:
    parser.description = f"{parser.description} The network is taken to have the stages 1, 2, 3 and 4."
    parser.add_argument("--total-steps", type=integer(1), required=True, metavar="N", help="optimizer steps")
    parser.add_option(KeepProbSchedule, "mode", "shape of the curve", choices=list(MODES))
    parser.add_option(KeepProbSchedule, "start", "keep_prob at the beginning", type=float, metavar="P")
    parser.add_option(KeepProbSchedule, "warmup_steps", "steps at the start value", type=integer(0), metavar="N")
    parser.add_stages(plan_dropblock)
    parser.add_output(required=True)


def run(arguments: Namespace) -> tuple[str, Any]:
    check_arguments(arguments.keep_prob, 1, None)
    unknown = [str(stage) for stage in arguments.stages if stage not in (*_STAGES, -4, -3, -2, -1)]
    if unknown:
        raise DropBlockValueError(f"no stage {', '.join(unknown)}: the stages of this command are 1 to 4, or -4 to -1")
    stages = sorted({_STAGES[stage] if stage < 0 else stage for stage in arguments.stages})
    targets = targets_of(arguments.keep_prob, stages, _STAGES[-1], arguments.depth_scaling)
    layers = nn.ModuleDict({f"stage {stage} of {len(_STAGES)}": DropBlock(p) for stage, p in targets.items()})
    schedule = KeepProbSchedule(layers, arguments.total_steps, **options_of(KeepProbSchedule, arguments))
    return "", plot_schedule(schedule)
