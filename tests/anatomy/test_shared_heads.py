"""Modules that several levels or places share: heads of detectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from small_networks import Residual, conv
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import DropBlock, inject_dropblock, plan_dropblock

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Detector(nn.Module):
    """Three levels of a trunk, and a head that runs on each of them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem = conv(3, 8, 2)
        self.trunk = nn.ModuleList([Residual(8, 8, 2), Residual(8, 8, 2), Residual(8, 8, 2)])
        self.head = head

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for block in self.trunk:
            x = block(x)
            maps.append(x)
        return [self.head(level) for level in maps]


class BareHead(nn.Module):
    """Its activation is in the code, its last convolution puts out a result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.boxes = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.boxes(F.relu(self.conv(x)))


class LoopingHead(nn.Module):
    """It is given all levels at once and goes through them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.boxes = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.boxes(F.relu(self.conv(x))) for x in maps]


class LoopingDetector(Detector):
    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for block in self.trunk:
            x = block(x)
            maps.append(x)
        return self.head(maps)


def calls_of(net: nn.Module, names: set[str]) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that modules of these names put out in one pass."""
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def noting(name: str) -> Callable[..., None]:
        return lambda module, args, out: shapes[name].append(tuple(out.shape))

    handles = [net.get_submodule(name).register_forward_hook(noting(name)) for name in names]
    with torch.no_grad():
        net(IMAGE)
    for handle in handles:
        handle.remove()
    return shapes


def check_head(net: nn.Module, hosts: set[str]) -> None:
    keys = list(net.state_dict())
    with torch.no_grad():
        before = net.eval()(IMAGE)
    report = inject_dropblock(net, None, include="head*", where="branch", block_size=3, keep_prob=0.5)
    assert {site.host for site in report} == hosts
    assert {site.part for site in report} == {"head"}
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(before, net(IMAGE), strict=True))
    net.train()
    shapes = calls_of(net, {site.name for site in report} | {site.block for site in report})
    for site in report:
        assert isinstance(net.get_submodule(site.name), DropBlock)
        assert [shape[2:] for shape in shapes[site.name]] == [(16, 16), (8, 8), (4, 4)]
        assert len(shapes[site.block]) == 3
    assert list(net.state_dict()) == keys


def test_the_units_of_a_sequence_that_runs_on_each_level_have_sites() -> None:
    head = nn.Sequential(conv(8, 8), conv(8, 8), nn.Conv2d(8, 4, 1))
    check_head(Detector(head), {"head.0.2", "head.1.2"})


def test_a_bare_convolution_that_runs_on_each_level_has_a_site() -> None:
    check_head(Detector(BareHead()), {"head.conv"})


def test_a_head_that_goes_through_the_levels_itself_has_sites() -> None:
    check_head(LoopingDetector(LoopingHead()), {"head.conv"})


def test_the_convolution_of_the_result_is_named() -> None:
    plan = plan_dropblock(Detector(BareHead()), None, example_input=IMAGE)
    assert plan.as_dict()["results"] == ("head.boxes",)
    assert "convolutions that put out a result: 1 (head.boxes)" in str(plan)


def test_modules_that_run_in_several_blocks_are_named() -> None:
    act = nn.ReLU()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(8, 8, 3, padding=1), act

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.conv(x))

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Block(), Block())
    plan = plan_dropblock(net, -1, example_input=IMAGE)
    assert plan.as_dict()["shared"] == ("1.act",)
    assert "modules shared beyond their block: 1 (1.act)" in str(plan)
    assert [site.host for site in plan if site.where == "branch"] == ["1.conv", "2.conv"]
