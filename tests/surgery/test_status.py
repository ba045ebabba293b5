"""The status of an injected model, as plain data."""

import json
import logging

import pytest
import torch
from networks import CifarResNet

from dropblock_inject import (
    KeepProbSchedule,
    dropblock_disabled,
    dropblock_sites,
    inject_dropblock,
    plan_dropblock,
)

OPTIONS = {"stages": (-2, -1), "block_size": 3, "keep_prob": 0.6, "example_input": torch.empty(1, 3, 32, 32)}


def test_plan_and_report_are_plain_data():
    net = CifarResNet(1)
    plan = plan_dropblock(net, **OPTIONS)
    report = plan.apply()
    assert plan.as_dict() == report.as_dict()
    data = json.loads(json.dumps(report.as_dict()))
    assert (data["model"], data["image_size"], data["without_skip"], data["error"]) == (
        "CifarResNet",
        [32, 32],
        [],
        None,
    )
    assert len(data["sites"]) == len(report)
    assert data["sites"][0] == {
        "name": "stage2.0.drop_branch1",
        "host": "stage2.0.bn1",
        "block": "stage2.0",
        "stage": 2,
        "part": "trunk",
        "where": "branch",
        "channels": 32,
        "map_size": [16, 16],
        "block_size": [3, 3],
        "keep_prob": 0.9,
        "channel_dim": 1,
        "layers": ["stage2.0.conv1", "stage2.0.bn1"],
        "layer": "DropBlock",
    }


def test_sites_are_plain_data():
    net = CifarResNet(1).train()
    inject_dropblock(net, **OPTIONS)
    KeepProbSchedule(net, 10).step(5)
    rows = [json.loads(json.dumps(row.as_dict())) for row in dropblock_sites(net)]
    assert rows[-1] == {
        "name": "stage3.0.drop_skip",
        "stage": 3,
        "part": "trunk",
        "where": "skip",
        "layer": "DropBlock",
        "keep_prob": 0.8,
        "effective_keep_prob": pytest.approx(0.8),
        "block_size": 3,
        "training": True,
        "live": True,
    }


def effective(net):
    return [row.effective_keep_prob for row in dropblock_sites(net)]


def test_the_effective_keep_prob_is_that_of_the_next_forward_pass():
    net = CifarResNet(1)
    sites = len(inject_dropblock(net, **OPTIONS))
    assert effective(net.train()) == pytest.approx([0.9] * (sites // 2) + [0.6] * (sites // 2))
    assert effective(net.eval()) == [1.0] * sites
    with dropblock_disabled(net.train()):
        assert effective(net) == [1.0] * sites
    net.stage3[0].bn1 = torch.nn.BatchNorm2d(64)
    assert effective(net)[sites // 2] == 1.0
    assert dropblock_sites(net)[sites // 2].keep_prob == 0.6


def test_the_effective_keep_prob_without_calibration_is_the_measured_share():
    net = CifarResNet(1).train()
    inject_dropblock(net, **OPTIONS, calibrated=False)
    row = dropblock_sites(net)[-1]
    layer = net.get_submodule(row.name)
    kept = (layer(torch.ones(200, 64, 8, 8)) > 0).float().mean().item()
    assert row.effective_keep_prob == pytest.approx(kept, abs=0.005)
    assert row.effective_keep_prob > 0.63


def test_an_injection_is_logged_and_nothing_is_printed(caplog, capsys):
    net = CifarResNet(1)
    with caplog.at_level(logging.INFO, "dropblock_inject"):
        inject_dropblock(net, **OPTIONS)
    assert [record.getMessage() for record in caplog.records] == ["putting 6 layers into CifarResNet"]
    assert capsys.readouterr() == ("", "")
