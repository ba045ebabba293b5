"""The uncertainty of a segmentation: each map is read back from the figure."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dropblock_inject import DropBlockInjectError

pytest.importorskip("matplotlib")

from dropblock_inject.plot import plot_uncertainty

MEAN = torch.softmax(torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0)), 1)
ENTROPY = torch.special.entr(MEAN).sum(1)
PREDICTION = SimpleNamespace(mean=MEAN, entropy=ENTROPY, mutual_information=ENTROPY / 3)
IMAGE = torch.rand(6, 8, 3)


def shown(figure):
    return [(axis.get_title(), axis.images[0].get_array()) for axis in figure.get_axes() if axis.images]


def means(figure):
    return [axis.get_xlabel() for axis in figure.get_axes() if axis.get_xlabel()]


def test_maps_of_an_image_with_its_errors():
    target = MEAN[1].argmax(0)
    target[0, :2] = (target[0, :2] + 1) % 4  # two wrong pixels
    target[5] = 255  # eight that do not count
    figure = plot_uncertainty(IMAGE, PREDICTION, target, index=1, title="scene")
    (_, image), (_, classes), (_, predicted), (errors, wrong), *maps = shown(figure)
    assert np.array_equal(image, IMAGE.numpy())
    assert np.array_equal(predicted, MEAN[1].argmax(0).numpy())
    assert np.array_equal(classes[:5], target[:5].numpy())
    assert errors == f"errors: {2 / 40:.1%}"
    white = (wrong == 1).all(2)
    assert (~white).sum() == 10
    assert not white[0, :2].any()
    assert len(np.unique(wrong.reshape(-1, 3), axis=0)) == 3
    right = torch.ones(6, 8, dtype=torch.bool)
    right[0, :2], right[5] = False, False
    expected = (ENTROPY[1], ENTROPY[1] / 3)
    assert [title for title, _ in maps] == ["entropy, nats", "mutual information, nats"]
    assert all(np.allclose(values, map.numpy()) for (_, values), map in zip(maps, expected, strict=True))
    assert means(figure) == [f"mean: wrong {map[0, :2].mean():.2f}, right {map[right].mean():.2f}" for map in expected]
    assert figure.get_suptitle() == "scene"


def test_without_a_target_there_are_no_errors():
    figure = plot_uncertainty(IMAGE, PREDICTION)
    assert not means(figure)
    titles = [title for title, _ in shown(figure)]
    assert titles == ["image", "prediction", "entropy, nats", "mutual information, nats"]


def test_without_errors_there_is_no_mean_over_them():
    figure = plot_uncertainty(IMAGE, PREDICTION, MEAN[0].argmax(0))
    assert "errors: 0.0%" in [title for title, _ in shown(figure)]
    assert means(figure)[0] == f"mean: wrong –, right {ENTROPY[0].mean():.2f}"


@pytest.mark.parametrize(
    ("prediction", "options", "message"),
    [
        (MEAN, {}, "prediction must be what mc_predict returns, got Tensor"),
        (
            SimpleNamespace(mean=MEAN[:, :, 0, 0], entropy=None, mutual_information=None),
            {},
            r"of shape \(N, C, H, W\), got \(2, 4\)",
        ),
        (SimpleNamespace(mean=MEAN, entropy=None, mutual_information=None), {}, "no entropy of each pixel"),
        (SimpleNamespace(mean=MEAN, entropy=MEAN, mutual_information=MEAN), {}, "no entropy of each pixel"),
        (PREDICTION, {"index": 2}, "index 2 is not in a batch of 2"),
        (PREDICTION, {"target": torch.zeros(8, 6)}, r"target must be of shape \(6, 8\), got \(8, 6\)"),
    ],
)
def test_mistakes_are_said(prediction, options, message):
    with pytest.raises(DropBlockInjectError, match=message):
        plot_uncertainty(IMAGE, prediction, **options)
