"""Looking at an injected model, and pausing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..errors import DeadSiteError
from ..ops.gamma import expected_share
from ..ops.layer import DropBlock
from .hooks import InjectedDropBlock
from .site import Where
from .splice import injected


@dataclass(frozen=True)
class SiteStatus:
    """One injected DropBlock as it is now.

    Attributes:
        name: its dotted name in the model.
        stage, where: as in the plan.
        keep_prob: the value set now, in (0, 1].
        effective_keep_prob: the share of the map that the next forward pass keeps, in expectation: 1 where nothing is
            dropped (eval mode, paused, not live); without calibration more than `keep_prob`, where blocks overlap.
        block_size: as asked for; a float is a share of the map.
        training: its mode flag: it drops nothing in eval mode.
        live: whether the forward pass still goes through it.
    """

    name: str
    stage: int
    where: Where
    keep_prob: float
    effective_keep_prob: float
    block_size: int | float | tuple[int, ...]
    training: bool
    live: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values, for loggers and JSON."""
        return asdict(self)


def dropblock_sites(model: nn.Module) -> list[SiteStatus]:
    """A row per DropBlock that :func:`inject_dropblock` put into `model`; empty if there is none.

    >>> from torchvision.models import resnet18
    >>> from dropblock_inject import inject_dropblock
    >>> model = resnet18()
    >>> _ = inject_dropblock(model, stages=4, where="skip", keep_prob=0.8)
    >>> [(site.name, site.keep_prob, site.training, site.live) for site in dropblock_sites(model.train())]
    [('layer4.0.downsample.0.drop_skip', 0.8, True, True), ('layer4.1.drop_skip', 0.8, True, True)]
    """
    return [
        SiteStatus(
            name,
            drop.site.stage,
            drop.site.where,
            drop.keep_prob,
            _effective_keep_prob(drop) if live else 1.0,
            drop.block_size if isinstance(drop.block_size, int | float) else tuple(drop.block_size),
            drop.training and drop.enabled,
            live,
        )
        for name, drop, live in injected(model)
    ]


def _effective_keep_prob(drop: InjectedDropBlock) -> float:
    if not drop.drops:
        return 1.0
    return expected_share(drop.keep_prob, drop.site.map_size, drop.site.block_size, drop.calibrated)


def check_dropblock(model: nn.Module) -> None:
    """Raises if an injected DropBlock no longer takes part in the forward pass.

    That happens when a module it hangs on was replaced: ``SyncBatchNorm.convert_sync_batchnorm`` and module fusion do
    that, and the DropBlock would go on being listed while it does nothing.

    Raises:
        DeadSiteError: names the sites and the mend.

    >>> from torch.nn import SyncBatchNorm
    >>> from torchvision.models import resnet18
    >>> from dropblock_inject import inject_dropblock
    >>> model = resnet18()
    >>> _ = inject_dropblock(model)
    >>> check_dropblock(model)
    >>> check_dropblock(SyncBatchNorm.convert_sync_batchnorm(model))
    Traceback (most recent call last):
    dropblock_inject.errors.DeadSiteError: 8 of 12 injected DropBlocks no longer take part in the forward pass:
    ...
    """
    found = injected(model)
    lost = [f"{name}, after {drop.site.host}" for name, drop, live in found if not live]
    there = {drop.site.name for _, drop, _ in found}
    total = {name for _, drop, _ in found for name in drop.together}
    lost += [f"{name}, which is gone" for name in sorted(total - there)]
    if lost:
        lines = "\n".join(f"  {line}" for line in lost)
        raise DeadSiteError(
            f"{len(lost)} of {len(total)} injected DropBlocks no longer take part in the forward pass:\n{lines}\n"
            "A module that held them was replaced after the injection (conversion to SyncBatchNorm, fusion, a new "
            "stage?). Call remove_dropblock(model), then inject_dropblock(model, ...) again, after that change"
        )


@contextmanager
def dropblock_disabled(model: nn.Module) -> Iterator[None]:
    """Within this context no DropBlock of `model` drops anything; afterwards each is as it was before.

    For what must see the plain network in training mode: ``update_bn`` of stochastic weight averaging, gradient
    checks, range tests.

    >>> from torchvision.models import resnet18
    >>> from dropblock_inject import inject_dropblock
    >>> model = resnet18().train()
    >>> _ = inject_dropblock(model)
    >>> with dropblock_disabled(model):
    ...     any(site.training for site in dropblock_sites(model))
    False
    >>> all(site.training for site in dropblock_sites(model))
    True
    """
    layers = [module for module in model.modules() if isinstance(module, DropBlock)]
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled
