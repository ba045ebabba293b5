"""The hook that gives a branch its input unmasked, where the shortcut beside it is masked.

The masked tensor carries the unmasked one as an attribute. No state lies between two hooks, so that threads,
re-entry, recomputation and torch.fx graphs need no special care.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import DeadSiteError
from .hook import ArgumentHook, Key, recorded
from .place import Place

_UNMASKED = "_dropblock_unmasked"  # attribute of a masked tensor: the key of the site, and the tensor before its mask


class UnmaskArgument(ArgumentHook):
    """Gives a module of the branch the unmasked tensor.

    Args:
        is_sure: whether the module always reads this tensor, because it is called once in its block.
    """

    def __init__(self, place: Place, key: Key, is_sure: bool) -> None:
        super().__init__(place, key)
        self.is_sure = is_sure

    def _register_on(self, module: nn.Module) -> RemovableHandle:
        # Before the mask of the module's own shortcut, where one residual block is the branch of another.
        return module.register_forward_pre_hook(self, prepend=True, with_kwargs=True)

    def change(self, tensor: Tensor, module: nn.Module) -> Tensor:
        if isinstance(tensor, torch.fx.Proxy):  # getattr on it gives another Proxy for any name
            key, unmasked = vars(tensor).get(_UNMASKED, (None, tensor))
        else:
            key, unmasked = getattr(whole(tensor), _UNMASKED, (None, tensor))
            if key != self.place.key and self.is_sure and self.place.drops and tensor.numel() > 0:
                site = self.place.site.name
                raise DeadSiteError(
                    f"a {type(module).__name__} of the branch beside {site} was called with another tensor than the "
                    "one that was masked for the shortcut, and cannot be given the unmasked one. If its block is "
                    "checkpointed within, use checkpoint(..., use_reentrant=False). If a wrapper casts or adapts the "
                    f"module's input, or if you call it on its own in training mode, exclude {site!r} or call it "
                    "within dropblock_disabled(model)"
                )
        # A block that adds in place returns a tensor that still carries the mark of its own shortcut.
        return unmasked if key == self.place.key else tensor


def marked(masked: Tensor, unmasked: Tensor, place: Place) -> Tensor:
    """The masked tensor, with the unmasked one as an attribute."""
    result: Any = recorded(_mark, masked, unmasked, place.key)
    if isinstance(result, torch.fx.Proxy):  # for modules that are traced into
        _mark(result, unmasked, place.key)
    return result


def _mark(masked: Any, unmasked: Tensor, key: str) -> Any:
    if masked is not unmasked:
        setattr(masked, _UNMASKED, (key, unmasked))
    return masked


def whole(tensor: Tensor) -> Tensor:
    """The tensor that this one is a view of, if it is a view of all of it.

    FSDP2 gives a sharded module such views of its arguments.
    """
    if isinstance(tensor, torch.fx.Proxy) or torch.compiler.is_compiling() or tensor._base is None:
        return tensor
    base = tensor._base
    same = tensor.shape == base.shape and tensor.stride() == base.stride() and tensor.dtype == base.dtype
    return base if same else tensor
