"""The command ``dropblock-inject``: stages and plan of a model, and pictures, without a line of Python."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DropBlockInjectError, DropBlockValueError

if TYPE_CHECKING:
    from ..anatomy.stages import Stage

_EXAMPLES = """
examples:
  dropblock-inject stages resnet50
  dropblock-inject plan timm:efficientnet_b0 --stages 3 4 --keep-prob 0.9
  dropblock-inject plan net.py:make_net --image-size 32 --stages -2 -1 --block-size 3 --json
  dropblock-inject show cat.jpg --model torchvision:resnet50 --pretrained -o cat.png
  dropblock-inject schedule --total-steps 10000 --mode cosine -o schedule.png
  dropblock-inject bench
"""
_MODEL = "timm:NAME, torchvision:NAME, a NAME found in either, or FILE.py:FUNCTION (the file is run, as by an import)"
# What messages for Python call by other names here.
_IN_WORDS_OF_THE_COMMAND = {
    "print(plan_dropblock(model))": "dropblock-inject plan MODEL",
    "stages=[-2, -1]": "--stages -2 -1",
    "pass a larger example_input": "give a larger --image-size",
    "give a file of weights": "give a file of weights by --checkpoint",
}


def run() -> None:
    """The process of the command. It ends at once: taking torch apart in good order would take over a second."""
    gc.disable()  # so would collecting garbage while torch is imported
    code = main()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for a mistake in what was asked, 2 for one in how."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except DropBlockInjectError as error:
        message = str(error)
        for words, own in _IN_WORDS_OF_THE_COMMAND.items():
            message = message.replace(words, own)
        if "example_input" in message:
            message += ". Here --image-size takes the place of example_input"
        print(f"dropblock-inject: error: {message}", file=sys.stderr)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"dropblock-inject: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dropblock-inject: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dropblock-inject",
        description="DropBlock in any CNN of timm or torchvision: what would be placed where, and how it looks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        added.set_defaults(run=run)
        return added

    stages = command("stages", _stages, "the stages of a model, with their blocks")
    stages.add_argument("model", help=_MODEL)
    _add_image_size(stages)
    stages.add_argument("--json", action="store_true", help="as plain data")
    stages.add_argument("-o", "--output", type=_picture, metavar="FILE", help="draw them too: .png, .pdf, .svg")
    stages.add_argument("--block", metavar="NAME", help="the block to draw whole (the first of the last stage)")

    plan = command("plan", _plan, "where inject_dropblock would put DropBlocks")
    plan.add_argument("model", help=_MODEL)
    _add_sites(plan)
    places = ["paper", "branch", "skip", "output"]
    plan.add_argument("--where", nargs="+", default=["paper"], choices=places, help="in each block (paper)")
    plan.add_argument("--include", nargs="+", metavar="PATTERN", help="only sites with these names; * is any text")
    plan.add_argument("--exclude", nargs="+", metavar="PATTERN", help="no sites with these names")
    _add_layer(plan, keep_prob=0.9)
    _add_image_size(plan)
    plan.add_argument("--json", action="store_true", help="as plain data")
    plan.add_argument("-o", "--output", type=_picture, metavar="FILE", help="draw it too: .png, .pdf, .svg")

    show = command("show", _show, "feature maps of a picture under Dropout, SpatialDropout and DropBlock")
    show.add_argument("image", type=Path, help="a picture")
    show.add_argument("--model", required=True, help=_MODEL)
    show.add_argument("--pretrained", action="store_true", help="download the library's weights")
    show.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights: a state dict")
    show.add_argument("--layer", metavar="NAME", help="whose output to show (the last block of the last stage but one)")
    show.add_argument("--channels", type=int, choices=range(1, 17), default=4, metavar="N", help="1 to 16 maps (4)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="for the random numbers (0)")
    _add_layer(show, keep_prob=0.75)
    _add_image_size(show)
    show.add_argument("-o", "--output", type=_picture, required=True, metavar="FILE", help=".png, .pdf, .svg")

    schedule = command("schedule", _schedule, "keep_prob over the steps of a training")
    schedule.add_argument("--total-steps", type=int, required=True, metavar="N", help="optimizer steps")
    modes = ["linear", "cosine", "constant", "step"]
    schedule.add_argument("--mode", choices=modes, default="linear", help="(linear)")
    schedule.add_argument("--start", type=float, default=1.0, metavar="P", help="keep_prob at the beginning (1)")
    schedule.add_argument("--warmup-steps", type=int, default=0, metavar="N", help="steps that stay at the start (0)")
    _add_sites(schedule)
    schedule.add_argument("--keep-prob", type=float, default=0.9, metavar="P", help="of the deepest stage (0.9)")
    schedule.add_argument("-o", "--output", type=_picture, required=True, metavar="FILE", help=".png, .pdf, .svg")

    bench = command("bench", _bench, "what drop_block costs on this machine")
    bench.add_argument("--shape", type=_at_least_1, nargs=4, default=[32, 1024, 14, 14], metavar=("N", "C", "H", "W"))
    _add_keep_prob(bench, 0.9)
    bench.add_argument("--block-size", type=_at_least_1, default=7, metavar="N", help="pixels (7)")
    bench.add_argument("--device", help="(cuda where there is one)")
    bench.add_argument("--seconds", type=float, default=5, help="(5)")
    return parser


def _add_sites(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stages", type=_stage, nargs="+", default=[3, 4], metavar="N", help="-1 is the last (3 4)")
    parser.add_argument("--no-depth-scaling", action="store_true", help="drop as much in each stage")


def _add_layer(parser: argparse.ArgumentParser, keep_prob: float) -> None:
    _add_keep_prob(parser, keep_prob)
    parser.add_argument(
        "--block-size", type=_pixels_or_share, default=7, metavar="N", help="pixels, or a share of the map (7)"
    )


def _add_keep_prob(parser: argparse.ArgumentParser, keep_prob: float) -> None:
    parser.add_argument("--keep-prob", type=float, default=keep_prob, metavar="P", help=f"share kept ({keep_prob:g})")


def _add_image_size(parser: argparse.ArgumentParser) -> None:
    help = "pixels: one number, or height and width, or frames, height and width (what the model expects)"
    parser.add_argument("--image-size", type=_at_least_1, nargs="+", metavar="N", help=help)


# Each command imports what it needs: torch alone takes a second.


def _stages(arguments: argparse.Namespace) -> None:
    from ..anatomy.stages import find_stages
    from .models import build_without_data

    if arguments.block and not arguments.output:
        raise DropBlockValueError("--block says what to draw; give -o FILE.png too")
    model = build_without_data(arguments.model)
    example = _example(model, arguments)
    stages = find_stages(model, example)
    if arguments.json:
        print(json.dumps([asdict(stage) for stage in stages], indent=2))
    else:
        _print_stages(stages)
    if arguments.output:
        from ..plot import plot_stages

        _save(plot_stages(model, example, arguments.block), arguments.output)


def _print_stages(stages: Sequence[Stage]) -> None:
    rows = [("stage", "reduction", "channels", "map", "blocks", "from", "to")]
    for stage in stages:
        size = "x".join(map(str, stage.map_size))
        ends = stage.blocks[0].name, stage.blocks[-1].name
        rows.append((str(stage.index), str(stage.reduction), str(stage.channels), size, str(len(stage.blocks)), *ends))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.rjust(width) if i < 5 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        print(_bold(line) if number == 0 else line)


def _plan(arguments: argparse.Namespace) -> None:
    from ..placement.plan import plan_dropblock
    from .models import build_without_data

    model = build_without_data(arguments.model)
    example = _example(model, arguments)
    plan = plan_dropblock(
        model,
        arguments.stages,
        keep_prob=arguments.keep_prob,
        block_size=arguments.block_size,
        where=arguments.where,
        include=arguments.include,
        exclude=arguments.exclude,
        depth_scaling=not arguments.no_depth_scaling,
        example_input=example,
    )
    if arguments.json:
        print(json.dumps(plan.as_dict(), indent=2))
    else:
        first, *rest = str(plan).split("\n")
        print("\n".join([_bold(first), *rest]))
    if arguments.output:
        from ..plot import plot_plan

        _save(plot_plan(plan, example), arguments.output)


def _show(arguments: argparse.Namespace) -> None:
    from ..plot import plot_feature_maps
    from .features import features_of
    from .models import build_model, load_weights

    model = build_model(arguments.model, pretrained=arguments.pretrained)
    if arguments.checkpoint:
        load_weights(model, arguments.checkpoint)
    image, features, layer = features_of(model, arguments.image, arguments.layer, arguments.image_size)
    figure = plot_feature_maps(
        image,
        features,
        arguments.keep_prob,
        arguments.block_size,
        channels=arguments.channels,
        seed=arguments.seed,
        title=f"{layer} of {arguments.model.rpartition(':')[2]}",
    )
    _save(figure, arguments.output)
    if not (arguments.pretrained or arguments.checkpoint or ".py:" in arguments.model):
        print("its weights are random; give --pretrained or --checkpoint FILE for trained ones", file=sys.stderr)


def _schedule(arguments: argparse.Namespace) -> None:
    from torch import nn

    from ..ops.functional import check_arguments
    from ..ops.layer import DropBlock
    from ..placement.selection import targets_of
    from ..plot import plot_schedule
    from ..training.schedule import KeepProbSchedule

    check_arguments(arguments.keep_prob, 1, None)
    targets = targets_of(arguments.keep_prob, arguments.stages, max(arguments.stages), not arguments.no_depth_scaling)
    layers = nn.ModuleDict({f"stage {index}": DropBlock(target) for index, target in sorted(targets.items())})
    schedule = KeepProbSchedule(
        layers,
        arguments.total_steps,
        start=arguments.start,
        mode=arguments.mode,
        warmup_steps=arguments.warmup_steps,
    )
    _save(plot_schedule(schedule), arguments.output)


def _bench(arguments: argparse.Namespace) -> None:
    import torch

    from .bench import FLOOR, bench, machine

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise DropBlockValueError(f"no device {device}: {str(error).splitlines()[0]}") from None
    shape = "x".join(map(str, arguments.shape))
    print(
        f"{machine()}; {shape}, keep_prob {arguments.keep_prob:g}, block {arguments.block_size}; medians of one run\n"
    )
    found = bench(tuple(arguments.shape), arguments.keep_prob, arguments.block_size, device, arguments.seconds)
    print(_bold(f"{'forward and backward':20}        ms   times {FLOOR}"))
    for name, seconds in found.items():
        print(f"{name:20}  {seconds * 1e3:8.2f}  {seconds / found[FLOOR]:8.2f}")


def _example(model: Any, arguments: argparse.Namespace) -> Any:
    if arguments.image_size is None:
        return None
    from ..tracing.example_input import example_of_size

    size = arguments.image_size
    return example_of_size(model, tuple(size * 2 if len(size) == 1 else size))


def _save(figure: Any, file: Path) -> None:
    try:
        figure.savefig(file)
    except ValueError as error:  # a kind of file that matplotlib does not know
        raise DropBlockValueError(f"{file}: {error}") from None
    print(f"wrote {file}", file=sys.stderr)


def _bold(text: str) -> str:
    """For headings, where somebody looks at a terminal."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def _pixels_or_share(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be pixels or a share of the map, got {text!r}") from None


def _stage(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; several go with spaces: 3 4") from None


def _picture(text: str) -> Path:
    file = Path(text)
    if file.is_dir() or not file.suffix:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name of a picture, such as {file / 'x' if file.is_dir() else file}.png"
        )
    return file


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)
