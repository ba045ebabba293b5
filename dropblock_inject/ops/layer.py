"""DropBlock: the module that calls :func:`drop_block`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CompiledModelError
from .functional import BlockSize, Rescale, check_arguments, drop_block

NOT_SCRIPTABLE = (
    "DropBlock cannot be compiled by torch.jit.script: call remove_dropblock(model) first, "
    "which changes nothing in eval mode, or use torch.compile, torch.export or torch.jit.trace"
)


class DropBlock(nn.Module):
    """See :func:`drop_block`. It has no parameters and no buffers, so it is not in a state dict.

    Args:
        keep_prob: share of the feature map to keep, in (0, 1]. `layer.keep_prob` can be set at any time between
            two steps. `layer.target_keep_prob` keeps this value, at which a schedule ends.
        block_size, per_channel, rescale, calibrated, channel_dim, generator, inplace: as in :func:`drop_block`.

    Attributes:
        enabled: if False the layer returns its input, in training mode too.
        monitor: None, or a callable that gets the function of the layer and its input, and returns the output. A copy
            of the layer has none.

    Shape: (N, C, L), (N, C, H, W) or (N, C, D, H, W). The output has the shape and dtype of the input.

    >>> DropBlock(0.9, block_size=5)
    DropBlock(keep_prob=0.9, block_size=5)
    >>> x = torch.ones(2, 3, 8, 8)
    >>> DropBlock().eval()(x) is x
    True
    """

    def __init__(
        self,
        keep_prob: float = 0.9,
        block_size: BlockSize = 7,
        *,
        per_channel: bool = True,
        rescale: Rescale = "batch",
        calibrated: bool = True,
        channel_dim: int = 1,
        generator: torch.Generator | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.rescale: Rescale = rescale
        self.keep_prob = keep_prob  # checks all three
        self.target_keep_prob = self.keep_prob
        self.per_channel = per_channel
        self.calibrated = calibrated
        self.channel_dim = channel_dim
        self.generator = generator
        self.inplace = inplace
        self.enabled = True
        self.monitor: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None

    @property
    def keep_prob(self) -> float:
        """Current share of the feature map to keep, in (0, 1]."""
        return self._keep_prob

    @keep_prob.setter
    def keep_prob(self, value: float) -> None:
        check_arguments(value, self.block_size, self.rescale)
        self._keep_prob = float(value)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return leaf_call(self, input)
        return self._drop(input) if self.monitor is None else self.monitor(self._drop, input)

    def _drop(self, input: Tensor) -> Tensor:
        if not (self.training and self.enabled):
            return input
        return drop_block(
            input,
            self._keep_prob,
            self.block_size,
            per_channel=self.per_channel,
            rescale=self.rescale,
            calibrated=self.calibrated,
            channel_dim=self.channel_dim,
            generator=self.generator,
            inplace=self.inplace,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "monitor": None}

    def extra_repr(self) -> str:
        options = [f"keep_prob={self._keep_prob:.6g}", f"block_size={self.block_size!r}"]
        for name, parameter in inspect.signature(DropBlock).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and getattr(self, name) != parameter.default:
                options.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(options)

    def __prepare_scriptable__(self) -> nn.Module:
        raise CompiledModelError(NOT_SCRIPTABLE)


def leaf_call(module: nn.Module, input: torch.fx.Proxy) -> Any:
    """The call of `module` as one node of a torch.fx graph. So the graph follows the module's mode and keep_prob."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), {})
