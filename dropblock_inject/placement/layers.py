"""The layers that a plan puts in: DropBlocks, or what the caller makes for each site."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..errors import DropBlockTypeError, DropBlockValueError
from ..ops.functional import BlockSize
from ..ops.layer import DropBlock
from ..surgery.mask_hooks import MaskArgument, MaskOutput
from ..surgery.site import Site

MakeLayer = Callable[[Site], nn.Module]


def dropblock_for(block_size: BlockSize, options: dict[str, Any]) -> MakeLayer:
    """The DropBlock for a site."""

    def make(site: Site) -> DropBlock:
        own = options if _may_overwrite(site) else {**options, "inplace": False}
        return DropBlock(site.keep_prob, block_size, channel_dim=site.channel_dim, **own)

    return make


def check_maker(layer: Any, options: dict[str, Any]) -> None:
    """Raises if the caller's `layer` is no maker of layers, or is given together with options of DropBlock."""
    if isinstance(layer, nn.Module | type) or not callable(layer):
        found = layer.__name__ if isinstance(layer, type) else repr(layer)
        raise DropBlockTypeError(
            "layer must be a callable that takes a site and makes a module for it, such as "
            f"layer=lambda site: nn.Dropout2d(1 - site.keep_prob); got {found}"
        )
    if options:
        raise DropBlockTypeError(
            f"{', '.join(options)} would not have any effect: with layer= the callable makes the layers, and gives "
            "them their options"
        )


def make_layers(sites: Iterable[Site], make: MakeLayer) -> list[nn.Module]:
    """A layer for each site.

    Raises:
        DropBlockTypeError: something that was made is no module.
        DropBlockValueError: a layer has parameters or buffers, was made before, or would overwrite a tensor that is
            read again.
    """
    layers: dict[int, nn.Module] = {}
    for site in sites:
        layer = make(site)
        kind = type(layer).__name__
        if not isinstance(layer, nn.Module):
            raise DropBlockTypeError(f"layer made a {kind} for {site.name}; it must make a torch.nn.Module")
        if id(layer) in layers:
            raise DropBlockValueError(f"layer made the same {kind} for {site.name} as before; make one for each site")
        kept = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]
        if kept:
            raise DropBlockValueError(
                f"layer made a {kind} for {site.name} that has parameters or buffers ({', '.join(kept)}): they would "
                "change the keys of the checkpoint. Only layers without them can be injected"
            )
        if not _may_overwrite(site) and any(getattr(module, "inplace", False) for module in layer.modules()):
            raise DropBlockValueError(
                f"layer made a {kind} with inplace=True for {site.name}, where the branch still reads the tensor; "
                "make it with inplace=False"
            )
        layers[id(layer)] = layer
    return list(layers.values())


def _may_overwrite(site: Site) -> bool:
    """Whether nothing reads the tensor of a site before its mask: beside a masked shortcut the branch does."""
    return [hook.kind for hook in site.splice.hooks] in ([MaskOutput], [MaskArgument])
