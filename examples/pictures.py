"""Makes the pictures of the README, by the command and the functions that anyone can use.

pip install "dropblock-inject[examples,plot]"
python pictures.py                          # into pictures/
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from dropblock_inject.command.main import main as command
from dropblock_inject.plot import plot_masks

HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the README.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "pictures", help="(%(default)s)")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    plot_masks().savefig(folder / "masks.png")
    calls = [
        ["stages", "torchvision:fasterrcnn_resnet50_fpn", "-o", str(folder / "stages.png")],
        ["plan", "timm:resnet50", "-o", str(folder / "plan.png")],
        ["schedule", "--total-steps", "10000", "-o", str(folder / "schedule.png")],
    ]
    with tempfile.TemporaryDirectory() as temporary:
        photograph = Path(temporary) / "cat.png"
        from skimage.data import chelsea

        Image.fromarray(chelsea()).save(photograph)
        network = f"{HERE / 'models.py'}:imagenet_lite0"  # with its ImageNet weights
        show = ["show", str(photograph), "--model", network, "--image-size", "448", "-o", str(folder / "show.png")]
        for call in [*calls, show]:
            if code := command(call):
                raise SystemExit(code)


if __name__ == "__main__":
    main()
