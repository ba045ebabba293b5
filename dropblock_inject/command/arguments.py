"""The parser of the command, and the options that several of its commands have.

An option that sets an argument of a function of the package has the name and the default of that argument.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from ..errors import DropBlockValueError

MODEL = "timm:NAME, torchvision:NAME, a NAME found in either, or FILE.py:FUNCTION (the file is run, as by an import)"
_EXAMPLES = """
examples:
  dropblock-inject stages resnet50
  dropblock-inject plan timm:efficientnet_b0 --stages 3 4 --keep-prob 0.9
  dropblock-inject plan net.py:make_net --image-size 32 --stages -2 -1 --block-size 3 --json
  dropblock-inject show cat.jpg --model torchvision:resnet50 --pretrained -o cat.png
  dropblock-inject schedule --total-steps 10000 --mode cosine -o schedule.png
  dropblock-inject bench
"""
_COMMANDS = {
    "stages": "the stages of a model, with their blocks",
    "plan": "the places where inject_dropblock would put DropBlocks",
    "show": "feature maps of a picture under Dropout, SpatialDropout and DropBlock",
    "schedule": "the keep_prob of each stage over the steps of a training",
    "bench": "the time that drop_block takes on this machine",
}


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. It imports the command's module, and with it torch, only when it is used."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        module = import_module(f".{self.prog.split()[-1]}", __package__)
        module.add_arguments(self)
        self.set_defaults(run=module.run)
        return super().parse_known_args(args, namespace)

    def add_option(self, function: Callable[..., Any], name: str, help: str, **settings: Any) -> None:
        """An option for the argument `name` of `function`."""
        default = signature(function).parameters[name].default
        if default is not None:
            help += f" ({' '.join(map(str, default)) if isinstance(default, tuple) else default})"
        self.add_argument(f"--{name.replace('_', '-')}", default=default, help=help, **settings)

    def add_stages(self, plan: Callable[..., Any]) -> None:
        """Options for the stages and the keep_prob of each."""
        help = "-1 is the deepest; all: every block, off the trunk too"
        self.add_option(plan, "stages", help, type=stage, nargs="+", metavar="N")
        self.add_option(plan, "keep_prob", "share of the map kept in the deepest stage", type=float, metavar="P")
        help = "the same keep_prob in each stage"
        self.add_argument("--no-depth-scaling", action="store_false", dest="depth_scaling", help=help)

    def add_image_size(self) -> None:
        help = "pixels: one number, or height and width, or frames, height and width (the size that the model expects)"
        self.add_argument("--image-size", type=integer(1), nargs="+", metavar="N", help=help)

    def add_output(self, required: bool = False) -> None:
        help = "the picture to write: .png, .pdf or .svg"
        self.add_argument("-o", "--output", type=picture_file, required=required, metavar="FILE", help=help)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="dropblock-inject",
        description="DropBlock in any CNN of timm or torchvision: where it would go and how it looks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, help in _COMMANDS.items():
        commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    return main


def options_of(function: Callable[..., Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `function` that have an option."""
    optional = {name for name, p in signature(function).parameters.items() if p.default is not Parameter.empty}
    options = {name: value for name, value in vars(arguments).items() if name in optional}
    if "all" in (options.get("stages") or ()):
        if len(options["stages"]) > 1:
            raise DropBlockValueError("--stages all is every block already; give no number beside it")
        options["stages"] = None
    return options


def integer(low: int, high: int = 2**63 - 1) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            hint = "; put spaces between several" if "," in text else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer{hint}") from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, got {number}")
        return number

    return convert


def stage(text: str) -> int | str:
    return text if text == "all" else integer(-(2**63))(text)


def pixels_or_share(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be pixels or a share of the map, got {text!r}") from None


def picture_file(text: str) -> Path:
    file = Path(text)
    if file.is_dir() or not file.suffix:
        example = file / "picture.png" if file.is_dir() else f"{file}.png"
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a picture; give one such as {example}")
    return file
