"""Shows a study: what a network with DropBlock knows about its own doubts, beside Dropout, ensembles and temperature.

    pip install "dropblock-inject[examples,plot]"

Each network is trained with few images of one dataset. It is measured with one pass, with several Monte Carlo passes,
with temperature scaling and as an ensemble: calibration, rejection of doubtful images, images of other datasets, images
under a grey square, blocks dropped at test time. Each run adds lines to a CSV file, from which the tables and the
picture are made. A run that has its lines is not repeated, so the study can be stopped at any time, and the same
command goes on. It needs the fonts of the Debian package fonts-aenigma.

    python examples/uncertainty.py --download
    python examples/uncertainty.py --networks lite0 --dataset letters --seeds 5 --jobs 2
    python examples/uncertainty.py --report                    # tables and picture of the runs so far
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dropblock_inject import mc_predict
from lib.command_line import add_options, check_device, errors_in_a_sentence, make_parser
from lib.data import load_data
from lib.doubts import (
    DROPPED,
    OCCLUDED,
    Predict,
    accuracy_with_dropped_blocks,
    area_under_rejection,
    fit_temperature,
    occlude,
    rejection_curve,
    reliability,
    unknown_auroc,
)
from lib.doubts_results import FIELDS, KEY, OTHERS, DoubtsResults, write
from lib.pool import run_all
from lib.results import read
from lib.settings import DOUBTS, DOUBTS_SWEEP, RECIPES, Recipe, Setting
from lib.study import add_study_options, run_or_report
from lib.trials import Images, Source, load, scores, train

ONCE, PASSES = "one pass", (3, 10)
PARTS = {"table": DOUBTS, "sweeps": DOUBTS_SWEEP}
NAMES = [setting.name for settings in PARTS.values() for setting in settings]
_AT_A_TIME = 100  # images
Lines = dict[str, dict[str, str]]  # the measures of a run, by method


def run_once(network: str, recipe: Recipe, setting: Setting, seed: int, source: Source, device: str) -> Lines:
    """Trains and measures; the random numbers follow from `seed` alone."""
    torch.set_num_threads(1)
    images, held_out, held_out_labels = load_with_held_out(source, recipe)
    images, held_out, held_out_labels = images.to(device), held_out.to(device), held_out_labels.to(device)
    others = {
        name: load((name, None, *source[2:]), recipe.image_size, (500, 10)).train.to(device)
        for name in OTHERS
        if name != source[0]
    }
    nets = [train(network, recipe, setting, seed + 1000 * i, images, device) for i in range(setting.networks)]
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.autocast)

    def in_parts(function: Predict) -> Predict:
        def apply(inputs: Tensor) -> Tensor:
            with torch.no_grad(), autocast:
                return torch.cat([function(part).float() for part in inputs.split(_AT_A_TIME)])

        return apply

    net = nets[0]
    logits = in_parts(net)
    lines = {ONCE: measures(lambda inputs: logits(inputs).softmax(1), images, others)}
    if setting.name == "none":
        temperature = fit_temperature(logits(held_out), held_out_labels)
        lines["temperature scaling"] = measures(lambda x: (logits(x) / temperature).softmax(1), images, others)
    if len(nets) > 1:
        mean = in_parts(lambda inputs: torch.stack([net(inputs).softmax(1) for net in nets]).mean(0))
        lines["ensemble of five"] = measures(mean, images, others)
    for passes in PASSES if setting.drops else ():
        predict = in_parts(monte_carlo(net, passes))
        few = passes < 10  # measured for their calibration alone
        lines[f"{passes} passes"] = measures(predict, images, {} if few else others, calibration_only=few)
    where = "branch" if network == "plain" else "paper"
    test = images.test[::2], images.test_labels[::2]
    with autocast:  # the last: it takes out what was injected
        dropped = [accuracy_with_dropped_blocks(net, where, *test, percent) for percent in DROPPED]
    lines[ONCE]["dropped"] = " ".join(f"{accuracy:.2f}" for accuracy in dropped)
    return lines


def monte_carlo(net: nn.Module, passes: int) -> Callable[[Tensor], Tensor]:
    return lambda inputs: mc_predict(net, inputs, samples=passes).mean


def measures(
    predict: Predict, images: Images, others: dict[str, Tensor], calibration_only: bool = False
) -> dict[str, str]:
    """The cells of a line; curves are numbers with spaces between them."""
    probabilities, labels = predict(images.test), images.test_labels
    accuracy, nll, ece = scores(probabilities, labels)
    cells = {"accuracy": f"{accuracy:.2f}", "nll": f"{nll:.4f}", "ece": f"{ece:.2f}"}
    if calibration_only:
        return cells
    cells["rejection_area"] = f"{area_under_rejection(probabilities, labels):.2f}"
    for name, unknown in others.items():
        cells[f"auroc_{name}"] = f"{unknown_auroc(probabilities, predict(unknown)):.2f}"
    some, some_labels = images.test[::4], labels[::4]
    occluded = [scores(predict(occlude(some, percent)), some_labels).accuracy for percent in OCCLUDED]
    curve = rejection_curve(probabilities, labels)
    tenths = [float(curve[len(curve) * tenth // 10 - 1]) for tenth in range(1, 11)]
    curves = {"occluded": occluded, "rejection": tenths, **reliability(probabilities, labels)}
    return {**cells, **{name: " ".join(f"{value:.2f}" for value in values) for name, values in curves.items()}}


def load_with_held_out(source: Source, recipe: Recipe) -> tuple[Images, Tensor, Tensor]:
    """The images of the recipe, and a fifth as many other training images with their labels."""
    limits = (recipe.images + recipe.images // 5, recipe.test_images)
    images = load(source, recipe.image_size, limits)
    classes = int(images.train_labels.max()) + 1
    place = torch.cat([torch.arange(int(count)) for count in images.train_labels.bincount(minlength=classes)])
    used = place < recipe.images // classes
    part = images._replace(train=images.train[used], train_labels=images.train_labels[used])
    return part, images.train[~used], images.train_labels[~used]


def run(args: argparse.Namespace) -> None:
    """Does all runs that are not in the file yet."""
    source = (args.dataset, None, args.root, args.download)
    load_data(*source)  # the download is done before there are several processes
    check_device(args.device)
    done = {tuple(line[name] for name in KEY) for line in read(args.output, FIELDS)}
    runs = {}
    for seed, network, part in itertools.product(range(args.seeds), args.networks, args.parts):
        recipe = RECIPES[network]
        epochs = args.epochs or (80 if network == "lite0" else recipe.epochs)
        recipe = replace(recipe, images=args.max_samples or recipe.images, epochs=epochs, test_images=2000)
        for setting in PARTS[part]:
            if (args.settings and setting.name not in args.settings) or (network, setting.where) == ("plain", "output"):
                continue
            key = tuple(map(str, (args.dataset, network, recipe.images, epochs, setting.name, seed)))
            stages = (-1,) if network == "lite0" else setting.stages
            what = (network, recipe, replace(setting, stages=stages), seed, (*source[:3], False), args.device)
            if key not in done:
                runs[key] = what
    run_all(run_once, runs, args.jobs, lambda key, lines: write(key, lines, args.output))


def report(path: Path) -> None:
    """Prints the tables as Markdown, with the paired differences, and draws the curves beside the file."""
    results = DoubtsResults(path, NAMES)
    print(results.as_markdown())
    results.plot().savefig(path.with_suffix(".png"))
    print(f"\nwrote {path.with_suffix('.png')}", file=sys.stderr)


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    add_options(parser, "root", "download", dataset="fashion-mnist", device="cpu")
    add_study_options(parser, ["plain", "resnet", "lite0"], PARTS, "runs/uncertainty.csv")
    run_or_report(parser.parse_args(argv), run, report)


if __name__ == "__main__":
    main()
