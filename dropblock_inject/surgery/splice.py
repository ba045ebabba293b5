"""Sites put into a model, taken out, and found again.

A DropBlock is registered on a module around its site, and hooks lead tensors through it. Nothing is stored about them
anywhere else. They are found by looking at the model as it is now, so that copies and unpickled models need no special
care.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..ops.functional import BlockSize
from ..ops.layer import DropBlock
from .hook import Hook
from .mask_hooks import MaskArgument, MaskOutput
from .owner_hook import OwnerHook
from .place import InjectedDropBlock, Injection, Place
from .site import Site


def splice(model: nn.Module, sites: Sequence[Site], block_size: BlockSize, options: dict[str, Any]) -> None:
    """Puts a DropBlock at every site; if anything goes wrong, takes all of them out again."""
    injection = Injection(uuid.uuid4().hex[:8], tuple(site.name for site in sites))
    try:
        for site in sites:
            _splice_one(model, site, injection, block_size, options)
    except BaseException:
        unsplice(model)
        raise


def _splice_one(
    model: nn.Module, site: Site, injection: Injection, block_size: BlockSize, options: dict[str, Any]
) -> None:
    owner = model.get_submodule(site.splice.owner)
    if [hook.kind for hook in site.splice.hooks] not in ([MaskOutput], [MaskArgument]):
        options = {**options, "inplace": False}  # the branch still needs the unmasked tensor
    drop = InjectedDropBlock(site, injection, block_size, **options)
    drop.train(owner.training)
    owner.add_module(site.splice.attribute, drop)
    place = Place(site, injection, owner)
    hooks = []
    for planned in site.splice.hooks:
        hooks.append(planned.kind(place, *planned.arguments))
        hooks[-1].register(planned.module, model.get_submodule(planned.module))
    watching = OwnerHook(place, hooks)
    if watching.hooks:
        watching.register(site.splice.owner, owner)


def unsplice(model: nn.Module) -> int:
    """Takes out whatever stands at the sites of a model, and their hooks; returns how many sites there were."""
    hooks = list(find_hooks(model))
    places = {id(found.hook.place): found.hook.place for found in hooks}
    count = len(places)
    for place in places.values():
        if place.owner is not None:
            place.owner._modules.pop(place.site.splice.attribute, None)
    for found in hooks:
        for table in reversed(found.tables):  # the hook itself last: a removal after an interrupted one finds it
            table.pop(found.key, None)
    for owner in list(model.modules()):  # those whose hooks were lost
        for attribute, child in list(owner._modules.items()):
            if isinstance(child, InjectedDropBlock):
                del owner._modules[attribute]
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


def dropblocks(model: nn.Module) -> dict[str, DropBlock]:
    """The DropBlocks that act in a model, by name: injected ones, and those of the model's own code.

    The graph module that torch.fx makes of an injected model has the layers with their hooks, and not all of the
    DropBlocks that the hooks look up. These follow last, under the names that they have in the model.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, DropBlock)}
    seen = set(map(id, found.values()))
    for hook in find_hooks(model):
        module = hook.hook.place.module
        if isinstance(module, DropBlock) and id(module) not in seen:
            seen.add(id(module))
            found[hook.hook.place.site.name] = module
    return found
