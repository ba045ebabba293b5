"""Makes the pictures of the pages, with the functions and the command that anyone can use.

    pip install "dropblock-inject[examples,plot]"
    python examples/pages/pictures.py

They go to examples/pictures/, or to the folder that is given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image
from torch import nn

from dropblock_inject import plan_dropblock
from dropblock_inject.command.main import main as command
from dropblock_inject.command.models import build_without_data
from dropblock_inject.plot import plot_masks, plot_plan, plot_stages

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES))

DETECTOR, CLASSIFIER = "torchvision:fasterrcnn_resnet50_fpn", "torchvision:resnet50"
SHOWN_SIZE = 448  # pixels of the photograph


def efficientnet_lite0() -> nn.Module:
    """The network of the photograph's feature maps, with its ImageNet weights."""
    from lib import models

    return models.imagenet_lite(0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the README.")
    parser.add_argument("folder", nargs="?", type=Path, default=EXAMPLES / "pictures", help="(%(default)s)")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    plot_masks().savefig(folder / "masks.png")
    detector, classifier = map(build_without_data, (DETECTOR, CLASSIFIER))
    plot_stages(detector, name=bare(DETECTOR)).savefig(folder / "stages.png")
    plot_plan(plan_dropblock(classifier), name=bare(CLASSIFIER)).savefig(folder / "plan.png")
    with tempfile.TemporaryDirectory() as temporary:
        photograph = Path(temporary) / "cat.png"
        from skimage.data import chelsea

        Image.fromarray(chelsea()).save(photograph)
        network = f"{Path(__file__)}:efficientnet_lite0"
        size = ["--image-size", str(SHOWN_SIZE)]
        for call in (
            ["schedule", "--total-steps", "10000", "-o", str(folder / "schedule.png")],
            ["show", str(photograph), "--model", network, *size, "-o", str(folder / "show.png")],
        ):
            if code := command(call):
                raise SystemExit(code)
    for file in folder.glob("*.png"):  # with 256 colours a picture has a third of the bytes
        Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)


def bare(name: str) -> str:
    """The name of a model without its library."""
    return name.rpartition(":")[2]


if __name__ == "__main__":
    main()
