"""Images of several objects with boxes and masks: scikit-learn's digits on a grey canvas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from lib.data import load_digits

CLASSES = [str(digit) for digit in range(10)]


class Scenes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Scenes of one to four digits; an index has always the same scene.

    A sample is an image (3, size, size) in [0, 1] and a target with `boxes` (n, 4) as left, top, right, bottom in
    pixels, `labels` (n) from 1 on, and `mask` (size, size) with the label of each pixel, 0 for the canvas.
    """

    def __init__(self, count: int, size: int, *, train: bool) -> None:
        if size < 32:
            raise SystemExit(f"error: --image-size {size} is too small for a scene; give 32 or more")
        digits = load_digits()
        self.digits = digits.train if train else digits.val
        self.count = count
        self.size = size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = torch.Generator().manual_seed(index)

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=random))

        image = 0.4 + 0.05 * torch.randn(1, self.size, self.size, generator=random)
        mask = torch.zeros(self.size, self.size, dtype=torch.long)
        boxes, labels = [], []
        cell = self.size // 2
        for corner in range(4):  # at most one in each quarter: they never overlap
            if corner and draw(0, 3) == 0:
                continue
            digit, label = self.digits[draw(0, len(self.digits))]
            side = draw(cell // 2, cell)
            scan = F.interpolate(pil_to_tensor(digit)[None] / 255, (side, side), mode="bilinear")[0, 0]
            top = corner // 2 * cell + draw(0, cell - side + 1)
            left = corner % 2 * cell + draw(0, cell - side + 1)
            there = slice(top, top + side), slice(left, left + side)
            image[0][there] = image[0][there] * (1 - scan) + scan
            mask[there][scan > 0.3] = label + 1
            rows, columns = (scan > 0.3).nonzero(as_tuple=True)
            boxes.append([left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1])
            labels.append(label + 1)
        target = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels), "mask": mask}
        return image.clamp(0, 1).expand(3, -1, -1).contiguous(), target
