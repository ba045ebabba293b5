"""The pictures: each shows what it says, read back from the figure."""

import io
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from networks import CifarResNet
from PIL import Image

from dropblock_inject import DropBlockInjectError, KeepProbSchedule, find_stages, inject_dropblock, plan_dropblock
from dropblock_inject.command.models import build_without_data

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from dropblock_inject.plot import plot_feature_maps, plot_masks, plot_plan, plot_schedule, plot_stages
from dropblock_inject.plot import stages as stages_picture
from dropblock_inject.plot.canvas import COLORS

EXAMPLE = torch.empty(1, 3, 32, 32)


def drawn(figure):
    """The picture as pixels, from a file as users would write it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return np.asarray(Image.open(file).convert("RGB"))


def images(figure):
    """What is shown in each of the small pictures."""
    return [axis.images[0].get_array() for axis in figure.get_axes() if axis.images]


def is_union_of_blocks(dropped, side):
    """Whether every dropped pixel is in a block that is dropped whole."""
    inside = np.zeros_like(dropped)
    for i in range(dropped.shape[0] - side + 1):
        for j in range(dropped.shape[1] - side + 1):
            if dropped[i : i + side, j : j + side].all():
                inside[i : i + side, j : j + side] = True
    return (inside == dropped).all()


@pytest.mark.parametrize(("map_size", "keep_prob", "side"), [((28, 28), 0.75, 7), ((14, 20), 0.9, 3)])
def test_masks(map_size, keep_prob, side):
    figure = plot_masks(map_size, keep_prob, side, channels=6)
    assert drawn(figure).std() > 20
    kept = [np.asarray(image, dtype=bool) for image in images(figure)]
    assert len(kept) == 18
    assert {mask.shape for mask in kept} == {map_size}
    dropout, spatial, block = kept[:6], kept[6:12], kept[12:]
    assert np.mean(dropout) == pytest.approx(keep_prob, abs=0.05)
    assert not is_union_of_blocks(~dropout[0], 2)
    assert all(mask.all() or not mask.any() for mask in spatial)
    assert all(is_union_of_blocks(~mask, side) for mask in block)
    assert 0.3 < np.mean(block) < 1
    labels = [axis.get_ylabel() for axis in figure.get_axes() if axis.get_ylabel()]
    assert [label.split("\n")[0] for label in labels] == ["Dropout", "SpatialDropout", "DropBlock"]
    for label in labels:
        assert float(label.split("kept ")[1].rstrip("%")) / 100 == pytest.approx(keep_prob, abs=0.03)


def test_feature_maps():
    torch.manual_seed(0)
    features = torch.randn(20, 28, 28) * torch.linspace(0.1, 2, 20)[:, None, None]
    picture = Image.new("RGB", (56, 56), "red")
    figure = plot_feature_maps(picture, features, 0.7, 7, channels=3, title="a layer")
    assert drawn(figure).std() > 20
    seen = images(figure)
    assert len(seen) == 1 + 3 * 4 + 3 * 3
    assert (seen[0] == np.asarray(picture)).all()
    maps, masks = (
        np.ma.stack(seen[1:13]).reshape(3, 4, 28, 28),
        np.stack([np.asarray(mask) for mask in seen[13:]]).reshape(3, 3, 28, 28),
    )
    limits = [axis.images[0].get_clim() for axis in figure.get_axes()[1:13]]
    for row, channel in enumerate((19, 18, 17)):  # the channels that vary most
        assert np.allclose(maps[row, 0], features[channel])
        assert np.allclose(limits[4 * row : 4 * row + 4], [features[channel].aminmax()] * 4)
        for column in range(3):
            kept = masks[row, column].astype(bool)
            assert (np.ma.getmaskarray(maps[row, column + 1]) == ~kept).all()
            assert np.allclose(maps[row, column + 1].data[kept], features[channel].numpy()[kept])
        assert is_union_of_blocks(~masks[row, 2].astype(bool), 7)
    assert 0.5 < masks[:, 2].mean() < 0.9


def test_feature_maps_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"features must be of shape \(C, H, W\), got \(1, 3, 8, 8\)"):
        plot_feature_maps(Image.new("RGB", (8, 8)), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("mode", ["linear", "cosine", "step"])
def test_schedule(mode):
    net = CifarResNet(1)
    inject_dropblock(net, (-2, -1), block_size=3, example_input=EXAMPLE)
    schedule = KeepProbSchedule(net, 400, mode=mode, warmup_steps=50)
    schedule.step(200)
    figure = plot_schedule(schedule)
    assert drawn(figure).std() > 5
    (axis,) = figure.get_axes()
    curves = {line.get_label(): line for line in axis.lines if line.get_label()[0] != "_"}
    assert list(curves) == ["stage 2, to 0.975", "stage 3, to 0.9"]
    for curve, end in zip(curves.values(), (0.975, 0.9), strict=True):
        steps, values = curve.get_data()
        assert (steps[0], steps[-1]) == (0, 400)
        assert list(values) == [schedule.value_at(int(step), end) for step in steps]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [dot.get_data()[0][0] for dot in dots] == [200, 200]


@pytest.mark.parametrize("where", ["paper", "output", ("branch", "output")])
def test_plan(where):
    plan = plan_dropblock(CifarResNet(2), (-2, -1), where=where, block_size=3, example_input=EXAMPLE)
    figure = plot_plan(plan, EXAMPLE)
    assert drawn(figure).std() > 5
    (axis,) = figure.get_axes()
    colors = Counter(to_hex(patch.get_facecolor()) for patch in axis.patches)
    expected = Counter(site.where for site in plan)
    assert {where: colors[color] for where, color in COLORS.items() if colors[color]} == expected
    texts = [text.get_text() for text in axis.texts]
    assert [text for text in texts if text.startswith("stage")] == ["stage 1", "stage 2", "stage 3"]
    assert [text for text in texts if "keep" in text] == ["keep 0.975", "keep 0.9"]


@pytest.mark.parametrize("name", ["torchvision:resnet50", "timm:efficientnet_b0", "timm:seresnet50"])
def test_each_site_is_drawn_right_behind_the_module_that_it_hangs_on(name):
    model = build_without_data(name)
    axis = plot_stages(model).get_axes()[1]
    block = axis.get_title(loc="left").split()[2].rstrip(":")
    hosts = {"branch": [], "skip": []}
    for site in plan_dropblock(model):
        if site.block == block:
            hosts[site.where].append(site.host.removeprefix(block).lstrip("."))
    for height, (where, own) in enumerate(hosts.items()):
        texts = [text for text in axis.texts if text.get_position()[1] == height]
        diamonds = [line.get_xdata()[0] for line in axis.lines if line.get_gid() == f"site {where}"]
        drawn_at = [(text.get_position()[0], text.get_text()) for text in texts] + [(x, "site") for x in diamonds]
        expected = [text.get_text() for text in texts]
        for host in own:
            inside = [number for number, label in enumerate(expected) if f"{label}.".startswith(f"{host}.")]
            expected.insert(inside[-1] + 1 if inside else len(expected), "site")
        assert [label for _, label in sorted(drawn_at)] == expected


@pytest.mark.parametrize("name", ["resnet50", "deeplabv3_resnet50", "densenet121", "fasterrcnn_resnet50_fpn", "vgg11"])
def test_stages(name):
    model = build_without_data(f"torchvision:{name}")
    stages, sites = find_stages(model), plan_dropblock(model, (1, 2, 3, 4), where=("paper", "output"))
    figure = plot_stages(model)
    assert drawn(figure).std() > 5
    levels, *block = figure.get_axes()
    labels = [text.get_text() for text in levels.texts]
    assert labels == [f"stage {s.index}\n{s.channels} x {'x'.join(map(str, s.map_size))}" for s in stages]
    dots = Counter(to_hex(color) for group in levels.collections for color in group.get_facecolors())
    outside = sum(dots.pop(color, 0) for color in (*stages_picture._PARTS.values(), stages_picture._OUTSIDE))
    assert sorted(dots.values()) == sorted(len(stage.blocks) for stage in stages)
    assert bool(outside) is (name != "vgg11")
    assert len(block) == (name not in ("densenet121", "vgg11"))
    if block:
        shown = next(line.split()[2].rstrip(":") for line in [block[0].get_title(loc="left")])
        assert shown == stages[-1].blocks[0].name
        diamonds = Counter(line.get_gid() for line in block[0].lines)
        own = Counter(f"site {site.where}" for site in sites if site.block == shown)
        assert diamonds["site end"] == 1
        assert {gid: count for gid, count in diamonds.items() if gid in own} == own
        names = [text.get_text() for text in block[0].texts]
        assert names == [
            "conv1",
            "bn1",
            "relu",
            "conv2",
            "bn2",
            "relu",
            "conv3",
            "bn3",
            "downsample.0",
            "downsample.1",
            "x",
            "+",
        ]


def test_stages_and_another_block():
    model = CifarResNet(2)
    figure = plot_stages(model, EXAMPLE, block="stage2.1")
    assert "stage2.1" in figure.get_axes()[1].get_title(loc="left")
    with pytest.raises(
        ValueError, match=r"no residual block 'stage9' in the trunk; it has stage1.0, stage1.1, stage2.0"
    ):
        plot_stages(model, EXAMPLE, block="stage9")


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "dropblock-inject\[plot\]"') as caught:
        plot_masks()
    assert isinstance(caught.value, DropBlockInjectError)
