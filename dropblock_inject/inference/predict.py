"""Several passes with DropBlock on, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DropBlockTypeError, DropBlockValueError
from .monte_carlo import mc_dropblock
from .prediction import Activation, Gathering, Prediction
from .shared_beginning import SharedBeginning, batch_size, repeating, shared_beginning

# A tensor of the part that is repeated may have as many elements as in a plain pass, and at least so many.
_ELEMENTS = 2**26


def mc_predict(
    model: nn.Module,
    *args: Any,
    samples: int = 10,
    activation: Activation = "softmax",
    output: str | int | Callable[[Any], Tensor] | None = None,
    keep_samples: bool = False,
    **kwargs: Any,
) -> Prediction:
    """Calls a model several times with DropBlock on, and gives the mean, the spread and the entropies.

    The network must have been trained with DropBlock, see :func:`mc_dropblock`. It runs in eval mode, apart from its
    DropBlocks, and without gradients; modes and hooks are as before afterwards. Each pass has new masks, drawn from
    torch's random stream as in training (Gal and Ghahramani, arXiv 1506.02142, with the masks of DropBlock).

    The part of the network before the first site is computed once. Where it cannot be told from the rest (a compiled
    model, code that uses the batch size), the whole model runs `samples` times, which gives the same distribution.

    Args:
        model: see :func:`mc_dropblock`.
        args, kwargs: what the model is called with, the images with their batch axis.
        samples: number of passes.
        activation: what makes probabilities of the outputs: ``"softmax"`` over axis 1; ``"sigmoid"``, where each class
            is on its own; a callable on (N, C, ...) that gives probabilities over axis 1; None: the outputs are taken
            as they are (a regression), and have no entropies.
        output: which tensor of what the model returns is meant: a key, a position, the name of an attribute, or a
            callable that is given all of it. None: the model returns a tensor.
        keep_samples: whether to keep the probabilities of each pass.

    Returns:
        A :class:`Prediction`: `mean`, `std`, `entropy`, `mutual_information`, `samples`.

    Raises:
        DropBlockTypeError, DropBlockValueError: an argument is of a wrong type or out of range, the model returns no
            tensor and `output` is None, the model has no DropBlock, or all are at keep_prob 1.

    >>> from torchvision.models import resnet18
    >>> from dropblock_inject import inject_dropblock
    >>> model = resnet18(num_classes=5)
    >>> _ = inject_dropblock(model, stages=4)
    >>> prediction = mc_predict(model, torch.rand(2, 3, 64, 64), samples=4)
    >>> prediction.mean.shape, prediction.entropy.shape
    (torch.Size([2, 5]), torch.Size([2]))
    """
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise DropBlockTypeError(f"samples must be an int, got {samples!r}")
    if samples < 1:
        raise DropBlockValueError(f"samples must be at least 1, got {samples}")
    if not callable(activation) and activation not in ("softmax", "sigmoid", None):
        raise DropBlockValueError(f"activation must be 'softmax', 'sigmoid', a callable or None, got {activation!r}")

    def pick(returned: Any) -> Tensor:
        return _picked(returned, output, activation)

    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    with _eval_mode(model), mc_dropblock(model), torch.no_grad():
        beginning = shared_beginning(model, args, kwargs, pick)
        parts = []
        for images, batches in _passes(model, args, kwargs, samples, beginning):
            gathering = Gathering(activation, keep_samples)
            for passes, returned in batches:
                gathering.add(pick(returned).unflatten(0, (images, passes)).transpose(0, 1))
            parts.append(gathering.result())
        return Prediction.cat(parts)


def _passes(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], samples: int, beginning: SharedBeginning | None
) -> Iterator[tuple[int, Iterator[tuple[int, Any]]]]:
    """For as many images at a time as fit: their number, and passes.

    Passes are what the model returned for several at a time, each image coming out of it so many times in a row.
    """
    images = batch_size(args, kwargs)
    if beginning is None:
        yield images, ((1, model(*args, **kwargs)) for _ in range(samples))
        return
    fit = max(_ELEMENTS, beginning.largest_of_all * images) // beginning.largest
    entries = (*args, *kwargs.values())
    can_be_cut = all(len(entry) == images for entry in entries if isinstance(entry, Tensor) and entry.dim() > 0)
    can_be_cut &= not any(isinstance(entry, tuple | list | dict) for entry in entries)
    at_a_time = min(images, max(1, fit // samples)) if can_be_cut else images
    together = min(samples, max(1, fit // at_a_time))
    with repeating(model, beginning) as repeat:

        def batches(part: slice) -> Iterator[tuple[int, Any]]:
            for done in range(0, samples, together):
                passes = min(together, samples - done)
                repeat(passes)
                yield passes, model(*_part(args, part), **dict(zip(kwargs, _part(kwargs.values(), part), strict=True)))

        for first in range(0, images, at_a_time):
            part = slice(first, first + at_a_time)
            yield min(at_a_time, images - first), batches(part)


def _part(entries: Iterable[Any], images: slice) -> list[Any]:
    return [entry[images] if isinstance(entry, Tensor) and entry.dim() > 0 else entry for entry in entries]


def _picked(returned: Any, output: str | int | Callable[[Any], Tensor] | None, activation: Activation) -> Tensor:
    if callable(output):
        picked = output(returned)
    elif output is None:
        picked = returned
    elif isinstance(output, str) and not isinstance(returned, dict):
        picked = getattr(returned, output)
    else:
        picked = returned[output]
    if not isinstance(picked, Tensor):
        kind = type(picked).__name__
        has = f" with {', '.join(map(str, picked))}" if isinstance(picked, dict) else ""
        raise DropBlockTypeError(
            f"the model returned a {kind}{has}, which is no tensor: say by output= which part of it is meant, such as "
            "output='out', output=0, or a callable"
        )
    if picked.dim() < 2 and activation != "sigmoid" and activation is not None:
        raise DropBlockValueError(
            f"the output has shape {tuple(picked.shape)}, without an axis of classes: use activation='sigmoid', or None"
        )
    return picked


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Within this context a model is in eval mode; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
