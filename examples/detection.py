"""A detector with DropBlock in its backbone: torchvision's Faster R-CNN.

    pip install "dropblock-inject[examples]"
    python detection.py                                # digits strewn over a canvas; two minutes on a CPU
    python detection.py --voc --download --pretrained --model fasterrcnn_resnet50_fpn --size 800 --device cuda

The default is a Faster R-CNN on timm's EfficientNet-Lite0, with the ImageNet weights that come as a package. DropBlock
goes into the residual blocks of the backbone, stages 3 and 4; the feature pyramid, the region proposals and
the heads are left alone. In eval mode the detector computes what it would without it.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.transforms.functional import pil_to_tensor

from dropblock_inject import KeepProbSchedule, inject_dropblock
from lib.models import lite0_features
from lib.scenes import CLASSES, Scenes

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
MODELS = ["lite0"] + [name for name in detection.__dict__ if name.startswith("fasterrcnn_") and "_v2" not in name]


class Voc(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pascal VOC 2007, as detectors want it."""

    def __init__(self, root: str, download: bool, *, train: bool) -> None:
        self.images = datasets.VOCDetection(root, "2007", "trainval" if train else "test", download=download)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, annotation = self.images[index]
        objects = annotation["annotation"]["object"]
        sides = ("xmin", "ymin", "xmax", "ymax")
        boxes = torch.tensor([[float(found["bndbox"][side]) for side in sides] for found in objects])
        labels = torch.tensor([VOC_CLASSES.index(found["name"]) + 1 for found in objects])
        return pil_to_tensor(image) / 255, {"boxes": boxes, "labels": labels}


class Lite0Pyramid(nn.Module):
    """A feature pyramid on the EfficientNet-Lite0."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = lite0_features(2, 3, 4)
        self.fpn = FeaturePyramidNetwork([40, 112, 320], self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(level), maps) for level, maps in enumerate(self.body(x))))


def make_detector(name: str, classes: int, size: int, pretrained: bool) -> nn.Module:
    """The named detector with a head for so many classes, which is one more for the background."""
    if name == "lite0":
        return detection.FasterRCNN(
            Lite0Pyramid(),
            min_size=size,
            max_size=2 * size,
            rpn_anchor_generator=AnchorGenerator(((16, 24), (32, 48), (64, 96)), ((0.5, 1.0, 2.0),) * 3),
            rpn_post_nms_top_n_train=200,
            rpn_post_nms_top_n_test=100,
            box_head=FastRCNNConvFCHead((64, 7, 7), [64], [128]),
            box_predictor=FastRCNNPredictor(128, classes + 1),
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=2),
            box_batch_size_per_image=64,
        )
    weights = {"weights": "DEFAULT"} if pretrained else {"weights": None, "weights_backbone": None}
    model = detection.__dict__[name](**weights, min_size=size, max_size=2 * size)
    head = model.roi_heads.box_predictor
    model.roi_heads.box_predictor = FastRCNNPredictor(head.cls_score.in_features, classes + 1)
    return model


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a Faster R-CNN with DropBlock in its backbone.")
    add = parser.add_argument
    add("--model", default="lite0", choices=MODELS, metavar="NAME", help="(%(default)s)")
    add("--pretrained", action="store_true", help="download torchvision's weights for it")
    add("--voc", action="store_true", help="Pascal VOC 2007 in place of the digits")
    add("--root", default="data", metavar="DIR", help="where that is (%(default)s)")
    add("--download", action="store_true", help="download it to there")
    add("--size", type=int, default=160, metavar="N", help="the shorter side of an image, in pixels (%(default)s)")
    add("--images", type=int, default=300, metavar="N", help="scenes of digits to train on (%(default)s)")
    add("--epochs", type=int, default=4, metavar="N", help="(%(default)s)")
    add("--batch-size", type=int, default=4, metavar="N", help="(%(default)s)")
    add("--lr", type=float, default=2e-3, help="peak learning rate of AdamW (%(default)s)")
    add("--keep-prob", type=float, default=0.9, metavar="P", help="at the end (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    train_set: Dataset[Any]
    val_set: Dataset[Any]
    if args.voc:
        train_set, val_set = (Voc(args.root, args.download, train=train) for train in (True, False))
    else:
        train_set = Scenes(args.images, args.size, train=True)
        val_set = Scenes(args.images // 4, args.size, train=False)
    train = DataLoader(train_set, args.batch_size, shuffle=True, collate_fn=as_lists)
    val = DataLoader(val_set, args.batch_size, collate_fn=as_lists)

    classes = VOC_CLASSES if args.voc else CLASSES
    model = make_detector(args.model, len(classes), args.size, args.pretrained)
    # A detector takes a list of images.
    example = ([torch.zeros(3, args.size, args.size)],)
    print(inject_dropblock(model, stages=[3, 4], keep_prob=args.keep_prob, block_size=0.5, example_input=example))
    model.to(args.device)

    steps = args.epochs * len(train)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps)
    schedule = KeepProbSchedule(model, steps)
    schedule.attach(optimizer)
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for images, targets in train:
            images, targets = to_device(images, targets, args.device)
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            total += loss.item()
        found, right = evaluate(model, val, args.device)
        keep_prob = min(schedule.get_last_keep_prob())
        print(
            f"epoch {epoch + 1}  loss {total / len(train):.3f}, {found:.1%} of the objects found, {right:.1%} of the "
            f"boxes right, keep_prob {keep_prob:.3f}",
            flush=True,
        )


def as_lists(samples: Sequence[Any]) -> tuple[list[Any], ...]:
    return tuple(list(part) for part in zip(*samples, strict=True))


def to_device(images: list[Tensor], targets: list[dict[str, Tensor]], device: str) -> tuple[list[Any], list[Any]]:
    wanted = ("boxes", "labels")
    return [image.to(device) for image in images], [{key: t[key].to(device) for key in wanted} for t in targets]


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: str) -> tuple[float, float]:
    """The share of objects with a box of their class on them (IoU above 0.5), and of boxes on such an object."""
    model.eval()
    objects = boxes = found = right = 0
    for images, targets in loader:
        images, targets = to_device(images, targets, device)
        for output, target in zip(model(images), targets, strict=True):
            sure = output["scores"] > 0.5
            hits = box_iou(target["boxes"], output["boxes"][sure]) > 0.5
            hits &= target["labels"][:, None] == output["labels"][sure]
            objects, boxes = objects + hits.shape[0], boxes + hits.shape[1]
            found, right = found + int(hits.any(1).sum()), right + int(hits.any(0).sum())
    return found / max(objects, 1), right / max(boxes, 1)


if __name__ == "__main__":
    main()
