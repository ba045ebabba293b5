"""A record of a whole model, to compare before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def everything(net: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, every dict in its order, tensors and objects by identity."""

    def held(value: Any) -> Any:
        if isinstance(value, dict):
            return [(key, id(entry)) for key, entry in value.items()]
        return value if isinstance(value, bool | int | float | str) else id(value)

    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters() if p.grad is not None)]
    return {
        "attributes": {
            name: (id(module), [(key, held(value)) for key, value in vars(module).items()])
            for name, module in net.named_modules(remove_duplicate=False)
        },
        "repr": repr(net),
        "keys": list(net.state_dict()),
        "tensors": [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors],
        "random numbers": torch.get_rng_state().numpy().tobytes(),
    }


def users_hook(module: nn.Module, args: tuple, output: Any = None) -> None:
    pass
