"""A model by its name: one of timm, one of torchvision, or what a function in a file makes."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from ..errors import DropBlockTypeError, DropBlockValueError

LIBRARIES = ("timm", "torchvision")


def build_without_data(name: str) -> nn.Module:
    """As :func:`build_model`, but a library's model has shapes only: even the largest is there in a moment."""
    if ".py:" in name:
        return _made_by_file(name, pretrained=False)
    find_model(name)
    try:
        with torch.device("meta"):
            return build_model(name)
    except Exception:  # some constructors look at values
        return build_model(name)


def build_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Builds a model.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, a NAME that is found in either (timm first), or ``FILE.py:FUNCTION``,
            a function without required arguments that returns the model.
        pretrained: whether to download the library's weights.
        options: for the constructor of the library, such as ``num_classes``.

    Raises:
        DropBlockValueError: no such library, model, file or function; the closest names are offered.
        DropBlockTypeError: the function made no module.
    """
    if ".py:" in name:
        return _made_by_file(name, pretrained)
    library, bare = find_model(name)
    try:
        if library == "timm":
            return import_module("timm").create_model(bare, pretrained=pretrained, **options)
        models = import_module("torchvision").models
        if not pretrained and "weights_backbone" in signature(models.get_model_builder(bare)).parameters:
            options["weights_backbone"] = None  # else a detector downloads those
        return models.get_model(bare, weights="DEFAULT" if pretrained else None, **options)
    except Exception as error:  # each way to download has its own
        if not pretrained:
            raise
        reason = str(error).strip().split("\n")[0]
        raise DropBlockValueError(
            f"no pretrained weights for {name}: {reason}; check the connection, or give a file of weights"
        ) from None


def find_model(name: str) -> tuple[str, str]:
    """The library that has the model, and its name there."""
    library, _, bare = name.rpartition(":")
    if library and library not in LIBRARIES:
        raise DropBlockValueError(
            f"unknown library in {name}; use timm:NAME or torchvision:NAME, or FILE.py:FUNCTION for a model of your own"
        )
    if bare.endswith(".py"):
        raise DropBlockValueError(f"{name} is a file; say which of its functions makes the model: {name}:FUNCTION")
    candidates = {one: _names(one) for one in ((library,) if library else LIBRARIES) if find_spec(one)}
    if not candidates:
        raise DropBlockValueError(
            f"{library or 'timm or torchvision'} is not installed: pip install {library or 'timm'}"
        )
    for found, names in candidates.items():
        if bare.split(".")[0] in names:  # timm's names may say which weights, as in resnet50.a1_in1k
            return found, bare
    close = get_close_matches(bare, sorted(set().union(*candidates.values())), n=4)
    advice = f"did you mean {', '.join(close)}?" if close else "timm.list_models('*part*') finds names"
    raise DropBlockValueError(f"unknown model {name}; {advice}")


def _names(library: str) -> list[str]:
    module = import_module(library)
    return module.list_models() if library == "timm" else module.models.list_models()


def _made_by_file(name: str, pretrained: bool) -> nn.Module:
    file, _, function = name.rpartition(":")
    if pretrained:
        raise DropBlockValueError(f"pretrained weights are for models of a library; let {function}() load its own")
    if not Path(file).is_file():
        raise DropBlockValueError(f"no file {file}")
    with _importable(Path(file).resolve().parent), _said_briefly(file):
        found = runpy.run_path(file)
    functions: dict[str, Callable[[], Any]] = {key: value for key, value in found.items() if callable(value)}
    if function not in functions:
        close = get_close_matches(function, functions, n=4)
        advice = f"; did you mean {', '.join(close)}?" if close else ""
        raise DropBlockValueError(f"no function {function!r} in {file}{advice}")
    with _importable(Path(file).resolve().parent), _said_briefly(f"{function}() of {file}"):
        model = functions[function]()
    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"{name} made a {type(model).__name__}, not a torch.nn.Module")
    return model


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """As for a script: what lies beside it can be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _said_briefly(what: str) -> Iterator[None]:
    """Whatever goes wrong in the user's code, in a line."""
    try:
        yield
    except Exception as error:
        raise DropBlockValueError(f"{what} failed: {type(error).__name__}: {error}") from error


def load_weights(model: nn.Module, file: Path) -> None:
    """Loads a state dict from a file, without trust in it.

    Raises:
        DropBlockValueError: the file holds none, or none of this model.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DropBlockValueError(f"no file {file}") from None
    except Exception:  # there is no telling what a corrupt file leads to
        raise DropBlockValueError(f"{file} is no readable checkpoint of tensors and plain values") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DropBlockValueError(
            f"{file} is no checkpoint of this {type(model).__name__}: {shorten(reason, 300, placeholder=' …')}; a "
            "model with another classifier is made by FILE.py:FUNCTION"
        ) from None
