"""Real images for trainings in tests: scikit-learn's handwritten digits."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F


def digits(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) and their classes 0 to 9."""
    bunch = load_digits()
    scans = torch.tensor(bunch.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    return F.interpolate(scans, (size, size), mode="bilinear").expand(-1, 3, -1, -1).clone(), torch.tensor(
        bunch.target[:count]
    )
