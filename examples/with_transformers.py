"""Shows DropBlock in the Trainer of Hugging Face: one callback injects, schedules, logs and saves.

    pip install "dropblock-inject[examples,transformers]"
    python examples/with_transformers.py                                            # scikit-learn's digits, a ResNet-18
    python examples/with_transformers.py --model microsoft/resnet-50 --pretrained --dataset flowers102 --download
    python examples/with_transformers.py --resume runs/transformers                 # with the other options as before

The callback injects before the training, schedules keep_prob over its steps, logs it, and goes on from the Trainer's
checkpoints. save_model writes the weights of the plain model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from dropblock_inject.integrations.transformers import DropBlockCallback
from lib.command_line import add_options, errors_in_a_sentence, make_parser
from lib.data import load_data, make_datasets

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}


def make_model(name: str, classes: int, pretrained: bool) -> nn.Module:
    if pretrained:
        options: dict[str, Any] = {"num_labels": classes, "ignore_mismatched_sizes": True}
        return AutoModelForImageClassification.from_pretrained(name, **options)
    if name == "resnet18":
        config = ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
    else:
        config = AutoConfig.from_pretrained(name)
    config.num_labels = classes
    return AutoModelForImageClassification.from_config(config)


def as_batch(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def last_checkpoint(path: str) -> str:
    """The folder itself if it is a checkpoint, else the last checkpoint in it."""
    if (Path(path) / "trainer_state.json").exists():
        return path
    found = get_last_checkpoint(path) if Path(path).is_dir() else None
    if found is None:
        raise SystemExit(f"error: {path} is no checkpoint of the Trainer, and has none in it")
    return found


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    help = "resnet18, or a convolutional network on the Hub (resnet18)"
    parser.add_argument("--model", default="resnet18", metavar="NAME", help=help)
    parser.add_argument("--pretrained", action="store_true", help="download the weights of --model from the Hub")
    add_options(parser, "dataset", "root", "download", "data_dir", "max_samples", image_size=64)
    add_options(parser, "stages", "keep_prob", "block_size", "seed", epochs=3, batch_size=32, lr=1e-3)
    parser.add_argument("--resume", metavar="DIR", help="go on from a checkpoint, or from the last one in a folder")
    help = "the folder for the checkpoints and the weights (runs/transformers)"
    parser.add_argument("--output", default="runs/transformers", metavar="DIR", help=help)
    args = parser.parse_args(argv)
    checkpoint = last_checkpoint(args.resume) if args.resume else None
    set_seed(args.seed)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()

    data = load_data(args.dataset, args.data_dir, args.root, args.download)
    train, val = make_datasets(data, args.image_size, IMAGENET, args.max_samples)
    arguments = TrainingArguments(
        args.output,
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=5,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=args.seed,
    )
    dropblock = DropBlockCallback(
        args.stages,
        keep_prob=args.keep_prob,
        block_size=args.block_size,
        example_input={"pixel_values": torch.empty(1, 3, args.image_size, args.image_size)},
    )
    trainer = Trainer(
        make_model(args.model, data.classes, args.pretrained),
        arguments,
        data_collator=as_batch,
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=accuracy,
        callbacks=[dropblock],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.1%}")
    trainer.save_model()
    print(f"the weights are in {args.output}")


if __name__ == "__main__":
    main()
