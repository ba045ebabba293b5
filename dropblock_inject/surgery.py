"""Splicing DropBlocks into a model and out again.

A DropBlock is registered on a module around its site and is reached by a hook on the module it stands after. The
hooks are small picklable objects; nothing is stored about them anywhere else. What is injected is always found by
looking at the model as it is now, so that copies and unpickled models are no special case.
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import DeadSiteError
from .functional import BlockSize
from .layer import DropBlock, leaf_call
from .sites import Argument, Sight, Site

_UNMASKED = "_dropblock_unmasked"  # attribute of a masked tensor: the DropBlock, and the tensor before its mask


class InjectedDropBlock(DropBlock):
    """A DropBlock that :func:`inject_dropblock` put into a model.

    Attributes:
        site: the plan's record of where it is.
        replaced: the identity it took the place of (a tuple, so that it is not registered as a child), or empty.
        together: the names of all sites of the same injection, by which one that is gone is missed.
        shortcut: remembers the shortcut, where it is the end of the branch beside it that the DropBlock is given.
    """

    def __init__(
        self,
        site: Site,
        together: tuple[str, ...],
        block_size: BlockSize,
        replaced: tuple[nn.Module, ...],
        **options: Any,
    ) -> None:
        super().__init__(site.keep_prob, block_size, channel_dim=site.channel_dim, **options)
        self.site = site
        self.together = together
        self.replaced = replaced
        self.shortcut = _Shortcut(site.splice.sight) if site.splice.sight else None

    def forward(self, input: Tensor) -> Tensor:
        if self.shortcut is not None and not isinstance(input, torch.fx.Proxy):
            shortcut = self.shortcut.take(input)
            if shortcut is None:
                return input
            masked = super().forward(shortcut)
            return input if masked is shortcut else input + (masked - shortcut)
        output = super().forward(input)
        if self.site.splice.unmasked and output is not input:
            # The mark travels with the tensor: no state between two hooks, so threads, re-entry, recomputation and
            # torch.fx graphs are no special case.
            setattr(output, _UNMASKED, (self, input))
        return output

    @property
    def drops(self) -> bool:
        """Whether the next forward pass drops anything."""
        return self.training and self.enabled and self.keep_prob < 1

    def _get_name(self) -> str:
        return "DropBlock"


class _Shortcut(nn.Module):
    """Remembers a shortcut from where it is seen to the end of the branch beside it."""

    def __init__(self, sight: Sight) -> None:
        super().__init__()
        self.sight = sight
        # By thread, for several may run a model: the shortcut, and how many calls away the end of the branch is.
        self.noted: dict[int, tuple[Tensor, int]] = {}

    def forward(self, shortcut: Tensor) -> Tensor:
        self.noted[_thread()] = shortcut, self.sight.calls
        return leaf_call(self, shortcut) if isinstance(shortcut, torch.fx.Proxy) else shortcut

    def is_next(self, end: Tensor) -> bool:
        """Counts a call of the module at whose end the branch ends; whether `end` is that end."""
        if _thread() not in self.noted:
            return isinstance(end, torch.fx.Proxy)  # then it is noted when the graph runs
        shortcut, calls = self.noted[_thread()]
        self.noted[_thread()] = shortcut, calls - 1
        return calls == 1

    def take(self, end: Any) -> Tensor | None:
        """The shortcut in the layout of the end of the branch; it is forgotten."""
        shortcut, _ = self.noted.pop(_thread(), (None, 0))
        if shortcut is None or not self.sight.tokens:
            return shortcut
        return shortcut.transpose(1, 2).reshape(end.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "noted": {}}


def _thread() -> int:
    """What tells apart the threads that run a model at the same time; compiled code runs in one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class _Hook:
    """A forward hook that knows its DropBlock and how to take itself off."""

    def __init__(self, drop: InjectedDropBlock, key: int | str | None) -> None:
        self.drop = drop
        self.key = key
        # The handle is kept for what its unpickling does: it reserves the hook's id, without which a hook that is
        # registered on the same module in another process would silently take this one's place.
        self.handle: RemovableHandle | None = None


class _MaskOutput(_Hook):
    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return self.drop(output) if self.key is None else _with_entry(output, self.key, self.drop(output[self.key]))


class _MaskArgument(_Hook):
    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self.drop)


