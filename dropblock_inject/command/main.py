"""The command ``dropblock-inject``: the stages and the plan of a model, and pictures, without a line of Python."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DropBlockInjectError, DropBlockValueError, TraceError
from .arguments import parser
from .spelling import in_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run() -> None:
    """The process of the command. It ends at once: taking torch apart in good order would take over a second."""
    gc.disable()  # a collection while torch is imported would take as long
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")
    code = main()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 1 after an error. Wrong usage ends the process with 2."""
    try:
        arguments = parser().parse_args(argv)
        with redirect_stdout(sys.stderr):  # the model's own code may print
            text, figure, remark = import_module(f".{arguments.command}", __package__).run(arguments)
        if figure is not None:
            _save(figure, arguments.output)
        if text:
            print(text if getattr(arguments, "json", False) else in_options(text), flush=True)
        if remark:
            print(remark, file=sys.stderr)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (DropBlockInjectError, OSError) as error:
        limit = ". This command can only set the size of an image, with --image-size"
        advice = limit if isinstance(error, TraceError) else ""
        print(f"dropblock-inject: error: {in_options(str(error))}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dropblock-inject: interrupted", file=sys.stderr)
        return 130
    return 0


def _save(figure: Figure, file: Path) -> None:
    try:
        figure.savefig(file)
    except ValueError as error:  # matplotlib does not know the format
        raise DropBlockValueError(f"{file}: {error}") from None
    print(f"wrote {file}", file=sys.stderr)
