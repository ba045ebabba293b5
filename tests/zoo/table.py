"""The results of a sweep as tables: per family for the terminal, and shorter for the page of the tests."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a file of results, one JSON object to a line; a line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the sweep was stopped while it wrote
            continue
    return records


def by_family(records: list[Record]) -> str:
    """A row per family: models, sites per stage, how many were refused, seconds."""
    rows = [("family", "models", "sites in stage 0", "1", "2", "3", "4", "refused", "failed", "plan s", "check s")]
    families: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        families[record["family"]].append(record)
    for family, members in sorted(families.items()):
        plans = [record["seconds"] for record in members if "seconds" in record]
        rows.append(
            (
                family,
                str(len(members)),
                *(_range(_sites_in(members, stage)) for stage in range(5)),
                str(sum("refused" in record for record in members) or ""),
                str(sum("failed" in record for record in members) or ""),
                f"{max(plans):.2f}" if plans else "",
                f"{sum(record['total'] for record in members):.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def summary(records: list[Record]) -> str:
    """How many models passed, were refused and failed, and how long a plan took."""
    passed = [record for record in records if "stages" in record and "failed" not in record]
    refused, failed = (sum(key in record for record in records) for key in ("refused", "failed"))
    lines = [f"{len(records)} models: {len(passed)} passed, {refused} refused as they should be, {failed} failed"]
    sites = sum(sum(wheres.values()) for record in passed for wheres in record["sites"].values())
    skips = sum(wheres.get("skip", 0) for record in passed for wheres in record["sites"].values())
    blocks = sum(stage[-1] for record in passed for stage in record["stages"])
    lines.append(f"{blocks} blocks with {sites} sites, {skips} of them on shortcuts")
    variants = Counter(variant for record in passed for variant in record["variants"])
    lines.append("variants: " + ", ".join(f"{name} {count}" for name, count in sorted(variants.items())))
    plans = [record["seconds"] for record in passed]
    if len(plans) > 1:
        slow = quantiles(plans, n=20)[-1]
        lines.append(f"plan, s: median {median(plans):.3f}, 95th percentile {slow:.3f}, maximum {max(plans):.3f}")
    for record in records:
        if "failed" in record:
            lines += ["", f"{record['model']}: {record['failed']}"]
    return "\n".join(lines)


def for_readme(records: list[Record]) -> str:
    """Markdown: per family the models and the sites per block in stages 3 and 4, for the model named."""
    lines = [
        "| family | models | stages (reduction) | an example: blocks, branch and skip sites in its last two stages |",
        "|---|---|---|---|",
    ]
    families: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if "stages" in record and "failed" not in record:
            families[record["family"]].append(record)
    for family, members in sorted(families.items(), key=lambda item: (item[0].startswith("tv."), item[0])):
        example = min(members, key=lambda record: record["parameters"])
        stages = ", ".join(f"{index} (/{reduction})" for index, reduction, *_ in example["stages"])
        wheres: Counter[str] = Counter()
        blocks = 0
        for index, *_, count in example["stages"][-2:]:
            wheres.update(example["sites"][str(index)])
            blocks += count
        name = example["model"].partition(":")[2]
        lines.append(
            f"| {family} | {len(members)} | {stages} | `{name}`: {blocks} blocks, {wheres['branch']} branch, "
            f"{wheres['skip']} skip |"
        )
    refused: Counter[str] = Counter(record["family"] for record in records if "refused" in record)
    listed = ", ".join(f"{family} {count}" for family, count in sorted(refused.items()))
    lines += ["", f"Refused, having no convolutional trunk ({sum(refused.values())} models): {listed}."]
    return "\n".join(lines)


def _sites_in(members: list[Record], stage: int) -> list[int]:
    counts = [record["sites"].get(str(stage)) for record in members if "sites" in record]
    return [sum(wheres.values()) for wheres in counts if wheres]


def _range(numbers: list[int]) -> str:
    if not numbers:
        return ""
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)}-{max(numbers)}"
