"""The state of a schedule: the targets of its sites, and what differs from the state of another one."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from ..errors import DropBlockTypeError, DropBlockValueError, ScheduleError
from ..surgery.keep_prob import has_settable_keep_prob
from ..surgery.place import Label, target_of
from ..surgery.splice import dropping_layers

_SINCE = {"targets"}  # keys that a state of version 0.1 does not have


def targets_in(model: nn.Module) -> str:
    """The target of each site of a model, as JSON, by its name in the network that was injected, wrappers left out."""
    targets = {}
    for name, layer in dropping_layers(model).items():
        if has_settable_keep_prob(layer):
            label = Label.of(layer)
            targets[name if label is None else label.site.name] = target_of(layer)
    return json.dumps(targets)


def differences(saved: Any, own: dict[str, Any]) -> str:
    """What differs between a saved state and a schedule's own, apart from the step, in words; empty if nothing does.

    Raises:
        ScheduleError: what was saved is no state of a schedule.
        DropBlockTypeError, DropBlockValueError: its step is no int, or below 0.
    """
    if not isinstance(saved, dict) or saved.keys() - _SINCE != own.keys() - _SINCE:
        got = f"keys {_some(sorted(map(str, saved)))}" if isinstance(saved, dict) else type(saved).__name__
        raise ScheduleError(f"not the state of a KeepProbSchedule: expected keys {sorted(own)}, got {got}")
    check_int("last_step", saved["last_step"], 0)
    names = [name for name in own if name not in {"last_step", "targets"} and own[name] != saved[name]]
    found = [f"{name} was {saved[name]!r} and is now {own[name]!r}" for name in names]
    if saved.get("targets", own["targets"]) != own["targets"]:
        found.append(_between(_targets(saved["targets"]), _targets(own["targets"])))
    return "; ".join(filter(None, found))


def check_int(name: str, value: Any, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DropBlockTypeError(f"{name} must be an int, got {value!r}")
    if value < lowest:
        raise DropBlockValueError(f"{name} must be at least {lowest}, got {value}")


def _targets(text: Any) -> dict[str, Any]:
    try:
        targets = json.loads(text)
    except (TypeError, ValueError):
        targets = None
    if not isinstance(targets, dict):
        raise ScheduleError(f"not the state of a KeepProbSchedule: its targets are {text!r:.60}")
    return targets


def _between(saved: dict[str, Any], own: dict[str, Any]) -> str:
    """The first site whose targets differ, and the number of the others."""
    names = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
    if not names:
        return ""
    was, now = (f"{of[names[0]]:.4g}" if names[0] in of else "missing" for of in (saved, own))
    others = f" (and {len(names) - 1} more targets differ)" if len(names) > 1 else ""
    return f"the target at {names[0]} was {was} and is now {now}{others}"


def _some(keys: list[str]) -> str:
    return f"{keys}" if len(keys) < 10 else f"{keys[:3]} and {len(keys) - 3} more"
