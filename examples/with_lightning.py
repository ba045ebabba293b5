"""Shows DropBlock in Lightning: one callback injects, schedules, logs and saves.

    pip install "dropblock-inject[examples,lightning]"
    python examples/with_lightning.py                                               # scikit-learn's digits
    python examples/with_lightning.py --dataset flowers102 --download --model resnet50 --pretrained --image-size 224
    python examples/with_lightning.py --resume runs/lightning/last.ckpt             # with the other options as before

The callback injects before Lightning wraps the model, schedules keep_prob over the trainer's steps, logs it, and has
its state in Lightning's checkpoints. A second callback keeps the random numbers there, so that a resumed training
equals an uninterrupted one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from timm.data import resolve_model_data_config
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from dropblock_inject.integrations.lightning import DropBlockCallback
from lib.checkpoint import write_file
from lib.command_line import add_options, errors_in_a_sentence, make_parser
from lib.data import Data, load_data, make_datasets
from lib.models import build_model
from lib.training import random_state, set_random_state


class Classifier(LightningModule):
    """A module like any other: nothing in it mentions DropBlock."""

    def __init__(self, model: str, classes: int, lr: float, pretrained: bool = False) -> None:
        super().__init__()
        self.model = build_model(model, classes, pretrained=pretrained)
        self.lr = lr

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Pictures(LightningDataModule):
    def __init__(self, data: Data, size: int, config: dict[str, Any], limit: int | None, batch_size: int) -> None:
        super().__init__()
        self.train, self.val = make_datasets(data, size, config, limit)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)


class RandomNumbers(Callback):
    """The state of the random numbers in the checkpoint, which Lightning itself leaves out; for one device."""

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def state_dict(self) -> dict[str, Any]:
        return random_state(self.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        set_random_state(state_dict, self.device)


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    add_options(parser, model="resnet18")
    add_options(parser, "pretrained", "dataset", "root", "download", "data_dir", "max_samples", image_size=64)
    add_options(parser, "stages", "keep_prob", "block_size", "seed", epochs=3, batch_size=32, lr=1e-3)
    parser.add_argument("--resume", metavar="FILE", help="go on from a checkpoint of Lightning")
    parser.add_argument(
        "--output", default="runs/lightning", metavar="DIR", help="the folder for last.ckpt and model.pt"
    )
    args = parser.parse_args(argv)
    seed_everything(args.seed)

    data = load_data(args.dataset, args.data_dir, args.root, args.download)
    module = Classifier(args.model, data.classes, args.lr, args.pretrained and not args.resume)
    config = resolve_model_data_config(module.model)
    pictures = Pictures(data, args.image_size, config, args.max_samples, args.batch_size)
    dropblock = DropBlockCallback(
        args.stages,
        keep_prob=args.keep_prob,
        block_size=args.block_size,
        example_input=torch.empty(1, 3, args.image_size, args.image_size),
        schedule={"mode": "linear"},
    )
    trainer = Trainer(
        max_epochs=args.epochs,
        callbacks=[
            dropblock,
            RandomNumbers(),
            ModelCheckpoint(args.output, save_last=True, enable_version_counter=False),
        ],
        logger=CSVLogger(args.output, name="", version=""),  # metrics.csv has keep_prob/stage3 and keep_prob/stage4
        log_every_n_steps=1,
        enable_progress_bar=sys.stderr.isatty(),
    )
    trainer.fit(module, pictures, ckpt_path=args.resume)
    print(f"accuracy {float(trainer.callback_metrics['accuracy']):.1%}")
    weights = Path(args.output) / "model.pt"
    write_file(module.model.state_dict(), weights)  # with the keys of the plain model
    print(f"the weights are in {weights}")


if __name__ == "__main__":
    main()
