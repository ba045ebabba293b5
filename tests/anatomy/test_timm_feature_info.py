"""What timm models say of themselves, where the data flow does not show it."""

from __future__ import annotations

import pytest
import timm
import torch

from dropblock_inject import find_stages


@pytest.mark.parametrize("name", ["efficientvit_b0", "ghostnetv2_100"])
def test_stages_keep_their_numbers_if_the_deepest_are_cut_off(name: str) -> None:
    """``features_only`` with fewer levels: `feature_info` still says how deep the trunk was."""
    with torch.device("meta"):
        whole = find_stages(timm.create_model(name))
        features = timm.create_model(name, features_only=True)
        levels = range(len(features.feature_info.channels()) - 1)
        cut = find_stages(timm.create_model(name, features_only=True, out_indices=tuple(levels)))
    found = {stage.index: stage.reduction for stage in cut}
    assert found
    assert found.keys() < {stage.index for stage in whole}
    assert found == {stage.index: stage.reduction for stage in whole if stage.index in found}
