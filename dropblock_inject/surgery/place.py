"""Place: where a site is in a model. Whatever module is registered there is what acts there."""

from __future__ import annotations

import copy
import threading
import warnings
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DropBlockWarning
from ..ops.layer import DropBlock, leaf_call
from .keep_prob import keep_prob_of
from .site import Site


@dataclass(unsafe_hash=True)
class Injection:
    """What the sites of one injection have in common.

    Attributes:
        key: random text that tells it from other injections.
        sites: names of its sites, by which a missing one is noticed. A site that is taken out is taken off it.
        has_warned: whether a site of it was given a map that is much too small.
    """

    key: str
    sites: list[str] = field(compare=False)
    has_warned: bool = field(default=False, compare=False)

    def take_off(self, site: Site) -> None:
        """Notes that a site was taken out on purpose."""
        if site.name in self.sites:
            self.sites.remove(site.name)


@dataclass(frozen=True)
class Label:
    """The record that a layer carries while it is injected: the plan's record of its site, and the injection."""

    site: Site
    injection: Injection

    def put_on(self, layer: nn.Module) -> None:
        vars(layer)[_LABEL] = self

    @staticmethod
    def of(layer: nn.Module | None) -> Label | None:
        """The label of a layer; None if it was not injected."""
        return getattr(layer, _LABEL, None)

    @staticmethod
    def take_off(layer: nn.Module) -> None:
        vars(layer).pop(_LABEL, None)


_LABEL = "_dropblock_label"


# The modules that stand at places in a torch.fx graph module which is running, by thread and key of the place.
_in_graph: dict[tuple[int, str], nn.Module] = {}


def thread() -> int:
    """What tells threads apart that run a model at the same time; compiled code runs in one."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Place:
    """The place of a site in a model. The hooks of the site share it, and look up what is registered there.

    Attributes:
        site: the plan's record.
        injection: the injection it is part of.
        owner: the module that the layer is registered on. It is None in the copy of a layer that was copied
            without its block: nothing is dropped there.
        key: text that tells this site from all others.
    """

    def __init__(self, site: Site, injection: Injection, owner: nn.Module) -> None:
        self.site = site
        self.injection = injection
        self.owner: nn.Module | None = owner
        self.key = f"{site.name} {injection.key}"
        inside = f"{site.splice.owner}.".lstrip(".")
        convolution = site.splice.convolution or ""
        self._convolution = tuple(convolution.removeprefix(inside).split(".")) if convolution.startswith(inside) else ()
        self._has_warned = False
        self._has_trained = False

    @property
    def module(self) -> nn.Module | None:
        """The module that stands there now: the DropBlock, what took its place, or None if it was deleted."""
        return None if self.owner is None else self.owner._modules.get(self.site.splice.attribute)

    @property
    def drops(self) -> bool:
        """Whether the module there would drop something in the next forward pass."""
        in_graph = _in_graph.get((thread(), self.key)) if _in_graph else None
        module = in_graph or self.module
        if module is None or not module.training or (in_graph is None and self._is_paused):
            return False
        keep_prob = keep_prob_of(module)
        return is_enabled(module) and not isinstance(module, nn.Identity) and (keep_prob is None or keep_prob < 1)

    @property
    def is_at_rest(self) -> bool:
        """Whether the tensor there stays as it is: an identity, or an injected layer that drops nothing now."""
        module = _in_graph.get((thread(), self.key)) if _in_graph else None
        module = module or self.module
        if module is None or isinstance(module, nn.Identity):
            return True
        return (isinstance(module, DropBlock) or Label.of(module) is not None) and not self.drops

    def apply(self, tensor: Tensor, host: nn.Module) -> Tensor:
        """A tensor after the module that stands there; the tensor itself if there is none."""
        if _in_graph and (in_graph := _in_graph.pop((thread(), self.key), None)) is not None:
            return in_graph(tensor) if is_enabled(in_graph) else tensor
        module = self.module
        if module is None:
            if self.owner is None and host.training and not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"this {type(host).__name__} was copied without its block, which has the DropBlock "
                    f"{self.site.name}: nothing is dropped here. Copy the whole model, or call "
                    "remove_dropblock(copy) to silence this",
                    stacklevel=2,
                )
            return tensor
        if isinstance(tensor, torch.fx.Proxy):
            return leaf_call(module, tensor)
        if not torch.compiler.is_compiling() and module.training and not self._has_trained:
            self._has_trained = True
            self._check_map(tensor)
        is_idle = not module.training and not isinstance(module, DropBlock) and Label.of(module) is not None
        return tensor if self._is_paused or is_idle or not is_enabled(module) else module(tensor)

    def _check_map(self, tensor: Tensor) -> None:
        """Warns if a map is a single pixel that was planned to be larger: then other stages are meant."""
        if torch.jit.is_tracing() or tensor.dim() != len(self.site.map_size) + 2:
            return
        sides = list(tensor.shape[1:])
        del sides[self.site.channel_dim - (self.site.channel_dim > 0)]
        if prod(sides) == 1 < prod(self.site.map_size) and not self.injection.has_warned:
            self.injection.has_warned = True
            warnings.warn(
                f"{self.site.name} was planned for maps of {'x'.join(map(str, self.site.map_size))} pixels and gets "
                "maps of a single one, which make no stage. Plan with an image of your size: remove_dropblock(model), "
                "then inject_dropblock(model, ..., example_input=torch.empty(1, 3, height, width))",
                DropBlockWarning,
                stacklevel=2,
            )

    @property
    def _is_paused(self) -> bool:
        """Whether the convolution alone was switched to eval mode, and not its block.

        A torch.fx graph does that: it holds layers and not blocks, so that ``graph.eval()`` reaches the layers alone.
        """
        owner = convolution = self.owner
        for name in self._convolution:
            convolution = getattr(convolution, name, None)
        return owner is not None and convolution is not None and owner.training and not convolution.training

    def __deepcopy__(self, memo: dict[int, Any]) -> Place:
        copied = Place.__new__(Place)
        copied.__dict__.update(self.__dict__)
        copied.owner = memo.get(id(self.owner))
        copied.injection = copy.deepcopy(self.injection, memo)
        return copied


def is_enabled(layer: nn.Module) -> bool:
    """Whether a layer is not paused; see :func:`dropblock_disabled`."""
    return getattr(layer, "enabled", True)


def target_of(layer: nn.Module) -> float:
    """The keep_prob that a DropBlock was made with, or that the plan has for the site of another injected layer."""
    label = Label.of(layer)
    if label is None or isinstance(layer, DropBlock):
        return layer.target_keep_prob  # type: ignore[return-value]
    return label.site.keep_prob
