"""``dropblock-inject stages``: the stages of a model, as a table, as JSON or as a picture."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..anatomy.stages import Stage, find_stages
from ..errors import DropBlockValueError
from ..plot import plot_stages
from ..surgery.text_table import text_table
from .arguments import MODEL, CommandParser
from .models import build_without_data, example_of


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("model", help=MODEL)
    parser.add_image_size()
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_output()
    help = "the block that the picture shows in detail (the first residual block of the deepest stage)"
    parser.add_argument("--block", metavar="NAME", help=help)


def run(arguments: Namespace) -> tuple[str, Any]:
    if arguments.block and not arguments.output:
        raise DropBlockValueError("--block chooses the block that the picture shows; give -o FILE.png too")
    model = build_without_data(arguments.model)
    example = example_of(model, arguments.image_size)
    stages = find_stages(model, example)
    text = json.dumps([asdict(stage) for stage in stages], indent=2) if arguments.json else _table(stages)
    return text, plot_stages(model, example, arguments.block) if arguments.output else None


def _table(stages: Sequence[Stage]) -> str:
    rows = [["stage", "reduction", "channels", "map", "blocks", "from", "to"]]
    for stage in stages:
        numbers = stage.index, stage.reduction, stage.channels, "x".join(map(str, stage.map_size)), len(stage.blocks)
        rows.append([*map(str, numbers), stage.blocks[0].name, stage.blocks[-1].name])
    return "\n".join(text_table(rows, right=range(5)))
