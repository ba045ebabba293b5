"""DropBlock on, whatever mode the model is in."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import DropBlockTypeError, DropBlockValueError
from ..ops.functional import Rescale, check_arguments
from ..ops.layer import DropBlock
from ..surgery.keep_prob import NEEDED, has_settable_keep_prob, keep_prob_of, set_keep_prob
from ..surgery.splice import dropping_layers
from ..surgery.status import check_dropblock
from ..surgery.switched import switched

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


@contextmanager
def mc_dropblock(model: nn.Module, *, keep_prob: float | None = None, rescale: Rescale = "expected") -> Iterator[None]:
    """Within this context every DropBlock of `model` drops, in eval mode too; afterwards each is as it was before.

    Nothing else changes: BatchNorm, Dropout and the rest are in the mode that they are in. Layers that were injected by
    ``layer=`` are on as well. Call ``model.eval()`` before: within the context it would switch DropBlock off again.
    Another thread that enters the context of the same model waits. A copy or pickle that is made within is of the model
    as it was before. A :class:`KeepProbSchedule` that steps within sets its own value at once, which stays afterwards.

    The network must have been trained with DropBlock. One that was not collapses when parts of its maps are missing
    (figure 5 of the paper, arXiv 1810.12890), and its passes say nothing. A checkpoint of weights does not tell.
    The state of :class:`dropblock_inject.KeepProbSchedule` does: load it, and each site has the keep_prob that the
    training had reached.

    Args:
        model: a model with injected DropBlocks, or with DropBlock layers of its own.
        keep_prob: share of the map to keep, in (0, 1], at every site alike; None: the value that is set now.
        rescale: as in :func:`drop_block`. With ``"batch"`` the images of a batch would depend on each other.

    Raises:
        DropBlockTypeError: `model` is not a module.
        DropBlockValueError: the model has no DropBlock, or all are at keep_prob 1 and `keep_prob` is None.
        DeadSiteError: an injected DropBlock no longer takes part in the forward pass.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> from dropblock_inject import inject_dropblock
    >>> model = resnet18().eval()
    >>> _ = inject_dropblock(model)
    >>> images = torch.rand(2, 3, 64, 64)
    >>> with mc_dropblock(model):
    ...     torch.equal(model(images), model(images))
    False
    >>> torch.equal(model(images), model(images))
    True
    """
    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = list(dropping_layers(model).values())
    if not layers:
        raise DropBlockValueError(
            f"{type(model).__name__} has no DropBlock, so that all passes would be the same: call "
            "inject_dropblock(model, ...) with the arguments that it was trained with"
        )
    if keep_prob is not None:
        check_arguments(keep_prob, 1, rescale)
    elif all(keep_prob_of(layer) == 1 for layer in layers):
        raise DropBlockValueError(
            f"all {len(layers)} DropBlocks of {type(model).__name__} are at keep_prob 1, so that all passes would be "
            "the same: load the state of the KeepProbSchedule that it was trained with, or use "
            "mc_dropblock(model, keep_prob=...)"
        )
    check_arguments(1.0, 1, rescale)
    check_dropblock(model)
    fixed = {type(layer).__name__ for layer in layers if not has_settable_keep_prob(layer)}
    if keep_prob is not None and fixed:
        raise DropBlockValueError(
            f"keep_prob={keep_prob} cannot be set on a {', '.join(sorted(fixed))}: such a layer needs {NEEDED}"
        )

    def switch_on(layer: nn.Module) -> None:
        layer.train()
        if hasattr(layer, "enabled"):  # a DropBlock, or another layer within dropblock_disabled
            vars(layer)["enabled"] = True
        if keep_prob is not None:
            set_keep_prob(layer, keep_prob)
        if isinstance(layer, DropBlock):
            layer.rescale = rescale

    with mc_lock(model), switched(layers, switch_on):
        yield


def mc_lock(model: nn.Module) -> threading.RLock:
    """The lock of a model, by which one thread at a time has DropBlock on."""
    return _locks.setdefault(model, threading.RLock())
