"""What timm models say of themselves, where the walker cannot see it.

It is taken as a hint only: other models, and timm's own where they say nothing, are none the worse for it.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import log2
from typing import Any

from torch import nn

_MOST_REDUCED = 32  # by default; where no stage goes as far, strides were traded for dilation


def levels_cut_off(model: nn.Module, lowest: int, block: str) -> list[int]:
    """The levels below the lowest that there were before ``features_only`` cut them off.

    ``feature_info`` still has them all. Those count that follow the lowest, the one of the named block, under the same
    name but for a number, so that no head does, and with other channels, so that no pooling does.
    """
    entries = _feature_info(model)
    here = next((entry for entry in entries if entry["reduction"] == 2**lowest), None)
    if here is None or _words(here["module"])[0] not in _words(block):
        return []
    cut_off = []
    for entry in entries:
        if entry["reduction"] > here["reduction"]:
            if not _follows(entry, here):
                break
            cut_off.append(round(log2(entry["reduction"])))
            here = entry
    return cut_off


def strides_dilated_away(model: nn.Module) -> dict[str, int]:
    """By the prefix of a stage's blocks, how many halvings ``output_stride`` took from it, dilated or not."""
    entries = _feature_info(model)
    if not entries or entries[-1]["reduction"] >= _MOST_REDUCED:
        return {}
    names = dict(model.named_modules())
    same = [entry for entry in entries if entry["reduction"] == entries[-1]["reduction"]]
    dilated_away = {}
    for count, (before, entry) in enumerate(pairwise(same), 1):
        if entry["num_chs"] == before["num_chs"]:
            return {}
        # The last one may be called by what follows the stage.
        following = re.sub(r"\d+$", lambda number: str(int(number[0]) + 1), before["module"])
        if entry["module"] != following and (entry is not same[-1] or following not in names):
            return {}
        dilated_away[f"{following}."] = count
    return dilated_away


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    for module in model.modules():
        info = getattr(module, "feature_info", None)
        entries = getattr(info, "info", info)
        if isinstance(entries, list) and all(isinstance(e, dict) and "module" in e for e in entries):
            return entries
    return []


def _follows(entry: dict[str, Any], before: dict[str, Any]) -> bool:
    return _words(entry["module"]) == _words(before["module"]) and entry["num_chs"] != before["num_chs"]


def _words(name: str) -> list[str]:
    """A dotted name without its numbers."""
    return re.findall("[a-zA-Z]+", name)
