"""Several threads train at the same time; many steps leave no tensors, objects or memory behind."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import CifarResNet, ConcatBlock, ConcatNet, ConvMixer, MixerBlock
from torch import Tensor, nn

from dropblock_inject import KeepProbSchedule, inject_dropblock

IMAGE = torch.empty(1, 3, 32, 32)


@pytest.fixture
def _fast_switching() -> Iterator[None]:
    """Python switches threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def simultaneously(*calls: Callable[[], object]) -> list:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=300) for future in [pool.submit(call) for call in calls]]


@pytest.mark.usefixtures("_fast_switching")
@pytest.mark.parametrize("network", [CifarResNet, ConcatNet, ConvMixer])
def test_models_with_their_own_generators_train_simultaneously_as_they_do_alone(network: type) -> None:
    def trained(seed: int) -> Callable[[], list[Tensor]]:
        torch.manual_seed(seed)
        net = network()
        masks, data = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
        inject_dropblock(net, -1, block_size=2, example_input=IMAGE, generator=masks)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        KeepProbSchedule(net, total_steps=6, end=0.3).attach(optimizer)

        def train() -> list[Tensor]:
            for _ in range(8):
                optimizer.zero_grad()
                net(torch.randn(4, 3, 32, 32, generator=data)).square().mean().backward()
                optimizer.step()
            return list(net.state_dict().values())

        return train

    alone = [trained(seed)() for seed in (1, 2)]
    results = simultaneously(trained(1), trained(2))
    for ours, expected in zip(results, alone, strict=True):
        assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("network", [CifarResNet, ConcatNet, ConvMixer])
def test_threads_in_the_same_block_of_one_model_mask_their_own_shortcuts(network: type) -> None:
    net = network()
    # Every shortcut is dropped as a whole: the output is known, and depends on the image through the branches only.
    inject_dropblock(
        net, (-2, -1), where="skip", keep_prob=1e-9, block_size=0.99, depth_scaling=False, example_input=IMAGE
    )
    train_with_frozen_norms(net)
    images = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 32, 32)
    expected = [step(net, image) for image in images]
    masked = [net(image) for image in images]
    assert not any(torch.equal(*pair) for pair in zip(masked, (net.eval()(image) for image in images), strict=True))
    train_with_frozen_norms(net)

    barrier = threading.Barrier(2)

    def wait_for_the_other(*_: object) -> None:
        barrier.wait(timeout=20)

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(wait_for_the_other)
    for _ in range(3):
        results = simultaneously(*(lambda image=image: step(net, image) for image in images))
        for ours, alone in zip(results, expected, strict=True):
            assert all(map(torch.equal, ours, alone))


def train_with_frozen_norms(net: nn.Module) -> None:
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def step(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    output = net(images)
    (gradient,) = torch.autograd.grad(output.square().sum(), images)
    return output.detach(), gradient


@pytest.mark.parametrize(
    ("before", "steps"), [(100, 300), pytest.param(7_000, 10_000, marks=pytest.mark.exhaustive, id="full caches")]
)
def test_many_steps_leave_nothing_behind(before: int, steps: int) -> None:
    """Caches grow up to a limit. If `before` steps of a schedule fill them, memory must not grow at all."""
    body = nn.Sequential(ConcatBlock(4), MixerBlock(4))
    net = nn.Sequential(nn.Conv2d(3, 4, 2, 2), body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    inject_dropblock(net, -1, where=("paper", "output"), block_size=2, example_input=torch.empty(1, 3, 12, 12))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    if before > 4096:
        KeepProbSchedule(net, total_steps=before + steps).attach(optimizer)

    def left_after(steps: int) -> tuple[int, int, int]:
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.randn(2, 3, 12, 12)).square().mean().backward()
            optimizer.step()
        for _ in range(3):  # a collection stops tracking only the innermost of nested tuples
            gc.collect()
        things = gc.get_objects()
        return sum(issubclass(type(thing), Tensor) for thing in things), len(things), tracemalloc.get_traced_memory()[0]

    if before > 4096:
        tracemalloc.start()
    tensors, things, traced = left_after(before)
    tensors_after, things_after, traced_after = left_after(steps)
    tracemalloc.stop()
    assert tensors_after <= tensors
    assert things_after - things < steps / 10
    assert traced_after - traced < 20_000
