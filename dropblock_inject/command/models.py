"""A model from its name: one of timm, one of torchvision, or one that a function in a file makes; and its input."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from math import prod
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DropBlockTypeError, DropBlockValueError
from ..tracing.example_input import example_of_size
from .spelling import did_you_mean

LIBRARIES = ("timm", "torchvision")
_MAX_PIXELS = 2**28


def build_without_data(name: str) -> nn.Module:
    """Builds a model as :func:`build_model` does. A library's model has shapes only, so that the largest take no time.

    Raises:
        DropBlockValueError, DropBlockTypeError: as :func:`build_model`.
    """
    if ".py:" in name:
        return _made_by_file(name, pretrained=False)
    find_model(name)
    try:
        with torch.device("meta"):
            return build_model(name)
    except Exception:  # some constructors read values
        return build_model(name)


def build_model(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Builds a model.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, a NAME that is found in either (timm first), or ``FILE.py:FUNCTION``,
            a function without required arguments that returns the model.
        pretrained: whether to download the library's weights.
        options: for the constructor of the library, such as ``num_classes``.

    Raises:
        DropBlockValueError: no such library, model, file or function (the closest names are offered), or the code in
            the file or in the library failed.
        DropBlockTypeError: the function returned something else than a module.
    """
    if ".py:" in name:
        return _made_by_file(name, pretrained)
    library, bare = find_model(name)
    try:
        if library == "timm":
            return import_module("timm").create_model(bare, pretrained=pretrained, **options)
        models = import_module("torchvision").models
        if not pretrained and "weights_backbone" in signature(models.get_model_builder(bare)).parameters:
            options["weights_backbone"] = None  # a detector downloads them otherwise
        return models.get_model(bare, weights="DEFAULT" if pretrained else None, **options)
    except Exception as error:  # each way to download has errors of its own
        reason = str(error).strip().split("\n")[0]
        if not pretrained:
            raise DropBlockValueError(f"{library} failed to build {bare}: {type(error).__name__}: {reason}") from error
        raise DropBlockValueError(
            f"no pretrained weights for {name}: {reason}; check the connection, or give a file of weights with "
            "--checkpoint"
        ) from None


def find_model(name: str) -> tuple[str, str]:
    """The library that has the model, and its name there.

    Raises:
        DropBlockValueError: no such library or model.
    """
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
        if bare.split(".")[0] in names:  # a timm name may end in the name of the weights, as in resnet50.a1_in1k
            return found, bare
    advice = did_you_mean(bare, sorted(set().union(*candidates.values())))
    raise DropBlockValueError(f"unknown model {name}{advice or '; timm.list_models() and its like have the names'}")


def source_of(name: str) -> tuple[str, str]:
    """The name in full, with the library that has the model; and for a bare name a remark on where it was found."""
    if ".py:" in name:
        return name, ""
    library, bare = find_model(name)
    source = f"{library}:{bare}"
    if name == source:
        return source, ""
    others = [one for one in LIBRARIES if one != library and find_spec(one) and bare in _names(one)]
    return source, f"{bare} of {library}" + "".join(f"; {one} has one too: {one}:{bare}" for one in others)


def title_of(source: str) -> str:
    """The name of the model for a picture, with the library or the file that it is from."""
    origin, _, name = source.rpartition(":")
    return f"{name} ({Path(origin).name})"


def _names(library: str) -> list[str]:
    with in_one_line(f"import {library}"):
        module = import_module(library)
    return module.list_models() if library == "timm" else module.models.list_models()


def _made_by_file(name: str, pretrained: bool) -> nn.Module:
    file, _, function = name.rpartition(":")
    if pretrained:
        raise DropBlockValueError(f"pretrained weights are for models of a library; let {function}() load its own")
    if not Path(file).is_file():
        raise DropBlockValueError(f"no file {file}")
    with _importable(Path(file).resolve().parent), in_one_line(file):
        found = runpy.run_path(file)
    functions: dict[str, Callable[[], Any]] = {key: value for key, value in found.items() if callable(value)}
    if function not in functions:
        raise DropBlockValueError(f"no function {function!r} in {file}{did_you_mean(function, functions)}")
    with _importable(Path(file).resolve().parent), in_one_line(f"{function}() of {file}"):
        model = functions[function]()
    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"{name} made a {type(model).__name__}, not a torch.nn.Module")
    return model


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in the folder can be imported, as from a script there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def in_one_line(code: str) -> Iterator[None]:
    """Any error of the user's code becomes an error of one line; so does an exit."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = str(error).strip().split("\n")[0]
        raise DropBlockValueError(f"{code} failed: {type(error).__name__}: {reason}") from error


def load_weights(model: nn.Module, file: Path) -> None:
    """Loads a state dict from a file that need not be trusted.

    Raises:
        DropBlockValueError: the file holds no state dict, or one of another model.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DropBlockValueError(f"no file {file}") from None
    except Exception:  # a corrupt file leads to any error
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


def example_of(model: nn.Module, image_size: Sequence[int] | None) -> Tensor | None:
    """An image without data for the model.

    Args:
        image_size: its sides in pixels; a single number is height and width; None: no image.

    Raises:
        DropBlockValueError: the model takes images with another number of sides, or the image is too large.
    """
    if image_size is None:
        return None
    size = tuple(image_size) * (2 if len(image_size) == 1 else 1)
    if prod(size) > _MAX_PIXELS:
        shape = "x".join(map(str, size))
        raise DropBlockValueError(f"an image of {shape} pixels is too large: it may have {_MAX_PIXELS} in all")
    return example_of_size(model, size)
