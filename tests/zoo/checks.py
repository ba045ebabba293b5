"""What must hold for a model: its stages, its sites, that nothing of it is changed, and that it trains."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, log2
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dropblock_inject.ops.layer
from dropblock_inject import DropBlock, find_stages, inject_dropblock, plan_dropblock, remove_dropblock
from dropblock_inject.anatomy.stages import Stage
from dropblock_inject.errors import NoTrunkError
from dropblock_inject.placement.branch_end import CorrectOutput
from dropblock_inject.placement.plan import InjectionPlan
from dropblock_inject.surgery.site import Site

from .catalog import Model, runs_without_data

WHERE = ("paper", "output")
# Names that no block of a trunk and no site has in either library: an independent witness of what the walker says.
_NOT_TRUNK = re.compile(
    r"(^|\.)(head|classifier|fc|aux\w*|fpn|rpn|roi_heads|decoder|anchor_generator|conv_head|se|fse)(\.|$)"
)
# Nor has a site a host with such a name in it: the whole of a squeeze-excite may end a branch, its inside does not.
_INNER = re.compile(r"(^|\.)(se|fse|conv_fse|attn_pool|head|classifier|fpn|decoder|aux\w*)\.")


def check(model: Model) -> dict[str, Any]:
    """Puts a model through all that follows; returns what a table needs to know of it.

    Raises:
        AssertionError: something does not hold.
    """
    meta_model = model.build("meta")
    record: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in meta_model.parameters())}
    if model.is_transformer:
        return {**record, **check_refused(meta_model)}
    stages = find_stages(meta_model, model.example_input("meta"))
    record["stages"] = [
        (stage.index, stage.reduction, stage.channels, stage.map_size, len(stage.blocks)) for stage in stages
    ]
    check_stages(model, meta_model, stages)
    assert torch.get_num_threads() == 1
    start = time.process_time()  # of this process on its one core, whatever else runs
    plan = plan_dropblock(meta_model, _indices(stages), where=WHERE, example_input=model.example_input("meta"))
    record["seconds"] = time.process_time() - start
    record["sites"] = {
        stage.index: dict(Counter(site.where for site in plan if site.stage == stage.index)) for stage in stages
    }
    check_sites(model, plan, stages)
    record["variants"] = check_variants(model, stages)
    check_on_images(model, stages, [site.name for site in plan])
    return record


def _indices(stages: list[Stage]) -> list[int]:
    return [stage.index for stage in stages]


def check_refused(meta_model: nn.Module) -> dict[str, Any]:
    """A network without a convolutional trunk is refused, with the reason."""
    with pytest.raises(NoTrunkError, match=r"no convolution.*drop path") as refusal:
        find_stages(meta_model)
    return {"refused": str(refusal.value)}


def check_stages(model: Model, meta_model: nn.Module, stages: list[Stage]) -> None:
    """Numbers, reductions, names and map sizes are consistent, and agree with timm's ``feature_info``."""
    reductions = [stage.reduction for stage in stages]
    assert reductions == sorted(set(reductions)), reductions
    assert [stage.index for stage in stages] == expected_numbers(reductions), stages
    modules = dict(meta_model.named_modules())
    names = [block.name for stage in stages for block in stage.blocks]
    assert len(names) == len(set(names)), [name for name, count in Counter(names).items() if count > 1]
    for name in names:
        assert name in modules, name
        assert not _NOT_TRUNK.search(name), f"{name} is no part of a trunk"
    dilated = "segmentation" in model.family  # torchvision trades strides for dilation there
    if not dilated and not model.is_detector and "raft" not in model.name:
        for stage in stages:
            for pixels, size in zip(model.input_size[-2:], stage.map_size[-2:], strict=True):
                # Missing padding takes some pixels, one that is too large adds one.
                assert -1 <= ceil(pixels / stage.reduction) - size <= 4, (stage.reduction, stage.map_size)
    check_feature_info(meta_model, stages)


def expected_numbers(reductions: list[int]) -> list[int]:
    """The numbers of the stages with these reductions, as the documentation of ``find_stages`` says."""
    if reductions[-1] == 32:
        return [int(log2(reduction)) - 1 for reduction in reductions]
    if reductions[-1] > 32 or len(reductions) >= 4:
        return [4 - (len(reductions) - 1 - i) for i in range(len(reductions))]
    return list(range(1, len(reductions) + 1))


