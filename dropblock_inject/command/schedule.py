"""``dropblock-inject schedule``: keep_prob over the steps of a training, as a table, as JSON or as a picture."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from torch import nn

from ..errors import DropBlockValueError
from ..ops.functional import check_arguments
from ..ops.layer import DropBlock
from ..placement.selection import targets_of
from ..plot import plot_schedule
from ..surgery.text_table import text_table
from ..training.schedule import KeepProbSchedule
from .arguments import options_of

_STAGES = (1, 2, 3, 4)
_PARTS = 10  # the table has so many rows, and one more


def run(arguments: Namespace) -> tuple[str, Any, str]:
    check_arguments(arguments.keep_prob, 1, None)
    unknown = [str(stage) for stage in arguments.stages if stage not in (*_STAGES, -4, -3, -2, -1)]
    if unknown:
        raise DropBlockValueError(f"no stage {', '.join(unknown)}: the stages of this command are 1 to 4, or -4 to -1")
    stages = sorted({_STAGES[stage] if stage < 0 else stage for stage in arguments.stages})
    targets = targets_of(arguments.keep_prob, stages, _STAGES[-1], arguments.depth_scaling)
    layers = nn.ModuleDict({f"stage {stage} of {len(_STAGES)}": DropBlock(p) for stage, p in targets.items()})
    schedule = KeepProbSchedule(layers, arguments.total_steps, **options_of(KeepProbSchedule, arguments))
    total, warmup = arguments.total_steps, arguments.warmup_steps
    steps = sorted({warmup, *(number * total // _PARTS for number in range(_PARTS + 1))})
    values = {stage: [schedule.value_at(step, end) for step in steps] for stage, end in targets.items()}
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("mode", "start", "warmup_steps", "total_steps")}
        text = json.dumps({**settings, "steps": steps, "keep_prob": values}, indent=2)
    else:
        rows = [("step", *(f"stage {stage}" for stage in values))]
        rows += [
            (str(step), *(f"{value:.4g}" for value in row)) for step, *row in zip(steps, *values.values(), strict=True)
        ]
        heading = f"{arguments.mode} schedule over {total} optimizer steps: keep_prob of each stage"
        text = "\n".join([heading, "", *text_table(rows, right=range(len(rows[0])))])
    return text, plot_schedule(schedule) if arguments.output else None, ""
