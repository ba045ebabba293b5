"""One run of the study: a network is made, regularised, trained and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torchmetrics.functional.classification import multiclass_calibration_error
from torchvision.ops import StochasticDepth

from dropblock_inject import KeepProbSchedule, dropblock_disabled, inject_dropblock, mc_predict
from lib.data import load_data
from lib.models import imagenet_lite
from lib.settings import Recipe, Setting
from lib.small_networks import PlainConvNet, ResNet14

PASSES = 10  # of Monte Carlo
_AT_A_TIME = 100  # images


class Scores(NamedTuple):
    """How good predicted probabilities are: accuracy in %, negative log-likelihood, calibration error in %."""

    accuracy: float
    nll: float
    ece: float


class Outcome(NamedTuple):
    """What a run found, on the test images.

    Attributes:
        once: with one pass in eval mode.
        monte_carlo: the mean of ten passes that drop, None for a network without DropBlock.
        recalibrated: with one pass, after BatchNorm's statistics were estimated anew without dropping.
        seconds: processor time.
    """

    once: Scores
    monte_carlo: Scores | None
    recalibrated: Scores
    seconds: float


def make_network(name: str, classes: int, setting: Setting) -> nn.Module:
    if name == "plain":
        return PlainConvNet(classes)
    if name == "resnet":
        return ResNet14(classes, setting.drop_path)
    net: Any = imagenet_lite(int(name[len("lite")]))
    net.reset_classifier(classes)
    residual = [module for module in net.modules() if hasattr(module, "drop_path")]
    for number, block in enumerate(residual):
        block.drop_path = StochasticDepth(setting.drop_path * (number + 1) / len(residual), "row")
    return net


_LAYERS: dict[str, Callable[[float], nn.Module]] = {
    "dropout": nn.Dropout,
    "dropout2d": nn.Dropout2d,
    "drop path": lambda probability: StochasticDepth(probability, "row"),
}


def put_in(net: nn.Module, setting: Setting, image_size: int, steps: int) -> KeepProbSchedule | None:
    """Injects DropBlock, or torch's layer at its sites; returns the schedule, None if nothing is injected."""
    if not setting.drops:
        return None
    layer: dict[str, Any] = {"block_size": setting.block_size}
    if setting.torch_layer:
        make = _LAYERS[setting.torch_layer]
        layer = {"layer": lambda site: make(1 - site.keep_prob)}
    inject_dropblock(
        net,
        setting.stages,
        keep_prob=setting.keep_prob,
        where="branch" if isinstance(net, PlainConvNet) else setting.where,
        example_input=torch.empty(1, 3, image_size, image_size),
        **layer,
    )
    return KeepProbSchedule(net, steps, mode="linear" if setting.scheduled else "constant")


Source = tuple[str, str | None, str, bool]  # the arguments of load_data


