"""Measures of what a classifier does not know: calibration, rejection, unknown images, occlusion, dropped blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from dropblock_inject import inject_dropblock, mc_dropblock, remove_dropblock

Predict = Callable[[Tensor], Tensor]  # images (N, 3, H, W) to probabilities (N, classes)
OCCLUDED = (10, 20, 30, 40, 50)  # percent of the image
DROPPED = (10, 25, 50)  # percent of the last stage's maps


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that divides the logits with the least negative log-likelihood (Guo et al., 2017).

    Args:
        logits: of held-out images, of shape (N, classes).
        labels: of shape (N,), class indices.
    """
    logits = logits.double()
    logarithm = torch.zeros((), dtype=torch.float64, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithm], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / logarithm.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(logarithm.detach().exp())


def area_under_rejection(probabilities: Tensor, labels: Tensor) -> float:
    """The area under the accuracy-rejection curve, in percent."""
    return float(rejection_curve(probabilities, labels).mean())


def rejection_curve(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The accuracy in percent of the k most confident predictions, for k from 1 to N.

    The confidence of a prediction is its largest probability.

    Args:
        probabilities: of shape (N, classes).
        labels: of shape (N,), class indices.
    """
    confidence, predicted = probabilities.max(1)
    correct = (predicted == labels)[confidence.argsort(descending=True, stable=True)].double()
    return 100 * correct.cumsum(0) / torch.arange(1, len(labels) + 1, device=labels.device)


def unknown_auroc(known: Tensor, unknown: Tensor) -> float:
    """How well the entropy tells images of another dataset, in percent: the area under the ROC curve.

    Args:
        known, unknown: probabilities of images of both datasets, each of shape (N, classes).
    """
    entropies = torch.cat([torch.special.entr(part.double()).sum(1) for part in (known, unknown)])
    target = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))]).long()
    # binary_auroc takes values outside [0, 1] for logits.
    return 100 * float(binary_auroc(entropies.cpu() / entropies.max().cpu().clamp_min(1e-12), target))


def occlude(images: Tensor, percent: int) -> Tensor:
    """The images with a grey square on `percent` of their area, at places that follow from the shape alone."""
    count, _, height, width = images.shape
    side = round((height * width * percent / 100) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    down = (torch.rand(count, generator=generator) * (height - side + 1)).long()
    right = (torch.rand(count, generator=generator) * (width - side + 1)).long()
    rows, columns = torch.arange(height), torch.arange(width)
    inside = (rows >= down[:, None]) & (rows < down[:, None] + side)
    across = (columns >= right[:, None]) & (columns < right[:, None] + side)
    square = (inside[:, None, :, None] & across[:, None, None, :]).to(images.device)
    return images.masked_fill(square, 0)


def accuracy_with_dropped_blocks(net: nn.Module, where: str, images: Tensor, labels: Tensor, percent: int) -> float:
    """The accuracy in percent, with one pass, of a network whose last stage loses blocks of half a map.

    Whatever was injected into `net` is taken out.

    Args:
        percent: the share of each map that is dropped.
    """
    remove_dropblock(net)
    example = torch.empty(1, *images.shape[1:], device=images.device)
    inject_dropblock(net, (-1,), block_size=0.5, where=where, example_input=example)
    with torch.no_grad(), mc_dropblock(net, keep_prob=1 - percent / 100):
        correct = sum(
            int((net(inputs).argmax(1) == wanted).sum())
            for inputs, wanted in zip(images.split(100), labels.split(100), strict=True)
        )
    return 100 * correct / len(labels)


def reliability(probabilities: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """The points of a reliability diagram, in percent, for ten bins of equal width over the confidence.

    Returns:
        shares: of the predictions, in each bin; confidences, accuracies: the means in each bin, 0 in an empty one.
    """
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    bins = (confidence * 10).long().clamp(max=9)
    counts = bins.bincount(minlength=10)
    confidences, accuracies = (
        100 * bins.bincount(values, minlength=10) / counts.clamp_min(1) for values in (confidence, correct)
    )
    return {
        "shares": (100 * counts / len(labels)).tolist(),
        "confidences": confidences.tolist(),
        "accuracies": accuracies.tolist(),
    }
