"""CIFAR-100 from scratch with the paper's recipe: DropBlock in the last two groups, scheduled, and label smoothing.

    pip install "dropblock-inject[examples]"
    python cifar100.py --download --device cuda
    python cifar100.py --dataset digits --epochs 2          # to see it run on a CPU

The network is the ResNet-18 of torchvision with a stem for small images. The block of 7 pixels that the paper takes for
images of 224 is half of the 14x14 maps of group 3; here it is half of each map. It trains long, as DropBlock needs it:
the paper's 270 epochs of ImageNet are 200 here. Compare with --keep-prob 1.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import models, transforms

from dropblock_inject import KeepProbSchedule, inject_dropblock, presets
from lib.data import DATASETS, Images, load_data

SIZE = 32


def small_image_resnet18(classes: int) -> nn.Module:
    """Without the stride and the pooling of the stem, which would leave maps of a single pixel."""
    model = models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="CIFAR-100 from scratch with the recipe of the DropBlock paper.")
    add = parser.add_argument
    add("--dataset", default="cifar100", choices=DATASETS, metavar="NAME", help=f"{', '.join(DATASETS)} (%(default)s)")
    add("--root", default="data", metavar="DIR", help="where torchvision's datasets are (%(default)s)")
    add("--download", action="store_true", help="download the dataset to there")
    add("--images", type=int, metavar="N", help="use so few of the images, for a quick try")
    add("--epochs", type=int, default=200, metavar="N", help="(%(default)s)")
    add("--batch-size", type=int, default=128, metavar="N", help="(%(default)s)")
    add("--keep-prob", type=float, default=0.9, metavar="P", help="at the end, in group 4 (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="(%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="processes that load images (%(default)s)")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)

    data = load_data(args.dataset, None, args.root, args.download)
    vary = [transforms.RandomCrop(SIZE, padding=4)]
    if data.mirror:
        vary.append(transforms.RandomHorizontalFlip())
    fit, to_tensor = [transforms.Resize((SIZE, SIZE))], [transforms.ToTensor(), transforms.Normalize([0.5], [0.25])]
    options = {"batch_size": args.batch_size, "num_workers": args.workers}
    images = Images(data.train, transforms.Compose(fit + vary + to_tensor), args.images)
    train = DataLoader(images, shuffle=True, drop_last=len(images) > args.batch_size, **options)
    val_images = Images(data.val, transforms.Compose(fit + to_tensor), args.images)
    val = DataLoader(val_images, **options)

    model = small_image_resnet18(data.classes)
    example = torch.empty(1, 3, SIZE, SIZE)
    preset = {**presets.SMALL_IMAGES, "keep_prob": args.keep_prob}
    print(inject_dropblock(model, **preset, example_input=example))
    model.to(args.device).to(memory_format=torch.channels_last)

    steps = args.epochs * len(train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, pct_start=0.1)
    schedule = KeepProbSchedule(model, steps, mode="linear")
    schedule.attach(optimizer)

    for epoch in range(args.epochs):
        started = time.perf_counter()
        model.train()
        for inputs, labels in train:
            inputs = inputs.to(args.device, memory_format=torch.channels_last)
            loss = cross_entropy(model(inputs), labels.to(args.device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x.to(args.device)).argmax(1).cpu() == y).sum()) for x, y in val)
        accuracy, keep_prob = right / len(val_images), min(schedule.get_last_keep_prob())
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1:<3} accuracy {accuracy:.1%}, keep_prob {keep_prob:.3f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
