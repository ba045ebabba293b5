"""Networks whose maps do not all have the axes of the image: frames as images of their own, axes of one pixel."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, conv, names
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import inject_dropblock, plan_dropblock


class OverTime(nn.Module):
    """A residual block over the frames of one video, which are images of their own around it."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv1, self.conv2 = (nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        video = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
        video = video + self.conv2(torch.relu(self.conv1(video)))
        return video.transpose(1, 2).flatten(0, 1)


class FrameByFrame(nn.Module):
    """Halves each frame of a video."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.halve = conv(inputs, outputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.halve(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Volume(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


class Squeezed(nn.Module):
    """A network for signals of several channels: planes of channels and time, then time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Sequential(nn.Conv2d(1, 8, (1, 9), padding=(0, 4)), nn.ELU(), nn.Conv2d(8, 8, (4, 1)), nn.ELU())
        self.pool = nn.AvgPool2d((1, 4))
        self.time = nn.Sequential(*(Signal(8) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.time(self.pool(self.plane(x[:, None])).squeeze(2))


class Signal(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv1d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


def test_a_block_over_the_frames_of_a_video_in_a_network_of_images() -> None:
    net = nn.Sequential(Residual(3, 8, 2), OverTime(8, 4), Residual(8, 16, 2), OverTime(16, 4))
    frames = torch.rand(8, 3, 32, 32)
    assert names(net, frames) == [(2, ["0", "1"]), (4, ["2", "3"])]
    plan = plan_dropblock(net, None, example_input=frames)
    assert [(site.where, site.map_size) for site in plan if site.block == "1"] == [
        ("branch", (4, 16, 16)),
        ("branch", (4, 16, 16)),
        ("skip", (4, 16, 16)),
    ]
    inject_dropblock(net, None, example_input=frames)
    net(frames).sum().backward()


def test_frames_that_are_convolved_one_by_one_in_a_network_of_videos() -> None:
    net = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), Volume(8), FrameByFrame(8, 16), Volume(16))
    video = torch.rand(2, 3, 4, 32, 32)
    assert names(net, video) == [(1, ["1"]), (2, ["3"])]
    [site] = [site for site in plan_dropblock(net, None, example_input=video) if site.block.startswith("2.")]
    assert (site.map_size, site.channels) == ((16, 16), 16)


def test_time_alone_behind_planes_of_channels_and_time() -> None:
    net, signal = Squeezed(), torch.rand(2, 4, 64)
    assert names(net, signal) == [(4, ["time.0", "time.1"])]
    plan = inject_dropblock(net, None, example_input=signal)
    assert {site.map_size for site in plan if site.stage} == {(16,)}
    net(signal).sum().backward()


class Parts(nn.Module):
    """Convolutions of several parts of an image, which the network takes apart itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(conv(1, 8) for _ in range(3))
        self.last = conv(24, 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(
            torch.cat([f(part) for f, part in zip(self.convolutions, x[:, None].unbind(2), strict=True)], 1)
        )


def test_convolutions_of_the_parts_of_an_image() -> None:
    plan = plan_dropblock(Parts(), None, example_input=torch.rand(2, 3, 32, 32))
    assert len([site for site in plan if site.block.startswith("convolutions")]) == 3


class RaisedByZeros(nn.Module):
    """A residual block that raises the resolution with zeros between the pixels and a filter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def raised(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = F.pad(x.reshape(batch * channels, height, 1, width, 1), (0, 1, 0, 0, 0, 1))
        x = F.conv2d(x.reshape(-1, 1, 2 * height, 2 * width), torch.ones(1, 1, 3, 3, device=x.device), padding=1)
        return x.reshape(batch, channels, 2 * height, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(self.raised(x)) + self.conv2(torch.relu(self.conv1(self.raised(torch.relu(x)))))


def test_a_block_that_raises_the_resolution_with_a_filter() -> None:
    net = nn.Sequential(Residual(3, 8), Residual(8, 8, 2), RaisedByZeros(8))
    image = torch.rand(2, 3, 32, 32)
    assert names(net, image) == [(1, ["0"]), (2, ["1"])]
    assert [site.where for site in plan_dropblock(net, None, example_input=image) if site.block == "2"] == [
        "branch",
        "branch",
        "skip",
    ]


class Windows(nn.Module):
    """Convolves the windows of a map, each for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        windows = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 1, 3, 5)
        inside = self.inside(windows.flatten(0, 2)).reshape(windows.shape)
        return inside.permute(0, 3, 1, 4, 2, 5).reshape(-1, 8, height, width)


@pytest.mark.parametrize("stages", [None, (1,)])
def test_convolutions_of_windows_are_named(stages: tuple[int, ...] | None) -> None:
    net = nn.Sequential(Residual(3, 8, 2), Windows(), Residual(8, 8, 2))
    plan = plan_dropblock(net, stages, example_input=torch.rand(2, 3, 32, 32))
    assert plan.as_dict()["without_site"] == (() if stages else ("1.inside",))


def test_the_output_of_residual_blocks_is_not_what_their_module_puts_out() -> None:
    """As in ConvTasNet: one module has the residual adds in its own code, and puts out a mask for each speaker."""

    class Masker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(2))
            self.masks = nn.Conv1d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return torch.sigmoid(self.masks(x)).unflatten(1, (2, 4))

    net, signal = nn.Sequential(nn.Conv1d(1, 8, 8, 4), Masker()), torch.rand(2, 1, 256)
    plan = inject_dropblock(net, None, where=("branch", "skip", "output"), example_input=signal)
    assert [site.where for site in plan if site.stage] == ["branch", "branch", "skip", "skip", "output"]
    [output] = [site for site in plan if site.where == "output" and site.stage]
    shapes = []
    net.get_submodule(output.name).register_forward_hook(lambda layer, args, out: shapes.append(args[0].shape))
    net(signal)
    assert shapes == [(2, output.channels, *output.map_size)]


def test_a_convolution_with_an_axis_of_its_own_for_what_it_puts_out() -> None:
    """As the gradients of an image, along rows and along columns."""

    class Gradients(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).unflatten(1, (1, 2))

    class Corners(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gradients, self.body = Gradients(1, 2, 3, padding=1), Residual(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(torch.cat(self.gradients(x).unbind(2), 1))

    assert names(Corners(), torch.rand(2, 1, 32, 32)) == [(1, ["body"])]


def test_tokens_as_many_as_the_image_is_wide_are_no_signal() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv1d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.mix(x.flatten(2))).reshape(x.shape)

    net = nn.Sequential(Residual(3, 8, 2), Residual(8, 8, 2), Residual(8, 8, 2), Tokens())
    plan = plan_dropblock(net, None, example_input=torch.rand(2, 3, 64, 64))  # 8 x 8 tokens
    assert plan.as_dict()["without_site"] == ("3.mix",)
