"""Shows DropBlock in the backbone of a detector, or in its feature pyramid: torchvision's Faster R-CNN.

    pip install "dropblock-inject[examples]"
    python examples/detection.py                                    # scenes of digits; two minutes on a CPU
    python examples/detection.py --dataset voc --download --model fasterrcnn_resnet50_fpn --pretrained --image-size 800
    python examples/detection.py --include "backbone.fpn.*"         # the feature pyramid instead
    python examples/detection.py --resume runs/detection            # after an interruption

The default is a Faster R-CNN on timm's EfficientNet-Lite0, with the ImageNet weights that come as a package. DropBlock
goes into the residual blocks of the backbone, or to the sites that --include names. In eval mode the detector computes
the same as without DropBlock.
"""

from __future__ import annotations

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
from lib.command_line import add_options, errors_in_a_sentence, make_parser, parse_arguments
from lib.data import at_most, open_parts
from lib.models import lite0_features
from lib.scenes import CLASSES, Scenes
from lib.training import Training, finite

VOC_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
MODELS = ["lite0"] + [name for name in detection.__dict__ if name.startswith("fasterrcnn_") and "_v2" not in name]


class Voc(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pascal VOC 2007: images and targets in the form that torchvision's detectors take."""

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
    """A feature pyramid over the EfficientNet-Lite0."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = lite0_features(2, 3, 4)
        self.fpn = FeaturePyramidNetwork([40, 112, 320], self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(level), maps) for level, maps in enumerate(self.body(x))))


def make_detector(name: str, classes: int, size: int, pretrained: bool) -> nn.Module:
    """The named detector, with a new head for `classes` classes and the background."""
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


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--model", default="lite0", choices=MODELS, metavar="NAME", help=f"{', '.join(MODELS)} (lite0)")
    parser.add_argument(
        "--dataset", default="digits", choices=["digits", "voc"], help="scenes of digits, or Pascal VOC"
    )
    add_options(parser, "pretrained", "root", "download", "max_samples", image_size=160)
    add_options(parser, "stages", "include", "keep_prob", "block_size")
    add_options(parser, "seed", "device", "workers", epochs=4, batch_size=4, lr=2e-3)
    add_options(parser, "resume", output="runs/detection")
    args, resumed = parse_arguments(parser, argv)
    torch.manual_seed(args.seed)

    size = args.image_size
    if args.dataset == "voc":
        download = args.download
        parts = open_parts("voc", args.root, download, lambda part: Voc(args.root, download, train=part == 0))
    else:
        parts = Scenes(300, size, train=True), Scenes(75, size, train=False)
    classes = VOC_CLASSES if args.dataset == "voc" else CLASSES
    options = {"batch_size": args.batch_size, "num_workers": args.workers, "collate_fn": as_lists}
    train = DataLoader(at_most(args.max_samples, parts[0]), shuffle=True, **options)
    val = DataLoader(at_most(args.max_samples, parts[1]), **options)

    model = make_detector(args.model, len(classes), size, args.pretrained and not resumed)
    report = inject_dropblock(
        model,
        None if args.include else args.stages,
        include=args.include,
        keep_prob=args.keep_prob,
        block_size=args.block_size,
        example_input=([torch.empty(3, size, size)],),  # a detector takes a list of images
    )
    print(report)
    model.to(args.device)

    steps = args.epochs * len(train)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps)
    schedule = KeepProbSchedule(model, steps)
    schedule.attach(optimizer)
    training = Training(args, model=model, optimizer=optimizer, rates=rates, schedule=schedule)
    if resumed:
        training.load(resumed)

    with training:
        while training.epoch < args.epochs:
            model.train()
            total = 0.0
            for images, targets in train:
                images, targets = to_device(images, targets, args.device)
                loss = sum(model(images, targets).values())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()  # keep_prob moves here
                rates.step()
                total += loss.item()
            mean_loss = finite(total / len(train))
            found, right = evaluate(model, val, args.device)
            training.end_epoch()
            keep_prob = min(schedule.get_last_keep_prob())
            print(
                f"epoch {training.epoch}  loss {mean_loss:.3f}, {found:.1%} of the objects found, {right:.1%} of the "
                f"boxes right, keep_prob {keep_prob:.3f}",
                flush=True,
            )
    print(f"the weights are in {training.save_weights()}")


def as_lists(samples: Sequence[Any]) -> tuple[list[Any], ...]:
    return tuple(list(part) for part in zip(*samples, strict=True))


def to_device(images: list[Tensor], targets: list[dict[str, Tensor]], device: str) -> tuple[list[Any], list[Any]]:
    wanted = ("boxes", "labels")
    return [image.to(device) for image in images], [{key: t[key].to(device) for key in wanted} for t in targets]


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: str) -> tuple[float, float]:
    """The share of objects that a box of their class overlaps (IoU above 0.5), and the share of boxes that do so."""
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
