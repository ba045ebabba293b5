"""The script of each process of test_distributed.py. It saves a record, which the test reads.

torchrun --standalone --nproc-per-node 2 distributed_worker.py ddp|fsdp|sync_bn FOLDER
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from injected import WHERE, assert_live, drops, injected
from networks import NETWORKS, example_for, images_for
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dropblock_inject import DropBlockInjectError, KeepProbSchedule, dropblock_sites, inject_dropblock

NAME = "own:cifar_resnet"
STEPS = 5


def train(strategy: str) -> dict[str, Any]:
    torch.manual_seed(0)  # alike on both ranks
    net = injected(NAME)
    plain = copy.deepcopy(net)
    if strategy == "ddp":
        model: nn.Module = nn.parallel.DistributedDataParallel(net)
    else:
        for block in (*net.stage1, *net.stage2, *net.stage3):
            fully_shard(block)
        model = fully_shard(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = KeepProbSchedule(model, total_steps=STEPS, start=0.8, end=0.5)
    KeepProbSchedule(plain, total_steps=STEPS, start=0.8, end=0.5)
    schedule.attach(optimizer)
    assert_live(model, images_for(NAME))  # after the optimizer: FSDP2 leaves some parameters gathered
    masks = masks_of(model), masks_of(model)

    generator = torch.Generator().manual_seed(distributed.get_rank())
    record: dict[str, Any] = {"masks": masks, "keep_prob": [], "parameters": []}
    for step in range(STEPS):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        if step == 0:
            record["mean_gradients"] = mean_gradients(plain, images)
        record["keep_prob"].append(schedule.get_last_keep_prob())
        optimizer.zero_grad()
        loss_of(model, images).backward()
        if step == 0:
            record["gradients"] = [whole(parameter.grad) for parameter in model.parameters()]
        optimizer.step()
        record["parameters"].append([whole(parameter) for parameter in model.parameters()])
    record["state"] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return record


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(7)
    return model(images).square().mean()


def mean_gradients(net: nn.Module, images: Tensor) -> list[Tensor]:
    """The mean gradients over the ranks, computed without DDP and FSDP2."""
    loss_of(net, images).backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    for gradient in gradients:
        distributed.all_reduce(gradient)
    return [gradient / distributed.get_world_size() for gradient in gradients]


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The elements that each DropBlock drops in a forward pass, found by feeding it ones."""
    masks = {}
    handles = []
    for name, layer in drops(model).items():
        handles.append(layer.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]),)))
        handles.append(layer.register_forward_hook(lambda _, args, out, name=name: masks.update({name: out == 0})))
    torch.manual_seed(5)
    with torch.no_grad():
        model(images_for(NAME))
    for handle in handles:
        handle.remove()
    return masks


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def convert() -> dict[str, Any]:
    options: dict[str, Any] = {"stages": (-2, -1), "where": WHERE, "example_input": example_for(NAME)}
    before = nn.SyncBatchNorm.convert_sync_batchnorm(NETWORKS[NAME]())
    inject_dropblock(before, **options)
    KeepProbSchedule(before, total_steps=STEPS).attach(torch.optim.SGD(before.parameters(), lr=0.1))
    after = nn.SyncBatchNorm.convert_sync_batchnorm(injected(NAME))
    try:
        KeepProbSchedule(after, total_steps=STEPS).attach(torch.optim.SGD(after.parameters(), lr=0.1))
        error = ""
    except DropBlockInjectError as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {
        "norms": sorted({type(module).__name__ for module in before.modules() if "Norm" in type(module).__name__}),
        "sites": [row.name for row in dropblock_sites(before)],
        "live": all(row.live for row in dropblock_sites(before)),
        "error": error,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    part, folder = sys.argv[1:]
    distributed.init_process_group("gloo")
    record = convert() if part == "sync_bn" else train(part)
    torch.save(record, Path(folder) / f"rank{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
