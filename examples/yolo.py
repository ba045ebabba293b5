"""Shows DropBlock in a YOLO of ultralytics that its own trainer trains: backbone, or neck by name.

    pip install "dropblock-inject[examples]" ultralytics
    python examples/yolo.py                                               # scenes of digits, from random weights
    python examples/yolo.py --weights yolo26n.pt --data my.yaml --image-size 640 --epochs 50 --device cuda
    python examples/yolo.py --include "model.1[369].*"                    # three blocks of YOLO26's neck instead

Two callbacks of the trainer do it. The trainer validates and saves an averaged copy of the network. That copy has no
DropBlocks, so that best.pt can be loaded where dropblock-inject is not installed. Nothing is downloaded.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torchvision.utils import save_image

os.environ.setdefault("YOLO_OFFLINE", "1")  # read by the import: no telemetry, no search for updates

import ultralytics.data.utils
from ultralytics import YOLO
from ultralytics.utils import YAML

from dropblock_inject import KeepProbSchedule, dropblock_sites, inject_dropblock, remove_dropblock
from lib.command_line import add_options, errors_in_a_sentence, make_parser, parse_arguments
from lib.data import at_most
from lib.scenes import CLASSES, Scenes

ultralytics.data.utils.check_font = lambda name: None  # it downloads a font, for pictures that are not drawn here


def write_dataset(folder: Path, size: int, limit: int | None) -> Path:
    """Writes scenes of digits anew in the form that the trainer reads; returns the file that describes them."""
    shutil.rmtree(folder, ignore_errors=True)
    for part, count in (("train", 300), ("val", 75)):
        images, labels = folder / "images" / part, folder / "labels" / part
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        scenes: Any = at_most(limit, Scenes(count, size, train=part == "train"))
        for index, (image, target) in enumerate(scenes):
            left, top, right, bottom = (target["boxes"] / size).T
            columns = target["labels"] - 1, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
            lines = (f"{label:.0f} {x} {y} {w} {h}\n" for label, x, y, w, h in torch.stack(columns, dim=1).tolist())
            save_image(image, images / f"{index}.png")
            (labels / f"{index}.txt").write_text("".join(lines))
    file = folder / "data.yaml"
    YAML.save(file, {"path": str(folder), "train": "images/train", "val": "images/val", "names": CLASSES})
    return file


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--model", default="yolo26n", metavar="NAME", help="a detector of ultralytics (yolo26n)")
    parser.add_argument("--weights", metavar="FILE", help="a .pt of ultralytics to fine-tune, instead of --model")
    parser.add_argument("--data", metavar="FILE", help="a dataset of your own: the .yaml that ultralytics takes")
    add_options(parser, "max_samples", image_size=160)
    add_options(parser, "stages", "include", "keep_prob", "block_size")
    add_options(parser, "seed", "device", "workers", epochs=10, batch_size=8, lr=2e-3)
    add_options(parser, output="runs/yolo")
    args, _ = parse_arguments(parser, argv)
    for file in filter(None, (args.weights, args.data)):
        if not Path(file).is_file():
            raise SystemExit(f"error: there is no file {file}")
    if args.data and args.max_samples:
        raise SystemExit("error: --max-samples picks scenes of digits; leave it out where --data is given")

    size, output = args.image_size, Path(args.output).resolve()
    data = args.data or write_dataset(output / "scenes", size, args.max_samples)

    def begin(trainer: Any) -> None:
        """Injects; the trainer has its averaged copy, the optimizer and the loader by now."""
        report = inject_dropblock(
            trainer.model,
            None if args.include else args.stages,
            include=args.include,
            keep_prob=args.keep_prob,
            block_size=args.block_size,
            example_input=torch.empty(1, 3, size, size),
        )
        print(report)
        schedule = KeepProbSchedule(trainer.model, trainer.epochs * len(trainer.train_loader), verify=True)
        schedule.attach(trainer.optimizer)  # keep_prob moves with each update

    def keep_the_average_plain(trainer: Any) -> None:
        """Removes what a new copy has: the trainer copies the network again after a loss that is not finite."""
        remove_dropblock(trainer.ema.ema)

    yolo = YOLO(args.weights or f"{args.model}.yaml")
    if yolo.task != "detect":
        raise SystemExit(f"error: {args.weights or args.model} is for the task {yolo.task}; give a detector")
    yolo.add_callback("on_pretrain_routine_end", begin)
    yolo.add_callback("on_train_epoch_end", keep_the_average_plain)  # before it is validated and saved
    results = yolo.train(
        data=str(data),
        epochs=args.epochs,
        batch=args.batch_size,
        nbs=args.batch_size,  # one update per batch, as the schedule counts them
        imgsz=size,
        optimizer="AdamW",
        lr0=args.lr,
        fliplr=0.5 if args.data else 0.0,  # a mirrored digit is another sign
        seed=args.seed,
        device=args.device,
        workers=args.workers,
        amp=False,  # its check downloads weights
        plots=False,
        save_dir=str(output),
    )
    keep_prob = min(site.keep_prob or 1 for site in dropblock_sites(yolo.trainer.model))
    print(f"mAP50 {results.box.map50:.1%}, keep_prob {keep_prob:.3f}; the weights are in {yolo.trainer.best}")


if __name__ == "__main__":
    main()
