"""``dropblock-inject plan``: the plan of an injection, as a table, as JSON or as a picture."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from ..placement.plan import plan_dropblock
from ..placement.selection import PLACES
from ..plot import plot_plan
from .arguments import MODEL, CommandParser, options_of, pixels_or_share
from .models import build_without_data, example_of


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("model", help=MODEL)
    parser.add_stages(plan_dropblock)
    parser.add_option(plan_dropblock, "where", "places in each block", nargs="+", choices=list(PLACES))
    for name, help in (("include", "only the sites of these names"), ("exclude", "no sites of these names")):
        parser.add_option(plan_dropblock, name, f"{help}; * is any text", nargs="+", metavar="PATTERN")
    help = "pixels, or a share of the map"
    parser.add_option(plan_dropblock, "block_size", help, type=pixels_or_share, metavar="N")
    parser.add_image_size()
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_output()


def run(arguments: Namespace) -> tuple[str, Any]:
    model = build_without_data(arguments.model)
    example = example_of(model, arguments.image_size)
    plan = plan_dropblock(model, example_input=example, **options_of(plan_dropblock, arguments))
    text = json.dumps(plan.as_dict(), indent=2) if arguments.json else str(plan)
    return text, plot_plan(plan, example) if arguments.output else None
