"""What several passes of a model say together: mean, spread and entropies, gathered pass by pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

Activation = str | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class Prediction:
    """The prediction of several passes. N is the number of images, C that of classes; further axes are pixels.

    Attributes:
        mean: mean of the probabilities, (N, C, ...).
        std: their standard deviation over the passes, divided by samples - 1, (N, C, ...); zeros for a single pass.
        entropy: the entropy of the mean in nats, (N, ...): all of the uncertainty. With ``activation="sigmoid"`` each
            class has its own, (N, C, ...); with None it is None.
        mutual_information: `entropy` less the mean entropy of the passes, in nats, in the same shape: the share of the
            uncertainty that comes from the model (Houlsby et al., arXiv 1112.5745; Smith and Gal, arXiv 1803.08533).
        samples: the probabilities of each pass, (samples, N, C, ...), with ``keep_samples=True``; else None.
    """

    mean: Tensor
    std: Tensor
    entropy: Tensor | None
    mutual_information: Tensor | None
    samples: Tensor | None

    def __repr__(self) -> str:
        shapes = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = [f"{name} {tuple(value.shape)}" for name, value in shapes.items() if value is not None]
        return f"<Prediction: {', '.join(texts)}>"

    @staticmethod
    def cat(parts: list[Prediction]) -> Prediction:
        """The prediction for the images of all parts, in their order."""

        def joined(name: str) -> Any:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors, 1 if name == "samples" else 0)

        return Prediction(**{field.name: joined(field.name) for field in fields(Prediction)})


class Gathering:
    """Gathers passes: a running mean and variance (Chan et al., 1983), so that no pass need be kept.

    Args:
        activation: what makes probabilities of the outputs, see :func:`mc_predict`.
        keep_samples: whether to keep the probabilities of each pass.
    """

    def __init__(self, activation: Activation, keep_samples: bool) -> None:
        self._activation = activation
        self._kept: list[Tensor] | None = [] if keep_samples else None
        self._count = 0
        self._mean = self._squares = self._entropies = torch.zeros(())

    def add(self, outputs: Tensor) -> None:
        """Adds passes: outputs of shape (passes, N, C, ...)."""
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        samples = probabilities(outputs, self._activation)
        if self._kept is not None:
            self._kept.append(samples)
        new, total = len(samples), self._count + len(samples)
        mean = samples.mean(0)
        gap = mean - self._mean
        self._squares = self._squares + (samples - mean).square().sum(0) + gap.square() * (self._count * new / total)
        self._mean = self._mean + gap * (new / total)
        if self._activation is not None:
            self._entropies = self._entropies + entropy(samples, self._activation, class_axis=2).sum(0)
        self._count = total

    def result(self) -> Prediction:
        std = (self._squares / max(self._count - 1, 1)).sqrt()
        whole = information = None
        if self._activation is not None:
            whole = entropy(self._mean, self._activation, class_axis=1)
            information = (whole - self._entropies / self._count).clamp(min=0)  # rounding may take it below
        return Prediction(self._mean, std, whole, information, torch.cat(self._kept) if self._kept else None)


def probabilities(outputs: Tensor, activation: Activation) -> Tensor:
    """The probabilities that outputs of shape (passes, N, C, ...) stand for."""
    if callable(activation):
        return torch.stack([activation(output) for output in outputs])
    if activation == "softmax":
        return outputs.softmax(2)
    return outputs.sigmoid() if activation == "sigmoid" else outputs


def entropy(probability: Tensor, activation: Activation, class_axis: int) -> Tensor:
    """The entropy in nats: over the classes, or of each class alone after a sigmoid."""
    if activation == "sigmoid":
        return torch.special.entr(probability) + torch.special.entr(1 - probability)
    return torch.special.entr(probability).sum(class_axis)
