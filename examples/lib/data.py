"""Labelled images: scikit-learn's digits, letters in many fonts, a folder of your own, or a dataset of torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode

from dropblock_inject.command.pictures import upright_in_8_bits
from lib.fonts import LETTERS, load_letters


class Data(NamedTuple):
    """Labelled PIL images: sequences of (image, class index)."""

    name: str
    train: Sequence[tuple[Image.Image, int]]
    val: Sequence[tuple[Image.Image, int]]
    classes: int
    mirror: bool  # whether a mirrored image belongs to the same class
    size: int | None = None  # pixels, if the images need another size than the model expects


class Source(NamedTuple):
    """A dataset of torchvision, with the arguments for its two parts."""

    dataset: Callable[..., Any]
    train: dict[str, Any]
    val: dict[str, Any]
    classes: int
    mirror: bool = True


SOURCES = {
    "cifar10": Source(datasets.CIFAR10, {"train": True}, {"train": False}, 10),
    "cifar100": Source(datasets.CIFAR100, {"train": True}, {"train": False}, 100),
    "dtd": Source(datasets.DTD, {"split": "train"}, {"split": "val"}, 47),
    "fashion-mnist": Source(datasets.FashionMNIST, {"train": True}, {"train": False}, 10),
    "fgvc-aircraft": Source(datasets.FGVCAircraft, {"split": "train"}, {"split": "val"}, 100),
    "flowers102": Source(datasets.Flowers102, {"split": "train"}, {"split": "val"}, 102),
    "food101": Source(datasets.Food101, {"split": "train"}, {"split": "test"}, 101),
    "gtsrb": Source(datasets.GTSRB, {"split": "train"}, {"split": "test"}, 43, mirror=False),
    "imagenette": Source(datasets.Imagenette, {"split": "train"}, {"split": "val"}, 10),
    "mnist": Source(datasets.MNIST, {"train": True}, {"train": False}, 10, mirror=False),
    "oxford-pets": Source(datasets.OxfordIIITPet, {"split": "trainval"}, {"split": "test"}, 37),
    "stl10": Source(datasets.STL10, {"split": "train"}, {"split": "test"}, 10),
    "svhn": Source(datasets.SVHN, {"split": "train"}, {"split": "test"}, 10, mirror=False),
}
DATASETS = ["digits", "letters", *SOURCES]


def load_data(dataset: str, data_dir: str | None, root: str, download: bool) -> Data:
    """The folder `data_dir`, or if that is None the named dataset."""
    if data_dir is not None:
        return load_folder(Path(data_dir))
    if dataset == "digits":
        return load_digits()
    if dataset == "letters":
        return Data("letters", *load_letters(), len(LETTERS), mirror=False)
    source = SOURCES[dataset]
    parts = (source.train, source.val)
    train, val = open_parts(dataset, root, download, lambda i: source.dataset(root, **parts[i], download=download))
    return Data(dataset, train, val, source.classes, source.mirror)


def open_parts(name: str, root: str, download: bool, open_part: Callable[[int], Any]) -> tuple[Any, Any]:
    """The training and the validation part of a dataset of torchvision, by `open_part(0)` and `open_part(1)`."""
    try:
        return open_part(0), open_part(1)
    except (OSError, RuntimeError) as error:
        if download:
            raise SystemExit(f"error: {name} could not be downloaded to {root}/: {error}") from None
        raise SystemExit(f"error: {name} is not in {root}/; pass --download, or --root with its folder") from None


def load_digits() -> Data:
    """The 1797 handwritten digits of scikit-learn, 8x8 pixels; every fifth is held out."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    scans = (bunch.images / 16 * 255).round().astype("uint8")
    digits = [(Image.fromarray(scan), int(label)) for scan, label in zip(scans, bunch.target, strict=True)]
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = len(digits) // 5
    train, val = ([digits[i] for i in part] for part in (order[held_out:], order[:held_out]))
    return Data("digits", train, val, 10, mirror=False, size=96)


def load_folder(path: Path) -> Data:
    """A folder with train/ and val/, each with one folder of images per class."""
    for part in (path, path / "train", path / "val"):
        if not part.is_dir():
            raise SystemExit(f"error: no folder {part}; --data-dir needs train/ and val/, in each a folder per class")
    try:
        train = datasets.ImageFolder(path / "train", loader=open_image)
        val = datasets.ImageFolder(path / "val", loader=open_image)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {path}: {str(error).splitlines()[0]}") from None
    if len(train.classes) < 2:
        raise SystemExit(f"error: {path}/train has only the class {train.classes[0]}; there must be two or more")
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise SystemExit(f"error: train/ and val/ of {path} differ in their classes: only one has {', '.join(odd[:5])}")
    return Data(str(path), train, val, len(train.classes), mirror=True)


def open_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return upright_in_8_bits(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path} is not a readable image ({error}); remove it or replace it") from None


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled PIL images as tensors."""

    def __init__(self, images: Sequence[tuple[Image.Image, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image.convert("RGB")), label


def at_most(limit: int | None, dataset: Any) -> Subset:
    """Of a dataset `limit` samples, picked evenly; all of them if `limit` is None or larger."""
    length = len(dataset) if limit is None else min(limit, len(dataset))
    return Subset(dataset, [index * len(dataset) // length for index in range(length)])


def make_datasets(data: Data, size: int, config: dict[str, Any], limit: int | None) -> tuple[Subset, Subset]:
    """The training images with random variation, and the validation images, prepared as timm's `config` says."""
    interpolation = InterpolationMode(config["interpolation"])
    to_tensor = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    # These transforms draw random numbers from torch alone, whose state is in the checkpoints.
    vary = [transforms.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=interpolation)]
    if data.mirror:
        vary.append(transforms.RandomHorizontalFlip())
    fit = [transforms.Resize(size, interpolation), transforms.CenterCrop(size)]
    train = at_most(limit, Images(data.train, transforms.Compose(vary + to_tensor)))
    val = at_most(limit, Images(data.val, transforms.Compose(fit + to_tensor)))
    if len(train) < 2:
        raise SystemExit("error: there must be two training images or more")
    return train, val
