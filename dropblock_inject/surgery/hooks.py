"""What is hooked into a model: the DropBlock of a site, and the hooks by which tensors reach it.

The hooks are small picklable objects that know their DropBlock and nothing else.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import DeadSiteError
from ..ops.functional import BlockSize
from ..ops.layer import DropBlock, leaf_call
from .site import Argument, Channels, Sight, Site

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
        self.shortcut = Shortcut(site.splice.sight, site.channel_dim) if site.splice.sight else None

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


class Shortcut(nn.Module):
    """Remembers a shortcut from where it is seen to the end of the branch beside it."""

    def __init__(self, sight: Sight, channel_dim: int) -> None:
        super().__init__()
        self.sight = sight
        self.channel_dim = channel_dim
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
        if shortcut is not None and self.sight.tokens:
            return shortcut.transpose(1, 2).reshape(end.shape)
        if shortcut is not None and self.sight.channels:
            return _narrow(shortcut, self.channel_dim, self.sight.channels)
        return shortcut

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "noted": {}}


def _narrow(tensor: Tensor, channel_dim: int, channels: Channels) -> Tensor:
    return tensor.narrow(channel_dim, channels[0], channels[1] - channels[0])


def _thread() -> int:
    """What tells apart the threads that run a model at the same time; compiled code runs in one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Hook:
    """A forward hook that knows its DropBlock and how to take itself off."""

    def __init__(self, drop: InjectedDropBlock, key: int | str | None) -> None:
        self.drop = drop
        self.key = key
        # The handle is kept for what its unpickling does: it reserves the hook's id, without which a hook that is
        # registered on the same module in another process would silently take this one's place.
        self.handle: RemovableHandle | None = None


class MaskOutput(Hook):
    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return self.drop(output) if self.key is None else _with_entry(output, self.key, self.drop(output[self.key]))


class MaskArgument(Hook):
    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self.drop)


class MaskBesideArgument(Hook):
    """Masks a tensor in place, for the shortcut that reads it later, and gives the module a copy as it was."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self._mask)

    def _mask(self, tensor: Tensor) -> Tensor:
        tensor = _as_put_out(tensor)
        masked = self.drop(tensor)
        if masked is tensor:
            return tensor
        unmasked = tensor.clone()
        setattr(tensor.copy_(masked), _UNMASKED, (self.drop, unmasked))
        return unmasked


class UnmaskArgument(Hook):
    def __init__(self, drop: InjectedDropBlock, argument: Argument) -> None:
        super().__init__(drop, argument.key)
        self.argument = argument

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self._unmasked)

    def _unmasked(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, torch.fx.Proxy):  # which makes up any attribute it is asked for
            drop, unmasked = vars(tensor).get(_UNMASKED, (None, tensor))
        else:
            drop, unmasked = getattr(_as_put_out(tensor), _UNMASKED, (None, tensor))
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


def _as_put_out(tensor: Tensor) -> Tensor:
    """The tensor that is handed on here as a view of all of it: FSDP2 does that to what it gives a sharded module."""
    if torch.compiler.is_compiling() or tensor._base is None:
        return tensor
    base = tensor._base
    same = tensor.shape == base.shape and tensor.stride() == base.stride() and tensor.dtype == base.dtype
    return base if same else tensor


class NoteArgument(Hook):
    """Notes the shortcut that a block is about to add, where a module is given it."""

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return _with_argument(module, args, kwargs, self.key, self._note)

    def _note(self, shortcut: Tensor) -> Tensor:
        if self.drop.drops or isinstance(shortcut, torch.fx.Proxy):
            assert self.drop.shortcut is not None
            return self.drop.shortcut(shortcut)
        return shortcut


class NoteOutput(NoteArgument):
    """Notes it where a module puts it out."""

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        noted = self._note(output if self.key is None else output[self.key])
        return noted if self.key is None else _with_entry(output, self.key, noted)


class CorrectEnd(Hook):
    """Adds to the end of a branch what the mask changes in the shortcut that the block is about to add."""

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        shortcut = self.drop.shortcut
        assert shortcut is not None
        put_out = output if self.key is None else output[self.key]
        channels, channel_dim = shortcut.sight.end_channels, self.drop.channel_dim
        end = put_out if channels is None else _narrow(put_out, channel_dim, channels)
        if not shortcut.is_next(end):
            return output
        corrected = self.drop(end)
        if isinstance(end, torch.fx.Proxy):
            shortcut.take(end)
        if corrected is end:
            return output
        if channels is not None:
            corrected = put_out.slice_scatter(corrected, channel_dim, *channels)
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