class Images(NamedTuple):
    """Training and test images as tensors; each class has the same number. `mirror` as in lib.data.Data."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    mirror: bool

    def to(self, device: str) -> Images:
        train, train_labels, test, test_labels = (part.to(device) for part in self[:4])
        return Images(train, train_labels, test, test_labels, self.mirror)


@lru_cache(maxsize=4)
def load(source: Source, size: int, limits: tuple[int, int]) -> Images:
    """The images of both parts, at most `limits`, with `size` pixels on a side."""
    data = load_data(*source)

    def tensors(part: Sequence[Any], limit: int) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([int(label) for _, label in part])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        each = [order[labels[order] == index][: limit // data.classes] for index in range(data.classes)]
        chosen = torch.cat(each).tolist()
        pixels = [torch.frombuffer(bytearray(_pixels(part[i][0], size)), dtype=torch.uint8) for i in chosen]
        images = torch.stack(pixels).view(-1, size, size, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
        return images.contiguous(), labels[chosen]

    return Images(*tensors(data.train, limits[0]), *tensors(data.val, limits[1]), data.mirror)


def _pixels(image: Any, size: int) -> bytes:
    return image.convert("RGB").resize((size, size)).tobytes()


def vary(images: Tensor, mirror: bool) -> Tensor:
    """Shifts each image by up to an eighth of its size, and mirrors half of them."""
    count, _, size, _ = images.shape
    device = images.device
    if mirror:
        images = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, images.flip(-1), images)
    margin = size // 8
    padded = F.pad(images, [margin] * 4, mode="reflect")
    down, right = torch.randint(0, 2 * margin + 1, (2, count, 1), device=device)
    offsets, each = torch.arange(size, device=device), torch.arange(count, device=device)
    rows, columns = offsets + down, offsets + right
    return padded[each[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def run_once(network: str, recipe: Recipe, setting: Setting, seed: int, source: Source, device: str) -> Outcome:
    """Trains and measures; the random numbers follow from `seed` alone."""
    torch.set_num_threads(1)
    started = time.process_time()
    images = load(source, recipe.image_size, (recipe.images, recipe.test_images)).to(device)
    net = train(network, recipe, setting, seed, images, device)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.autocast)

    def measure(predict: Callable[[Tensor], Tensor]) -> Scores:
        with torch.no_grad(), autocast:
            parts = [predict(inputs).float() for inputs in images.test.split(_AT_A_TIME)]
        return scores(torch.cat(parts), images.test_labels)

    once = measure(lambda inputs: net(inputs).softmax(1))
    monte_carlo = measure(lambda inputs: mc_predict(net, inputs, samples=PASSES).mean) if setting.drops else None
    with autocast:
        recalibrate(net, images.train)
    recalibrated = measure(lambda inputs: net(inputs).softmax(1))
    return Outcome(once, monte_carlo, recalibrated, time.process_time() - started)


def train(network: str, recipe: Recipe, setting: Setting, seed: int, images: Images, device: str) -> nn.Module:
    """The network at the end of the training, in eval mode."""
    torch.manual_seed(seed)
    classes = int(images.train_labels.max()) + 1
    net = make_network(network, classes, setting).to(memory_format=torch.channels_last)
    batch_size = min(recipe.batch_size, len(images.train))
    steps = recipe.epochs * (len(images.train) // batch_size)
    schedule = put_in(net, setting, recipe.image_size, steps)
    net.to(device)
    weight_decay = recipe.weight_decay if setting.weight_decay is None else setting.weight_decay
    options: dict[str, Any] = {"lr": recipe.lr, "momentum": 0.9, "nesterov": True, "weight_decay": weight_decay}
    optimizer = torch.optim.SGD(net.parameters(), **options)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps)
    if schedule is not None:
        schedule.attach(optimizer)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.autocast)
    for batch in batches(len(images.train), batch_size, recipe.epochs):
        inputs = vary(images.train[batch], images.mirror).contiguous(memory_format=torch.channels_last)
        with autocast:
            outputs = net.train()(inputs)
            loss = F.cross_entropy(outputs, images.train_labels[batch], label_smoothing=setting.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return net.eval()


def batches(count: int, batch_size: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count)[: count // batch_size * batch_size].split(batch_size)


def recalibrate(net: nn.Module, images: Tensor) -> None:
    """Estimates BatchNorm's statistics anew, from the images as they are, with DropBlock paused."""
    with dropblock_disabled(net), torch.no_grad():
        # Classes are mixed, so that the batches are alike.
        update_bn(images[torch.randperm(len(images), device=images.device)].split(_AT_A_TIME), net)


def scores(probabilities: Tensor, labels: Tensor) -> Scores:
    """Accuracy, negative log-likelihood and expected calibration error (15 bins).

    Args:
        probabilities: of shape (N, classes).
        labels: of shape (N,), class indices.
    """
    accuracy = (probabilities.argmax(1) == labels).double().mean()
    nll = F.nll_loss(probabilities.double().clamp_min(1e-12).log(), labels)
    ece = multiclass_calibration_error(probabilities, labels, probabilities.shape[1], n_bins=15)
    return Scores(100 * float(accuracy), float(nll), 100 * float(ece))
