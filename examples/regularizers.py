"""Shows a study: DropBlock beside other regularisers, with one recipe and several seeds.

    pip install "dropblock-inject[examples,plot]"

Two networks are trained from scratch on few images of Fashion-MNIST. Pretrained ones are fine-tuned, for 12 epochs and
in the part "long" for 12 to 80. The images are in data/FashionMNIST/raw, or are downloaded to there. Each run is a line
in a CSV file, from which the tables and the pictures are made. A run that has its line is not repeated, so the study
can be stopped at any time, and the same command goes on. Only scores are kept, no weights.

    python examples/regularizers.py --download
    python examples/regularizers.py --networks resnet --parts table --seeds 5 --jobs 2
    python examples/regularizers.py --parts long --dataset letters --settings none "DropBlock, last stage" --seeds 10
    python examples/regularizers.py --report                    # tables and picture of the runs so far

Your own images, in train/CLASS/*.jpg and val/CLASS/*.jpg, or a dataset of torchvision with all its images, on a GPU:

    python examples/regularizers.py --data-dir flowers --networks lite0
    python examples/regularizers.py --dataset cifar10 --max-samples 50000 --epochs 100 --device cuda
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path

from lib.command_line import add_options, check_device, errors_in_a_sentence, make_parser
from lib.data import load_data
from lib.long_results import LongResults
from lib.pool import run_all
from lib.results import KEY, REFERENCE, Results, read, row_of, write
from lib.settings import PARTS, RECIPES, Recipe, Setting, applies, recipe_of
from lib.study import add_study_options, run_or_report
from lib.trials import run_once


def run(args: argparse.Namespace) -> None:
    """Does all runs that are not in the file yet."""
    source = (args.dataset, args.data_dir, args.root, args.download)
    data = load_data(*source)  # the download is done before there are several processes
    if args.max_samples is not None and args.max_samples < 2 * data.classes:
        raise SystemExit(
            f"error: --max-samples {args.max_samples} for {data.classes} classes; give two for each or more"
        )
    check_device(args.device)
    source = (*source[:3], False)
    done = {tuple(row[name] for name in KEY) for row in read(args.output)}
    runs = {key: (*what, source, args.device) for key, what in planned(args).items() if key not in done}
    run_all(run_once, runs, args.jobs, lambda key, outcome: write(row_of(key, outcome), args.output))


def planned(args: argparse.Namespace) -> dict[tuple[str, ...], tuple[str, Recipe, Setting, int]]:
    """The runs that are asked for, by their key in the file, in the order in which they are done."""
    runs = {}
    # All settings of a seed before the next one: an unfinished table compares all of them.
    for seed, network, part in itertools.product(range(args.seeds), args.networks, args.parts):
        recipe = recipe_of(network, part)
        images = args.max_samples or recipe.images
        for setting in PARTS[part]:
            if not applies(network, part, setting) or (args.settings and setting.name not in args.settings):
                continue
            for epochs in args.epochs or setting.epochs or [recipe.epochs]:
                key = (args.data_dir or args.dataset, network, images, epochs, part, setting.name, seed)
                what = (network, replace(recipe, images=images, epochs=epochs), setting, seed)
                runs[tuple(map(str, key))] = what
    return runs


def report(path: Path) -> None:
    """Prints the tables as Markdown, with the differences between settings, and draws them beside the file."""
    order = {part: [setting.name for setting in settings] for part, settings in PARTS.items()}
    long, short = LongResults(path, order.pop("long")), Results(path, order)
    if not long.runs and not short.parts:
        raise SystemExit(f"error: there are no results in {path} yet")
    pictures = []
    if short.parts:
        print(f"## Accuracies\n\nMean and standard deviation over the seeds.\n\n{short.as_markdown()}")
        for reference in ("baseline", REFERENCE):
            words = "Mean over the seeds and its standard error. Bold: more than two standard errors."
            print(f"\n## Less {reference!r}\n\n{words}\n\n{short.differences_as_markdown(reference)}")
        if short.recalibrated:
            words = "One pass, less the same network as trained. ECE and accuracy are in points."
            print(f"\n## BatchNorm's statistics estimated anew\n\n{words}\n\n{short.recalibrated_as_markdown()}")
        pictures.append((short.plot(), path.with_suffix(".png")))
    if long.runs:
        print(long.as_markdown())
        pictures.append((long.plot(), path.with_name(f"{path.stem}-epochs.png")))
    for figure, file in pictures:
        figure.savefig(file)
        print(f"\nwrote {file}", file=sys.stderr)


@errors_in_a_sentence
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    add_options(parser, "root", "download", "data_dir", dataset="fashion-mnist", device="cpu")
    add_study_options(parser, list(RECIPES), PARTS, "runs/regularizers.csv", several_epochs=True)
    run_or_report(parser.parse_args(argv), run, report)


if __name__ == "__main__":
    main()
