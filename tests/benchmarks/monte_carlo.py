"""The cost of Monte Carlo passes: mc_predict beside one plain pass and beside a loop of single passes.

    python tests/benchmarks/monte_carlo.py

A ResNet-50 in eval mode, images of 224x224 pixels, keep_prob 0.9, block 7. All take turns in one run; the figures are
medians.
"""

from __future__ import annotations

import argparse

import torch
from tables import markdown
from torchvision.models import get_model

from dropblock_inject import inject_dropblock, mc_dropblock, mc_predict, remove_dropblock
from dropblock_inject.command.bench import interleaved, machine

STAGES = ((4,), (3, 4))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="of torchvision (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=10, help="Monte Carlo passes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="for each row (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    model = get_model(arguments.model).eval().to(arguments.device)
    images = torch.randn(arguments.batch, 3, 224, 224, device=arguments.device)

    def one_pass() -> None:
        with torch.no_grad():
            model(images)

    def loop() -> None:
        with torch.no_grad(), mc_dropblock(model):
            for _ in range(arguments.samples):
                model(images)

    runs = {
        "one pass": one_pass,
        "mc_predict": lambda: mc_predict(model, images, samples=arguments.samples),
        "loop": loop,
    }
    print(f"{machine()}; {arguments.model}, batch {arguments.batch}, {arguments.samples} samples")
    rows = []
    for stages in STAGES:
        inject_dropblock(model, stages)
        found = interleaved(runs, arguments.seconds)
        ratios = [f"{found[name] / found['one pass']:.2f}" for name in ("mc_predict", "loop")]
        rows.append((" and ".join(map(str, stages)), f"{found['one pass'] * 1e3:.0f} ms", *ratios))
        remove_dropblock(model)
    print(markdown(("DropBlock in stages", "one pass", "mc_predict, passes", "loop, passes"), rows))


if __name__ == "__main__":
    main()
