"""A look at the first training steps: does every DropBlock drop something?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from ..errors import DeadSiteError
from ..ops.gamma import block_size_in_force
from ..ops.layer import DropBlock
from ..surgery.splice import dropping_layers

logger = logging.getLogger(__name__)

_MIN_EXPECTED_BLOCKS = 40  # none at all is no accident where so many are expected: its probability is exp(-40)


class DropMonitor:
    """Looks at what goes in and out of every DropBlock of a model, until each has dropped something."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._steps = 0
        self._monitors: dict[str, SiteMonitor] = {}
        for name, layer in dropping_layers(model).items():
            if isinstance(layer, DropBlock):
                layer.monitor = self._monitors[name] = SiteMonitor(layer)

    def done(self) -> bool:
        """Looks back after a training step; True if all have dropped something and no more steps need to be looked at.

        Raises:
            DeadSiteError: in the first step a DropBlock did not run, or not in training mode; or it dropped nothing
                although a good many blocks were due.
        """
        self._steps += 1
        here = set(map(id, dropping_layers(self.model).values()))
        watched = {name: monitor for name, monitor in self._monitors.items() if id(monitor.layer) in here}
        silent = {name: reason for name, monitor in watched.items() if (reason := monitor.fault())}
        if silent:
            self.stop()
            lines = "\n".join(f"  {name}: {reason}" for name, reason in silent.items())
            raise DeadSiteError(
                f"{len(silent)} of {len(watched)} DropBlocks dropped nothing in the first {self._steps} training "
                f"step(s):\n{lines}\n"
                "Leave these sites out (exclude=) or mend the reason; with verify=False nobody looks"
            )
        if not all(monitor.settled for monitor in watched.values()):
            return False
        self.stop()
        logger.info("all %d DropBlocks took part in the training by step %d", len(watched), self._steps)
        return True

    def stop(self) -> None:
        """Takes the monitors off."""
        for monitor in self._monitors.values():
            if monitor.layer.monitor is monitor:
                monitor.layer.monitor = None


class SiteMonitor:
    """The record of what one DropBlock did."""

    def __init__(self, layer: DropBlock) -> None:
        self.layer = layer
        self.ran = False  # in training mode
        self.ran_idle = False  # in eval mode, or paused
        self.compiled = False
        self.dropped = False
        self.blocks_due = 0.0

    def __call__(self, drop: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
        if not (self.layer.training and self.layer.enabled):
            self.ran_idle = True
            return drop(input)
        self.ran = True
        if torch.compiler.is_compiling():
            self.compiled = True  # numbers could be looked at only by breaking the graph
            return drop(input)
        if self.settled or input.numel() == 0:
            return drop(input)
        kept_before = int(input.detach().count_nonzero())
        output = drop(input)
        self.dropped = int(output.detach().count_nonzero()) < kept_before
        self.blocks_due += (1 - self.layer.keep_prob) * kept_before / self._elements_of_a_block(input)
        return output

    def _elements_of_a_block(self, input: Tensor) -> int:
        map_size = list(input.shape[1:])
        channels = map_size.pop(self.layer.channel_dim - (self.layer.channel_dim > 0))
        block = block_size_in_force(self.layer.block_size, map_size)
        return prod(block) * (1 if self.layer.per_channel else channels)

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.dropped or self.compiled or self.layer.target_keep_prob == 1

    def fault(self) -> str | None:
        """What is wrong with it, if anything is."""
        if not self.ran and self.ran_idle:
            return "ran in eval mode or paused only, while the model was trained"
        if not self.ran:
            return "did not run"
        if not self.settled and self.blocks_due > _MIN_EXPECTED_BLOCKS:
            return f"dropped nothing where some {self.blocks_due:.0f} blocks were due"
        return None
