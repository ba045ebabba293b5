"""mc_predict: the same distribution as a loop of passes, its entropies, and what it leaves as it was."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from injected import drops, injected
from networks import EVERY_KIND, CifarResNet, images_for
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import (
    DropBlock,
    DropBlockInjectError,
    KeepProbSchedule,
    inject_dropblock,
    mc_dropblock,
    mc_predict,
)
from dropblock_inject.inference import predict
from dropblock_inject.inference.shared_beginning import shared_beginning

EXAMPLE = {"example_input": torch.empty(1, 3, 32, 32)}


def small_net(**options) -> nn.Module:
    torch.manual_seed(0)
    net = CifarResNet(1)
    nn.init.normal_(net.fc.weight, std=1.0)
    inject_dropblock(net, -1, **{"keep_prob": 0.6, "block_size": 3, **EXAMPLE, **options})
    return net.eval()


class Halve(nn.Module):
    """A layer that always does the same, so that all passes are equal to one that is worked out by hand."""

    keep_prob = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


def beginning_of(net: nn.Module, *args: Tensor, pick=lambda returned: returned):
    return shared_beginning(net, args, {}, pick)


def is_real(tensor: Tensor) -> bool:
    """False in the passes without data, by which the beginning is found."""
    return not tensor.is_meta


def whole(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), mc_dropblock(net.eval(), keep_prob=0.5):
        return net(images)


@pytest.mark.parametrize(
    "name", [*EVERY_KIND, "torchvision:densenet121", "timm:efficientnet_b0", "timm:seresnext50_32x4d"]
)
def test_every_pass_is_that_of_the_whole_network(name: str) -> None:
    """With a layer that always does the same, the part that is computed once must change nothing."""
    net = injected(name, stages=-1, where=("branch", "skip"), layer=lambda site: Halve()).eval()
    images = images_for(name, batch=3)
    prediction = mc_predict(net, images, samples=4, activation=None, keep_samples=True)
    expected = whole(net, images)
    assert not torch.allclose(expected, net(images))
    for sample in prediction.samples:
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prediction.mean, expected, rtol=1e-4, atol=1e-5)
    assert beginning_of(net, images) is not None


def test_a_prediction_prints_shapes_and_no_numbers() -> None:
    prediction = mc_predict(small_net(), torch.randn(3, 3, 32, 32), samples=2, keep_samples=True)
    classes = prediction.mean.shape[1]
    assert repr(prediction) == (
        f"<Prediction: mean (3, {classes}), std (3, {classes}), entropy (3,), mutual_information (3,), "
        f"samples (2, 3, {classes})>"
    )


def test_the_distribution_is_that_of_a_loop_of_passes() -> None:
    net, images, samples = small_net(), torch.randn(3, 3, 32, 32), 600
    assert beginning_of(net, images) is not None
    prediction = mc_predict(net, images, samples=samples, keep_samples=True)
    with torch.no_grad(), mc_dropblock(net):
        loop = torch.stack([net(images).softmax(1) for _ in range(samples)])
    error = (prediction.samples.var(0) / samples + loop.var(0) / samples).sqrt()
    assert ((prediction.mean - loop.mean(0)).abs() < 5 * error + 1e-6).all()
    ratio = prediction.std / loop.std(0)
    assert ((ratio > 0.8) & (ratio < 1.25)).all()
    correlation = torch.corrcoef(prediction.samples[:, :, 0].T)  # images are independent of each other
    assert (correlation - torch.eye(3)).abs().max() < 5 / math.sqrt(samples)
    passes = prediction.samples[:, 0, 0]  # and so are passes
    assert abs(torch.corrcoef(torch.stack((passes[:-1], passes[1:])))[0, 1]) < 5 / math.sqrt(samples)


def test_the_numbers_are_those_of_the_samples() -> None:
    net, images = small_net(), torch.randn(2, 3, 32, 32)
    prediction = mc_predict(net, images, samples=7, keep_samples=True)
    samples = prediction.samples.double()
    assert samples.shape == (7, 2, 10)
    torch.testing.assert_close(prediction.mean.double(), samples.mean(0))
    torch.testing.assert_close(prediction.std.double(), samples.std(0), rtol=1e-4, atol=1e-6)
    entropy = -(samples.mean(0) * samples.mean(0).log()).sum(1)
    torch.testing.assert_close(prediction.entropy.double(), entropy)
    information = entropy + (samples * samples.log()).sum(2).mean(0)
    torch.testing.assert_close(prediction.mutual_information.double(), information, rtol=1e-3, atol=1e-5)
    assert (prediction.mutual_information > 0).all()


def test_a_sigmoid_has_an_entropy_per_class_and_none_has_none() -> None:
    net, images = small_net(), torch.randn(2, 3, 32, 32)
    prediction = mc_predict(net, images, samples=5, activation="sigmoid", keep_samples=True)
    p = prediction.samples.mean(0)
    torch.testing.assert_close(prediction.entropy, -(p * p.log() + (1 - p) * (1 - p).log()))
    assert prediction.mutual_information.shape == (2, 10)
    raw = mc_predict(net, images, samples=5, activation=None)
    assert raw.entropy is raw.mutual_information is raw.samples is None
    own = mc_predict(net, images, samples=5, activation=lambda logits: logits.softmax(1))
    assert torch.allclose(own.mean.sum(1), torch.ones(2))


def test_a_single_pass_has_no_spread() -> None:
    prediction = mc_predict(small_net(), torch.randn(2, 3, 32, 32), samples=1)
    assert not prediction.std.any()
    assert prediction.mutual_information.abs().max() < 1e-6


@pytest.mark.parametrize("limit", [1, 40_000, 10**9])
def test_passes_are_cut_to_what_fits(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "_ELEMENTS", limit)
    net = injected("own:cifar_resnet", stages=-1, where="branch", layer=lambda site: Halve()).eval()
    images = torch.randn(5, 3, 32, 32)
    batches = []
    net.fc.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])) if is_real(args[0]) else None)
    prediction = mc_predict(net, images, samples=6, activation=None, keep_samples=True)
    assert sum(batches) == 30
    assert (max(batches) == 30) is (limit == 10**9)
    for sample in prediction.samples:
        torch.testing.assert_close(sample, whole(net, images), rtol=1e-4, atol=1e-5)


def test_the_beginning_runs_once() -> None:
    net = small_net()
    runs = []
    for stage in (net.stage1, net.stage3):
        stage.register_forward_hook(lambda module, args, output: runs.append(len(output)) if is_real(output) else None)
    mc_predict(net, torch.randn(2, 3, 32, 32), samples=10)
    assert runs == [2, 20]


def test_a_model_that_was_injected_anew_is_looked_at_anew() -> None:
    net, images = small_net(), torch.randn(2, 3, 32, 32)
    first = beginning_of(net, images)
    assert beginning_of(net, images) is first  # remembered
    for module in net.stage2.modules():
        module.register_forward_hook(lambda *_: None)
    assert beginning_of(net, images[:1]) is not first
    from dropblock_inject import remove_dropblock

    remove_dropblock(net)
    inject_dropblock(net, -2, **EXAMPLE)
    assert {entry.module.split(".")[0] for entry in beginning_of(net, images).entries} == {"stage2"}


class UNet(nn.Module):
    """Two levels; the encoder's maps are read again by the decoder, whose blocks are given them."""

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(24, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return self.conv(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.down3 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = UNet.Up()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        return self.head(self.up(self.down3(self.down2(first)), first))


def test_a_segmentation_is_per_pixel_and_shares_the_encoder() -> None:
    net = UNet().eval()
    inject_dropblock(net, -1, include="down3*", keep_prob=0.5, block_size=3, example_input=torch.empty(1, 3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    assert beginning_of(net, images) is not None
    prediction = mc_predict(net, images, samples=5)
    assert prediction.mean.shape == (2, 4, 32, 32)
    assert prediction.entropy.shape == prediction.mutual_information.shape == (2, 32, 32)
    assert torch.allclose(prediction.mean.sum(1), torch.ones(2, 32, 32))


def test_a_tensor_is_taken_out_of_what_the_model_returns() -> None:
    net = torchvision.models.segmentation.fcn_resnet50(num_classes=3, weights_backbone=None).eval()
    inject_dropblock(net, 4)
    images = torch.randn(1, 3, 64, 64)
    by_key = mc_predict(net, images, samples=2, output="out")
    by_callable = mc_predict(net, images, samples=2, output=lambda returned: returned["out"])
    assert by_key.mean.shape == by_callable.mean.shape == (1, 3, 64, 64)
    with pytest.raises(
        DropBlockInjectError, match="returned a OrderedDict with out, which is no tensor: say by output="
    ):
        mc_predict(net, images, samples=2)


class UsesBatchSize(nn.Module):
    """Code behind the sites that goes by the batch size of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = CifarResNet(1)

    def forward(self, x: Tensor) -> Tensor:
        number = len(x)
        return self.body(x).reshape(number, -1)[:, :10]


class ReadsTwice(nn.Module):
    """The image is read again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body = CifarResNet(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x.mean((1, 2, 3))[:, None]


class Mixes(nn.Module):
    """The features of the images of a batch are not independent of each other, or not the same in each pass."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = CifarResNet(1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.body(x))


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "neighbours": lambda z: z + z.roll(1, 0),
    "a mean over the batch": lambda z: z - z.mean(),
    "batch statistics": lambda z: F.batch_norm(z, None, None, training=True),
    "attention over the batch": lambda z: (z @ z.T).softmax(1) @ z,
    "the batch size": lambda z: z * len(z),
    "pairs": lambda z: z @ z.T,
}


@pytest.mark.parametrize("how", MIXED)
def test_images_that_depend_on_each_other_are_not_repeated(how: str) -> None:
    net = Mixes(MIXED[how]).eval()
    inject_dropblock(net, -1, layer=lambda site: Halve(), **EXAMPLE)
    images = torch.randn(3, 3, 32, 32)
    assert beginning_of(net, images) is None
    prediction = mc_predict(net, images, samples=3, activation=None)
    torch.testing.assert_close(prediction.mean, whole(net, images))


def test_randomness_of_the_network_itself_is_drawn_for_each_pass() -> None:
    class Noisy(CifarResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5, training=True))

    net = Noisy(1).eval()
    inject_dropblock(net, -1, layer=lambda site: Halve(), **EXAMPLE)
    assert (mc_predict(net, torch.randn(2, 3, 32, 32), samples=4, activation=None).std > 0).all()


def test_a_model_that_runs_otherwise_than_at_the_last_call() -> None:
    class Early(CifarResNet):
        early = False

        def __init__(self) -> None:
            super().__init__(1)
            self.drop = DropBlock(0.5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.drop(x) if self.early else x)

    net, images = Early().eval(), torch.randn(2, 3, 32, 32)
    inject_dropblock(net, -1, layer=lambda site: Halve(), **EXAMPLE)
    assert mc_predict(net, images, samples=4, activation=None).std.max() < 1e-5
    net.early = True
    assert (mc_predict(net, images, samples=4, activation=None).std > 0).all()


@pytest.mark.parametrize("kind", [UsesBatchSize, ReadsTwice])
def test_where_the_beginning_cannot_be_told_the_whole_network_runs(kind: type[nn.Module]) -> None:
    net = kind().eval()
    inject_dropblock(net, -1, layer=lambda site: Halve(), **EXAMPLE)
    images = torch.randn(3, 3, 32, 32)
    assert beginning_of(net, images) is None
    prediction = mc_predict(net, images, samples=3, activation=None)
    torch.testing.assert_close(prediction.mean, whole(net, images))


def test_the_model_is_as_before() -> None:
    net = small_net().train()
    net.stage1.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    prediction = mc_predict(net, torch.randn(2, 3, 32, 32, requires_grad=True))
    assert not prediction.mean.requires_grad
    assert [module.training for module in net.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(layer.rescale == "batch" for layer in drops(net).values())
    with pytest.raises(RuntimeError):
        mc_predict(net, torch.randn(2, 5, 32, 32))
    assert [module.training for module in net.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()] == hooks


def test_masks_come_from_the_seed() -> None:
    net, images = small_net(), torch.randn(2, 3, 32, 32)
    means = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        means.append(mc_predict(net, images, samples=3).mean)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


@pytest.mark.parametrize("wrap", ["DataParallel", "DistributedDataParallel", "compile"])
def test_wrapped_models(wrap: str, process_group: None) -> None:
    net = small_net(layer=lambda site: Halve())
    images = torch.randn(2, 3, 32, 32)
    expected = whole(net, images)
    if wrap == "compile":
        torch._dynamo.reset()
        wrapped = torch.compile(net, backend="aot_eager")
    else:
        wrapped = getattr(nn.parallel, wrap)(net)
    prediction = mc_predict(wrapped, images, samples=3, activation=None)
    torch.testing.assert_close(prediction.mean, expected)
    assert (beginning_of(wrapped, images) is None) is (wrap == "compile")


def test_autocast_and_channels_last() -> None:
    net = small_net().to(memory_format=torch.channels_last)
    formats = []

    def look(module: nn.Module, args: tuple[Tensor]) -> None:
        if is_real(args[0]):
            formats.append(args[0].is_contiguous(memory_format=torch.channels_last))

    net.stage3.register_forward_pre_hook(look)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = mc_predict(net, images, samples=3)
    assert prediction.mean.dtype == torch.float32
    assert prediction.mean.isfinite().all()
    assert formats == [True]


def test_a_cut_timm_model_with_keyword_arguments() -> None:
    net = timm.create_model("resnet18", num_classes=5).eval()
    inject_dropblock(net, 4)
    prediction = mc_predict(net, x=torch.randn(2, 3, 64, 64), samples=2)
    assert prediction.mean.shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"samples": 2.5}, "samples must be an int"),
        ({"samples": True}, "samples must be an int"),
        ({"activation": "relu"}, "activation must be 'softmax', 'sigmoid', a callable or None, got 'relu'"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(DropBlockInjectError, match=message):
        mc_predict(small_net(), torch.randn(1, 3, 32, 32), **arguments)


def test_models_of_which_all_passes_would_be_the_same() -> None:
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(DropBlockInjectError, match="has no DropBlock"):
        mc_predict(CifarResNet(1), images)
    net = small_net()
    KeepProbSchedule(net, 5)
    with pytest.raises(DropBlockInjectError, match="at keep_prob 1"):
        mc_predict(net, images)
    with mc_dropblock(net, keep_prob=0.5):
        assert mc_predict(net, images).mutual_information > 0


def test_outputs_that_are_not_there() -> None:
    net, images = small_net(), torch.randn(2, 3, 32, 32)
    for output in ("out", lambda returned: returned["out"]):
        with pytest.raises(DropBlockInjectError, match=r"is not in a tensor of shape \(2, 10\)"):
            mc_predict(net, images, output=output)
    single = nn.Sequential(
        nn.Conv2d(3, 8, 3), DropBlock(0.5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )
    with pytest.raises(DropBlockInjectError, match="a single class, of which the softmax is 1 everywhere"):
        mc_predict(single, images)


def test_logits_without_classes_are_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock(0.5, 3), nn.Flatten(), nn.Linear(8 * 36, 1), nn.Flatten(0))
    with pytest.raises(DropBlockInjectError, match=r"shape \(2,\), without an axis of classes"):
        mc_predict(net, torch.randn(2, 3, 8, 8))
    assert mc_predict(net, torch.randn(2, 3, 8, 8), activation="sigmoid").entropy.shape == (2,)
