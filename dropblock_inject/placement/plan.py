"""The plan of an injection, and its report once it is carried out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

from torch import nn

from ..errors import AlreadyInjectedError, CompiledModelError, DropBlockTypeError, DropBlockValueError
from ..surgery.keep_prob import keep_prob_of
from ..surgery.liveness import injected
from ..surgery.site import Site
from ..surgery.splice import splice
from ..tracing.recorder import refuse_scripted
from .layers import MakeLayer, check_not_injected, make_layers
from .plan_summary import render_summary
from .plan_table import TraceSummary, render

logger = logging.getLogger(__name__)


class _Sites(Sequence[Site]):
    """A sequence of sites; its str() is a table."""

    def __init__(self, model: nn.Module, sites: Iterable[Site], trace: TraceSummary, layers: Sequence[str]) -> None:
        self.model = model
        self._sites = tuple(sites)
        self._trace = trace
        self._layers = tuple(layers)  # the class of the layer at each site

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Site]: ...
    def __getitem__(self, index: int | slice) -> Site | Sequence[Site]:
        return self._sites[index]

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} sites in {type(self.model).__name__}>"

    def as_dict(self) -> dict[str, Any]:
        """What the table shows as plain values, for loggers and JSON."""
        return {
            "model": type(self.model).__name__,
            "image_size": self._trace.image_size,
            "without_skip": self._trace.without_skip,
            "without_end": self._trace.without_end,
            "additions": self._trace.additions,
            "sums": self._trace.sums,
            "shared": self._trace.shared,
            "without_site": self._trace.without_site,
            "off_trunk": self._trace.off_trunk,
            "results": self._trace.results,
            "error": None if self._trace.error is None else str(self._trace.error),
            "sites": [
                {**site.as_dict(), "layer": layer} for site, layer in zip(self._sites, self._layers, strict=True)
            ],
        }

    def __str__(self) -> str:
        return render(type(self.model).__name__, self._sites, self._trace, self._layers)

    def summary(self) -> str:
        """A shorter table, with a line per stage in place of a line per site."""
        return render_summary(type(self.model).__name__, self._sites, self._trace, self._layers)


class InjectionReport(_Sites):
    """What was injected: a sequence of :class:`Site`; its ``str()`` is a table."""


class InjectionPlan(_Sites):
    """What would be injected: a sequence of :class:`Site`; its ``str()`` is a table."""

    def __init__(
        self,
        model: nn.Module,
        sites: Iterable[Site],
        trace: TraceSummary,
        make: MakeLayer,
    ) -> None:
        self._asked = tuple(sites)
        self._make = make
        layers = make_layers(self._asked, make)
        self._made: list[nn.Module] | None = layers
        sites = [_as_made(site, layer) for site, layer in zip(self._asked, layers, strict=True)]
        check_not_injected(sites, layers)
        super().__init__(model, sites, trace, [type(layer).__name__ for layer in layers])
        modules = _modules(model)
        self._modules = {name: modules.get(name) for site in self for name in site.splice.modules}

    def apply(self) -> InjectionReport:
        """Carries the plan out, all or nothing.

        Raises:
            AlreadyInjectedError, CompiledModelError: the model has been injected or compiled since.
            DropBlockValueError: modules of the model have been replaced since, or a layer has been injected.
        """
        check_model(self.model)
        modules = _modules(self.model)
        for name, module in self._modules.items():
            if modules.get(name) is not module:
                raise DropBlockValueError(
                    f"{name or 'the model'} is not the module it was when this plan was made; plan again"
                )
        layers = self._made or make_layers(self._asked, self._make)
        check_not_injected(self, layers)
        self._made = None
        # Nothing but the splicing may fail once it has begun: it takes back what it did.
        report = InjectionReport(self.model, self._sites, self._trace, self._layers)
        logger.info("putting %d layers into %s", len(self), type(self.model).__name__)
        splice(self.model, self._sites, layers)
        return report


def _as_made(site: Site, layer: nn.Module) -> Site:
    """The site with the keep_prob of the layer that was made for it, which may be another than was asked for."""
    keep_prob = keep_prob_of(layer)
    if keep_prob is None or math.isclose(keep_prob, site.keep_prob, abs_tol=1e-9):
        return site
    return replace(site, keep_prob=keep_prob)


def check_model(model: nn.Module) -> None:
    """Raises if nothing can be injected into a model as it is."""
    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    name = type(model).__name__
    already = injected(model)
    if already:
        raise AlreadyInjectedError(
            f"{name} has {len(already)} injected DropBlocks already (the first is {already[0].name}); call "
            "remove_dropblock(model) before injecting anew. To change keep_prob alone, set it on the layer of each "
            f"site, here model.get_submodule({already[0].name!r}).keep_prob"
        )
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise CompiledModelError(
                f"{name} is compiled, and a compiled model ignores hooks that are added later; inject first, then "
                "compile: inject_dropblock(model, ...); model = torch.compile(model)"
            )
    refuse_scripted(model)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))
