"""The presets are arguments of inject_dropblock, with the documented values."""

from __future__ import annotations

import inspect

import pytest
import torch
from networks import CifarResNet
from torchvision.models import resnet50

from dropblock_inject import inject_dropblock, plan_dropblock, presets

PRESETS = {name: getattr(presets, name) for name in ("PAPER", "SMALL_IMAGES", "FINE_TUNING")}


def test_the_paper_preset_is_the_defaults() -> None:
    parameters = inspect.signature(inject_dropblock).parameters
    assert dict(presets.PAPER) == {name: parameters[name].default for name in presets.PAPER}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_set_of_arguments(name: str) -> None:
    preset = PRESETS[name]
    plan = plan_dropblock(resnet50(), **preset)
    assert {site.keep_prob for site in plan if site.stage == 4} == {preset["keep_prob"]}
    plan = plan_dropblock(resnet50(), **{**preset, "keep_prob": 0.7})
    assert {site.keep_prob for site in plan if site.stage == 4} == {0.7}
    with pytest.raises(TypeError):
        preset["keep_prob"] = 0.5


@pytest.mark.parametrize("name", ["SMALL_IMAGES", "FINE_TUNING"])
def test_the_block_is_half_of_the_map(name: str) -> None:
    plan = plan_dropblock(CifarResNet(1), **PRESETS[name], example_input=torch.empty(1, 3, 32, 32))
    assert all(site.block_size[0] == round(site.map_size[0] / 2) for site in plan)