class _MaskBesideArgument(_Hook):
    """Masks a tensor in place, for the shortcut that reads it later, and gives the module a copy as it was."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self._mask)

    def _mask(self, tensor: Tensor) -> Tensor:
        masked = self.drop(tensor)
        if masked is tensor:
            return tensor
        unmasked = tensor.clone()
        setattr(tensor.copy_(masked), _UNMASKED, (self.drop, unmasked))
        return unmasked


class _UnmaskArgument(_Hook):
    def __init__(self, drop: InjectedDropBlock, argument: Argument) -> None:
        super().__init__(drop, argument.key)
        self.argument = argument

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self._unmasked)

    def _unmasked(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, torch.fx.Proxy):  # which makes up any attribute it is asked for
            drop, unmasked = vars(tensor).get(_UNMASKED, (None, tensor))
        else:
            drop, unmasked = getattr(tensor, _UNMASKED, (None, tensor))
            if drop is not self.drop and self.argument.always and self.drop.drops and tensor.numel() > 0:
                raise DeadSiteError(
                    f"{self.argument.module} was called with another tensor than the one that {self.drop.site.name} "
                    "masked for the shortcut beside it, and cannot be given the unmasked one. If its block is "
                    "checkpointed within, use checkpoint(..., use_reentrant=False); if a wrapper casts what the module "
                    f"is given, or if you call it on its own in training mode, exclude {self.drop.site.name!r} or call "
                    "it within dropblock_disabled(model)"
                )
        # A block that adds in place hands on a tensor with the mark of its own shortcut.
        return unmasked if drop is self.drop else tensor


class _NoteArgument(_Hook):
    """Notes the shortcut that a block is about to add, where a module is given it."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self._note)

    def _note(self, shortcut: Tensor) -> Tensor:
        if self.drop.drops or isinstance(shortcut, torch.fx.Proxy):
            assert self.drop.shortcut is not None
            return self.drop.shortcut(shortcut)
        return shortcut


class _NoteOutput(_NoteArgument):
    """Notes it where a module puts it out."""

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        noted = self._note(output if self.key is None else output[self.key])
        return noted if self.key is None else _with_entry(output, self.key, noted)


class _CorrectEnd(_Hook):
    """Adds to the end of a branch what the mask changes in the shortcut that the block is about to add."""

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        end = output if self.key is None else output[self.key]
        assert self.drop.shortcut is not None
        if not self.drop.shortcut.is_next(end):
            return output
        corrected = self.drop(end)
        if isinstance(end, torch.fx.Proxy):
            self.drop.shortcut.take(end)
        return corrected if self.key is None else _with_entry(output, self.key, corrected)


def _with_argument(
    module: nn.Module, args: tuple, kwargs: dict, key: int | str | None, change: Callable[[Tensor], Tensor]
) -> tuple[tuple, dict]:
    """The arguments of a call with one of them changed, by whichever way it is given in this call."""
    if isinstance(key, int) and key < len(args):
        return _with_entry(args, key, change(args[key])), kwargs
    if key in kwargs:
        return args, {**kwargs, key: change(kwargs[key])}
    names = list(inspect.signature(module.forward).parameters)
    if isinstance(key, int):
        return args, {**kwargs, names[key]: change(kwargs[names[key]])}
    position = names.index(str(key))
    return _with_entry(args, position, change(args[position])), kwargs


def _with_entry(entries: Any, key: int | str, entry: Any) -> Any:
    """A copy of a tuple, list, dict or namedtuple with one entry replaced."""
    if isinstance(entries, dict):
        return type(entries)({**entries, key: entry})
    changed = [entry if i == key else old for i, old in enumerate(entries)]
    return type(entries)(*changed) if hasattr(entries, "_fields") else type(entries)(changed)


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
        after = _MaskOutput(drop, at.key)
        after.handle = host.register_forward_hook(after)
    elif at.sight is not None:
        end = _CorrectEnd(drop, at.key)
        end.handle = host.register_forward_hook(end)
        seen_at = model.get_submodule(at.sight.module)
        if at.sight.output:
            note: _NoteArgument = _NoteOutput(drop, at.sight.key)
            note.handle = seen_at.register_forward_hook(note)
        else:
            note = _NoteArgument(drop, at.sight.key)
            note.handle = seen_at.register_forward_pre_hook(note, with_kwargs=True)
    else:
        before = _MaskArgument(drop, at.key) if at.point == "before" else _MaskBesideArgument(drop, at.key)
        before.handle = host.register_forward_pre_hook(before, with_kwargs=True)
    for argument in at.unmasked:
        unmask = _UnmaskArgument(drop, argument)
        reader = model.get_submodule(argument.module)
        unmask.handle = reader.register_forward_pre_hook(unmask, with_kwargs=True)


def unsplice(model: nn.Module) -> int:
    """Takes every injected DropBlock out; returns how many there were."""
    count = len(injected(model))
    for tables, key, _ in list(_hooks(model)):
        for table in tables:
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


def _hooks(model: nn.Module) -> Iterator[tuple[tuple[dict, ...], int, _Hook]]:
    """Our hooks: the tables of the module that know each, its key in them, and the hook."""
    for module in model.modules():
        after = (module._forward_hooks, module._forward_hooks_with_kwargs)
        before = (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
        for tables in (after, before):
            for key, hook in tables[0].items():
                if isinstance(hook, _Hook):
                    yield tables, key, hook
