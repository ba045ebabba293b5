"""mc_dropblock: what is on within it, and that all is as before afterwards."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections import OrderedDict

import pytest
import torch
from injected import NETWORKS, OTHER_LAYERS, drops, injected, options_for, wake_branches
from networks import EVERY_KIND, CifarResNet, images_for
from torch import nn

from dropblock_inject import (
    DropBlock,
    DropBlockInjectError,
    KeepProbSchedule,
    dropblock_disabled,
    dropblock_sites,
    inject_dropblock,
    mc_dropblock,
    mc_predict,
    remove_dropblock,
)
from dropblock_inject.errors import DeadSiteError, DropBlockWarning
from dropblock_inject.surgery.keep_prob import keep_prob_of


@pytest.fixture(params=[*EVERY_KIND, *OTHER_LAYERS])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def state_of(net: nn.Module) -> list:
    """All that the context may change, and all that a pass may change."""
    state = [(name, module.training, vars(module).get("enabled")) for name, module in net.named_modules()]
    state += [(keep_prob_of(layer), getattr(layer, "rescale", None)) for layer in drops(net).values()]
    return [*state, *(hash(value.numpy().tobytes()) for value in net.state_dict().values())]


def test_each_site_drops_in_eval_mode_and_nothing_else_is_touched(name: str) -> None:
    net = injected(name).eval()
    images = images_for(name)
    before = state_of(net)
    with torch.no_grad():
        expected = net(images)
        with mc_dropblock(net):
            assert not torch.equal(net(images), net(images))
            on = {module for module in net.modules() if module.training}
            assert on == set(drops(net).values())
            assert all(row.effective_keep_prob < 1 for row in dropblock_sites(net))
        assert torch.equal(net(images), expected)
    assert state_of(net) == before


def test_nothing_dropped_is_bit_identical_to_the_plain_network(name: str) -> None:
    net = injected(name)
    images = images_for(name)
    plain = NETWORKS[name]()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad(), mc_dropblock(net.eval(), keep_prob=1.0):
        assert torch.equal(net(images), plain.eval()(images))


def test_only_injected_layers_drop() -> None:
    net = nn.Sequential(OrderedDict(body=CifarResNet(1), dropout=nn.Dropout(0.5))).eval()
    inject_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    with mc_dropblock(net, keep_prob=1.0):
        assert torch.equal(net(images), net.body(images))


def test_own_dropblock_layers_are_on_too() -> None:
    net = nn.Sequential(DropBlock(0.5, 3)).eval()
    images = torch.ones(2, 3, 8, 8)
    with mc_dropblock(net):
        assert (net(images) == 0).any()
    assert torch.equal(net(images), images)


def test_the_images_of_a_batch_do_not_depend_on_each_other() -> None:
    """With rescale="batch", the default of training, the scale of an image depends on the others."""
    net = nn.Sequential(DropBlock(0.7, 3)).eval()
    images = torch.ones(4, 8, 12, 12)
    with mc_dropblock(net):
        kept = net(images)
        assert torch.allclose(kept[kept > 0], torch.tensor(1 / 0.7))
    with mc_dropblock(net, rescale="batch"):
        kept = net(images)
        assert kept.mean() == pytest.approx(1.0)
    assert net[0].rescale == "batch"


def test_a_model_in_training_mode_and_nesting(name: str) -> None:
    net = injected(name)
    before = state_of(net)
    with mc_dropblock(net, keep_prob=0.5):
        assert {keep_prob_of(layer) for layer in drops(net).values()} == {0.5}
        within = state_of(net)
        with mc_dropblock(net, keep_prob=0.25), dropblock_disabled(net):
            pass
        assert state_of(net) == within
    assert state_of(net) == before


def test_all_is_restored_after_an_error(name: str) -> None:
    net = injected(name).eval()
    before = state_of(net)
    with pytest.raises(ZeroDivisionError), mc_dropblock(net, keep_prob=0.5):
        raise ZeroDivisionError
    assert state_of(net) == before


def saved_and_loaded(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved_and_loaded])
def test_a_copy_made_within_is_as_before_and_the_model_stays_on(name: str, copied) -> None:
    net = injected(name).eval()
    before = state_of(net)
    attributes = [set(vars(layer)) for layer in drops(net).values()]

    def check() -> None:
        made = copied(net)
        assert state_of(made) == before
        assert [set(vars(layer)) for layer in drops(made).values()] == attributes

    with dropblock_disabled(net):
        check()
    with mc_dropblock(net, keep_prob=0.5):
        check()
        within = state_of(net)
        with dropblock_disabled(net):
            check()
            with mc_dropblock(net, keep_prob=0.25):
                check()
        check()
        assert state_of(net) == within
        with torch.no_grad():
            assert not torch.equal(net(images_for(name)), net(images_for(name)))
    check()
    assert state_of(net) == before


def test_what_is_set_within_stays_and_is_copied() -> None:
    net = nn.Sequential(DropBlock(0.9, 3)).eval()
    with mc_dropblock(net, keep_prob=0.5):
        net[0].block_size = 5
        assert copy.deepcopy(net)[0].block_size == 5
    assert (net[0].block_size, net[0].keep_prob, net[0].rescale) == (5, 0.9, "batch")


@pytest.mark.parametrize("keep_prob", [None, 0.5])
def test_a_schedule_that_steps_within_has_the_last_word(keep_prob: float | None) -> None:
    net = injected("own:cifar_resnet").train()
    schedule = KeepProbSchedule(net, 10)
    schedule.step(5)
    with mc_dropblock(net, keep_prob=keep_prob):
        schedule.step()
        within = schedule.get_last_keep_prob()
    assert schedule.get_last_keep_prob() == within
    schedule.step(6)
    assert schedule.get_last_keep_prob() == within


class ReadOnly(nn.Module):
    """A layer whose keep_prob can be read only."""

    keep_prob = property(lambda self: 0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout2d(x, 0.1)


class DropSome(nn.Dropout2d):
    """A layer with a keep_prob that follows from its p."""

    keep_prob = property(lambda self: 1 - self.p)


def test_a_keep_prob_that_can_be_read_only_is_an_error_before_anything_is_changed() -> None:
    net = CifarResNet(1)
    layers = iter([nn.Dropout2d(0.1), ReadOnly(), nn.Dropout2d(0.1)])
    inject_dropblock(net, -1, layer=lambda site: next(layers), example_input=torch.empty(1, 3, 32, 32))
    before = state_of(net)
    with pytest.raises(DropBlockInjectError, match="cannot be set on a ReadOnly"), mc_dropblock(net, keep_prob=0.5):
        pass
    assert state_of(net) == before
    with mc_dropblock(net):
        pass
    with pytest.warns(DropBlockWarning, match="does not move the injected ReadOnly"):
        schedule = KeepProbSchedule(net, 10)
    assert len(schedule.get_last_keep_prob()) == 2
    remove_dropblock(net)
    inject_dropblock(net, -1, layer=lambda site: ReadOnly(), example_input=torch.empty(1, 3, 32, 32))
    with pytest.raises(DropBlockInjectError, match="cannot move the injected ReadOnly"):
        KeepProbSchedule(net, 10)


def test_a_keep_prob_that_follows_from_p_is_set_by_p() -> None:
    net = CifarResNet(1)
    inject_dropblock(net, -1, layer=lambda site: DropSome(0.1), example_input=torch.empty(1, 3, 32, 32))
    with mc_dropblock(net, keep_prob=0.5):
        assert {layer.p for layer in net.modules() if isinstance(layer, DropSome)} == {0.5}
    assert {layer.p for layer in net.modules() if isinstance(layer, DropSome)} == {0.1}
    assert set(KeepProbSchedule(net, 10).get_last_keep_prob()) == {1.0}


def test_it_is_on_within_a_pause_and_off_after_one() -> None:
    name = "own:cifar_resnet"
    net = injected(name).eval()
    images = images_for(name)
    with torch.no_grad(), dropblock_disabled(net):
        with mc_dropblock(net):
            assert not torch.equal(net(images), net(images))
        assert torch.equal(net(images), net(images))


def test_the_schedule_still_moves_what_the_context_left() -> None:
    net = injected("own:cifar_resnet")
    schedule = KeepProbSchedule(net, 10)
    schedule.step(4)
    values = schedule.get_last_keep_prob()
    with mc_dropblock(net, keep_prob=0.5):
        pass
    assert schedule.get_last_keep_prob() == values


def test_compiled_it_drops_within_and_not_outside() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    name = "own:cifar_resnet"
    net = injected(name).eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    images = images_for(name)
    with torch.no_grad():
        expected = compiled(images)
        for _ in range(2):
            with mc_dropblock(compiled):
                assert not torch.equal(compiled(images), compiled(images))
            assert torch.equal(compiled(images), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_graph_of_torch_fx_drops_within() -> None:
    name = "own:cifar_resnet"
    graph = torch.fx.symbolic_trace(injected(name)).eval()
    images = images_for(name)
    with torch.no_grad():
        with mc_dropblock(graph):
            assert not torch.equal(graph(images), graph(images))
        assert torch.equal(graph(images), graph(images))


def test_threads_wait_for_each_other() -> None:
    """Two contexts that overlap would leave DropBlock on."""
    net = injected("own:cifar_resnet").eval()
    before, images = state_of(net), images_for("own:cifar_resnet")
    results, errors = [], []

    def passes() -> None:
        try:
            results.append(mc_predict(net, images, samples=2).mean)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=passes) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(results) == 4
    assert state_of(net) == before


def test_a_layer_that_hides_its_probability_cannot_be_set() -> None:
    net = CifarResNet(1)
    inject_dropblock(
        net, -1, layer=lambda site: nn.Sequential(nn.Dropout2d(0.1)), example_input=torch.empty(1, 3, 32, 32)
    )
    assert {(row.keep_prob, row.layer) for row in dropblock_sites(net.train())} == {(None, "Sequential")}
    assert "?" in str(dropblock_sites(net))
    with pytest.raises(DropBlockInjectError, match="cannot be set on a Sequential"), mc_dropblock(net, keep_prob=0.5):
        pass
    with pytest.raises(DropBlockInjectError, match="cannot move the injected Sequential"):
        KeepProbSchedule(net, 10)


def test_errors_say_what_to_do() -> None:
    net = CifarResNet(1)

    def message(net: nn.Module, **settings) -> str:
        with pytest.raises(DropBlockInjectError) as error, mc_dropblock(net, **settings):
            raise AssertionError("went in")
        return str(error.value)

    assert "CifarResNet has no DropBlock" in message(net)
    assert "torch.nn.Module, got int" in message(3)
    inject_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32))
    assert "keep_prob" in message(net, keep_prob=0.0)
    assert "rescale" in message(net, rescale="image")
    KeepProbSchedule(net, 10)
    assert "all 3 DropBlocks of CifarResNet are at keep_prob 1" in message(net)
    assert remove_dropblock(net) == 3


def test_a_dead_site_is_an_error() -> None:
    net = CifarResNet(1)
    wake_branches(net)
    inject_dropblock(net, **options_for("own:cifar_resnet"))
    net.stage3[0].conv1 = nn.Conv2d(32, 64, 3, 2, 1)
    net.stage3[0].bn1 = nn.BatchNorm2d(64)
    with pytest.raises(DeadSiteError), mc_dropblock(net):
        pass