def check_feature_info(meta_model: nn.Module, stages: list[Stage]) -> None:
    """Where timm says that a container of blocks is at some reduction, its last block is in the stage of that one."""
    info = getattr(meta_model, "feature_info", None)
    if not isinstance(info, list):
        return
    reduction_of = {block.name: stage.reduction for stage in stages for block in stage.blocks}
    for entry in info:
        inside = [name for name in reduction_of if name.startswith(f"{entry['module']}.")]
        if entry["module"] and inside and isinstance(dict(meta_model.named_modules()).get(entry["module"]), nn.Module):
            assert reduction_of[inside[-1]] == entry["reduction"], (inside[-1], reduction_of[inside[-1]], entry)


def check_sites(model: Model, plan: InjectionPlan, stages: list[Stage]) -> None:
    """Each site runs once for each time its block runs, on the map that the plan says, and that fits its stage."""
    assert "No module gives a hold" not in str(plan), str(plan).splitlines()[-1]
    by_index = {stage.index: stage for stage in stages}
    wheres = defaultdict(Counter)
    for site in plan:
        wheres[site.block][site.where] += 1
        assert not _INNER.search(site.host.removeprefix(site.block)), f"{site.name} stands after {site.host}"
        for own, of_stage in zip(site.map_size, by_index[site.stage].map_size, strict=True):
            assert own > 1 or max(site.map_size) > 1, site
            assert of_stage - 2 <= own <= 2 * of_stage + 3, (site.name, site.map_size, by_index[site.stage].map_size)
    for stage in stages:
        for block in stage.blocks:
            assert wheres[block.name]["output"] == 1, f"{block.name} has {wheres[block.name]['output']} output sites"
            assert wheres[block.name]["branch"] >= 1, f"{block.name} has no branch site"
    plan.apply()
    meta_model = plan.model.eval()
    for module in meta_model.modules():
        module.training = isinstance(module, DropBlock)
    try:
        with counted(meta_model) as (runs, shapes):
            ran = runs_without_data(meta_model, model.example_input("meta") or model.arguments(1, device="meta"))
        assert ran or model.is_detector  # which ask for the values of their outputs
        for site in plan:
            wanted = runs[site.block]
            assert runs[site.name] == wanted, f"{site.name} ran {runs[site.name]} times, its block {wanted} times"
            shape = shapes[site.name]
            size = shape[1:-1] if site.channel_dim == -1 else shape[2:]
            assert (shape[site.channel_dim], size) == (site.channels, site.map_size), (site, shape)
    finally:
        remove_dropblock(meta_model)


@contextmanager
def counted(net: nn.Module) -> Iterator[tuple[Counter[str], dict[str, tuple[int, ...]]]]:
    """How often each module runs within the context, by name, and the shape that each DropBlock was given."""
    runs: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            runs[name] += 1
            if isinstance(module, DropBlock):
                shapes[name] = tuple(args[0].shape)

        return hook

    handles = [module.register_forward_pre_hook(count(name)) for name, module in net.named_modules()]
    try:
        yield runs, shapes
    finally:
        for handle in handles:
            handle.remove()


def check_variants(model: Model, stages: list[Stage]) -> list[str]:
    """With ``features_only`` and with dilation the stages keep their numbers; returns the variants there are."""
    if model.library != "timm":
        return []
    number_of = {stage.reduction: stage.index for stage in stages}
    found = []
    for options in ({"features_only": True}, {"output_stride": 8}, {"output_stride": 16}):
        label = ",".join(f"{key}={value}" for key, value in options.items())
        try:
            variant = model.build("meta", **options).eval()
        except Exception:  # not every model has every variant, and each says so in its own way
            continue
        try:
            of_variant = find_stages(variant)
            numbers = {stage.reduction: stage.index for stage in of_variant}
            assert numbers.items() <= number_of.items(), (numbers, number_of)
            if "output_stride" in options:
                assert numbers == number_of, (numbers, number_of)
        except Exception as problem:
            if runs_without_data(variant, model.arguments(1, device="meta")):
                raise AssertionError(f"with {label}: {problem}") from problem
        else:
            found.append(label)
    return found


