"""Compares this package with other implementations of DropBlock: each claim with the line that shows it.

    pip install "dropblock-inject[examples]" dropblock torchregularize torchtoolbox pylocron
    python examples/pages/peers.py
    python examples/pages/peers.py --markdown               # examples/peers.md

A library that is not installed is left out, with a message.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dropblock_inject


class Claim(NamedTuple):
    """What `theirs` prints is the matter with a library; `ours` is the same done here. Both are Python expressions."""

    what: str
    theirs: str
    ours: str


class Peer(NamedTuple):
    package: str  # on PyPI
    imports: dict[str, str]  # names for the expressions, and where they are from
    claims: tuple[Claim, ...]


PEERS = (
    Peer(
        "timm",
        {"their_drop": "timm.layers.drop:drop_block_2d", "TheirDrop": "timm.layers:DropBlock2d"},
        (
            Claim(
                "keeps 7 % where 90 % are asked for",
                "kept(their_drop(torch.ones(2**16, 1, 7, 7), 0.1, 7))",
                "kept(drop_block(torch.ones(2**16, 1, 7, 7), 0.9, 7))",
            ),
            Claim(
                "NaN in half precision when all is dropped",
                "their_drop(torch.ones(4, 1, 7, 7).half(), 0.9, 7).isnan().any()",
                "drop_block(torch.ones(4, 1, 7, 7).half(), 0.1, 7).isnan().any()",
            ),
            Claim(
                "scales single samples at random: their means, 1 before",
                "spread(their_drop(torch.ones(8, 64, 14, 14), 0.3, 7))",
                "spread(drop_block(torch.ones(8, 64, 14, 14), 0.7, 7))",
            ),
            Claim(
                "most of its networks take none",
                "timm.create_model('efficientnet_b0', drop_block_rate=0.1)",
                "len(inject_dropblock(timm.create_model('efficientnet_b0')))",
            ),
            Claim(
                "some take the argument and get no DropBlock",
                "count(timm.create_model('mobileone_s0', drop_block_rate=0.1))",
                "len(inject_dropblock(timm.create_model('mobileone_s0')))",
            ),
            Claim(
                "9 of the paper's 36 places in a ResNet-50, none on a shortcut",
                "count(timm.create_model('resnet50', drop_block_rate=0.1))",
                "len(inject_dropblock(timm.create_model('resnet50')))",
            ),
            Claim(
                "breaks torch.fx, and with it feature extractors",
                "torch.fx.symbolic_trace(timm.create_model('resnet18', drop_block_rate=0.1))",
                "torch.fx.symbolic_trace(injected(timm.create_model('resnet18')))",
            ),
            Claim(
                "compiles anew for each probability until torch gives up: graphs for 20 values",
                "graphs(TheirDrop(0.1, 3), 'drop_prob')",
                "graphs(DropBlock(0.9, 3), 'keep_prob')",
            ),
        ),
    ),
    Peer(
        "torchvision",
        {"their_drop": "torchvision.ops:drop_block2d", "TheirDrop": "torchvision.ops:DropBlock2d"},
        (
            Claim(
                "keeps 64 % where 50 % are asked for",
                "kept(their_drop(torch.ones(2**16, 1, 14, 14), 0.5, 7))",
                "kept(drop_block(torch.ones(2**16, 1, 14, 14), 0.5, 7))",
            ),
            Claim(
                "all zeros in half precision",
                "their_drop(torch.ones(64, 256, 28, 28).half(), 0.1, 7).max()",
                "drop_block(torch.ones(64, 256, 28, 28).half(), 0.9, 7).max()",
            ),
            Claim(
                "refuses maps smaller than the block, if even",
                "their_drop(torch.ones(1, 8, 6, 6), 0.1, 7).shape",
                "drop_block(torch.ones(1, 8, 6, 6), 0.9, 7).shape",
            ),
            Claim(
                "makes NaN of an infinite value that it drops",
                "their_drop(torch.full((9, 9, 9, 9), torch.inf), 0.5, 3).isnan().any()",
                "drop_block(torch.full((9, 9, 9, 9), torch.inf), 0.5, 3).isnan().any()",
            ),
            Claim(
                "an fx graph goes on dropping in eval mode",
                "kept(torch.fx.symbolic_trace(Holder(TheirDrop(0.5, 3))).eval()(torch.ones(9, 9, 9, 9)))",
                "kept(torch.fx.symbolic_trace(Holder(DropBlock(0.5, 3))).eval()(torch.ones(9, 9, 9, 9)))",
            ),
            Claim(
                "keeps for the backward pass as much again as its input",
                "saved(lambda x: their_drop(x, 0.1, 7), torch.ones(8, 64, 28, 28))",
                "saved(lambda x: drop_block(x, 0.9, 7), torch.ones(8, 64, 28, 28))",
            ),
            Claim(
                "compiles anew for each probability until torch gives up: graphs for 20 values",
                "graphs(TheirDrop(0.1, 3), 'p')",
                "graphs(DropBlock(0.9, 3), 'keep_prob')",
            ),
        ),
    ),
    Peer(
        "dropblock",
        {"TheirDrop": "dropblock:DropBlock2D", "TheirSchedule": "dropblock:LinearScheduler"},
        (
            Claim(
                "keeps 75 % where 50 % are asked for",
                "kept(TheirDrop(0.5, 7)(torch.ones(2**16, 1, 7, 7)))",
                "kept(drop_block(torch.ones(2**16, 1, 7, 7), 0.5, 7))",
            ),
            Claim(
                "NaN when all is dropped: of 5,000 single maps",
                "sum(TheirDrop(0.25, 7)(torch.ones(1, 1, 7, 7)).isnan().any() for _ in range(5000))",
                "sum(drop_block(torch.ones(1, 1, 7, 7), 0.75, 7).isnan().any() for _ in range(5000))",
            ),
            Claim(
                "its schedule is not in a checkpoint",
                "TheirSchedule(TheirDrop(0.0, 3), 0.0, 0.25, 5).state_dict().keys()",
                "KeepProbSchedule(DropBlock(0.75, 3), 5).state_dict().keys()",
            ),
            Claim(
                "half precision comes out as single",
                "TheirDrop(0.1, 3)(torch.ones(1, 1, 9, 9).half()).dtype",
                "drop_block(torch.ones(1, 1, 9, 9).half(), 0.9, 3).dtype",
            ),
            Claim(
                "takes a probability of 1.5",
                "TheirDrop(1.5, 3)(torch.ones(1, 1, 9, 9)).shape",
                "drop_block(torch.ones(1, 1, 9, 9), -0.5, 3)",
            ),
        ),
    ),
    Peer(
        "torchregularize",
        {"TheirDrop": "torchregularize:DropBlock2D"},
        (
            Claim(
                "does not rescale: the mean of ones",
                "TheirDrop(3, 0.3)(torch.ones(512, 1, 14, 14)).mean()",
                "drop_block(torch.ones(512, 1, 14, 14), 0.7, 3).mean()",
            ),
            Claim(
                "crashes on even blocks",
                "TheirDrop(4, 0.1)(torch.ones(1, 1, 14, 14)).shape",
                "drop_block(torch.ones(1, 1, 14, 14), 0.9, 4).shape",
            ),
        ),
    ),
    Peer(
        "torchtoolbox",
        {
            "TheirDrop": "torchtoolbox.nn:DropBlock2d",
            "TheirSchedule": "torchtoolbox.optimizer.drop_block_scheduler:DropBlockScheduler",
        },
        (
            Claim(
                "keeps 98 % where 90 % are asked for",
                "kept(TheirDrop(0.1, 7).train()(torch.ones(2**16, 1, 14, 14)))",
                "kept(drop_block(torch.ones(2**16, 1, 14, 14), 0.9, 7))",
            ),
            Claim(
                "its schedule runs past its end: after 40 of 20 steps, to 0.1",
                "after(TheirSchedule(TheirDrop(0.0, 3), 20, 1, 0.0, 0.1), 40, 'value')",
                "1 - KeepProbSchedule(DropBlock(0.9, 3), 20).value_at(40)",
            ),
        ),
    ),
    Peer(
        "pylocron",
        {"their_drop": "holocron.nn.functional:dropblock2d"},
        (
            Claim(
                "all zeros in half precision",
                "their_drop(torch.ones(128, 8, 28, 28).half(), 0.1, 7).max()",
                "drop_block(torch.ones(128, 8, 28, 28).half(), 0.9, 7).max()",
            ),
            Claim(
                "crashes on even blocks",
                "their_drop(torch.ones(1, 1, 14, 14), 0.1, 4).shape",
                "drop_block(torch.ones(1, 1, 14, 14), 0.9, 4).shape",
            ),
        ),
    ),
)

# Of other frameworks, or not to be installed with today's torch: what their source says.
READ = {
    "the authors' (tensorflow/tpu, models/official/resnet/resnet_model.py)": (
        "square maps only, bottleneck blocks only; NaN when all is dropped"
    ),
    "MMDetection (mmdet/models/plugins/dropblock.py)": (
        "gamma of the block before it is clipped: a map smaller than the block fails; the schedule counts forward "
        "passes in a plain attribute, so that it is in no checkpoint and activation checkpointing counts twice"
    ),
    "KerasCV (keras_cv/layers/regularization/dropblock_2d.py)": (
        "the rows of valid seeds are bounded by the width; NaN for a block as large as the map, as its text says"
    ),
    "PaddleDetection (class DropBlock in ppdet/modeling/layers.py)": (
        "gamma of the block before it is clipped: with a block two larger than one side it is negative, and all is kept"
    ),
    "PyTorch-Encoding (encoding/nn/dropblock.py)": (
        "a schedule that begins at 0 never begins: the forward pass ends before its step while nothing is dropped"
    ),
    "MetaOptNet and its copies (models/dropblock.py)": (
        "calls .cuda() itself; the schedule has its 40,000 steps written into the network"
    ),
}


PAGE = """# Beside other implementations

