"""The hooks that mask a tensor: what a module returns, what it is given, or a tensor in place."""

from __future__ import annotations

from torch import Tensor, nn

from .hook import ArgumentHook, Hook, Key, OutputHook, recorded
from .place import Place
from .unmask_hook import UnmaskArgument, _mark, marked, whole


class _Mask(Hook):
    """Sends a tensor through the module at its place."""

    masks = True

    def __init__(self, place: Place, key: Key) -> None:
        super().__init__(place, key)
        self._is_unmasked_for_branch = any(hook.kind is UnmaskArgument for hook in place.site.splice.hooks)

    def change(self, tensor: Tensor, module: nn.Module) -> Tensor:
        masked = self.place.apply(tensor, module)
        if not self._is_unmasked_for_branch:
            return masked
        if masked is tensor and self.place.drops:  # a layer that drops nothing this time
            masked = tensor.clone()
        return marked(masked, tensor, self.place)


class MaskOutput(_Mask, OutputHook):
    """Masks what a module returns."""


class MaskArgument(_Mask, ArgumentHook):
    """Masks what a module is given."""


class MaskInPlace(ArgumentHook):
    """Masks a tensor in place, for the shortcut that reads it later, and gives the module a copy as it was."""

    masks = True

    def change(self, tensor: Tensor, module: nn.Module) -> Tensor:
        tensor = whole(tensor)
        return recorded(_overwrite, tensor, self.place.apply(tensor, module), self.place.key)


def _overwrite(tensor: Tensor, masked: Tensor, key: str) -> Tensor:
    """Writes the masked values to a tensor; returns a copy with the values that it had."""
    if masked is tensor:
        return tensor
    unmasked = tensor.clone()
    _mark(tensor.copy_(masked), unmasked, key)
    return unmasked
