"""Presets: sets of arguments for :func:`dropblock_inject.inject_dropblock`.

Use them as in ``inject_dropblock(model, **presets.PAPER)``, together with a
:class:`dropblock_inject.KeepProbSchedule`. To change an argument:
``inject_dropblock(model, **{**presets.PAPER, "keep_prob": 0.8})``.

>>> from torchvision.models import resnet50
>>> from dropblock_inject import plan_dropblock
>>> plan_dropblock(resnet50(), **PAPER)
<InjectionPlan of 36 sites in ResNet>
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

PAPER: Mapping[str, Any] = MappingProxyType(
    {"stages": (3, 4), "where": "paper", "keep_prob": 0.9, "block_size": 7, "depth_scaling": True}
)
"""The settings of the paper for ImageNet (arXiv 1810.12890, section 4.1) and of its authors' code: groups 3 and 4 of a
ResNet, branches and shortcuts, blocks of 7 pixels, keep_prob 0.9 in group 4 and 0.975 in group 3. The paper trains from
scratch for 270 epochs, three times as many as usual. They equal the default arguments."""

SMALL_IMAGES: Mapping[str, Any] = MappingProxyType({**PAPER, "stages": (-2, -1), "block_size": 0.5})
"""PAPER for images of other sizes. A block is half of the map, as 7 pixels are of the 14x14 maps of group 3; the stages
are the last two, whatever their numbers."""

FINE_TUNING: Mapping[str, Any] = MappingProxyType({**SMALL_IMAGES, "stages": (-1,)})
"""For a fine-tuning of a pretrained network on few images: SMALL_IMAGES in the last stage only. In the study in
examples/study it raised the accuracy from 24 epochs on. After 80 epochs the mean of ten Monte Carlo passes had better
probabilities than one pass with temperature scaling. After 12 epochs no gain is shown."""
