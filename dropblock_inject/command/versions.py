"""``dropblock-inject --version``."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, Action, ArgumentParser
from typing import Any

from .. import __version__


class PrintVersions(Action):
    """Prints the versions of the package and of the libraries that it meets, and ends the command."""

    def __init__(self, option_strings: list[str], **settings: Any) -> None:
        super().__init__(option_strings, nargs=0, help="show the versions of what is installed", dest=SUPPRESS)

    def __call__(self, parser: ArgumentParser, *of_the_option: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version  # takes as long as all other imports together

        print(f"{parser.prog} {__version__}")
        for library in ("torch", "timm", "torchvision"):
            try:
                print(f"{library} {version(library)}")
            except PackageNotFoundError:
                print(f"{library} is not installed")
        print("Python", ".".join(map(str, sys.version_info[:3])))
        parser.exit()
