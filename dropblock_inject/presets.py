"""Named choices of where and how much to drop: ``inject_dropblock(model, **presets.PAPER)``.

Each is a mapping of arguments of :func:`dropblock_inject.inject_dropblock`, and meant with a :class:`KeepProbSchedule`.
To change one of them: ``inject_dropblock(model, **{**presets.PAPER, "keep_prob": 0.8})``.

>>> from torchvision.models import resnet50
>>> from dropblock_inject import plan_dropblock
>>> plan_dropblock(resnet50(), **PAPER)
<InjectionPlan of 36 sites in ResNet>
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

#: The paper's for ImageNet (arXiv 1810.12890, section 4.1) and its authors' code: groups 3 and 4 of a ResNet, branches
#: and shortcuts, blocks of 7 pixels, keep_prob 0.9 in group 4 and 0.975 in group 3; from scratch, for three times as
#: many epochs as usual (270). These are the defaults, spelt out.
PAPER: Mapping[str, Any] = MappingProxyType(
    {"stages": (3, 4), "where": "paper", "keep_prob": 0.9, "block_size": 7, "depth_scaling": True}
)

#: The same for images of other sizes: 7 pixels are half of the 14x14 maps of group 3, here it is half of each map; in
#: the last two stages, whatever their numbers.
SMALL_IMAGES: Mapping[str, Any] = MappingProxyType({**PAPER, "stages": (-2, -1), "block_size": 0.5})

#: For a short fine-tuning of a pretrained network on few images: in the last stage alone. The README has the study that
#: this is from.
FINE_TUNING: Mapping[str, Any] = MappingProxyType({**SMALL_IMAGES, "stages": (-1,)})
