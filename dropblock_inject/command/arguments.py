"""The arguments of the command. This file needs no torch, so that help and errors of spelling are quick.

An option that sets an argument of a function of the package has the name and the default of that argument.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from ..errors import DropBlockValueError
from ..presets import PAPER
from .parsing import MainParser, SubcommandParser
from .values import integer, number, picture_file, pixels_or_share, stage
from .versions import PrintVersions

_EXAMPLES = """
examples:
  dropblock-inject stages resnet50
  dropblock-inject plan timm:efficientnet_b0 --stages 3 4 --keep-prob 0.9
  dropblock-inject plan densenet121 --summary
  dropblock-inject plan net.py:make_net --image-size 32 --stages -2 -1 --block-size 3 --json
  dropblock-inject show cat.jpg --model torchvision:resnet50 --pretrained -o cat.png
  dropblock-inject schedule --total-steps 10000 --mode cosine
  dropblock-inject bench
"""
_MODEL = "timm:NAME, torchvision:NAME, a NAME of either (timm first), or FILE.py:FUNCTION (the file is run)"

PLACES = ("paper", "branch", "skip", "output", "end")
MODES = ("linear", "cosine", "constant", "step")


def parser() -> argparse.ArgumentParser:
    family: dict[str, SubcommandParser] = {}
    main = MainParser(
        family=family,
        prog="dropblock-inject",
        usage="%(prog)s stages|plan|show|schedule|bench ...",
        description="DropBlock in any CNN of timm or torchvision: where it would go and how it looks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action=PrintVersions)
    commands = main.add_subparsers(
        title="commands",
        dest="command",
        metavar="COMMAND",
        prog=main.prog,
        required=True,
        parser_class=SubcommandParser,
    )

    def add(name: str, usage: str, help: str, json_keys: str = "") -> SubcommandParser:
        family[name] = commands.add_parser(
            name,
            family=family,
            usage=f"%(prog)s {usage}",
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"Keys of the JSON: {json_keys}." if json_keys else None,
        )
        return family[name]

    _add_stages(add("stages", "MODEL [options]", "the stages of a model, with their blocks", _STAGES_JSON))
    _add_plan(add("plan", "MODEL [options]", "the places where inject_dropblock would put DropBlocks", _PLAN_JSON))
    help = "feature maps of a picture under Dropout, SpatialDropout and DropBlock"
    _add_show(add("show", "PICTURE --model MODEL -o FILE [options]", help))
    help = "the keep_prob of each stage over the steps of a training"
    _add_schedule(add("schedule", "--total-steps N [options]", help, _SCHEDULE_JSON))
    _add_bench(add("bench", "[options]", "the time that drop_block takes on this machine", _BENCH_JSON))
    return main


_STAGES_JSON = "source, model, image_size, stages (index, blocks, reduction, channels, map_size)"


def _add_stages(parser: SubcommandParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_image_size(parser)
    _add_json(parser)
    _add_output(parser)
    help = "the block that the picture shows in detail (the first residual block of the deepest stage)"
    parser.add_argument("--block", metavar="NAME", help=help)


_PLAN_JSON = (
    "source, model, image_size, sites, without_skip, without_end, additions, sums, shared, without_site, off_trunk, "
    "results, error; with --summary: source, model, image_size, stages (stage, blocks, sites, by_kind, whole_maps, "
    "map_sizes, block_sizes, keep_prob), total (blocks, sites, by_kind, whole_maps)"
)


def _add_plan(parser: SubcommandParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_stages_and_keep_prob(parser, "-1 is the deepest; all: every block, off the trunk too")
    help = f"places in each block: paper (branch and skip), branch, skip, output, end ({PAPER['where']})"
    parser.add_argument("--where", choices=PLACES, nargs="+", default=PAPER["where"], metavar="PLACE", help=help)
    for name, help in (("include", "only the sites of these names"), ("exclude", "no sites of these names")):
        parser.add_argument(f"--{name}", nargs="+", metavar="PATTERN", help=f"{help}; * is any text")
    _add_block_size(parser, PAPER["block_size"])
    _add_image_size(parser)
    parser.add_argument("--summary", action="store_true", help="a line per stage in place of a line per site")
    _add_json(parser)
    _add_output(parser)


def _add_show(parser: SubcommandParser) -> None:
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="an image file")
    parser.add_argument("--model", required=True, metavar="MODEL", help=_MODEL)
    parser.add_argument("--pretrained", action="store_true", help="download the library's weights")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights: a state dict")
    help = "the layer whose output is shown (the last block of the last stage but one)"
    parser.add_argument("--layer", metavar="NAME", help=help)
    parser.add_argument("--channels", type=integer(1, 16), default=4, metavar="N", help="1 to 16 maps (4)")
    parser.add_argument("--seed", type=integer(0), default=0, metavar="N", help="of the random numbers (0)")
    _add_block_size(parser, 7)
    parser.add_argument("--keep-prob", type=number, default=0.75, metavar="P", help="share of the map to keep (0.75)")
    _add_image_size(parser)
    _add_output(parser, required=True)


_SCHEDULE_JSON = "mode, start, warmup_steps, total_steps, steps, keep_prob (of each stage at these steps)"


def _add_schedule(parser: SubcommandParser) -> None:
    parser.description = f"{parser.description} The network is taken to have the stages 1, 2, 3 and 4."
    parser.add_argument("--total-steps", type=integer(1), required=True, metavar="N", help="optimizer steps")
    help = "shape of the curve: linear, cosine, constant, step (linear)"
    parser.add_argument("--mode", choices=MODES, default="linear", metavar="MODE", help=help)
    parser.add_argument("--start", type=number, default=1.0, metavar="P", help="keep_prob at the beginning (1.0)")
    help = "steps at the start value (0)"
    parser.add_argument("--warmup-steps", type=integer(0), default=0, metavar="N", help=help)
    _add_stages_and_keep_prob(parser, "-1 is the deepest")
    _add_json(parser)
    _add_output(parser)


_BENCH_JSON = "machine, device, shape, keep_prob, block_size, seconds (of each layer)"


def _add_bench(parser: SubcommandParser) -> None:
    names, shape = ("N", "C", "H", "W"), (32, 1024, 14, 14)
    help = "of the feature maps (32 1024 14 14)"
    parser.add_argument("--shape", type=integer(1), nargs=4, default=shape, metavar=names, help=help)
    parser.add_argument("--keep-prob", type=number, default=0.9, metavar="P", help="share of the map to keep (0.9)")
    parser.add_argument("--block-size", type=integer(1), default=7, metavar="N", help="pixels (7)")
    parser.add_argument("--device", help="(cuda where there is one)")
    parser.add_argument("--seconds", type=number, default=5.0, metavar="S", help="time for all measurements (5.0)")
    _add_json(parser)


def _add_stages_and_keep_prob(parser: SubcommandParser, numbers: str) -> None:
    default = " ".join(map(str, PAPER["stages"]))
    help = f"{numbers} ({default})"
    parser.add_argument("--stages", type=stage, nargs="+", default=PAPER["stages"], metavar="N", help=help)
    help = f"share of the map kept in the deepest stage ({PAPER['keep_prob']})"
    parser.add_argument("--keep-prob", type=number, default=PAPER["keep_prob"], metavar="P", help=help)
    help = "the same keep_prob in each stage"
    parser.add_argument("--no-depth-scaling", action="store_false", dest="depth_scaling", help=help)


def _add_block_size(parser: SubcommandParser, default: int) -> None:
    help = f"pixels, or a share of the map ({default})"
    parser.add_argument("--block-size", type=pixels_or_share, default=default, metavar="N", help=help)


def _add_image_size(parser: SubcommandParser) -> None:
    help = "pixels: one number, or height and width, or frames, height and width (the size that the model expects)"
    parser.add_argument("--image-size", type=integer(1), nargs="+", metavar="N", help=help)


def _add_json(parser: SubcommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_output(parser: SubcommandParser, required: bool = False) -> None:
    help = "the picture to write: .png, .pdf or .svg"
    parser.add_argument("-o", "--output", type=picture_file, required=required, metavar="FILE", help=help)


def options_of(function: Callable[..., Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `function` that have an option."""
    optional = {name for name, p in signature(function).parameters.items() if p.default is not Parameter.empty}
    options = {name: value for name, value in vars(arguments).items() if name in optional}
    if "all" in (options.get("stages") or ()):
        if len(options["stages"]) > 1:
            raise DropBlockValueError("--stages all is every block already; give no number beside it")
        options["stages"] = None
    return options
