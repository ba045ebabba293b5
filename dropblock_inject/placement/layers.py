"""The layers that a plan puts in: DropBlocks, or what the caller makes for each site."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..errors import DropBlockTypeError, DropBlockValueError
from ..ops.functional import BlockSize
from ..ops.layer import DropBlock
from ..surgery.keep_prob import ATTRIBUTES, keep_prob_of
from ..surgery.mask_hooks import MaskArgument, MaskOutput
from ..surgery.place import Label
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
        DropBlockValueError: a layer has parameters or buffers, has None for a probability, was made before, or would
            overwrite a tensor that is read again.
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
        unset = [name for name in ATTRIBUTES if getattr(layer, name, 0) is None]
        if unset and keep_prob_of(layer) is None:
            raise DropBlockValueError(
                f"layer made a {kind} with {unset[0]}=None for {site.name}; give it a number, which follows from "
                "site.keep_prob"
            )
        if not _may_overwrite(site) and any(getattr(module, "inplace", False) for module in layer.modules()):
            raise DropBlockValueError(
                f"layer made a {kind} with inplace=True for {site.name}, where the branch still reads the tensor; "
                "make it with inplace=False"
            )
        layers[id(layer)] = layer
    return list(layers.values())


def check_not_injected(sites: Iterable[Site], layers: Iterable[nn.Module]) -> None:
    """Raises if one of the layers for these sites is at a site of a model already."""
    for site, layer in zip(sites, layers, strict=True):
        label = Label.of(layer)
        if label is not None:
            raise DropBlockValueError(
                f"layer made a {type(layer).__name__} for {site.name} that is at the site {label.site.name} of a model "
                "already; make a new one, or call remove_dropblock on that model before"
            )


def _may_overwrite(site: Site) -> bool:
    """Whether nothing reads the tensor of a site before its mask: beside a masked shortcut the branch does."""
    return [hook.kind for hook in site.splice.hooks] in ([MaskOutput], [MaskArgument])
