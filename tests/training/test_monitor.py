"""The monitor of the first training steps: every site must run and drop something."""

import copy
import logging
import pickle

import pytest
import torch
from networks import CifarResNet
from torch import nn

from dropblock_inject import DropBlock, KeepProbSchedule, inject_dropblock, remove_dropblock
from dropblock_inject.errors import DeadSiteError


def start(keep_prob=0.7, total_steps=10, **options):
    torch.manual_seed(0)
    net = CifarResNet(1)
    example = torch.empty(1, 3, 32, 32)
    inject_dropblock(net, (-2, -1), keep_prob=keep_prob, block_size=3, example_input=example, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    schedule = KeepProbSchedule(net, total_steps, verify=True)
    schedule.attach(optimizer)
    return net, optimizer, schedule


def step(net, optimizer):
    net.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    optimizer.step()


def monitors(net):
    return [layer.monitor for layer in net.modules() if isinstance(layer, DropBlock) and layer.monitor is not None]


@pytest.mark.parametrize("options", [{}, {"inplace": True, "where": "branch"}, {"per_channel": False}], ids=str)
def test_it_ends_as_soon_as_every_site_has_dropped(options, caplog):
    net, optimizer, _ = start(**options)
    with caplog.at_level(logging.INFO, "dropblock_inject"):
        step(net, optimizer)
        assert monitors(net)  # nothing is dropped at keep_prob 1
        for _ in range(8):
            step(net, optimizer)
    assert not monitors(net)
    assert [record.name for record in caplog.records] == ["dropblock_inject.training.monitor"]
    assert "DropBlocks took part in the training by step" in caplog.text


def test_it_changes_nothing_of_the_training():
    states = []
    for verify in (False, True):
        torch.manual_seed(0)
        net = CifarResNet(1)
        inject_dropblock(net, (-2, -1), block_size=3, example_input=torch.empty(1, 3, 32, 32))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        KeepProbSchedule(net, 4, verify=verify).attach(optimizer)
        for _ in range(4):
            step(net, optimizer)
        states.append(net.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_site_that_does_not_run_is_an_error_at_the_first_step():
    net, optimizer, _ = start()
    net.stage3.forward = lambda x: torch.cat((x, x), 1)
    with pytest.raises(
        DeadSiteError, match=r"3 of 6 DropBlocks .* first 1 training step\(s\):\n.*stage3.*: did not run"
    ):
        step(net, optimizer)
    assert not monitors(net)


def test_a_site_in_eval_mode_is_an_error_at_the_first_step():
    net, optimizer, _ = start()
    net.stage3.train = lambda mode=True: net.stage3
    for module in net.stage3.modules():
        module.training = False
    with pytest.raises(DeadSiteError, match=r"stage3\.0\.drop_skip: ran in eval mode or paused only"):
        step(net, optimizer)


def test_a_site_that_drops_nothing_is_an_error_as_soon_as_blocks_are_due():
    net, optimizer, _ = start()
    dead = next(layer for layer in net.modules() if isinstance(layer, DropBlock))
    dead._drop = lambda input: input.clone()
    message = r"1 of 6 DropBlocks .*\n  stage2\.0\.drop_branch1: dropped nothing where some \d+ blocks were due"
    step(net, optimizer)
    step(net, optimizer)
    with pytest.raises(DeadSiteError, match=message):
        step(net, optimizer)


def test_evaluation_before_the_first_step_is_no_error():
    net, optimizer, _ = start()
    net.eval()(torch.randn(2, 3, 32, 32))
    step(net, optimizer)


def test_a_site_with_keep_prob_1_is_not_waited_for():
    net, optimizer, _ = start(keep_prob={2: 1.0, 3: 0.7})
    for _ in range(10):
        step(net, optimizer)
    assert not monitors(net)


def test_copies_are_not_monitored():
    net, _, _ = start()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not monitors(other)
    assert len(monitors(net)) == 6


def test_a_model_may_be_injected_anew_before_the_first_step():
    net, optimizer, _ = start()
    remove_dropblock(net)
    inject_dropblock(net, -1, block_size=3, example_input=torch.empty(1, 3, 32, 32))
    step(net, optimizer)


def test_without_an_optimizer_it_counts_the_steps_of_the_schedule():
    net = nn.Sequential(DropBlock(0.5, 3), nn.Flatten())
    schedule = KeepProbSchedule(net, 4, verify=True)
    with pytest.raises(DeadSiteError, match="0: did not run"):
        schedule.step()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_runs_through_every_site_in_two_graphs(backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net, optimizer, _ = start()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for _ in range(10):
        step(compiled, optimizer)
    assert not monitors(net)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
