"""A parser that offers the closest option or subcommand for a misspelt one. It needs no torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from .spelling import did_you_mean, enumerated


class SubcommandParser(argparse.ArgumentParser):
    """The parser of one subcommand, whose usage it shows with each error.

    Args:
        family: the parsers of all subcommands by their names, to say which of them has an option.
        settings: those of argparse.
    """

    def __init__(self, *, family: dict[str, SubcommandParser], **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.family = family

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.check_options(takewhile(lambda word: word != "--", args))
        namespace, left = super().parse_known_args(args, namespace)
        if left:
            takes = [f"one {action.metavar}" for action in self._get_positional_actions()]
            self.error(f"{left[0]!r} is one word too many: {self.prog} takes {enumerated([*takes, 'options'])}")
        return namespace, left

    def check_options(self, words: Iterable[str]) -> None:
        """Ends with the usage and the closest option if one of the words is an option that does not exist."""
        for word in words:
            name = word.split("=")[0]
            if re.match(r"-[^\d.]", word) and " " not in word and not self.has_option(name):
                self.error(f"no option {name}{self._advice_on(name)}")

    def has_option(self, name: str) -> bool:
        """Whether it is an option, or a short one and its value in one word."""
        return name in self._option_string_actions or name[:2] in self._option_string_actions

    def _advice_on(self, name: str) -> str:
        others = [command for command, parser in self.family.items() if name in parser._option_string_actions]
        if others:
            return f" here; it is an option of {enumerated(others)}"
        options = [option for option in self._option_string_actions if option.startswith("--")]
        plain = name.strip("-").lower()
        return did_you_mean(f"--{plain}", options, most=1) or f"; {self.prog} --help lists the options"


class MainParser(SubcommandParser):
    """The parser of the command. It leaves what follows the name of a subcommand to the parser of that one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        own = list(takewhile(lambda word: word.startswith("-"), words))
        self.check_options(own)
        if not own:
            self._check_command(*words[:1])
        return argparse.ArgumentParser.parse_known_args(self, words, namespace)

    def _check_command(self, name: str = "") -> None:
        if name not in self.family:
            all_of_them = f"; the commands are {enumerated(self.family)}"
            advice = did_you_mean(name, self.family, most=1) or all_of_them
            self.error(f"no command {name!r}{advice}" if name else f"a command is missing{all_of_them}")