def check_on_images(model: Model, stages: list[Stage], names: list[str]) -> None:
    """On real tensors: nothing is changed, the masks of shortcuts are seen by the shortcuts alone, and it trains."""
    options, size = model.shrunken(stages[-1].reduction)
    torch.manual_seed(0)
    net = model.build(**options).train()
    _loss(model, net, size).backward()
    with_gradient = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    net.zero_grad()
    arguments = model.arguments(2, size)
    before = _state(net.eval())
    with torch.no_grad():
        plain = net(*_copy(arguments))
    random = torch.get_rng_state()
    example = arguments if "img_size" in options else model.example_input()
    report = inject_dropblock(
        net, _indices(stages), where=WHERE, keep_prob=0.8, block_size=3, depth_scaling=False, example_input=example
    )
    assert torch.equal(random, torch.get_rng_state())
    assert [site.name for site in report] == names, "without data other sites were found"
    with torch.no_grad():
        assert _equal(net(*_copy(arguments)), plain), "the output in eval mode is another one"
    assert _state(net)[:3] == before[:3]
    check_skips(net, report, arguments)
    check_training(model, net, report, size, with_gradient)
    assert remove_dropblock(net) == len(report)
    assert _state(net.eval()) == before


def _state(net: nn.Module) -> tuple[Any, ...]:
    """Keys, names of parameters and buffers in their order, the text of a model, and its hooks."""
    hooks = [(name, len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in net.named_modules()]
    names = [name for name, _ in net.named_parameters()], [name for name, _ in net.named_buffers()]
    return list(net.state_dict()), *names, repr(net), hooks


def check_skips(net: nn.Module, sites: Any, arguments: tuple) -> None:
    """With a known mask on one shortcut alone, the sum that it is an operand of is what one works out by hand.

    The first sum of the block that comes out otherwise than without the mask must have one operand as it was, which is
    the branch, and the other masked. One shortcut of each kind of block is tried.
    """
    chosen: dict[Any, Site] = {}
    modules = dict(net.named_modules())
    for site in sites:
        if site.where == "skip":
            hooks = tuple((hook.kind, hook.arguments) for hook in site.splice.hooks)
            kind = type(modules[site.block]), site.splice.attribute, hooks
            chosen.setdefault(kind, site)
    around = {site: _around(site) for site in chosen.values()}
    given = _arguments_of(net, {name for names in around.values() for name in names}, arguments)
    for site in chosen.values():
        name = next(name for name in around[site] if name in given)
        block, (args, kwargs) = modules[name], given[name]
        with _Sums() as plain, torch.no_grad():
            block(*_copy(args), **_copy(kwargs))
        with _known_mask(modules[site.name]), _Sums() as masked, torch.no_grad():
            block(*_copy(args), **_copy(kwargs))
        _check_first_masked_sum(site, plain.found, masked.found)


def _around(site: Site) -> list[str]:
    """The names of the modules around a block and all that takes part in its site, from the inside out."""
    inside = {site.block, *(hook.module for hook in site.splice.hooks)}
    name, names = site.block, []
    while True:
        if all(f"{other}.".startswith(f"{name}.".lstrip(".")) for other in inside):
            names.append(name)
        if not name:
            return names
        name = name.rpartition(".")[0]


def _check_first_masked_sum(
    site: Site, plain: list[tuple[Tensor, Tensor]], masked: list[tuple[Tensor, Tensor]]
) -> None:
    for index, (left, right) in enumerate(plain):
        changed = masked[index]
        if torch.equal(left, changed[0]) and torch.equal(right, changed[1]):
            continue
        at_end = site.splice.hooks[0].kind is CorrectOutput
        if at_end:  # this sum is ours: it puts into the branch what the mask changes in the shortcut
            changed = masked[index + 1]
        same = torch.equal(left, changed[0]), torch.equal(right, changed[1])
        assert sum(same) == 1, f"{site.name}: the mask is not on the shortcut alone"
        if at_end:
            skip, branch = (left, right) if same[0] else (right, left)
            expected = branch + _mask(skip, site.channel_dim)
            torch.testing.assert_close(changed[0] + changed[1], expected, rtol=1e-4, atol=1e-4)
        else:
            skip, seen = (right, changed[1]) if same[0] else (left, changed[0])
            assert torch.equal(seen, _mask(skip, site.channel_dim)), f"{site.name}: another mask than was asked for"
        return
    raise AssertionError(f"{site.name} changes no sum of its block")


def _mask(tensor: Tensor, channel_dim: int) -> Tensor:
    """Every second pixel along the last spatial axis dropped, the others doubled."""
    axis = tensor.dim() - 2 if channel_dim == -1 else tensor.dim() - 1
    shape = [1] * tensor.dim()
    shape[axis] = tensor.shape[axis]
    kept = (torch.arange(tensor.shape[axis]) % 2).view(shape)
    return tensor * (2 * kept)


@contextmanager
def _known_mask(drop: nn.Module) -> Iterator[None]:
    """Within it, this DropBlock alone drops, and what is known beforehand."""

    def known(input: Tensor, *args: Any, channel_dim: int, **options: Any) -> Tensor:
        return _mask(input, channel_dim)

    original = dropblock_inject.ops.layer.drop_block
    dropblock_inject.ops.layer.drop_block = known
    drop.training = True
    try:
        yield
    finally:
        dropblock_inject.ops.layer.drop_block = original
        drop.training = False


class _Sums(TorchDispatchMode):
    """The operands of every sum of two tensors of the same shape, as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor):
            left, right = args[:2]
            if isinstance(right, Tensor) and left.dim() >= 3 and left.shape == right.shape:
                self.found.append((left.clone(), right.clone()))
        return func(*args, **(kwargs or {}))


def _arguments_of(net: nn.Module, names: set[str], arguments: tuple) -> dict[str, tuple[tuple, dict[str, Any]]]:
    """What the modules of these names are called with at first in a pass through the model."""
    given: dict[str, tuple[tuple, dict[str, Any]]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given.setdefault(name, (_copy(args), _copy(kwargs)))

        return hook

    modules = dict(net.named_modules())
    # Before our own hooks: what a block is given, not what they make of it.
    handles = [
        modules[name].register_forward_pre_hook(note(name), with_kwargs=True, prepend=True) for name in sorted(names)
    ]
    with torch.no_grad():
        net(*_copy(arguments))
    for handle in handles:
        handle.remove()
    return given


def check_training(model: Model, net: nn.Module, sites: Any, size: int | None, with_gradient: set[str]) -> None:
    """One step: each site runs as often as its block, the loss is finite, and so is every gradient there must be."""
    net.train()
    with counted(net) as (runs, _):
        loss = _loss(model, net, size)
    for site in sites:
        wanted = runs[site.block]
        assert runs[site.name] == wanted, f"in training {site.name} ran {runs[site.name]} times, its block {wanted}"
    assert loss.isfinite(), f"the loss is {loss.item()}"
    loss.backward()
    for name, parameter in net.named_parameters():
        expected = name in with_gradient
        assert (parameter.grad is not None) == expected, f"{name} has {'no' if expected else 'a'} gradient"
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
    net.zero_grad()


def _loss(model: Model, net: nn.Module, size: int | None) -> Tensor:
    arguments = model.arguments(2, size)
    if model.is_detector:
        box = torch.tensor([[10.0, 10.0, 60.0, 50.0]])
        target = {"boxes": box, "labels": torch.tensor([1])}
        height, width = arguments[0][0].shape[1:]
        if "mask" in model.name:
            target["masks"] = torch.ones(1, height, width, dtype=torch.uint8)
        if "keypoint" in model.name:
            target["keypoints"] = torch.full((1, 17, 3), 20.0)
        arguments = (*arguments, [target, target])
    return torch.stack([output.float().square().mean() for output in _tensors(net(*arguments))]).sum()


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        yield from _tensors(list(nested.values()))
    elif isinstance(nested, list | tuple):
        for entry in nested:
            yield from _tensors(entry)


def _copy(nested: Any) -> Any:
    """A copy of nested tensors, for modules may write into what they are given."""
    if isinstance(nested, Tensor):
        return nested.clone()
    if isinstance(nested, dict):
        return {key: _copy(entry) for key, entry in nested.items()}
    if isinstance(nested, list | tuple):
        copies = [_copy(entry) for entry in nested]
        return type(nested)(*copies) if hasattr(nested, "_fields") else type(nested)(copies)
    return nested


def _equal(left: Any, right: Any) -> bool:
    pairs = list(zip(_tensors(left), _tensors(right), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)
