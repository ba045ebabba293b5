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
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dropblock_inject


class Claim(NamedTuple):
    """A defect of a library: a Python expression that shows it, and the expression for the same task here."""

    what: str
    theirs: str
    prints: str  # the value of `theirs`
    ours: str
    here: str  # the value of `ours`


class Peer(NamedTuple):
    package: str  # its name on PyPI
    imports: dict[str, str]  # the names in the expressions, each with its module and attribute
    claims: tuple[Claim, ...]


PEERS = (
    Peer(
        "timm",
        {"their_drop": "timm.layers.drop:drop_block_2d", "TheirDrop": "timm.layers:DropBlock2d"},
        (
            Claim(
                "keeps 7 % where 90 % are asked for",
                "kept(their_drop(torch.ones(2**16, 1, 7, 7), 0.1, 7))",
                "0.0699",
                "kept(drop_block(torch.ones(2**16, 1, 7, 7), 0.9, 7))",
                "0.901",
            ),
            Claim(
                "NaN in half precision when all is dropped",
                "their_drop(torch.ones(4, 1, 7, 7).half(), 0.9, 7).isnan().any()",
                "True",
                "drop_block(torch.ones(4, 1, 7, 7).half(), 0.1, 7).isnan().any()",
                "False",
            ),
            Claim(
                "scales single samples at random: the standard deviation of their means",
                "spread(their_drop(torch.ones(512, 64, 14, 14), 0.3, 7))",
                "0.391",
                "spread(drop_block(torch.ones(512, 64, 14, 14), 0.7, 7))",
                "0.0339",
            ),
            Claim(
                "most of its networks do not take the argument",
                "timm.create_model('efficientnet_b0', drop_block_rate=0.1)",
                "TypeError",
                "len(inject_dropblock(timm.create_model('efficientnet_b0')))",
                "40",
            ),
            Claim(
                "some take the argument and have no DropBlock",
                "count(timm.create_model('mobileone_s0', drop_block_rate=0.1))",
                "0",
                "len(inject_dropblock(timm.create_model('mobileone_s0')))",
                "99",
            ),
            Claim(
                "has 9 of the paper's 36 sites in a ResNet-50, none on a shortcut",
                "count(timm.create_model('resnet50', drop_block_rate=0.1))",
                "9",
                "len(inject_dropblock(timm.create_model('resnet50')))",
                "36",
            ),
            Claim(
                "breaks torch.fx, and with it feature extractors",
                "torch.fx.symbolic_trace(timm.create_model('resnet18', drop_block_rate=0.1))",
                "TraceError",
                "torch.fx.symbolic_trace(injected(timm.create_model('resnet18')))",
                "a ResNet",
            ),
            Claim(
                "is compiled again for each probability until torch gives up: graphs for 20 values",
                "graphs(TheirDrop(0.1, 3), 'drop_prob')",
                "FailOnRecompileLimitHit at value 9",
                "graphs(DropBlock(0.9, 3), 'keep_prob')",
                "2",
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
                "0.641",
                "kept(drop_block(torch.ones(2**16, 1, 14, 14), 0.5, 7))",
                "0.5",
            ),
            Claim(
                "all zeros in half precision",
                "their_drop(torch.ones(64, 256, 28, 28).half(), 0.1, 7).max()",
                "0",
                "drop_block(torch.ones(64, 256, 28, 28).half(), 0.9, 7).max()",
                "1.11",
            ),
            Claim(
                "refuses a map of even size that is smaller than the block",
                "their_drop(torch.ones(1, 8, 6, 6), 0.1, 7).shape",
                "ValueError",
                "drop_block(torch.ones(1, 8, 6, 6), 0.9, 7).shape",
                "(1, 8, 6, 6)",
            ),
            Claim(
                "turns an infinite value that it drops into NaN",
                "their_drop(torch.full((9, 9, 9, 9), torch.inf), 0.5, 3).isnan().any()",
                "True",
                "drop_block(torch.full((9, 9, 9, 9), torch.inf), 0.5, 3).isnan().any()",
                "False",
            ),
            Claim(
                "goes on dropping in the eval mode of an fx graph: the share kept",
                "kept(torch.fx.symbolic_trace(Holder(TheirDrop(0.5, 3))).eval()(torch.ones(9, 9, 9, 9)))",
                "0.624",
                "kept(torch.fx.symbolic_trace(Holder(DropBlock(0.5, 3))).eval()(torch.ones(9, 9, 9, 9)))",
                "1",
            ),
            Claim(
                "saves as much as its input for the backward pass",
                "saved(lambda x: their_drop(x, 0.1, 7), torch.ones(8, 64, 28, 28))",
                "100.0%",
                "saved(lambda x: drop_block(x, 0.9, 7), torch.ones(8, 64, 28, 28))",
                "0.4%",
            ),
            Claim(
                "is compiled again for each probability until torch gives up: graphs for 20 values",
                "graphs(TheirDrop(0.1, 3), 'p')",
                "FailOnRecompileLimitHit at value 9",
                "graphs(DropBlock(0.9, 3), 'keep_prob')",
                "2",
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
                "0.752",
                "kept(drop_block(torch.ones(2**16, 1, 7, 7), 0.5, 7))",
                "0.499",
            ),
            Claim(
                "NaN when all is dropped, which happens to some of 5,000 maps",
                "any(TheirDrop(0.25, 7)(torch.ones(1, 1, 7, 7)).isnan().any() for _ in range(5000))",
                "True",
                "any(drop_block(torch.ones(1, 1, 7, 7), 0.75, 7).isnan().any() for _ in range(5000))",
                "False",
            ),
            Claim(
                "its schedule has no state for a checkpoint",
                "TheirSchedule(TheirDrop(0.0, 3), 0.0, 0.25, 5).state_dict().keys()",
                "nothing",
                "KeepProbSchedule(DropBlock(0.75, 3), 5).state_dict().keys()",
                "last_step, total_steps, warmup_steps, start, end, mode, targets",
            ),
            Claim(
                "turns half precision into single",
                "TheirDrop(0.1, 3)(torch.ones(1, 1, 9, 9).half()).dtype",
                "torch.float32",
                "drop_block(torch.ones(1, 1, 9, 9).half(), 0.9, 3).dtype",
                "torch.float16",
            ),
            Claim(
                "takes a probability of 1.5",
                "TheirDrop(1.5, 3)(torch.ones(1, 1, 9, 9)).shape",
                "(1, 1, 9, 9)",
                "drop_block(torch.ones(1, 1, 9, 9), -0.5, 3)",
                "DropBlockValueError",
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
                "0.759",
                "drop_block(torch.ones(512, 1, 14, 14), 0.7, 3).mean()",
                "1",
            ),
            Claim(
                "crashes on even blocks",
                "TheirDrop(4, 0.1)(torch.ones(1, 1, 14, 14)).shape",
                "RuntimeError",
                "drop_block(torch.ones(1, 1, 14, 14), 0.9, 4).shape",
                "(1, 1, 14, 14)",
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
                "0.981",
                "kept(drop_block(torch.ones(2**16, 1, 14, 14), 0.9, 7))",
                "0.901",
            ),
            Claim(
                "its schedule runs past its end: 40 of 20 steps, to 0.1",
                "after(TheirSchedule(TheirDrop(0.0, 3), 20, 1, 0.0, 0.1), 40, 'value')",
                "0.195",
                "1 - KeepProbSchedule(DropBlock(0.9, 3), 20).value_at(40)",
                "0.1",
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
                "0",
                "drop_block(torch.ones(128, 8, 28, 28).half(), 0.9, 7).max()",
                "1.11",
            ),
            Claim(
                "crashes on even blocks",
                "their_drop(torch.ones(1, 1, 14, 14), 0.1, 4).shape",
                "RuntimeError",
                "drop_block(torch.ones(1, 1, 14, 14), 0.9, 4).shape",
                "(1, 1, 14, 14)",
            ),
        ),
    ),
)

