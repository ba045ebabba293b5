"""The images that finetune.py trains on: scikit-learn's digits, a folder of one's own, or a torchvision dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets, transforms
from torchvision.transforms import InterpolationMode


class Data(NamedTuple):
    """Labelled PIL images: sequences of (image, class index)."""

    name: str
    train: Sequence[tuple[Image.Image, int]]
    val: Sequence[tuple[Image.Image, int]]
    classes: int
    mirror: bool  # whether an image seen in a mirror is one of the same class
    size: int | None = None  # in pixels, if another one than what a model expects is better


class Source(NamedTuple):
    """A torchvision dataset, and what it calls its two parts."""

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
DATASETS = ["digits", *SOURCES]


def load_data(dataset: str, data_dir: str | None, root: str, download: bool) -> Data:
    """The folder `data_dir` if there is one, else the named dataset."""
    if data_dir is not None:
        return load_folder(Path(data_dir))
    if dataset == "digits":
        return load_digits()
    source = SOURCES[dataset]
    try:
        train = source.dataset(root, **source.train, download=download)
        val = source.dataset(root, **source.val, download=download)
    except (OSError, RuntimeError) as error:
        if download:
            raise SystemExit(f"error: {dataset} could not be downloaded to {root}/: {error}") from None
        raise SystemExit(f"error: {dataset} is not in {root}/; pass --download, or --root with its folder") from None
    return Data(dataset, train, val, source.classes, source.mirror)


def load_digits() -> Data:
    """1797 handwritten digits of 43 people, 8x8 pixels, that come with scikit-learn; every fifth is held out."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    scans = (bunch.images / 16 * 255).round().astype("uint8")
    digits = [(Image.fromarray(scan), int(label)) for scan, label in zip(scans, bunch.target, strict=True)]
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = len(digits) // 5
    train, val = ([digits[i] for i in part] for part in (order[held_out:], order[:held_out]))
    return Data("digits", train, val, 10, mirror=False, size=96)


def load_folder(path: Path) -> Data:
    """A folder with train/ and val/, in each a folder of images per class."""
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
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise OSError(f"{path} is not a readable image ({error}); remove it or replace it") from None


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled PIL images made into tensors; at most `limit` of them, picked evenly."""

    def __init__(
        self, images: Sequence[tuple[Image.Image, int]], transform: Callable[[Image.Image], Tensor], limit: int | None
    ) -> None:
        self.images = images
        self.transform = transform
        self.length = len(images) if limit is None else min(limit, len(images))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index * len(self.images) // self.length]
        return self.transform(image.convert("RGB")), label


def make_datasets(data: Data, size: int, config: dict[str, Any], limit: int | None) -> tuple[Images, Images]:
    """The training images, varied at random, and the validation images, as timm's `config` of a model wants them."""
    interpolation = InterpolationMode(config["interpolation"])
    to_tensor = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    # These draw from torch's random numbers only, whose state is in the checkpoints of finetune.py.
    vary = [transforms.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=interpolation)]
    if data.mirror:
        vary.append(transforms.RandomHorizontalFlip())
    fit = [transforms.Resize(size, interpolation), transforms.CenterCrop(size)]
    train = Images(data.train, transforms.Compose(vary + to_tensor), limit)
    val = Images(data.val, transforms.Compose(fit + to_tensor), limit)
    if len(train) < 2:
        raise SystemExit("error: there must be two training images or more")
    return train, val
