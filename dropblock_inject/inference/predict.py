"""Several passes with DropBlock on, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DropBlockTypeError, DropBlockValueError
from .monte_carlo import mc_dropblock, mc_lock
from .prediction import Activation, Gathering, Prediction
from .shared_beginning import SharedBeginning, StaleError, batch_size, forget, repeating, shared_beginning

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

    The network must have been trained with DropBlock, see :func:`mc_dropblock`. Train long: in the fine-tunings of
    examples/study ten passes were worse calibrated than one pass without DropBlock after 12 epochs, and better after
    40. The network runs in eval mode, apart from its DropBlocks, and without gradients; modes and hooks are as before
    afterwards. Each pass has new masks, drawn from torch's random stream as in training (Gal and Ghahramani, arXiv
    1506.02142, with the masks of DropBlock).

    The part of the network before the first site is computed once. Where it cannot be told from the rest, or where the
    rest may mix the images of a batch, the whole model runs `samples` times, which gives the same distribution. So it
    does for a compiled model, and for code that uses the batch size.

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
    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise DropBlockTypeError(f"samples must be an int, got {samples!r}")
    if samples < 1:
        raise DropBlockValueError(f"samples must be at least 1, got {samples}")
    if not callable(activation) and activation not in ("softmax", "sigmoid", None):
        raise DropBlockValueError(f"activation must be 'softmax', 'sigmoid', a callable or None, got {activation!r}")

    def pick(returned: Any) -> Tensor:
        return _picked(returned, output, activation)

    def passes(beginning: SharedBeginning | None) -> Prediction:
        gathering = Gathering(activation, keep_samples)
        if beginning is None:
            for _ in range(samples):
                gathering.add(pick(model(*args, **kwargs))[None])
            return gathering.result()
        images = batch_size(args, kwargs)
        together = max(1, max(_ELEMENTS, beginning.largest_of_all * images) // (beginning.largest * images))
        with repeating(model, beginning) as repeat:
            for done in range(0, samples, together):
                number = min(samples - done, together)
                repeat(number)
                outputs = pick(model(*args, **kwargs))
                if len(outputs) != images * number:
                    raise StaleError(f"{len(outputs)} outputs of {images} images, {number} times each")
                gathering.add(outputs.unflatten(0, (images, number)).transpose(0, 1))
        return gathering.result()

    with mc_lock(model), _eval_mode(model), mc_dropblock(model), torch.no_grad():
        beginning = shared_beginning(model, args, kwargs, pick)
        try:
            return passes(beginning)
        except RuntimeError:
            if beginning is None:
                raise
            forget(model)  # the model no longer runs as it did when its beginning was found, or is wrong anyway
            return passes(None)


def _picked(returned: Any, output: str | int | Callable[[Any], Tensor] | None, activation: Activation) -> Tensor:
    """The tensor that `output` picks out of what a model returned.

    Raises:
        DropBlockTypeError: there is no such tensor.
        DropBlockValueError: the activation needs an axis of classes, and there is none, or a single class.
    """
    try:
        if callable(output):
            picked = output(returned)
        elif output is None:
            picked = returned
        elif isinstance(output, str) and not isinstance(returned, dict):
            picked = getattr(returned, output)
        else:
            picked = returned[output]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise DropBlockTypeError(
            f"output={output!r} is not in {_described(returned)}, which the model returned"
        ) from error
    if not isinstance(picked, Tensor):
        raise DropBlockTypeError(
            f"the model returned {_described(picked)}, which is no tensor: say by output= which part of it is meant, "
            "such as output='out', output=0, or a callable"
        )
    if picked.dim() < 2 and activation != "sigmoid" and activation is not None:
        raise DropBlockValueError(
            f"the output has shape {tuple(picked.shape)}, without an axis of classes: use activation='sigmoid', or None"
        )
    if activation == "softmax" and picked.shape[1] == 1:
        raise DropBlockValueError(
            f"the output has shape {tuple(picked.shape)}, a single class, of which the softmax is 1 everywhere: use "
            "activation='sigmoid', or None"
        )
    return picked


def _described(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    has = f" with {', '.join(map(str, returned))}" if isinstance(returned, dict) else ""
    return f"a {type(returned).__name__}{has}"


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
