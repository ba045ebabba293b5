"""Shows a study: DropBlock beside other regularisers, with one recipe and several seeds.

    pip install "dropblock-inject[examples,plot]"

Two networks are trained from scratch on few images of Fashion-MNIST, and a pretrained one is fine-tuned. The dataset is
in data/FashionMNIST/raw, or is downloaded to there. Each run is a line in a CSV file, from which the tables and the
picture are made. A run that has its line is not repeated, so the study can be stopped at any time, and the same command
goes on. Only accuracies are kept, no weights.

    python examples/regularizers.py --download
    python examples/regularizers.py --networks resnet --parts table --seeds 5 --jobs 2
    python examples/regularizers.py --report                    # tables and picture of the runs so far

Your own images, in train/CLASS/*.jpg and val/CLASS/*.jpg, or a dataset of torchvision with all its images, on a GPU:

    python examples/regularizers.py --data-dir flowers --networks lite0
    python examples/regularizers.py --dataset cifar10 --max-samples 50000 --epochs 100 --device cuda
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth
from tqdm import tqdm

from dropblock_inject import DropBlock, KeepProbSchedule, inject_dropblock
from lib.command_line import add_options, check_device, errors_in_a_sentence, make_parser, whole_number
from lib.data import load_data
from lib.models import imagenet_lite0
from lib.results import FIELDS, REFERENCE, Results, read, write
from lib.small_networks import PlainConvNet, ResNet14


@dataclass(frozen=True)
class Setting:
    """A row of the table: how a network is regularised.

    Attributes:
        name: the name of the row.
        drops: True if parts of the feature maps are dropped.
        block_size: a share of the map, or pixels: 1 is Dropout, a block as large as the map SpatialDropout.
        keep_prob: of the last stage; the stage before it drops a quarter as much, as in the paper's code.
        scheduled: True: keep_prob moves from 1 to its target over the training; False: it is constant.
        stages, where: as in inject_dropblock.
        torch_layer: torch's own layer at the same sites, in place of DropBlock.
        label_smoothing: as in torch's cross_entropy.
        drop_path: the probability to skip a residual block: that of the deepest, the others have proportionally less.
    """

    name: str
    drops: bool = True
    block_size: int | float = 0.5
    keep_prob: float = 0.9
    scheduled: bool = True
    stages: tuple[int, ...] = (-2, -1)
    where: str = "paper"
    torch_layer: str = ""
    label_smoothing: float = 0.0
    drop_path: float = 0.0


WHOLE_MAP = 1000  # pixels, clipped to the map
_DROPBLOCK = Setting("DropBlock, scheduled")
TABLE = (
    Setting("baseline", drops=False),
    replace(_DROPBLOCK, name="Dropout (block_size=1)", block_size=1, scheduled=False),
    replace(_DROPBLOCK, name="Dropout (torch's)", torch_layer="dropout", scheduled=False),
    replace(_DROPBLOCK, name="SpatialDropout (block as the map)", block_size=WHOLE_MAP, scheduled=False),
    replace(_DROPBLOCK, name="SpatialDropout (torch's Dropout2d)", torch_layer="dropout2d", scheduled=False),
    Setting("DropPath", drops=False, drop_path=0.2),
    Setting("label smoothing", drops=False, label_smoothing=0.1),
    replace(_DROPBLOCK, name="DropBlock, constant", scheduled=False),
    _DROPBLOCK,
    replace(_DROPBLOCK, name="DropBlock, scheduled + label smoothing", label_smoothing=0.1),
)
SWEEPS = (  # each differs in one thing from "DropBlock, scheduled"
    replace(_DROPBLOCK, name="block of one pixel", block_size=1),
    replace(_DROPBLOCK, name="block a quarter of the map", block_size=0.25),
    replace(_DROPBLOCK, name="block three quarters of the map", block_size=0.75),
    *(replace(_DROPBLOCK, name=f"keep_prob {keep_prob}", keep_prob=keep_prob) for keep_prob in (0.95, 0.8, 0.7)),
    replace(_DROPBLOCK, name="last stage only", stages=(-1,)),
    replace(_DROPBLOCK, name="branch only", where="branch"),
)
PARTS = {"table": TABLE, "sweeps": SWEEPS}


@dataclass(frozen=True)
class Recipe:
    """A training: SGD with momentum, one cycle of the learning rate, shifted and mirrored images.

    Attributes:
        image_size: height and width in pixels.
        images, test_images: the most images to use, the same number of each class, in an order drawn once.
        autocast: True: bfloat16 by torch.autocast.
    """

    image_size: int
    images: int
    epochs: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 5e-4
    test_images: int = 10_000
    autocast: bool = True


RECIPES = {
    "plain": Recipe(image_size=28, images=500, epochs=60, lr=0.05),
    "resnet": Recipe(image_size=28, images=500, epochs=60, lr=0.1),
    # Depthwise convolutions are slower in bfloat16 on a CPU.
    "lite0": Recipe(96, images=250, epochs=12, lr=0.02, batch_size=32, test_images=1000, autocast=False),
}


def make_network(name: str, classes: int, setting: Setting) -> nn.Module:
    if name == "plain":
        return PlainConvNet(classes)
    if name == "resnet":
        return ResNet14(classes, setting.drop_path)
    net: Any = imagenet_lite0()
    net.reset_classifier(classes)
    residual = [module for module in net.modules() if hasattr(module, "drop_path")]
    for number, block in enumerate(residual):
        block.drop_path = StochasticDepth(setting.drop_path * (number + 1) / len(residual), "row")
    return net


def applies(network: str, setting: Setting) -> bool:
    """False for a network without shortcuts and a setting that is about them."""
    return network != "plain" or not (setting.drop_path or setting.where == "branch")


def put_in(net: nn.Module, setting: Setting, image_size: int, steps: int) -> KeepProbSchedule | None:
    """Injects DropBlock, or torch's layer at its sites; returns the schedule, None if nothing is injected."""
    if not setting.drops:
        return None
    example = torch.empty(1, 3, image_size, image_size)
    where = "branch" if isinstance(net, PlainConvNet) else setting.where
    inject_dropblock(
        net,
        setting.stages,
        keep_prob=setting.keep_prob,
        block_size=setting.block_size,
        where=where,
        example_input=example,
    )
    if setting.torch_layer:
        layer = {"dropout": F.dropout, "dropout2d": F.dropout2d}[setting.torch_layer]
        for module in net.modules():
            if isinstance(module, DropBlock):
                module.monitor = lambda _, x, own=module: layer(x, 1 - own.keep_prob, own.training)
    return KeepProbSchedule(net, steps, mode="linear" if setting.scheduled else "constant")