# Libraries of other frameworks, and those that today's torch cannot run, by their source.
READ = {
    "the authors' (tensorflow/tpu, models/official/resnet/resnet_model.py)": (
        "square maps only, bottleneck blocks only; NaN when all is dropped"
    ),
    "MMDetection (mmdet/models/plugins/dropblock.py)": (
        "gamma is that of the block before it is clipped, so a map smaller than the block fails; the schedule counts "
        "forward passes in a plain attribute: it is in no checkpoint, and activation checkpointing counts twice"
    ),
    "KerasCV (keras_cv/layers/regularization/dropblock_2d.py)": (
        "the width bounds the rows of valid seeds; NaN for a block as large as the map, as its text says"
    ),
    "PaddleDetection (class DropBlock in ppdet/modeling/layers.py)": (
        "gamma is that of the block before it is clipped: with a block two larger than one side it is negative, and "
        "nothing is dropped"
    ),
    "PyTorch-Encoding (encoding/nn/dropblock.py)": (
        "a schedule that begins at 0 stays there: while nothing is dropped the forward pass returns before its step"
    ),
    "MetaOptNet and its copies (models/dropblock.py)": (
        "calls .cuda() itself; the network contains the 40,000 steps of its schedule"
    ),
}


PAGE = """# Beside other implementations

`python examples/pages/peers.py --markdown` runs every line here and makes this page. Each row has a claim about another
implementation, a line that shows it, its result, and the result of the same task here. The helpers (`kept`, `spread`,
`graphs`, …) are in `peers.py`."""


