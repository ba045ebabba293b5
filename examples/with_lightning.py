"""A timm model with DropBlock in Lightning: one callback does all of it.

    pip install "dropblock-inject[examples,lightning]"
    python with_lightning.py                                             # scikit-learn's digits
    python with_lightning.py --dataset flowers102 --download --model resnet50 --pretrained --size 224
    python with_lightning.py --resume runs/lightning/last.ckpt --epochs 6

The callback injects before anything else is made of the model, schedules keep_prob over the trainer's steps, logs it,
is in the checkpoints, and goes on where they were.
"""

from __future__ import annotations

import argparse
from typing import Any

import timm
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from timm.data import resolve_model_data_config
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from dropblock_inject.integrations.lightning import DropBlockCallback
from lib.data import DATASETS, Data, load_data, make_datasets


class Classifier(LightningModule):
    """Nothing in it knows of DropBlock."""

    def __init__(self, model: str, classes: int, lr: float, pretrained: bool = False) -> None:
        super().__init__()
        self.model = timm.create_model(model, num_classes=classes, pretrained=pretrained)
        self.lr = lr

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Pictures(LightningDataModule):
    def __init__(self, data: Data, size: int, config: dict[str, Any], limit: int | None) -> None:
        super().__init__()
        self.train, self.val = make_datasets(data, size, config, limit)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=32)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a timm model with DropBlock in Lightning.")
    add = parser.add_argument
    add("--model", default="resnet18", metavar="NAME", help="in timm (%(default)s)")
    add("--pretrained", action="store_true", help="download timm's weights for it")
    add("--dataset", default="digits", choices=DATASETS, metavar="NAME", help=f"{', '.join(DATASETS)} (%(default)s)")
    add("--root", default="data", metavar="DIR", help="where torchvision's datasets are (%(default)s)")
    add("--download", action="store_true", help="download the dataset to there")
    add("--size", type=int, default=64, metavar="N", help="of an image, in pixels (%(default)s)")
    add("--images", type=int, metavar="N", help="use so few of the images, for a quick try")
    add("--epochs", type=int, default=3, metavar="N", help="(%(default)s)")
    add("--lr", type=float, default=1e-3, help="learning rate of AdamW (%(default)s)")
    add("--resume", metavar="FILE", help="a checkpoint of this script")
    add("--output", default="runs/lightning", metavar="DIR", help="(%(default)s)")
    args = parser.parse_args(argv)
    seed_everything(0)

    data = load_data(args.dataset, None, args.root, args.download)
    module = Classifier(args.model, data.classes, args.lr, args.pretrained)
    pictures = Pictures(data, args.size, resolve_model_data_config(module.model), args.images)
    dropblock = DropBlockCallback(
        stages=[3, 4],
        block_size=0.5,
        example_input=torch.empty(1, 3, args.size, args.size),
        schedule={"mode": "linear"},
    )
    trainer = Trainer(
        max_epochs=args.epochs,
        callbacks=[dropblock, ModelCheckpoint(args.output, save_last=True, enable_version_counter=False)],
        logger=CSVLogger(args.output, name="", version=""),  # keep_prob/stage3 and /stage4 are in its metrics.csv
        log_every_n_steps=1,
    )
    trainer.fit(module, pictures, ckpt_path=args.resume)
    print(f"accuracy {float(trainer.callback_metrics['accuracy']):.1%}")


if __name__ == "__main__":
    main()
