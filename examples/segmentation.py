"""Segmentation with DropBlock in the backbone: torchvision's DeepLabV3, FCN or LR-ASPP, also with a backbone of timm.

    pip install "dropblock-inject[examples]"
    python segmentation.py                             # digits strewn over a canvas; a minute on a CPU
    python segmentation.py --pets --download --pretrained --model deeplabv3_resnet50 --size 256 --device cuda

The default is LR-ASPP on timm's EfficientNet-Lite0, with the ImageNet weights that come as a package. torchvision's
backbones are dilated: their last stages have maps of the same size. Stages 3 and 4 are still those of a
classifier, for dilation does not merge stages. ASPP, heads and the auxiliary classifier are left alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.models import segmentation
from torchvision.transforms.functional import InterpolationMode as Interpolation
from torchvision.transforms.functional import pil_to_tensor, resize

from dropblock_inject import KeepProbSchedule, inject_dropblock
from lib.models import lite0_features
from lib.scenes import CLASSES, Scenes

MODELS = ["lite0"] + [name for name in segmentation.__dict__ if name.startswith(("deeplabv3_", "fcn_", "lraspp_"))]


class Pets(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Oxford-IIIT Pets: background, the animal, its outline."""

    def __init__(self, root: str, size: int, download: bool, *, train: bool) -> None:
        split = "trainval" if train else "test"
        self.images = datasets.OxfordIIITPet(root, split, target_types="segmentation", download=download)
        self.size = [size, size]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, trimap = self.images[index]
        classes = torch.tensor([0, 1, 0, 2])  # the animal is 1 there, the background 2, the outline 3
        mask = resize(pil_to_tensor(trimap), self.size, Interpolation.NEAREST)[0].long()
        return resize(pil_to_tensor(image) / 255, self.size), {"mask": classes[mask]}


class Lite0(nn.Module):
    """Two maps of the EfficientNet-Lite0, under the names that LR-ASPP has for them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = lite0_features(2, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(("low", "high"), self.body(x), strict=True))


def make_segmenter(name: str, classes: int, pretrained: bool) -> nn.Module:
    """The named model with its last layers made anew for so many classes."""
    if name == "lite0":
        return segmentation.LRASPP(Lite0(), low_channels=40, high_channels=320, num_classes=classes)
    weights = {"weights": "DEFAULT"} if pretrained else {"weights": None, "weights_backbone": None}
    model = segmentation.__dict__[name](**weights)
    for parent in list(model.modules()):
        for child, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and layer.out_channels == 21:  # those of Pascal VOC
                setattr(parent, child, nn.Conv2d(layer.in_channels, classes, kernel_size=1))
    return model


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a segmentation model with DropBlock in its backbone.")
    add = parser.add_argument
    add("--model", default="lite0", choices=MODELS, metavar="NAME", help="(%(default)s)")
    add("--pretrained", action="store_true", help="download torchvision's weights for it")
    add("--pets", action="store_true", help="Oxford-IIIT Pets in place of the digits")
    add("--root", default="data", metavar="DIR", help="where that is (%(default)s)")
    add("--download", action="store_true", help="download it to there")
    add("--size", type=int, default=128, metavar="N", help="of an image, in pixels (%(default)s)")
    add("--images", type=int, default=400, metavar="N", help="scenes of digits to train on (%(default)s)")
    add("--epochs", type=int, default=5, metavar="N", help="(%(default)s)")
    add("--batch-size", type=int, default=8, metavar="N", help="(%(default)s)")
    add("--lr", type=float, default=2e-3, help="peak learning rate of AdamW (%(default)s)")
    add("--keep-prob", type=float, default=0.9, metavar="P", help="at the end (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    train_set: Dataset[Any]
    val_set: Dataset[Any]
    if args.pets:
        train_set, val_set = (Pets(args.root, args.size, args.download, train=train) for train in (True, False))
        classes = 3
    else:
        train_set = Scenes(args.images, args.size, train=True)
        val_set = Scenes(args.images // 4, args.size, train=False)
        classes = len(CLASSES) + 1
    train = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True, collate_fn=as_batch)
    val = DataLoader(val_set, args.batch_size, collate_fn=as_batch)

    model = make_segmenter(args.model, classes, args.pretrained)
    example = torch.empty(1, 3, args.size, args.size)
    print(inject_dropblock(model, stages=[3, 4], keep_prob=args.keep_prob, block_size=0.5, example_input=example))
    model.to(args.device)

    steps = args.epochs * len(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps)
    schedule = KeepProbSchedule(model, steps)
    schedule.attach(optimizer)
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for images, masks in train:
            outputs, masks = model(images.to(args.device)), masks.to(args.device)
            loss = cross_entropy(outputs["out"], masks)
            if "aux" in outputs:
                loss = loss + 0.5 * cross_entropy(outputs["aux"], masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            total += loss.item()
        keep_prob = min(schedule.get_last_keep_prob())
        overlap = mean_iou(model, val, classes, args.device)
        print(
            f"epoch {epoch + 1}  loss {total / len(train):.3f}, mean IoU {overlap:.1%}, keep_prob {keep_prob:.3f}",
            flush=True,
        )


def as_batch(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in samples]), torch.stack([target["mask"] for _, target in samples])


@torch.no_grad()
def mean_iou(model: nn.Module, loader: DataLoader, classes: int, device: str) -> float:
    """Intersection over union of what is predicted and what is there, the mean over the classes that occur."""
    model.eval()
    counts = torch.zeros(classes, classes)
    for images, masks in loader:
        predicted = model(images.to(device))["out"].argmax(1).cpu()
        counts += torch.bincount(masks.flatten() * classes + predicted.flatten(), minlength=classes**2).view(
            classes, -1
        )
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return float((counts.diag() / union)[counts.sum(1) > 0].mean())


if __name__ == "__main__":
    main()
