"""The options of the examples, and the commands in their docstrings."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from lib.command_line import _OPTIONS, errors_in_a_sentence

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(str(file.relative_to(EXAMPLES)) for part in ("*.py", "pages/*.py") for file in EXAMPLES.glob(part))
TRAINERS = {"with_lightning.py": "lightning", "with_transformers.py": "transformers", "yolo.py": "ultralytics"}
# Every other option of an example. Where one means the same as another, it must have the same name.
OF_ONE_SCRIPT = {
    "finetune.py": {"--amp", "--compile", "--recalibrate", "--passes"},
    "distributed.py": {"--strategy", "--sync-bn", "--save-every"},
    "segmentation.py": {"--uncertainty"},
    "yolo.py": {"--weights", "--data"},
    "regularizers.py": {"--networks", "--parts", "--settings", "--seeds", "--jobs", "--report"},
    "uncertainty.py": {"--networks", "--parts", "--settings", "--seeds", "--jobs", "--report"},
    "pages/kept_share.py": {"--pixels"},
    "pages/peers.py": {"--markdown"},
}
LONG = {"finetune.py", "cifar100.py", "detection.py", "segmentation.py", "with_lightning.py", "with_transformers.py"}
STUDIES = {"regularizers.py", "uncertainty.py"}
IN_EVERY_LONG_ONE = {
    *("--model", "--pretrained", "--dataset", "--root", "--download", "--max-samples", "--image-size"),
    *("--stages", "--keep-prob", "--block-size", "--epochs", "--batch-size", "--lr", "--seed", "--resume", "--output"),
}


class Parsed(Exception):
    pass


@pytest.fixture
def parser_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], argparse.ArgumentParser]:
    """Runs a script as far as its arguments are parsed; returns its parser."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> None:
        parse(parser, argv)
        raise Parsed(parser)

    def run(script: str, argv: list[str]) -> argparse.ArgumentParser:
        pytest.importorskip(TRAINERS.get(script, "torch"))
        main = runpy.run_path(str(EXAMPLES / script))["main"]
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed) as parsed:
            main(argv)
        return parsed.value.args[0]

    return run


@pytest.mark.filterwarnings("ignore")  # what a library warns of when it is imported
@pytest.mark.parametrize("script", SCRIPTS)
def test_options_and_commands(script: str, parser_of: Callable) -> None:
    docstring = ast.get_docstring(ast.parse((EXAMPLES / script).read_text()), clean=False) or ""
    commands = re.findall(rf"^    (?:python|torchrun .*) examples/{script}(.*?)(?: #.*)?$", docstring, re.MULTILINE)
    assert commands, "the docstring has no command"
    for command in commands:
        parser = parser_of(script, shlex.split(command))
    options = {action.option_strings[-1] for action in parser._actions if action.option_strings} - {"--help"}
    shared = {"--" + name.replace("_", "-") for name in _OPTIONS}
    assert options - shared == OF_ONE_SCRIPT.get(script, set())
    assert not script.startswith("pages") or not options & shared
    if script in LONG:
        assert options >= IN_EVERY_LONG_ONE - ({"--model", "--pretrained"} if script == "cifar100.py" else set())
    if "with_" not in script and script not in STUDIES:
        for action in parser._actions:
            if action.dest in _OPTIONS and action.dest not in ("model", "dataset"):
                assert action.help.startswith(_OPTIONS[action.dest]["help"])


def test_only_what_the_user_can_mend_becomes_a_sentence() -> None:
    @errors_in_a_sentence
    def script(argv: list[str] | None) -> None:
        raise ValueError("a mistake in the script")

    with pytest.raises(ValueError, match="a mistake in the script"):
        script([])
