"""Shows DropBlock in a segmentation network: torchvision's DeepLabV3, FCN or LR-ASPP, or a U-Net.

    pip install "dropblock-inject[examples]"
    python examples/segmentation.py                                 # scenes of digits; a minute on a CPU
    python examples/segmentation.py --dataset pets --download --model deeplabv3_resnet50 --pretrained --image-size 256
    python examples/segmentation.py --model unet --include "encoder.*.blocks.[56].*" "decoder.*"  # encoder and decoder
    python examples/segmentation.py --resume runs/segmentation      # after an interruption

The default is LR-ASPP on timm's EfficientNet-Lite0, with the ImageNet weights that come as a package. torchvision's
backbones are dilated, so their last stages have maps of the same size. They are still stages 3 and 4, as in a
classifier. ASPP, the heads and a decoder get DropBlock if --include names them. The U-Net is that of
segmentation-models-pytorch, with the same EfficientNet-Lite0 as its encoder; its images have sides that 32 divides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.models import segmentation
from torchvision.transforms.functional import InterpolationMode as Interpolation
from torchvision.transforms.functional import pil_to_tensor, resize

from dropblock_inject import KeepProbSchedule, inject_dropblock, mc_predict
from dropblock_inject.plot import plot_uncertainty
from lib.command_line import add_options, errors_in_a_sentence, make_parser, parse_arguments
from lib.data import at_most, open_parts
from lib.models import imagenet_lite, lite0_features
from lib.scenes import CLASSES, Scenes
from lib.training import Training, finite

MODELS = ["lite0", "unet"] + [
    name for name in segmentation.__dict__ if name.startswith(("deeplabv3_", "fcn_", "lraspp_"))
]


class Pets(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Oxford-IIIT Pets in three classes: background, animal, outline."""

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
    """Two feature maps of the EfficientNet-Lite0, named as LR-ASPP expects."""

    def __init__(self) -> None:
        super().__init__()
        self.body = lite0_features(2, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(("low", "high"), self.body(x), strict=True))


class UNet(nn.Module):
    """The U-Net of segmentation-models-pytorch on the EfficientNet-Lite0, with the output of torchvision's networks."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch import Unet
        except ImportError:
            raise SystemExit("error: --model unet needs pip install segmentation-models-pytorch") from None
        net = Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=classes)
        own = net.encoder.model.state_dict()
        net.encoder.model.load_state_dict({k: v for k, v in imagenet_lite(0).state_dict().items() if k in own})
        self.encoder, self.decoder, self.head = net.encoder, net.decoder, net.segmentation_head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.decoder(self.encoder(x)))}


def make_segmenter(name: str, classes: int, pretrained: bool) -> nn.Module:
    """The named model, with new last layers for `classes` classes."""
    if name == "lite0":
        return segmentation.LRASPP(Lite0(), low_channels=40, high_channels=320, num_classes=classes)
    if name == "unet":
        return UNet(classes)
    weights = {"weights": "DEFAULT"} if pretrained else {"weights": None, "weights_backbone": None}
    model = segmentation.__dict__[name](**weights)
    for parent in list(model.modules()):
        for child, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and layer.out_channels == 21:  # those of Pascal VOC
                setattr(parent, child, nn.Conv2d(layer.in_channels, classes, kernel_size=1))
    return model


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--model", default="lite0", choices=MODELS, metavar="NAME", help=f"{', '.join(MODELS)} (lite0)")
    parser.add_argument(
        "--dataset", default="digits", choices=["digits", "pets"], help="scenes of digits, or Oxford pets"
    )
    add_options(parser, "pretrained", "root", "download", "max_samples", image_size=128)
    add_options(parser, "stages", "include", "keep_prob", "block_size")
    add_options(parser, "seed", "device", "workers", epochs=5, batch_size=8, lr=2e-3)
    add_options(parser, "resume", output="runs/segmentation")
    parser.add_argument(
        "--uncertainty", metavar="FILE", help="draw the errors and the uncertainty of a validation image at the end"
    )
    args, resumed = parse_arguments(parser, argv)
    torch.manual_seed(args.seed)

    size = args.image_size
    if args.dataset == "pets":
        download = args.download
        parts = open_parts("pets", args.root, download, lambda part: Pets(args.root, size, download, train=part == 0))
    else:
        parts = Scenes(400, size, train=True), Scenes(100, size, train=False)
    classes = 3 if args.dataset == "pets" else len(CLASSES) + 1
    options = {"batch_size": args.batch_size, "num_workers": args.workers, "collate_fn": as_batch}
    train = DataLoader(at_most(args.max_samples, parts[0]), shuffle=True, drop_last=True, **options)
    val = DataLoader(at_most(args.max_samples, parts[1]), **options)
    if not len(train):
        raise SystemExit("error: fewer training images than --batch-size; give a smaller one")

    model = make_segmenter(args.model, classes, args.pretrained and not resumed)
    report = inject_dropblock(
        model,
        None if args.include else args.stages,
        include=args.include,
        keep_prob=args.keep_prob,
        block_size=args.block_size,
        example_input=torch.empty(1, 3, size, size),
    )
    print(report)
    model.to(args.device)

    steps = args.epochs * len(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
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
            for images, masks in train:
                outputs, masks = model(images.to(args.device)), masks.to(args.device)
                loss = cross_entropy(outputs["out"], masks)
                if "aux" in outputs:
                    loss = loss + 0.5 * cross_entropy(outputs["aux"], masks)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()  # keep_prob moves here
                rates.step()
                total += loss.item()
            mean_loss = finite(total / len(train))
            overlap = mean_iou(model, val, classes, args.device)
            training.end_epoch()
            keep_prob = min(schedule.get_last_keep_prob())
            print(
                f"epoch {training.epoch}  loss {mean_loss:.3f}, mean IoU {overlap:.1%}, keep_prob {keep_prob:.3f}",
                flush=True,
            )
    print(f"the weights are in {training.save_weights()}")
    if args.uncertainty:
        image, target = parts[1][0]
        prediction = mc_predict(model, image[None].to(args.device), samples=30, output="out")
        figure = plot_uncertainty(image.permute(1, 2, 0), prediction, target["mask"], ignore_index=None)
        figure.savefig(args.uncertainty)
        print(f"the uncertainty of a validation image is in {args.uncertainty}")


def as_batch(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in samples]), torch.stack([target["mask"] for _, target in samples])


@torch.no_grad()
def mean_iou(model: nn.Module, loader: DataLoader, classes: int, device: str) -> float:
    """The intersection over union of prediction and mask, as the mean over the classes that occur."""
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
