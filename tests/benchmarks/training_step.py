"""The cost of a training step without DropBlock, with this package, and with torchvision's layer at the same sites.

    python tests/benchmarks/training_step.py                      # ResNet-50 and EfficientNet-B0, batch 8
    python tests/benchmarks/training_step.py --compile            # the same under torch.compile

The three networks have the same weights and take turns in one run. The figures are medians.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from unittest import mock

import timm
import torch
from layers import OPERATORS, OURS, TORCHVISION, Operator
from tables import markdown
from torch import Tensor, nn

from dropblock_inject import dropblock_sites, inject_dropblock
from dropblock_inject.command.bench import interleaved, machine
from dropblock_inject.ops import layer

NETWORKS = ("resnet50", "efficientnet_b0")
NONE = "none"


def networks(name: str) -> dict[str, nn.Module]:
    """The network without DropBlock, and twice with it in stages 3 and 4."""
    plain = timm.create_model(name)
    injected = copy.deepcopy(plain)
    inject_dropblock(injected)
    return {NONE: plain, OURS: injected, TORCHVISION: copy.deepcopy(injected)}


def step(net: nn.Module, images: Tensor, labels: Tensor, autocast: bool, operator: Operator) -> Callable[[], object]:
    """A training step, with another operator in place of :func:`drop_block` at the same sites with the same hooks."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        with mock.patch.object(layer, "drop_block", operator):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
                loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
        optimizer.step()

    return run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of timm (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=150, help="for each network (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="through torch.compile; without torchvision's layer")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, channels_last")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    print(f"{machine()}; batch {arguments.batch}, {arguments.image_size} px; medians, in one run")
    rows = []
    for name in arguments.networks:
        memory_format = torch.channels_last if arguments.bf16 else torch.contiguous_format
        size = (arguments.batch, 3, arguments.image_size, arguments.image_size)
        images = torch.randn(size, device=arguments.device).to(memory_format=memory_format)
        labels = torch.randint(1000, (arguments.batch,), device=arguments.device)
        candidates = {}
        for kind, net in networks(name).items():
            net.train().to(arguments.device, memory_format=memory_format)
            sites = len(dropblock_sites(net))
            if arguments.compile:
                if kind == TORCHVISION:
                    continue
                net = torch.compile(net, fullgraph=True)
            candidates[f"{kind}, {sites} sites"] = step(
                net, images, labels, arguments.bf16, OPERATORS.get(kind, OPERATORS[OURS])
            )
        found = interleaved(candidates, arguments.seconds)
        without = next(iter(found.values()))
        rows += [(name, kind, f"{seconds * 1e3:.0f}", f"{seconds / without:.3f}") for kind, seconds in found.items()]
    print(markdown(("network", "DropBlock", "training step, ms", "ratio"), rows))


if __name__ == "__main__":
    main()
