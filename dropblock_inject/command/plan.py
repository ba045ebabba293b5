"""``dropblock-inject plan``: the plan of an injection, as a table, as JSON or as a picture."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from typing import Any

from ..placement.inject import plan_dropblock
from ..placement.plan import InjectionPlan
from ..placement.plan_summary import summarize
from ..plot import plot_plan
from .arguments import options_of
from .models import build_without_data, example_of, source_of, title_of


def run(arguments: Namespace) -> tuple[str, Any, str]:
    source, remark = source_of(arguments.model)
    model = build_without_data(source)
    example = example_of(model, arguments.image_size)
    plan = plan_dropblock(model, example_input=example, **options_of(plan_dropblock, arguments))
    if arguments.json:
        data = _summary(plan) if arguments.summary else plan.as_dict()
        text = json.dumps({"source": source, **data}, indent=2)
    else:
        text = plan.summary() if arguments.summary else str(plan)
    return text, plot_plan(plan, example, name=title_of(source)) if arguments.output else None, remark


def _summary(plan: InjectionPlan) -> dict[str, Any]:
    """The lines of the summary as plain values."""
    data = plan.as_dict()
    total = {
        "blocks": len({site.block for site in plan}),
        "sites": len(plan),
        "by_kind": Counter(site.where for site in plan),
        "whole_maps": sum(site.covers_map for site in plan),
    }
    about = {"model": data["model"], "image_size": data["image_size"]}
    return {**about, "stages": [asdict(stage) for stage in summarize(plan)], "total": total}