Made by `python peers.py --markdown`, which runs every line here: what another implementation prints, and what this one
does with the same. The helpers (`kept`, `spread`, `graphs`, …) are in `peers.py`."""


class Holder(nn.Module):
    """A module around the layer, as in a network."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def kept(output: Tensor) -> float:
    """The share of ones that is left."""
    return output.ne(0).float().mean().item()


def spread(output: Tensor) -> str:
    """The smallest and the largest mean of a sample."""
    means = output.mean((1, 2, 3))
    return f"{means.min():.2f} to {means.max():.2f}"


def count(model: nn.Module) -> int:
    """How many DropBlocks a network has."""
    return sum("DropBlock" in type(module).__name__ for module in model.modules())


def injected(model: nn.Module) -> nn.Module:
    dropblock_inject.inject_dropblock(model)
    return model


def after(schedule: Any, steps: int, attribute: str) -> float:
    for _ in range(steps):
        schedule.step()
    return getattr(schedule, attribute)


def saved(function: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """What autograd keeps of a call, as a share of its input."""
    kept_for_backward: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept_for_backward[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)
    return f"{sum(kept_for_backward.values()) / (x.numel() * x.element_size()):.1%}"


def graphs(layer: nn.Module, probability: str) -> str:
    """How many graphs torch.compile makes of 20 values of a probability."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer.train(), backend="aot_eager", fullgraph=True)
    first = getattr(layer, probability)
    for step in range(20):
        setattr(layer, probability, first - 0.001 * step)
        try:
            compiled(torch.ones(2, 4, 9, 9))
        except Exception as error:  # dynamo has several of its own
            return f"{type(error).__name__} at value {step + 1}"
    return str(torch._dynamo.utils.counters["stats"]["unique_graphs"])


HELPERS = (Holder, after, count, graphs, injected, kept, saved, spread)


def evaluate(expression: str, names: dict[str, Any]) -> str:
    """What an expression comes to; the name of the error if it raises one."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = eval(expression, names)
    except Exception as error:
        return type(error).__name__
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    if hasattr(value, "keys") or isinstance(value, type({}.keys())):
        return ", ".join(value) or "nothing"
    return str(tuple(value)) if isinstance(value, torch.Size) else str(value)


def compare() -> Iterator[tuple[str, Claim, str, str]]:
    """Each claim about a library that is installed: what it prints, and what the same prints here."""
    own = {name: getattr(dropblock_inject, name) for name in dropblock_inject.__all__}
    own |= {helper.__name__: helper for helper in HELPERS} | {"torch": torch, "nn": nn}
    for peer in PEERS:
        try:
            names = {"timm": import_module("timm"), **own}
            for name, source in peer.imports.items():
                module, _, attribute = source.partition(":")
                names[name] = getattr(import_module(module), attribute)
        except ImportError as error:
            print(f"{peer.package} is left out: {error}", file=sys.stderr)
            continue
        for claim in peer.claims:
            yield peer.package, claim, evaluate(claim.theirs, names), evaluate(claim.ours, names)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Other implementations of DropBlock, beside this one.")
    parser.add_argument("--markdown", action="store_true", help="as the page peers.md")
    markdown = parser.parse_args(argv).markdown
    if markdown:
        print(PAGE)
    torch._logging.set_logs(dynamo=logging.CRITICAL)  # that it gives up is what is shown here
    previous = ""
    for package, claim, theirs, ours in compare():
        if package != previous:
            title = f"{package} {version(package)}"
            print(
                f"\n## {title}\n\n| it … | the line | prints | here |\n|---|---|---|---|" if markdown else f"\n{title}"
            )
            previous = package
        if markdown:
            print(f"| {claim.what} | `{claim.theirs}` | {theirs} | {ours} |")
        else:
            print(f"  {claim.what}\n    {claim.theirs}\n    -> {theirs}\n    {claim.ours}\n    -> {ours}")
    print("\n## Read, not run\n" if markdown else "\nread, not run")
    for project, finding in READ.items():
        print(f"- {project}: {finding}.")
    print(f"\nPython {platform.python_version()}, torch {torch.__version__.split('+')[0]}")


if __name__ == "__main__":
    main()
