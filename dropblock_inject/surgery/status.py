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
from .keep_prob import keep_prob_of
from .liveness import SiteInModel, gone, injected
from .place import is_enabled
from .site import Part, Where
from .splice import dropping_layers
from .switched import switched
from .text_table import text_table


@dataclass(frozen=True)
class SiteStatus:
    """One site of a model as it is now.

    Attributes:
        name: dotted name of its DropBlock in the model.
        stage, part, where: as in the plan; the stage is None off the trunk.
        layer: class of the layer that stands there, such as ``"DropBlock"``; ``"nothing"`` if it was deleted.
        keep_prob: the value set now, in (0, 1]; of another layer 1 less its `p` or `drop_prob`, 1 of an identity, and
            None of a layer that does not say it.
        effective_keep_prob: the share of the map that the next forward pass keeps, in expectation. It is 1 where
            nothing is dropped (eval mode, paused, not live), and None where it is not known. Without calibration it is
            more than `keep_prob`.
        block_size: as asked for; a float is a share of the map. None if no DropBlock stands there.
        training: its mode flag: it drops nothing in eval mode.
        live: whether the forward pass goes through it as planned.
    """

    name: str
    stage: int | None
    part: Part
    where: Where
    layer: str
    keep_prob: float | None
    effective_keep_prob: float | None
    block_size: int | float | tuple[int, ...] | None
    training: bool
    live: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values, for loggers and JSON."""
        return asdict(self)


class SiteTable(list[SiteStatus]):
    """A list of :class:`SiteStatus`; its ``str()`` is a table."""

    def __str__(self) -> str:
        rows = [("stage", "site", "where", "layer", "block", "keep_prob", "keeps now", "state")]
        for site in self:
            state = ("on" if site.training else "off") if site.live else "dead"
            block = "x".join(map(str, site.block_size)) if isinstance(site.block_size, tuple) else site.block_size
            numbers = _number(site.keep_prob), _number(site.effective_keep_prob), state
            stage = site.part if site.stage is None else str(site.stage)
            rows.append((stage, site.name, site.where, site.layer, str(block or ""), *numbers))
        return "\n".join(text_table(rows, right={0, 4, 5, 6})) if self else "no injected DropBlocks"


def dropblock_sites(model: nn.Module) -> SiteTable:
    """A row per site that :func:`inject_dropblock` made in `model`; empty if there is none. ``print()`` shows a table.

    >>> from torchvision.models import resnet18
    >>> from dropblock_inject import inject_dropblock
    >>> model = resnet18().train()
    >>> _ = inject_dropblock(model, stages=4, where="skip", keep_prob=0.8)
    >>> print(dropblock_sites(model))
    stage  site                where  layer      block  keep_prob  keeps now  state
    -----  ------------------  -----  ---------  -----  ---------  ---------  -----
        4  layer4.0.drop_skip  skip   DropBlock      7        0.8        0.8  on
        4  layer4.1.drop_skip  skip   DropBlock      7        0.8        0.8  on
    """
    return SiteTable(_status(row) for row in injected(model))


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _status(row: SiteInModel) -> SiteStatus:
    layer, site = row.layer, row.site
    kind = "nothing" if layer is None else "DropBlock" if isinstance(layer, DropBlock) else type(layer).__name__
    training, live = layer is not None and layer.training and is_enabled(layer), row.problem is None
    if not isinstance(layer, DropBlock):
        keep_prob = 1.0 if layer is None or isinstance(layer, nn.Identity) else keep_prob_of(layer)
        now = keep_prob if training and live else 1.0
        return SiteStatus(row.name, site.stage, site.part, site.where, kind, keep_prob, now, None, training, live)
    now = 1.0
    if training and live and layer.keep_prob < 1:
        now = expected_share(layer.keep_prob, site.map_size, site.block_size, layer.calibrated)
    block_size = layer.block_size if isinstance(layer.block_size, int | float) else tuple(layer.block_size)
    return SiteStatus(
        row.name, site.stage, site.part, site.where, kind, layer.keep_prob, now, block_size, training, live
    )


def check_dropblock(model: nn.Module) -> None:
    """Raises if the forward pass does not go through every injected site as planned.

    That happens when a module with a hook was replaced, wrapped or fused, or is used in a second place:
    ``SyncBatchNorm.convert_sync_batchnorm``, fusion, quantization and adapters do that. A DropBlock that you replaced
    or deleted yourself is not reported: the module that stands at its site acts.

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
    sites = injected(model)
    faults = [f"{row.name}, {row.problem}" for row in sites if row.problem]
    missing = gone(sites)
    faults += [f"{name}, which is gone" for name in missing]
    if faults:
        lines = "\n".join(f"  {line}" for line in faults)
        raise DeadSiteError(
            f"{len(faults)} of {len(sites) + len(missing)} injected DropBlocks no longer take part in the forward "
            f"pass:\n{lines}\n"
            "A module was replaced, wrapped, fused or shared after the injection (SyncBatchNorm, adapters, "
            "quantization, a new stage?). Call remove_dropblock(model), then inject_dropblock(model, ...) again, after "
            "that change"
        )


@contextmanager
def dropblock_disabled(model: nn.Module) -> Iterator[None]:
    """Within this context no DropBlock and no injected layer of `model` drops anything; afterwards each is as before.

    It is for code that must see the plain network in training mode: ``update_bn`` of stochastic weight averaging,
    gradient checks, range tests.

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
    with switched(list(dropping_layers(model).values()), _pause):
        yield


def _pause(layer: nn.Module) -> None:
    vars(layer)["enabled"] = False
