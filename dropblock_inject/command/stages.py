"""``dropblock-inject stages``: the stages of a model, as a table, as JSON or as a picture."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..anatomy.stages import Stage, find_trunk
from ..errors import DropBlockValueError
from ..plot import plot_stages
from ..surgery.text_table import text_table
from .models import build_without_data, example_of, source_of, title_of


def run(arguments: Namespace) -> tuple[str, Any, str]:
    if arguments.block and not arguments.output:
        raise DropBlockValueError("--block chooses the block that the picture shows; give -o FILE.png too")
    source, remark = source_of(arguments.model)
    model = build_without_data(source)
    example = example_of(model, arguments.image_size)
    trunk = find_trunk(model, example)
    text = _table(trunk.stages)
    if arguments.json:
        about = {"source": source, "model": type(model).__name__, "image_size": trunk.geometry.image_size}
        text = json.dumps({**about, "stages": [asdict(stage) for stage in trunk.stages]}, indent=2)
    if not arguments.output:
        return text, None, remark
    return text, plot_stages(model, example, arguments.block, name=title_of(source)), remark


def _table(stages: Sequence[Stage]) -> str:
    rows = [["stage", "reduction", "channels", "map", "blocks", "from", "to"]]
    for stage in stages:
        numbers = stage.index, stage.reduction, stage.channels, "x".join(map(str, stage.map_size)), len(stage.blocks)
        rows.append([*map(str, numbers), stage.blocks[0].name, stage.blocks[-1].name])
    return "\n".join(text_table(rows, right=range(5)))