class Holder(nn.Module):
    """A module around the layer, as in a network."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def kept(output: Tensor) -> float:
    """The share of ones that are not zero."""
    return output.ne(0).float().mean().item()


def spread(output: Tensor) -> float:
    """The standard deviation of the means of the samples."""
    return output.mean((1, 2, 3)).std().item()


def count(model: nn.Module) -> int:
    """The number of DropBlocks in a network."""
    return sum("DropBlock" in type(module).__name__ for module in model.modules())


def injected(model: nn.Module) -> nn.Module:
    dropblock_inject.inject_dropblock(model)
    return model


def after(schedule: Any, steps: int, attribute: str) -> float:
    for _ in range(steps):
        schedule.step()
    return getattr(schedule, attribute)


def saved(function: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """The memory that autograd keeps after a call, as a share of the input."""
    kept_for_backward: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept_for_backward[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)
    return f"{sum(kept_for_backward.values()) / (x.numel() * x.element_size()):.1%}"


def graphs(layer: nn.Module, probability: str) -> str:
    """The number of graphs that torch.compile makes for 20 values of a probability."""
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
    """The value of an expression as text, or the name of the error that it raises."""
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


def names_for(peer: Peer) -> dict[str, Any]:
    """The names in the expressions.

    Raises:
        ImportError: the library is not installed.
    """
    own = {name: getattr(dropblock_inject, name) for name in dropblock_inject.__all__}
    own |= {helper.__name__: helper for helper in HELPERS} | {"torch": torch, "nn": nn, "timm": import_module("timm")}
    for name, source in peer.imports.items():
        module, _, attribute = source.partition(":")
        own[name] = getattr(import_module(module), attribute)
    return own


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare other implementations of DropBlock with this one.")
    parser.add_argument("--markdown", action="store_true", help="print the page peers.md")
    markdown = parser.parse_args(argv).markdown
    torch._logging.set_logs(dynamo=logging.CRITICAL)  # its warnings are about what is shown here
    if markdown:
        print(PAGE)
    for peer in PEERS:
        try:
            names = names_for(peer)
        except ImportError as error:
            print(f"{peer.package} is left out: {error}", file=sys.stderr)
            continue
        print(f"\n{'## ' if markdown else ''}{peer.package} {version(peer.package)}")
        if markdown:
            print("\n| it … | the line | prints | here |\n|---|---|---|---|")
        for claim in peer.claims:
            theirs, ours = evaluate(claim.theirs, names), evaluate(claim.ours, names)
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
