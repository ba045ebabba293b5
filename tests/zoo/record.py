"""What ran on real tensors, recorded without the package: module calls by hooks, functions by a torch function mode."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import log2, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from dropblock_inject import DropBlock, plan_dropblock, remove_dropblock
from dropblock_inject.anatomy.stages import Stage, Trunk, find_trunk
from dropblock_inject.errors import NoTrunkError, TraceError
from dropblock_inject.placement.plan import InjectionPlan

from .checks import _copy, _equal, _tensors, counted
from .others import Network

_ADDS = ("add", "add_", "__add__", "__iadd__", "__radd__")
_UPS = ("interpolate", "upsample", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "pixel_shuffle")
_UPS += ("max_unpool1d", "max_unpool2d", "max_unpool3d")


@dataclass
class Ran:
    """What ran in one forward pass.

    Attributes:
        convolutions: each convolution module that put out a map of several pixels and channels, and the map's size.
        before_up: those that ran before anything was upsampled.
        reads: the size of the map that each convolution was given first.
        shortcuts: the names of the innermost modules in which a tensor that the module was given was added to another.
        sizes: the sizes of the maps that each module put out.
        spatial: the sizes of the maps that convolutions over several pixels put out.
    """

    convolutions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    before_up: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shortcuts: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    spatial: set[tuple[int, ...]] = field(default_factory=set)


class _Recorder(TorchFunctionMode):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.ran = Ran()
        self._stack: list[tuple[str, list[Tensor], list[int]]] = []
        self._has_raised = False
        self._count = 0
        self._handles = []
        for name, module in net.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave(name)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = [tensor for tensor in _tensors([list(args), kwargs]) if tensor.dim() >= 3]
            self._stack.append((name, given, [self._count]))

        return hook

    def _leave(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self._stack.pop()
            if isinstance(output, Tensor) and output.dim() >= 3:
                size = tuple(output.shape[2:])
                self.ran.sizes.setdefault(name, min(size, tuple(output.shape[1:-1]), key=prod))  # channels may be last
                if isinstance(module, _ConvNd) and max(module.kernel_size) > 1:
                    self.ran.spatial.add(size)
                is_map = isinstance(module, _ConvNd) and prod(size) > 1 and output.shape[1] > 1
                if is_map and not module.transposed:
                    self.ran.reads.setdefault(name, tuple(args[0].shape[2:]))
                    self.ran.convolutions.setdefault(name, size)
                    if not self._has_raised:
                        self.ran.before_up.setdefault(name, size)

        return hook

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.startswith("conv"):
            self._count += 1
        if name in _UPS and isinstance(args[0], Tensor) and prod(args[0].shape[2:]) > 1 and self._count:
            self._has_raised = True
        if name in _ADDS and self._stack and len(args) > 1:
            self._note_addition(*args[:2])
        return func(*args, **(kwargs or {}))

    def _note_addition(self, left: Any, right: Any) -> None:
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left is right or left.shape != right.shape:
            return
        if left.dim() < 4 or prod(left.shape[2:]) <= 1 or tuple(left.shape[2:]) not in self.ran.spatial:
            return  # of tokens, or of windows
        name, given, [count] = self._stack[-1]
        is_given = [any(operand is tensor for tensor in given) for operand in (left, right)]
        if sum(is_given) == 1 and self._count - count >= 2:  # convolutions since
            self.ran.shortcuts[name] += 1


def check_by_record(network: Network) -> dict[str, Any]:
    """Holds a network's stages and sites against a record of what ran on real tensors.

    Raises:
        AssertionError: something does not hold.
    """
    net = network.build().eval()
    record: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in net.parameters()), "variants": []}
    images, ran, before = _recorded(network, net)
    start = time.process_time()
    try:
        trunk = find_trunk(net, images)
    except (NoTrunkError, TraceError) as refusal:
        if isinstance(refusal, NoTrunkError) or "values of a tensor" in str(refusal):
            return {**record, "refused": str(refusal)}
        raise
    stages = trunk.stages
    plan = plan_dropblock(net, None, where=("paper", "output"), example_input=images)
    record["seconds"] = time.process_time() - start
    record["stages"] = [(s.index, s.reduction, s.channels, s.map_size, len(s.blocks)) for s in stages]
    record["sites"] = {
        stage.index: dict(Counter(site.where for site in plan if site.stage == stage.index)) for stage in stages
    }
    problems = [*_depth(stages, ran, images), *_coverage(trunk, plan, ran), *_on_images(net, plan, images, before)]
    assert not problems, "; ".join(problems)
    return record


def _recorded(network: Network, net: nn.Module) -> tuple[Tensor, Ran, Any]:
    """One image that a network runs on, what ran, and what it puts out."""
    problem: Exception | None = None
    for image in network.images(net):
        recorder = _Recorder(net)
        try:
            with torch.no_grad(), recorder:
                net(_copy(image))
        except Exception as refused:  # whatever it says to a size that it was not made for
            problem = refused
        else:
            recorder.close()  # a layer with a fast path of its own does not take it with hooks
            with torch.no_grad():
                return image, recorder.ran, net(_copy(image))
        finally:
            recorder.close()
    raise AssertionError(f"it does not run: {problem}")


def _depth(stages: list[Stage], ran: Ran, images: Tensor) -> list[str]:
    """The trunk must go as deep as the maps that convolutions before the first upsampling read.

    Those of a small head are left out.
    """
    deeper = [name for name in ran.before_up if 2 * prod(ran.reads[name]) < prod(stages[-1].map_size)]
    problems = []
    if 4 * len(deeper) > len(ran.before_up):
        problems.append(f"the trunk ends at maps of {stages[-1].map_size}; deeper are {', '.join(deeper[:3])}")
    sizes = [size for size, count in Counter(ran.before_up.values()).items() if count > 1 and size in ran.spatial]
    levels = {round(log2(prod(images.shape[2:]) / prod(size)) / len(size)) for size in sizes}
    if 2 * len(stages) < len(levels):
        problems.append(f"convolutions at {len(levels)} resolutions make {len(stages)} stages")
    for stage in stages:
        for block in stage.blocks:
            size = ran.sizes.get(block.name)
            if stage.index and size and prod(size) > 4 * prod(stage.map_size):  # stage 0 has all that is above it
                problems.append(f"{block.name} puts out {size} in stage {stage.index} of {stage.map_size}")
    return problems


def _coverage(trunk: Trunk, plan: InjectionPlan, ran: Ran) -> list[str]:
    """Each shortcut in the blocks has its skip site or is named, and each convolution is in a block or is named."""
    said = plan.as_dict()
    named = {*said["without_skip"], *said["additions"]}
    blocks = [block.name for stage in trunk.stages for block in stage.blocks]
    blocks += [block.name for block in trunk.off_trunk]
    skips = {site.block for site in plan if site.where == "skip"}
    problems = [
        f"the shortcut of {name} has no skip site"
        for name in ran.shortcuts
        if _is_in(name, blocks) and not _is_in(name, skips | named)
    ]
    known = {*blocks, *said["without_site"], *said["results"]}
    every = [*trunk.off_trunk, *(block for stage in trunk.blocks for block in stage)]
    parts = {unit.op.call.name for block in every for unit in block.units}
    unknown = [name for name in ran.convolutions if not _is_in(name, known | parts)]
    if said["error"]:  # the plan says that what is behind that point is not listed
        order = list(ran.convolutions)
        last = max(number for number, name in enumerate(order) if name not in unknown)
        unknown = [name for name in unknown if order.index(name) < last]
    if unknown:
        problems.append(f"{len(unknown)} convolutions are in no block and are not named: {', '.join(unknown[:3])}")
    return problems


def _is_in(name: str, others: Iterable[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others if other)


def _on_images(net: nn.Module, plan: InjectionPlan, images: Tensor, before: Any) -> list[str]:
    """Eval output unchanged, each site once per call of its block on the map that it says, a finite step, removal."""
    keys, problems = list(net.state_dict()), []
    plan.apply()
    with torch.no_grad():
        if not _equal(before, net(_copy(images))):
            problems.append("eval output changed")
    if list(net.state_dict()) != keys:
        problems.append("keys changed")
    for module in net.modules():
        module.training = isinstance(module, DropBlock)
    with counted(net) as (runs, shapes), torch.no_grad():
        net(_copy(images))
    for site in plan:
        shape = shapes.get(site.name, ())
        size = shape[1:-1] if site.channel_dim == -1 else shape[2:]
        if runs[site.name] != runs[site.block]:
            problems.append(f"{site.name} ran {runs[site.name]} times, its block {runs[site.block]} times")
        elif runs[site.block] == 1 and (shape[site.channel_dim], size) != (site.channels, site.map_size):
            problems.append(f"{site.name} got {shape}, not {site.channels} channels of {site.map_size}")
    for module in net.train().modules():
        module.training = not isinstance(module, _BatchNorm)  # one image has no statistics
    output = net(_copy(images))
    loss = torch.stack(
        [t.float().square().mean() for t in _tensors(output) if t.is_floating_point() and t.numel()]
    ).sum()
    if loss.requires_grad:
        loss.backward()
    if not all(p.grad is None or p.grad.isfinite().all() for p in net.parameters()) or not loss.isfinite():
        problems.append(f"a step of training is not finite: loss {loss.item()}")
    remove_dropblock(net.eval())
    if list(net.state_dict()) != keys:
        problems.append("keys changed by the removal")
    return problems
