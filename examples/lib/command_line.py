"""Command lines: options with the same name and meaning in every example, and errors in a sentence."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dropblock_inject.errors import DropBlockInjectError
from lib.checkpoint import read_file
from lib.data import DATASETS

# A resumed training may change these options. It takes all others from its checkpoint.
MAY_DIFFER = {"device", "download", "output", "resume", "root", "workers"}


def whole_number(minimum: int, maximum: int = 10**9) -> Callable[[str], int]:
    """The type of an option that takes an integer from `minimum` to `maximum`."""

    def integer(text: str) -> int:
        if not minimum <= int(text) <= maximum:
            bound = f"at least {minimum}" if int(text) < minimum else f"at most {maximum}"
            raise argparse.ArgumentTypeError(f"must be {bound}, got {text}")
        return int(text)

    return integer


def learning_rate(text: str) -> float:
    if not 0 < float(text) <= 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1e6, got {text}")
    return float(text)


def pixels_or_share(text: str) -> int | float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be pixels or a share of the map, got {text!r}") from None


_FLAG: dict[str, Any] = {"action": "store_true"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"metavar": "NAME", "help": "a network of timm or torchvision"},
    "pretrained": {**_FLAG, "help": "download the library's weights for it"},
    "checkpoint": {"metavar": "FILE", "help": "initial weights: a state dict, .pt or .safetensors"},
    "dataset": {"default": "digits", "choices": DATASETS, "metavar": "NAME", "help": ", ".join(DATASETS)},
    "root": {"default": "data", "metavar": "DIR", "help": "the folder of torchvision's datasets"},
    "download": {**_FLAG, "help": "download the dataset to --root"},
    "data_dir": {"metavar": "DIR", "help": "your own images instead: train/CLASS/*.jpg and val/CLASS/*.jpg"},
    "image_size": {
        "type": whole_number(1, 10_000),
        "metavar": "N",
        "help": "height and width of an image in pixels",
        "unset": "what the network expects; 96 for the digits",  # shown where there is no default
    },
    "max_samples": {"type": whole_number(1), "metavar": "N", "help": "use at most N images of each part, to try it"},
    "stages": {
        "type": int,
        "nargs": "+",
        "default": [3, 4],
        "metavar": "N",
        "help": "stages that get DropBlock, from 1 on; -1 is the last",
    },
    "include": {
        "nargs": "+",
        "metavar": "PATTERN",
        "help": "sites of these names, anywhere in the network, instead of --stages",
    },
    "where": {
        "nargs": "+",
        "default": ["paper"],
        "choices": ["paper", "branch", "skip", "output", "end"],
        "help": "sites in each block; paper is branch and skip",
    },
    "keep_prob": {
        "type": float,
        "default": 0.9,
        "metavar": "P",
        "help": "of the last stage, reached from 1 at the end",
    },
    "block_size": {"type": pixels_or_share, "default": 0.5, "metavar": "N", "help": "in pixels, or a share of the map"},
    "epochs": {"type": whole_number(1), "metavar": "N", "help": "passes over the training images"},
    "batch_size": {"type": whole_number(1), "metavar": "N", "help": "images per step"},
    "lr": {"type": learning_rate, "metavar": "X", "help": "peak learning rate"},
    "seed": {"type": whole_number(0, 2**63 - 1), "default": 0, "metavar": "N", "help": "of the random numbers"},
    "workers": {"type": whole_number(0), "default": 0, "metavar": "N", "help": "processes that load images"},
    "device": {"default": "cuda" if torch.cuda.is_available() else "cpu", "help": "cpu, cuda, cuda:1, …"},
    "output": {"metavar": "DIR", "help": "the folder for last.pt, to resume from, and model.pt, the weights"},
    "resume": {"metavar": "FILE", "help": "go on from a last.pt, or from the one in a folder, with its options"},
}


def make_parser(file: str, text: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of the script."""
    parser = argparse.ArgumentParser(
        prog=Path(file).name,
        usage="%(prog)s [options]",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(script=parser.prog)
    return parser


def add_options(parser: argparse._ActionsContainer, *names: str, **defaults: Any) -> None:
    """Adds options that several scripts have, under the same name, with the same meaning.

    Args:
        parser: a parser or a group of one.
        names: options that keep their default; an underscore stands for a hyphen.
        defaults: further options, each with the default of this script.
    """
    for name in (*names, *defaults):
        option = {**_OPTIONS[name], **({"default": defaults[name]} if name in defaults else {})}
        unset = option.pop("unset", None)
        default = option.get("default", unset)
        if default is not None:
            option["help"] += f" ({' '.join(map(str, default)) if isinstance(default, list) else default})"
        parser.add_argument("--" + name.replace("_", "-"), **option)


def parse_arguments(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The options, and the content of the checkpoint that --resume names, whose options take precedence."""
    args = parser.parse_args(argv)
    state = None
    if vars(args).get("resume"):
        args, state = _with_options_of_the_checkpoint(parser, argv, Path(args.resume))
    given = {name for name, value in vars(args).items() if value and value != parser.get_default(name)}
    for one, other in (("pretrained", "checkpoint"), ("data_dir", "dataset")):
        if {one, other} <= given:
            raise SystemExit(f"error: {_option(one)} and {_option(other)} exclude each other; give one of them")
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise SystemExit(f"error: --output {args.output} is a file; give a directory")
    check_device(args.device)
    return args, state


def _with_options_of_the_checkpoint(
    parser: argparse.ArgumentParser, argv: list[str] | None, file: Path
) -> tuple[argparse.Namespace, dict[str, Any]]:
    file = file / "last.pt" if file.is_dir() else file
    state = read_file(file)
    settings = state.get("settings") if isinstance(state, dict) else None
    own = settings_of(parser.parse_args(argv))
    if not isinstance(settings, dict) or settings.keys() != own.keys() or settings["script"] != own["script"]:
        advice = "; weights go in --checkpoint" if "checkpoint" in own else ""
        raise SystemExit(f"error: {file} is no last.pt of {parser.prog}{advice}")
    parser.set_defaults(**settings, output=str(file.parent))
    args = parser.parse_args(argv)
    args.resume = str(file)
    for name, value in settings_of(args).items():
        if value != settings[name]:
            option = _option(name)
            raise SystemExit(f"error: {file} has {option} {settings[name]}, not {value}; leave {option} out")
    return args, state


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a resumed training must have in common with the interrupted one."""
    return {name: value for name, value in vars(args).items() if name not in MAY_DIFFER}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise SystemExit(f"error: no device {name}: {str(error).splitlines()[0]}") from None


def errors_in_a_sentence(main: Callable[..., None]) -> Callable[..., None]:
    """Makes a script end with a sentence, not with a traceback, where the user can mend what is wrong."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> None:
        try:
            main(argv)
        except KeyboardInterrupt:
            raise SystemExit("\ninterrupted") from None
        except ModuleNotFoundError as error:
            raise SystemExit(f"error: {error}; pip install 'dropblock-inject[examples]'") from None
        except (DropBlockInjectError, OSError) as error:  # an option that does not fit the model, an unreadable image
            raise SystemExit(f"error: {error}") from None
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise SystemExit(
                "error: batch normalisation needs more than one value per channel, and this batch has one image with "
                "a map of one pixel; give a larger --batch-size or --image-size"
            ) from None

    return run
