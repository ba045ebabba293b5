"""The input that a model is traced with where nobody says one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import Tensor, nn

from dropblock_inject import find_stages
from dropblock_inject.tracing.example_input import trace_model


def size_of(net: nn.Module) -> tuple[int, ...]:
    trace = trace_model(net)
    assert trace.error is None
    return trace.inputs[0].shape


class FixedSize(nn.Module):
    def __init__(self, side: int, **attributes: object) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * (side // 2) ** 2, 2)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    "said",
    [
        {"config": SimpleNamespace(image_size=96)},
        {"config": SimpleNamespace(image_size=(96, 96))},
        {"in_size": (96, 96)},
    ],
)
def test_the_size_that_a_model_says(said: dict[str, object]) -> None:
    assert size_of(FixedSize(96, **said)) == (1, 3, 96, 96)


def test_a_u_net_of_six_halvings_is_traced_on_a_larger_image() -> None:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU()) for _ in range(6)])
            self.up = nn.Upsample(scale_factor=2)

        def forward(self, x: Tensor) -> Tensor:
            maps = [x]
            for down in self.down:
                maps.append(down(maps[-1]))
            out = maps.pop()
            while maps:
                out = self.up(out) + maps.pop()
            return out

    assert size_of(UNet()) == (1, 3, 256, 256)


def test_a_volume_is_tried_as_a_cube() -> None:
    class Volumes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv3d(1, 4, 3, 2, 1), nn.AvgPool3d(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(x))

    assert size_of(Volumes()) == (1, 1, 64, 64, 64)


def test_a_stem_that_folds_pixels_into_channels_is_given_an_image() -> None:
    net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    assert size_of(net)[1] == 3
    assert [stage.reduction for stage in find_stages(net)] == [2, 4]


def test_a_model_that_asks_for_values_is_traced_once() -> None:
    calls = []

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            calls.append(tuple(x.shape))
            x = self.conv(x)
            return x[:, : int(x.sum().item())]

    assert len(find_stages(Detector())) == 1
    assert calls == [(1, 3, 224, 224)]
