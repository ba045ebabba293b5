"""Makes the pictures of the README, with the command and the functions that anyone can use.

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

from dropblock_inject.command.main import main as command
from dropblock_inject.plot import plot_masks

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES))

DETECTOR = "torchvision:fasterrcnn_resnet50_fpn"
SHOWN_SIZE = 448  # pixels of the photograph


def imagenet_lite0() -> nn.Module:
    """The network of the photograph's feature maps, with its ImageNet weights."""
    from lib import models

    return models.imagenet_lite0()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the README.")
    parser.add_argument("folder", nargs="?", type=Path, default=EXAMPLES / "pictures", help="(%(default)s)")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    plot_masks().savefig(folder / "masks.png")
    calls = [
        ["stages", DETECTOR, "-o", str(folder / "stages.png")],
        ["plan", "timm:resnet50", "-o", str(folder / "plan.png")],
        ["schedule", "--total-steps", "10000", "-o", str(folder / "schedule.png")],
    ]
    with tempfile.TemporaryDirectory() as temporary:
        photograph = Path(temporary) / "cat.png"
        from skimage.data import chelsea

        Image.fromarray(chelsea()).save(photograph)
        network = f"{Path(__file__)}:imagenet_lite0"
        options = ["--model", network, "--image-size", str(SHOWN_SIZE), "-o", str(folder / "show.png")]
        for call in [*calls, ["show", str(photograph), *options]]:
            if code := command(call):
                raise SystemExit(code)


if __name__ == "__main__":
    main()
