"""Shows the paper's recipe: CIFAR-100 from scratch, DropBlock in the last two stages, scheduled, with label smoothing.

    pip install "dropblock-inject[examples]"
    python examples/cifar100.py --download --device cuda
    python examples/cifar100.py --dataset digits --epochs 2         # a short run for a CPU
    python examples/cifar100.py --resume runs/cifar100              # after an interruption

The network is torchvision's ResNet-18 with a stem for small images. The paper's block of 7 pixels covers half of the
14x14 maps of stage 3, at images of 224 pixels; here a block covers half of each map. DropBlock needs a long training:
the paper trains for 270 epochs of ImageNet, this script for 200. Compare with --keep-prob 1.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import models, transforms

from dropblock_inject import KeepProbSchedule, inject_dropblock, presets
from lib.command_line import add_options, errors_in_a_sentence, make_parser, parse_arguments
from lib.data import Images, at_most, load_data
from lib.training import Training, finite


def small_image_resnet18(classes: int) -> nn.Module:
    """A ResNet-18 whose stem keeps the resolution, so that the last maps have more than one pixel."""
    model = models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    add_options(parser, "root", "download", "data_dir", "max_samples", dataset="cifar100", image_size=32)
    small = presets.SMALL_IMAGES
    add_options(parser, "keep_prob", stages=[*small["stages"]], block_size=small["block_size"])
    add_options(parser, "seed", "device", "workers", epochs=200, batch_size=128, lr=0.1)
    add_options(parser, "resume", output="runs/cifar100")
    args, resumed = parse_arguments(parser, argv)
    torch.manual_seed(args.seed)

    data = load_data(args.dataset, args.data_dir, args.root, args.download)
    size = args.image_size
    fit = [transforms.Resize(size), transforms.CenterCrop(size)]
    vary = [transforms.RandomCrop(size, padding=4), *([transforms.RandomHorizontalFlip()] if data.mirror else [])]
    to_tensor = [transforms.ToTensor(), transforms.Normalize([0.5], [0.25])]
    images = at_most(args.max_samples, Images(data.train, transforms.Compose(fit + vary + to_tensor)))
    val_images = at_most(args.max_samples, Images(data.val, transforms.Compose(fit + to_tensor)))
    options = {"batch_size": args.batch_size, "num_workers": args.workers}
    train = DataLoader(images, shuffle=True, drop_last=len(images) > args.batch_size, **options)
    val = DataLoader(val_images, **options)

    model = small_image_resnet18(data.classes)
    report = inject_dropblock(
        model,
        args.stages,
        keep_prob=args.keep_prob,
        block_size=args.block_size,
        example_input=torch.empty(1, 3, size, size),
    )
    print(report)
    model.to(args.device).to(memory_format=torch.channels_last)

    steps = args.epochs * len(train)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.1)
    schedule = KeepProbSchedule(model, steps, mode="linear")
    schedule.attach(optimizer)
    training = Training(args, model=model, optimizer=optimizer, rates=rates, schedule=schedule)
    if resumed:
        training.load(resumed)

    with training:
        while training.epoch < args.epochs:
            started = time.perf_counter()
            model.train()
            total = 0.0
            for inputs, labels in train:
                inputs = inputs.to(args.device, memory_format=torch.channels_last)
                loss = cross_entropy(model(inputs), labels.to(args.device), label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()  # keep_prob moves here
                rates.step()
                total += loss.item()
            mean_loss = finite(total / len(train))
            model.eval()
            with torch.no_grad():
                right = sum(int((model(x.to(args.device)).argmax(1).cpu() == y).sum()) for x, y in val)
            training.end_epoch()
            keep_prob, seconds = min(schedule.get_last_keep_prob()), time.perf_counter() - started
            print(
                f"epoch {training.epoch:<3} accuracy {right / len(val_images):.1%}, loss {mean_loss:.3f}, "
                f"keep_prob {keep_prob:.3f}, {seconds:.0f} s",
                flush=True,
            )
    print(f"the weights are in {training.save_weights()}")


if __name__ == "__main__":
    main()
