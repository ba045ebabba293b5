"""Sites put into a model, taken out, and found again.

A layer is registered on a module around its site, and hooks lead tensors through it. Nothing is stored about them
anywhere else. They are found by looking at the model as it is now, so that copies and unpickled models need no special
care.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from ..ops.layer import DropBlock
from .hook import Hook
from .owner_hook import OwnerHook
from .place import Injection, Label, Place
from .site import Site


def splice(model: nn.Module, sites: Sequence[Site], layers: Sequence[nn.Module]) -> None:
    """Puts a layer at every site; if anything goes wrong, takes all of them out again."""
    injection = Injection(uuid.uuid4().hex[:8], [site.name for site in sites])
    try:
        places = [_register(model, site, injection, layer) for site, layer in zip(sites, layers, strict=True)]
        # The mask of a shortcut comes last where another is on the same tensor: the branch is given what was before it.
        for place in sorted(places, key=lambda place: place.site.where == "skip"):
            _hook(model, place)
    except BaseException:
        unsplice(model)
        raise


def _register(model: nn.Module, site: Site, injection: Injection, layer: nn.Module) -> Place:
    owner = model.get_submodule(site.splice.owner)
    Label(site, injection).put_on(layer)
    layer.train(owner.training)
    owner.add_module(site.splice.attribute, layer)
    return Place(site, injection, owner)


def _hook(model: nn.Module, place: Place) -> None:
    planned_splice, hooks = place.site.splice, []
    for planned in planned_splice.hooks:
        hooks.append(planned.kind(place, *planned.arguments))
        hooks[-1].register(planned.module, model.get_submodule(planned.module))
    watching = OwnerHook(place, hooks)
    if watching.hooks:
        watching.register(planned_splice.owner, model.get_submodule(planned_splice.owner))


def unsplice(model: nn.Module) -> int:
    """Takes out whatever stands at the sites of a model, and their hooks; returns how many sites there were."""
    hooks = list(find_hooks(model))
    places = {id(found.hook.place): found.hook.place for found in hooks}
    count = len(places)
    for place in places.values():
        place.injection.take_off(place.site)
        layer = None if place.owner is None else place.owner._modules.pop(place.site.splice.attribute, None)
        if layer is not None:
            Label.take_off(layer)
    for found in hooks:
        for table in reversed(found.tables):  # the hook itself last: a removal after an interrupted one finds it
            table.pop(found.key, None)
    for owner in list(model.modules()):  # those whose hooks were lost
        for attribute, child in list(owner._modules.items()):
            if child is not None and (label := Label.of(child)):
                label.injection.take_off(label.site)
                del owner._modules[attribute]
                Label.take_off(child)
                count += 1
    return count


class FoundHook(NamedTuple):
    """One of our hooks, as found in a model.

    Attributes:
        hook: the hook.
        module: the module it is on.
        tables: the tables of that module that know it, the one with the hook itself first.
        key: its key in them.
    """

    hook: Hook
    module: nn.Module
    tables: tuple[dict, ...]
    key: int


def find_hooks(model: nn.Module) -> Iterator[FoundHook]:
    """Our hooks on the modules of a model."""
    for module in model.modules():
        after = (module._forward_hooks, module._forward_hooks_with_kwargs)
        before = (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
        for tables in (after, before):
            for key, hook in tables[0].items():
                if isinstance(hook, Hook):
                    yield FoundHook(hook, module, tables, key)


def dropping_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The injected layers that act in a model, by name, and the DropBlocks of the model's own code.

    The graph module that torch.fx makes of an injected model has the layers with their hooks, and not all of the
    DropBlocks that the hooks look up. These follow last, under the names that they have in the model.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, DropBlock) or Label.of(m)}
    seen = set(map(id, found.values()))
    for hook in find_hooks(model):
        module = hook.hook.place.module
        if module is not None and (isinstance(module, DropBlock) or Label.of(module)) and id(module) not in seen:
            seen.add(id(module))
            found[hook.hook.place.site.name] = module
    return found
