"""The copy without data that is traced: the same structure and shapes, and nothing of the model touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from dropblock_inject import find_stages
from dropblock_inject.tracing.meta_copy import meta_copy
from dropblock_inject.tracing.shape_cache import ShapeCache


def shapes(nested: object) -> list[tuple[int, ...]]:
    if isinstance(nested, Tensor):
        return [tuple(nested.shape)]
    if isinstance(nested, PackedSequence):
        return [tuple(nested.data.shape)]
    return [shape for entry in nested for shape in shapes(entry)]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("layer", "options"), [(nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.LSTM, {"proj_size": 3})])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_put_out_the_same_shapes(layer, options, bidirectional, batch_first) -> None:
    net = layer(5, 7, num_layers=2, bidirectional=bidirectional, batch_first=batch_first, **options)
    meta_model = meta_copy(net)
    packed = pack_padded_sequence(torch.randn(4, 4, 5), [4, 3, 2, 1], batch_first=batch_first)
    for x in (torch.randn(4, 6, 5), torch.randn(4, 5), packed):
        assert shapes(meta_model(x)) == shapes(net(x))


def test_a_trunk_before_a_recurrent_layer() -> None:
    class Reader(nn.Module):
        """Convolutions, then a recurrent layer over the columns, as for the lines of a text."""

        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
            self.convolutions = nn.Sequential(*layers)
            self.recurrent = nn.LSTM(32, 64, bidirectional=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.recurrent(self.convolutions(x).mean(2).transpose(1, 2))[0]

    assert [stage.reduction for stage in find_stages(Reader(), torch.empty(1, 1, 32, 256))] == [2, 4]


def test_what_modules_share_their_copies_share() -> None:
    class Note(nn.Module):
        def __init__(self, notes: dict[str, int]) -> None:
            super().__init__()
            self.notes, self.layer = notes, nn.Linear(2, 2)

    notes = {"depth": 1}
    net = nn.Sequential(Note(notes), Note(notes))
    net[1].layer.weight = net[0].layer.weight
    net[0].friend = (net[1],)  # no child of it
    meta_model = meta_copy(net)
    assert meta_model[0].notes is meta_model[1].notes
    assert meta_model[0].notes is not notes
    assert meta_model[0].layer.weight is meta_model[1].layer.weight
    assert meta_model[0].friend[0] is meta_model[1]
    assert all(parameter.is_meta for parameter in meta_model.parameters())
    assert not any(parameter.is_meta for parameter in net.parameters())


def test_modules_that_say_how_they_are_copied_are_asked() -> None:
    class Counted(nn.Module):
        copies = 0

        def __deepcopy__(self, memo: dict) -> nn.Module:
            Counted.copies += 1
            return Counted()

    class Stated(nn.Module):
        def __setstate__(self, state: dict) -> None:
            super().__setstate__(state)
            self.restored = True

    meta_model = meta_copy(nn.Sequential(Counted(), Stated()))
    assert Counted.copies == 1
    assert meta_model[1].restored


def calls() -> Iterator[tuple]:
    x, y = torch.randn(2, 3, 8, 8), torch.randn(1, 3, 1, 1)
    aten = torch.ops.aten
    weight = torch.randn(5, 3, 3, 3)
    yield aten.relu.default, (x,), {}
    yield aten.relu.default, (x.to(memory_format=torch.channels_last),), {}
    yield aten.relu.default, (x.transpose(2, 3),), {}
    yield aten.add.Tensor, (x, y), {}
    yield aten.add.Tensor, (x, y), {"alpha": 2}
    yield aten.add.Tensor, (x, y.double()), {}
    yield aten.add.Tensor, (x, 1), {}
    yield aten.cat.default, ([x, x], 1), {}
    yield aten.cat.default, ([x, x], 2), {}
    yield aten.convolution.default, (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), {}
    yield aten.convolution.default, (x, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1), {}
    yield aten.max_pool2d_with_indices.default, (x, [2, 2]), {}
    yield aten.mean.dim, (x, [2, 3]), {}
    yield aten.mean.dim, (x, [2, 3], True), {}
    yield aten.view.default, (x, [2, 192]), {}


def test_shapes_remembered_are_those_worked_out() -> None:
    run = ShapeCache()
    for _ in range(2):  # the second time from memory
        for func, args, kwargs in calls():
            args = tuple(
                [e.to("meta") for e in a] if isinstance(a, list) and isinstance(a[0], Tensor) else a for a in args
            )
            args = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
            expected, found = func(*args, **kwargs), run(func, args, kwargs)
            if isinstance(expected, Tensor):
                expected, found = (expected,), (found,)
            for left, right in zip(expected, found, strict=True):
                assert (left.shape, left.stride(), left.dtype) == (right.shape, right.stride(), right.dtype), func


def test_a_copy_is_like_one_of_deepcopy() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.3)).train()
    net[1].eval()
    net.register_forward_hook(lambda module, args, output: None)
    meta_model, expected = meta_copy(net), copy.deepcopy(net)
    assert repr(meta_model) == repr(expected)
    for ours, theirs in zip(meta_model.modules(), expected.modules(), strict=True):
        assert vars(ours).keys() == vars(theirs).keys()
        assert ours.training == theirs.training
        assert len(ours._forward_hooks) == len(theirs._forward_hooks)
