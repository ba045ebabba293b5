"""A convolutional network of Hugging Face with DropBlock in their Trainer: one callback does all of it.

    pip install "dropblock-inject[examples,transformers]"
    python with_transformers.py                                          # scikit-learn's digits, random weights
    python with_transformers.py --pretrained microsoft/resnet-50 --dataset flowers102 --download --size 224
    python with_transformers.py --resume

The callback injects before the training, schedules keep_prob over its steps, logs it, is in the checkpoints, and goes
on where they were. What save_model writes is a checkpoint of the plain model.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, ResNetConfig, Trainer, TrainingArguments, set_seed

from dropblock_inject.integrations.transformers import DropBlockCallback
from lib.data import DATASETS, Images, load_data, make_datasets

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}


def make_model(pretrained: str | None, classes: int) -> nn.Module:
    if pretrained:
        options: dict[str, Any] = {"num_labels": classes, "ignore_mismatched_sizes": True}
        return AutoModelForImageClassification.from_pretrained(pretrained, **options)
    sizes: dict[str, Any] = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "num_labels": classes}
    resnet18 = ResNetConfig(layer_type="basic", **sizes)
    return AutoModelForImageClassification.from_config(resnet18)


def as_batch(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a network with DropBlock in Hugging Face's Trainer.")
    add = parser.add_argument
    add("--pretrained", metavar="NAME", help="of a convolutional network on the Hub, which is downloaded")
    add("--dataset", default="digits", choices=DATASETS, metavar="NAME", help=f"{', '.join(DATASETS)} (%(default)s)")
    add("--root", default="data", metavar="DIR", help="where torchvision's datasets are (%(default)s)")
    add("--download", action="store_true", help="download the dataset to there")
    add("--size", type=int, default=64, metavar="N", help="of an image, in pixels (%(default)s)")
    add("--images", type=int, metavar="N", help="use so few of the images, for a quick try")
    add("--epochs", type=float, default=3, metavar="N", help="(%(default)s)")
    add("--lr", type=float, default=1e-3, help="of AdamW, falling to 0 (%(default)s)")
    add("--resume", action="store_true", help="go on from the last checkpoint in --output")
    add("--output", default="runs/transformers", metavar="DIR", help="(%(default)s)")
    args = parser.parse_args(argv)
    set_seed(0)

    data = load_data(args.dataset, None, args.root, args.download)
    train: Images
    train, val = make_datasets(data, args.size, IMAGENET, args.images)
    arguments = TrainingArguments(
        args.output,
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=5,
        report_to="none",
    )
    example = {"pixel_values": torch.empty(1, 3, args.size, args.size)}
    trainer = Trainer(
        make_model(args.pretrained, data.classes),
        arguments,
        data_collator=as_batch,
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=accuracy,
        callbacks=[DropBlockCallback(stages=[3, 4], block_size=0.5, example_input=example)],
    )
    trainer.train(resume_from_checkpoint=args.resume)
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.1%}")
    trainer.save_model()


if __name__ == "__main__":
    main()