Source = tuple[str, str | None, str, bool]  # the arguments of load_data


@lru_cache(maxsize=1)
def load(source: Source, recipe: Recipe) -> tuple[Tensor, ...]:
    """Training images and labels, test images and labels, as tensors; each class has the same number."""
    data, size = load_data(*source), recipe.image_size

    def tensors(part: Sequence[Any], limit: int) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([int(label) for _, label in part])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        each = [order[labels[order] == index][: limit // data.classes] for index in range(data.classes)]
        chosen = torch.cat(each).tolist()
        pixels = [torch.frombuffer(bytearray(picture(part[i][0], size)), dtype=torch.uint8) for i in chosen]
        images = torch.stack(pixels).view(-1, size, size, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
        return images.contiguous(), labels[chosen]

    return *tensors(data.train, recipe.images), *tensors(data.val, recipe.test_images)


def picture(image: Any, size: int) -> bytes:
    return image.convert("RGB").resize((size, size)).tobytes()


def vary(images: Tensor) -> Tensor:
    """Mirrors half of the images and shifts each by up to an eighth of its size."""
    count, _, size, _ = images.shape
    device = images.device
    images = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, images.flip(-1), images)
    margin = size // 8
    padded = F.pad(images, [margin] * 4, mode="reflect")
    down, right = torch.randint(0, 2 * margin + 1, (2, count, 1), device=device)
    offsets, each = torch.arange(size, device=device), torch.arange(count, device=device)
    rows, columns = offsets + down, offsets + right
    return padded[each[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def train(network: str, recipe: Recipe, setting: Setting, seed: int, source: Source, device: str) -> float:
    """The accuracy on the test images at the end of the training, in percent."""
    torch.set_num_threads(1)
    images, labels, test_images, test_labels = (part.to(device) for part in load(source, recipe))
    torch.manual_seed(seed)
    net = make_network(network, int(labels.max()) + 1, setting).to(memory_format=torch.channels_last)
    batch_size = min(recipe.batch_size, len(images))
    steps = recipe.epochs * (len(images) // batch_size)
    schedule = put_in(net, setting, recipe.image_size, steps)
    net.to(device)
    options: dict[str, Any] = {"lr": recipe.lr, "momentum": 0.9, "nesterov": True, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.SGD(net.parameters(), **options)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps)
    if schedule is not None:
        schedule.attach(optimizer)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.autocast)
    for batch in batches(len(images), batch_size, recipe.epochs):
        inputs = vary(images[batch]).contiguous(memory_format=torch.channels_last)
        with autocast:
            loss = F.cross_entropy(net.train()(inputs), labels[batch], label_smoothing=setting.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    net.eval()
    with torch.no_grad(), autocast:
        parts = zip(test_images.split(500), test_labels.split(500), strict=True)
        right = sum(int((net(inputs).argmax(1) == wanted).sum()) for inputs, wanted in parts)
    return 100 * right / len(test_labels)


def batches(count: int, batch_size: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count)[: count // batch_size * batch_size].split(batch_size)


def run(args: argparse.Namespace) -> None:
    """Does all runs that are not in the file yet."""
    source = (args.dataset, args.data_dir, args.root, args.download)
    dataset = args.data_dir or args.dataset
    data = load_data(*source)  # the download is done before there are several processes
    if args.max_samples is not None and args.max_samples < 2 * data.classes:
        raise SystemExit(
            f"error: --max-samples {args.max_samples} for {data.classes} classes; give two for each or more"
        )
    check_device(args.device)
    source = (*source[:3], False)
    done = {tuple(row[name] for name in FIELDS[:-1]) for row in read(args.output)}
    runs: dict[tuple[str, ...], tuple[str, Recipe, Setting, int]] = {}
    # All settings of a seed before the next one: an unfinished table compares all of them.
    for seed, network, part in itertools.product(range(args.seeds), args.networks, args.parts):
        recipe = RECIPES[network]
        recipe = replace(recipe, images=args.max_samples or recipe.images, epochs=args.epochs or recipe.epochs)
        for setting in PARTS[part]:
            key = (dataset, network, str(recipe.images), str(recipe.epochs), part, setting.name, str(seed))
            if applies(network, setting) and key not in done:
                runs[key] = (network, recipe, setting, seed)
    # Processes are spawned: a forked process cannot use a GPU that its parent uses.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context) as pool, tqdm(total=len(runs), unit="run", disable=None) as bar:
        futures = {pool.submit(train, *what, source, args.device): key for key, what in runs.items()}
        try:
            for future in as_completed(futures):
                write((*futures[future], f"{future.result():.2f}"), args.output)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def report(path: Path) -> None:
    """Prints the tables as Markdown, with the differences between settings, and draws them beside the file."""
    results = Results(path, {part: [setting.name for setting in settings] for part, settings in PARTS.items()})
    print(results.as_markdown())
    for reference in ("baseline", REFERENCE):
        print(f"\nReference: {reference}.\n\n{results.differences_as_markdown(reference)}")
    results.plot().savefig(path.with_suffix(".png"))
    print(f"\nwrote {path.with_suffix('.png')}", file=sys.stderr)


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    add_options(parser, "root", "download", "data_dir", dataset="fashion-mnist", device="cpu")
    add, count = parser.add_argument, whole_number(1)
    add("--max-samples", type=count, metavar="N", help="at most N training images, of each class alike (by recipe)")
    add("--epochs", type=count, metavar="N", help="passes over the training images (by recipe)")
    add("--networks", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME", help=f"({' '.join(RECIPES)})")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="NAME", help=f"({' '.join(PARTS)})")
    add("--seeds", type=count, default=5, metavar="N", help="runs of each setting (%(default)s)")
    add("--jobs", type=count, default=os.cpu_count(), metavar="N", help="runs at a time (%(default)s)")
    add("--output", type=Path, default=Path("runs/regularizers.csv"), metavar="FILE", help="(%(default)s)")
    add("--report", action="store_true", help="train nothing; print the tables and draw the picture of the runs so far")
    args = parser.parse_args(argv)
    try:
        if not args.report:
            run(args)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on") from None
    report(args.output)


if __name__ == "__main__":
    main()
