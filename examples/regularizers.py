"""A study: DropBlock beside other regularisers, one recipe, several seeds, whatever the numbers say.

    pip install "dropblock-inject[examples,plot]"

Fashion-MNIST in data/FashionMNIST/raw, or downloaded to there; two networks from scratch on few images, and the
fine-tuning of a pretrained one. It can be stopped at any time and goes on where it was; the results are a line per run
in a CSV file, from which the table and the picture are made.

    python regularizers.py --download
    python regularizers.py --networks resnet --parts table --seeds 5 --jobs 2
    python regularizers.py --report                     # the table of what there is, and a picture

Your own images, in train/CLASS/*.jpg and val/CLASS/*.jpg, or a dataset of torchvision; all its images, on a GPU:

    python regularizers.py --data-dir flowers --networks lite0
    python regularizers.py --dataset cifar10 --images 50000 --epochs 100 --device cuda
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
from lib.data import DATASETS, load_data
from lib.models import imagenet_lite0
from lib.results import FIELDS, Results, read, write
from lib.small_networks import PlainConvNet, ResNet14


@dataclass(frozen=True)
class Setting:
    """What a row of the table trains with.

    Attributes:
        name: in the table.
        drops: whether anything is dropped of the feature maps.
        block_size: a share of the map, or pixels: 1 is Dropout, a block as large as the map SpatialDropout.
        keep_prob: of the last stage; the one before it drops a quarter as much, as in the paper's code.
        scheduled: from 1 to keep_prob over the training; else constant.
        stages, where: as in inject_dropblock.
        torch_layer: torch's own layer at the same sites, in place of DropBlock.
        label_smoothing: as in torch's cross_entropy.
        drop_path: probability with which a block of the residual network is passed over, in the deepest block.
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
SWEEPS = (  # each differs in one thing from the table's scheduled DropBlock
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
    """How a network is trained: SGD with momentum, one cycle of the learning rate, shifted and mirrored images.

    Attributes:
        image_size: in pixels.
        images, test_images: at most, the first of each class alike in an order drawn once.
        autocast: whether in bfloat16 where autocast says so.
    """

    image_size: int
    images: int  # to train on, of each class alike
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
    """A network without shortcuts has no paths to drop, and no skip."""
    return network != "plain" or not (setting.drop_path or setting.where == "branch")


def put_in(net: nn.Module, setting: Setting, image_size: int, steps: int) -> KeepProbSchedule | None:
    """DropBlock, or torch's layer at its sites; the schedule, if anything is dropped."""
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


Source = tuple[str, str | None, str, bool]  # what load_data takes


@lru_cache(maxsize=1)
def load(source: Source, recipe: Recipe) -> tuple[Tensor, ...]:
    """Training images and labels, test images and labels, as tensors; of each class alike."""
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
    """Mirrored and shifted by up to an eighth, each in its own way."""
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
    """All runs that are not in the file yet."""
    source = (args.dataset, args.data_dir, args.root, args.download)
    dataset = args.data_dir or args.dataset
    data = load_data(*source)  # downloads it, if asked to, before there are several processes
    if args.images is not None and args.images < 2 * data.classes:
        raise SystemExit(f"error: --images {args.images} for {data.classes} classes; give two for each or more")
    try:
        torch.empty(0, device=args.device)
    except (AssertionError, RuntimeError) as error:
        raise SystemExit(f"error: no device {args.device}: {str(error).splitlines()[0]}") from None
    source = (*source[:3], False)
    done = {tuple(row[name] for name in FIELDS[:-1]) for row in read(args.output)}
    runs: dict[tuple[str, ...], tuple[str, Recipe, Setting, int]] = {}
    # All settings of a seed before the next one: an unfinished table compares all of them.
    for seed, network, part in itertools.product(range(args.seeds), args.networks, args.parts):
        changed = {name: getattr(args, name) for name in ("images", "epochs") if getattr(args, name)}
        recipe = replace(RECIPES[network], **changed)
        for setting in PARTS[part]:
            key = (dataset, network, str(recipe.images), str(recipe.epochs), part, setting.name, str(seed))
            if applies(network, setting) and key not in done:
                runs[key] = (network, recipe, setting, seed)
    # A new process for each: a GPU cannot be used in a copy of a process that uses it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context) as pool, tqdm(total=len(runs), unit="run") as bar:
        futures = {pool.submit(train, *what, source, args.device): key for key, what in runs.items()}
        try:
            for future in as_completed(futures):
                write((*futures[future], f"{future.result():.2f}"), args.output)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def report(path: Path) -> None:
    """Prints the tables as Markdown and draws them beside the file."""
    results = Results(path, {part: [setting.name for setting in settings] for part, settings in PARTS.items()})
    print(results.as_markdown())
    results.plot().savefig(path.with_suffix(".png"))
    print(f"\nwrote {path.with_suffix('.png')}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="DropBlock beside other regularisers.")
    add = parser.add_argument
    add("--dataset", default="fashion-mnist", choices=DATASETS, metavar="NAME", help="of torchvision (%(default)s)")
    add("--root", default="data", metavar="DIR", help="where torchvision's datasets are (%(default)s)")
    add("--download", action="store_true", help="download the dataset to there")
    add("--data-dir", metavar="DIR", help="your own images: train/CLASS/*.jpg and val/CLASS/*.jpg")
    add("--networks", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME", help=f"({' '.join(RECIPES)})")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="NAME", help=f"({' '.join(PARTS)})")
    add("--seeds", type=int, default=5, metavar="N", help="runs of each setting (%(default)s)")
    add("--images", type=int, metavar="N", help="to train on, if not those of the recipe")
    add("--epochs", type=int, metavar="N", help="likewise")
    add("--device", default="cpu", help="(%(default)s)")
    add("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (%(default)s)")
    add("--output", type=Path, default=Path("runs/regularizers.csv"), help="(%(default)s)")
    add("--report", action="store_true", help="only the tables and the picture of what there is")
    args = parser.parse_args(argv)
    try:
        if not args.report:
            run(args)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on") from None
    report(args.output)


if __name__ == "__main__":
    main()
