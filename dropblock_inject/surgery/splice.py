"""Splicing DropBlocks into a model and out again.

A DropBlock is registered on a module around its site and is reached by a hook on the module it stands after. Nothing
is stored about them anywhere else: what is injected is always found by looking at the model as it is now, so that
copies and unpickled models are no special case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..ops.functional import BlockSize
from .hooks import (
    CorrectEnd,
    Hook,
    InjectedDropBlock,
    MaskArgument,
    MaskBesideArgument,
    MaskOutput,
    NoteArgument,
    NoteOutput,
    UnmaskArgument,
)
from .site import Site


def splice(model: nn.Module, sites: Sequence[Site], block_size: BlockSize, options: dict[str, Any]) -> None:
    """Puts a DropBlock at every site; if anything goes wrong, takes all of them out again."""
    together = tuple(site.name for site in sites)
    try:
        for site in sites:
            _splice_one(model, site, together, block_size, options)
    except BaseException:
        unsplice(model)
        raise


def _splice_one(
    model: nn.Module, site: Site, together: tuple[str, ...], block_size: BlockSize, options: dict[str, Any]
) -> None:
    at = site.splice
    owner, host = model.get_submodule(at.owner), model.get_submodule(at.host)
    if at.unmasked or at.point in ("beside", "end"):
        options = {**options, "inplace": False}  # the branch still needs the unmasked tensor
    drop = InjectedDropBlock(site, together, block_size, (host,) if at.point == "slot" else (), **options)
    drop.train(owner.training)
    if at.point == "slot":
        owner._modules[at.attribute] = drop  # in its place: add_module would also do, but says less
        return
    owner.add_module(at.attribute, drop)
    if at.point == "after":
        after = MaskOutput(drop, at.key)
        after.handle = host.register_forward_hook(after)
    elif at.sight is not None:
        end = CorrectEnd(drop, at.key)
        end.handle = host.register_forward_hook(end)
        seen_at = model.get_submodule(at.sight.module)
        if at.sight.output:
            note: NoteArgument = NoteOutput(drop, at.sight.key)
            note.handle = seen_at.register_forward_hook(note)
        else:
            note = NoteArgument(drop, at.sight.key)
            note.handle = seen_at.register_forward_pre_hook(note, with_kwargs=True)
    else:
        before = MaskArgument(drop, at.key) if at.point == "before" else MaskBesideArgument(drop, at.key)
        before.handle = host.register_forward_pre_hook(before, with_kwargs=True)
    for argument in at.unmasked:
        unmask = UnmaskArgument(drop, argument)
        reader = model.get_submodule(argument.module)
        unmask.handle = reader.register_forward_pre_hook(unmask, with_kwargs=True)


def unsplice(model: nn.Module) -> int:
    """Takes every injected DropBlock out; returns how many there were."""
    count = len(injected(model))
    for tables, key, _ in list(_hooks(model)):
        for table in reversed(tables):  # the hook itself last: by it a removal after an interrupted one finds the rest
            table.pop(key, None)
    for owner in list(model.modules()):
        for attribute, child in list(owner._modules.items()):
            if isinstance(child, InjectedDropBlock):
                if child.replaced:
                    owner._modules[attribute] = child.replaced[0]
                else:
                    del owner._modules[attribute]
    return count


class SiteInModel(NamedTuple):
    """An injected DropBlock as found in a model, and whether it still takes part in the forward pass."""

    name: str
    drop: InjectedDropBlock
    live: bool


def injected(model: nn.Module) -> list[SiteInModel]:
    """The injected DropBlocks of a model as it is now."""
    drops = {id(hook.drop): hook.drop for _, _, hook in _hooks(model)}
    hooks = Counter(id(hook.drop) for _, _, hook in _hooks(model))
    found = []
    for name, module in model.named_modules():
        if isinstance(module, InjectedDropBlock):
            at = module.site.splice
            wanted = 0 if at.point == "slot" else 1 + len(at.unmasked) + (at.sight is not None)
            found.append(SiteInModel(name, module, hooks[id(module)] == wanted))
            drops.pop(id(module), None)
    # What hooks still point to though it is no part of the model any more: no mode change reaches it.
    return found + [SiteInModel(drop.site.name, drop, False) for drop in drops.values()]


def _hooks(model: nn.Module) -> Iterator[tuple[tuple[dict, ...], int, Hook]]:
    """Our hooks: the tables of the module that know each, its key in them, and the hook."""
    for module in model.modules():
        after = (module._forward_hooks, module._forward_hooks_with_kwargs)
        before = (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
        for tables in (after, before):
            for key, hook in tables[0].items():
                if isinstance(hook, Hook):
                    yield tables, key, hook
