"""Which sites a model has now, and whether the forward pass still goes through each as it was planned."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import nn

from .owner_hook import WRAPPED_AS
from .place import Injection, Label
from .site import Site
from .splice import FoundHook, find_hooks


@dataclass
class SiteInModel:
    """A site as found in a model.

    Attributes:
        name: dotted name of what stands there, in the model as it is now.
        site: the plan's record.
        injection: the injection it is part of.
        layer: what stands there: the DropBlock, what took its place, or None if it was deleted.
        problem: why the forward pass does not go through it as planned; None if it does.
    """

    name: str
    site: Site
    injection: Injection
    layer: nn.Module | None
    problem: str | None = None
    _root: tuple[str, ...] | None = field(default=None, repr=False)  # where in the model the injected network is


def injected(model: nn.Module) -> list[SiteInModel]:
    """The sites of a model as it is now, in the order of its modules."""
    names = _Names(model)
    hooks: dict[int, list[FoundHook]] = defaultdict(list)
    for found in find_hooks(model):
        hooks[id(found.hook.place)].append(found)
    sites: list[SiteInModel] = []
    by_layer = {}
    for group in hooks.values():
        place = group[0].hook.place
        row = SiteInModel(place.site.name, place.site, place.injection, place.module)
        owner = place.site.splice.owner
        anchor = (owner, place.owner) if names.of(place.owner) else (group[0].hook.planned_module, group[0].module)
        row._root = names.root(*anchor)
        row.name = ".".join((*row._root, place.site.name)) if row._root is not None else place.site.name
        row.problem = _problem(place.site, group, place.owner, names)
        sites.append(row)
        by_layer[id(place.module)] = row
    in_graphs = _called_in_graphs(model)
    order = {}
    for number, (name, module) in enumerate(model.named_modules()):
        order[id(module)] = number
        label = Label.of(module)
        if label is not None:
            row = by_layer.get(id(module)) or SiteInModel(name, label.site, label.injection, module)
            row.name = name
            if id(module) not in by_layer:
                row._root = names.root(label.site.name, module)
                row.problem = f"after {label.site.host}, which is another module now"
                sites.append(row)
            if id(module) in in_graphs:
                row.problem = None
    return sorted(sites, key=lambda row: order.get(id(row.layer), len(order)))


def gone(sites: list[SiteInModel]) -> list[str]:
    """The names of sites that were injected together with these, and are no longer in the model."""
    expected = {(row.injection, row._root) for row in sites if row._root is not None}
    lost = []
    for injection, root in expected:
        here = {row.site.name for row in sites if row.injection == injection and row._root in (root, None)}
        lost += [".".join((*(root or ()), name)) for name in injection.sites if name not in here]
    return lost


def _problem(site: Site, found: list[FoundHook], owner: nn.Module | None, names: _Names) -> str | None:
    """What is wrong with the hooks of a site, if anything is."""
    planned = [(hook.module, hook.kind) for hook in site.splice.hooks]
    for hook in found:
        name = hook.hook.planned_module
        if (name, type(hook.hook)) in planned:
            planned.remove((name, type(hook.hook)))
        here = names.of(hook.module)
        if not names.fits(name, hook.module, site.splice.owner, owner):
            wrapper = here[0].removesuffix(f".{here[0].rpartition('.')[2]}")
            return f"after {site.host}: the hook for {name} is on {here[0]}, inside a {names.kind(wrapper)}"
        if owner is not None and hook.module is not owner and len(here) > len(names.of(owner)) > 0:
            return f"after {site.host}: {name} is used in {len(here)} places now: {', '.join(here)}"
    if planned:
        return f"after {site.host}: {planned[0][0] or 'the model'} is another module now"
    return None


class _Names:
    """The dotted names of the modules of a model; a shared module has several."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, list[str]] = defaultdict(list)
        self._modules = dict(model.named_modules(remove_duplicate=False))
        for name, module in self._modules.items():
            self._names[id(module)].append(".".join(part for part in name.split(".") if part not in WRAPPED_AS))

    def of(self, module: nn.Module | None) -> list[str]:
        return self._names.get(id(module), [])

    def kind(self, name: str) -> str:
        return type(self._modules[name]).__name__ if name in self._modules else "module"

    def fits(self, planned: str, module: nn.Module, planned_owner: str, owner: nn.Module | None) -> bool:
        """Whether a module is where the plan has it: in the model, or relative to the owner of its DropBlock."""
        ends = [planned]
        if planned == planned_owner or planned.startswith(f"{planned_owner}."):
            ends += [f"{name}{planned.removeprefix(planned_owner)}" for name in self.of(owner)]
        return any(f".{name}".endswith(f".{end}") or not end for name in self.of(module) for end in ends)

    def root(self, planned: str, module: nn.Module | None) -> tuple[str, ...] | None:
        """The name of the network in which a module has the planned name; None if that cannot be told."""
        for name in self.of(module):
            parts, wanted = name.split("."), planned.split(".") if planned else []
            while parts and wanted:
                if parts.pop() == wanted[-1]:
                    wanted.pop()
            if not wanted:
                return tuple(filter(None, parts))
        return None


def _called_in_graphs(model: nn.Module) -> set[int]:
    """The modules that the graph modules of torch.fx in a model call."""
    called = set()
    for graph in model.modules():
        if isinstance(graph, torch.fx.GraphModule):
            called |= {id(graph.get_submodule(n.target)) for n in graph.graph.nodes if n.op == "call_module"}
    return called
