"""The pictures: each shows what it says, read back from the figure."""

import io
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from networks import CifarResNet
from PIL import Image
from torch import nn

from dropblock_inject import DropBlockInjectError, KeepProbSchedule, find_stages, inject_dropblock, plan_dropblock
from dropblock_inject.command.models import build_without_data

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from dropblock_inject.plot import plot_feature_maps, plot_masks, plot_plan, plot_schedule, plot_stages
from dropblock_inject.plot.canvas import COLORS, DROPPED, OUTSIDE, PART_COLORS, STAGE_COLORS

EXAMPLE = torch.empty(1, 3, 32, 32)


def drawn(figure):
    """The picture as pixels, from a file as users would write it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return np.asarray(Image.open(file).convert("RGB"))


def assert_readable(figure, widest=7.5):
    """It is not empty, as wide as a page at most, its text of 8 points or more, within the figure and apart."""
    assert drawn(figure).std() > 5
    assert figure.get_size_inches()[0] <= widest
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes = [axis for part in figure.get_axes() for axis in (part.xaxis, part.yaxis)]
    ticks = [(tick, *sorted(axis.get_view_interval())) for axis in axes for tick in axis.get_major_ticks()]
    hidden = {tick.label1 for tick, low, high in ticks if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if text not in hidden]
    assert min(text.get_fontsize() for text in texts) >= 8
    for text in texts:
        extent = text.get_window_extent(renderer)
        left, low, right, high = extent.extents - np.array([*figure.bbox.min, *figure.bbox.max])
        assert min(left, low) > -1 > max(right, high) - 2, text
    assert_apart([text.get_window_extent(renderer).padded(-1) for text in texts])


def assert_apart(boxes):
    assert not [(one, other) for one, other in combinations(boxes, 2) if one.overlaps(other)]


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
    assert_readable(figure)
    dropped = [np.asarray(image, dtype=bool) for image in images(figure)]
    assert len(dropped) == 18
    assert {mask.shape for mask in dropped} == {map_size}
    dropout, spatial, block = dropped[:6], dropped[6:12], dropped[12:]
    assert np.mean(dropout) == pytest.approx(1 - keep_prob, abs=0.05)
    assert not is_union_of_blocks(dropout[0], 2)
    assert all(mask.all() or not mask.any() for mask in spatial)
    assert all(is_union_of_blocks(mask, side) for mask in block)
    assert 0 < np.mean(block) < 0.7
    labels = [axis.get_ylabel() for axis in figure.get_axes() if axis.get_ylabel()]
    assert [label.split("\n")[0] for label in labels] == ["Dropout", "SpatialDropout", "DropBlock"]
    for label in labels:
        assert float(label.split("kept ")[1].rstrip("%")) / 100 == pytest.approx(keep_prob, abs=0.03)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dropped: set to zero", "kept"]


def feature_maps_of(figure, rows):
    """The maps in the columns of the picture, by the title of the column."""
    axes = [axis for axis in figure.get_axes() if axis.images][1:]
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    shown = [axis.images[0].get_array() for axis in axes]
    assert len(shown) == rows * len(titles)
    return {title: np.ma.stack(shown[number :: len(titles)]) for number, title in enumerate(titles)}


def test_feature_maps():
    torch.manual_seed(0)
    features = torch.randn(400, 28, 28) * torch.linspace(0.1, 2, 400)[:, None, None]
    picture = Image.new("RGB", (56, 56), "red")
    figure = plot_feature_maps(picture, features, 0.7, 7, channels=3, title="a layer")
    assert_readable(figure)
    assert figure.get_suptitle() == "a layer"
    assert "keep_prob 0.7 and block_size 7x7" in figure.legends[0].get_texts()[0].get_text()
    assert (images(figure)[0] == np.asarray(picture)).all()
    shown = feature_maps_of(figure, 3)
    assert list(shown) == ["no dropping", "Dropout", "SpatialDropout", "DropBlock"]
    whole = shown.pop("no dropping")
    channels = [int((features == torch.as_tensor(np.asarray(map))).flatten(1).all(1).nonzero()) for map in whole]
    assert min(channels) >= 376  # of the 24 with the largest variance
    for maps in shown.values():
        dropped = np.ma.getmaskarray(maps)
        assert np.array_equal(maps.data[~dropped], whole.data[~dropped])
    dropped = {name: np.ma.getmaskarray(maps) for name, maps in shown.items()}
    assert dropped["Dropout"].mean() == pytest.approx(0.3, abs=0.03)
    assert all(mask.any() and is_union_of_blocks(mask, 7) for mask in dropped["DropBlock"])
    assert {bool(mask.all()) for mask in dropped["SpatialDropout"]} == {True, False}
    assert all(mask.all() or not mask.any() for mask in dropped["SpatialDropout"])
    limits = [axis.images[0].get_clim() for axis in figure.get_axes() if axis.images][1:]
    assert np.allclose(limits, [(map.min(), map.max()) for map in whole for _ in range(4)])


@pytest.mark.parametrize("seed", range(5))
def test_something_is_dropped_in_what_is_shown(seed):
    features = torch.randn(64, 14, 14)
    shown = feature_maps_of(plot_feature_maps(Image.new("RGB", (8, 8)), features, 0.9, 7, seed=seed), 4)
    dropped = {name: np.ma.getmaskarray(maps) for name, maps in shown.items()}
    assert dropped["SpatialDropout"].any()
    assert sum(mask.any() for mask in dropped["DropBlock"]) >= 3


def test_feature_maps_at_keep_prob_1_lose_nothing():
    shown = feature_maps_of(plot_feature_maps(Image.new("RGB", (8, 8)), torch.randn(3, 9, 9), 1.0, channels=2), 2)
    assert not any(np.ma.getmaskarray(maps).any() for maps in shown.values())


def test_feature_maps_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"features must be of shape \(C, H, W\), got \(1, 3, 8, 8\)"):
        plot_feature_maps(Image.new("RGB", (8, 8)), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("mode", ["linear", "cosine", "step"])
def test_schedule(mode):
    net = CifarResNet(1)
    inject_dropblock(net, (-2, -1), block_size=3, example_input=EXAMPLE)
    schedule = KeepProbSchedule(net, 400, mode=mode, warmup_steps=50)
    assert not any(line.get_marker() == "o" for line in plot_schedule(schedule).get_axes()[0].lines)
    schedule.step(200)
    figure = plot_schedule(schedule)
    assert_readable(figure)
    (axis,) = figure.get_axes()
    curves = {line.get_label(): line for line in axis.lines if line.get_label()[0] != "_"}
    assert list(curves) == ["stage 2, to 0.975", "stage 3, to 0.9"]
    for curve, end in zip(curves.values(), (0.975, 0.9), strict=True):
        steps, values = curve.get_data()
        assert (steps[0], steps[-1]) == (0, 400)
        assert list(values) == [schedule.value_at(int(step), end) for step in steps]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [dot.get_data()[0][0] for dot in dots] == [200, 200]
    assert figure.legends[0].get_texts()[-1].get_text() == "now: step 200"


@pytest.mark.parametrize("where", ["paper", "output", ("branch", "output"), "end"])
def test_plan(where):
    plan = plan_dropblock(CifarResNet(2), (-2, -1), where=where, block_size=3, example_input=EXAMPLE)
    figure = plot_plan(plan, EXAMPLE)
    assert_readable(figure)
    (axis,) = figure.get_axes()
    assert sites_drawn(axis) == Counter(site.where for site in plan)
    texts = [text.get_text() for text in axis.texts]
    assert texts[:2] == [
        "DropBlock in CifarResNet",
        f"{len(plan)} sites in 4 blocks; maps for an input of 32x32 pixels",
    ]
    assert [text for text in texts if text.startswith("stage")] == ["stage 1", "stage 2", "stage 3"]
    assert [text for text in texts if "keep" in text] == ["keep_prob 0.975", "keep_prob 0.9"]
    assert [text for text in texts if "block_size" in text] == ["block_size 3x3", "block_size 3x3"]
    assert not stars(axis)
    blocks = [patch for patch in axis.patches if patch.get_gid() == "block"]
    maps = [site.map_size[0] for stage in (2, 3) for site in plan if site.stage == stage][-1:]
    assert blocks[-1].get_width() == pytest.approx(0.45 * 3 / maps[0])  # to scale


def sites_drawn(axis):
    colors = Counter(to_hex(patch.get_facecolor()) for patch in axis.patches)
    return Counter({where: colors[color] for where, color in COLORS.items() if colors[color]})


def stars(axis):
    return [line for line in axis.lines if line.get_gid() == "whole map"]


NETWORKS = [
    *("torchvision:resnet50", "timm:densenet121", "timm:efficientnet_b7", "torchvision:r3d_18", "torchvision:vgg16"),
    *("timm:convnext_tiny", "timm:eca_resnet33ts", "timm:res2net50_26w_4s"),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plan_of_any_network_is_readable(name):
    model = build_without_data(name)
    plan = plan_dropblock(model)
    figure = plot_plan(plan, name="the name")
    assert_readable(figure)
    (axis,) = figure.get_axes()
    assert axis.texts[0].get_text() == "DropBlock in the name"
    assert sites_drawn(axis) == Counter(site.where for site in plan)
    covering = sum(site.block_size == site.map_size for site in plan)
    assert len(stars(axis)) == covering
    legend = " ".join(text.get_text() for text in axis.get_legend().get_texts())
    assert (f"drops whole channels: block_size is the whole map ({covering})" in legend) is bool(covering)
    boxes = sorted((patch.get_xy(), patch.get_width()) for patch in axis.patches if isinstance(patch, Rectangle))
    assert max(left + width for (left, _), width in boxes) < figure.get_size_inches()[0]


@pytest.mark.parametrize(
    ("name", "parts"),
    [("torchvision:fasterrcnn_resnet50_fpn", ["neck", "head"]), ("timm:hrnet_w18", ["transition", "neck"])],
)
@pytest.mark.parametrize("where", ["paper", ("paper", "output", "end")])
def test_the_plan_of_every_block(name, parts, where):
    plan = plan_dropblock(build_without_data(name), stages=None, where=where)
    figure = plot_plan(plan)
    assert_readable(figure)
    (axis,) = figure.get_axes()
    assert sites_drawn(axis) == Counter(site.where for site in plan)
    maps = [patch.get_window_extent() for patch in axis.patches if patch.get_gid() == "map"]
    assert len(maps) == 5 + len(parts)
    assert not [text for text in axis.texts if any(text.get_window_extent().overlaps(map) for map in maps)]
    titles = [text.get_text() for text in axis.texts if text.get_weight() == "bold"][1:]
    stages = [f"stage {number}" for number in (1, 2, 3, 4)]
    assert titles == ["stem", *stages, *parts]


def test_the_plan_of_another_layer_has_no_blocks():
    plan = plan_dropblock(CifarResNet(1), -1, example_input=EXAMPLE, layer=lambda site: nn.Dropout2d(0.1))
    figure = plot_plan(plan, EXAMPLE)
    texts = [text.get_text() for text in figure.get_axes()[0].texts]
    assert texts[0] == "Dropout2d in CifarResNet"
    assert not any("block_size" in text for text in texts)


def block_drawn(figure):
    """The name of the block in the lower part of a picture of stages, and the labels on each of its paths.

    A label is the text of a box, or "site" for each site; what stands at one place is in the order from left to right.
    """
    page, _ = figure.get_axes()
    title = next(text for text in page.texts if text.get_text().startswith("block "))
    drawn_at = [(*text.get_position(), text.get_text()) for text in page.texts if text.get_bbox_patch()]
    drawn_at += [(*(float(c[0]) for c in line.get_data()), line.get_gid()) for line in page.lines if line.get_gid()]
    paths = {}
    for _, height, label in sorted(drawn_at):
        paths.setdefault(round(float(height), 3), []).append(label)
    skip, middle, branch, *gate = (paths[height] for height in sorted(paths))
    return title.get_text().removeprefix("block "), skip, middle, branch, [label for path in gate for label in path]


@pytest.mark.parametrize("name", ["torchvision:resnet50", "timm:efficientnet_b0", "timm:seresnet50", "timm:resnet18"])
def test_each_site_is_drawn_right_behind_the_module_that_it_hangs_on(name):
    model = build_without_data(name)
    block, skip, _, branch, _ = block_drawn(plot_stages(model))
    for where, path in (("branch", branch), ("skip", skip)):
        own = [site for site in plan_dropblock(model, where=where) if site.block == block]
        hosts = [site.host.removeprefix(block).lstrip(".") for site in own]
        steps = [label for entry in path for label in (entry.replace("\n.", ".").split("\n"))]
        steps = [step for step in steps if step != "site end"]
        expected = [step for step in steps if step != f"site {where}"]
        for host in hosts:
            inside = [number for number, label in enumerate(expected) if f"{label}.".startswith(f"{host}.")]
            expected.insert(inside[-1] + 1 if inside else len(expected), f"site {where}")
        assert hosts
        assert steps == expected


@pytest.mark.parametrize(
    ("name", "gate", "before", "behind"),
    [
        ("timm:efficientnet_b0", "gate se: mean, conv_reduce, act1, conv_expand, gate", "bn2.act", "conv_pwl"),
        ("timm:seresnet50", "gate se: mean, fc1, act, fc2, gate", "bn3", None),
        ("torchvision:mobilenet_v3_small", "gate block.2: avgpool, fc1, activation, fc2, scale_activation", None, None),
        ("timm:skresnet18", "gate conv1.attn: sum, mean, fc_reduce, bn, act, fc_select, softmax", "stack", "sum"),
    ],
)
def test_a_gate_is_drawn_as_a_gate(name, gate, before, behind):
    figure = plot_stages(build_without_data(name))
    _, _, _, branch, gates = block_drawn(figure)
    assert [" ".join(text.split()) for text in gates] == [gate]
    branch = [label for label in branch if not label.startswith("site")]
    place = branch.index("×")
    assert before is None or branch[place - 1].split("\n")[-1] == before
    assert behind is None or branch[place + 1].split("\n")[0] == behind
    assert not any(word in label for label in branch for word in ("fc1", "conv_reduce"))
    assert any("× is the product with a gate" in text.get_text() for text in figure.get_axes()[0].texts)


@pytest.mark.parametrize(
    ("name", "middle"),
    [
        ("torchvision:resnet18", ["x", "+", "relu", "site output"]),
        ("timm:resnet18", ["x", "+", "act2", "site output"]),
        ("timm:convnext_tiny", ["x", "+", "site output"]),
        ("timm:resnetv2_50", ["x", "+", "site output"]),
        ("timm:nextvit_small", ["x", "+"]),  # the first of two residual adds
    ],
)
def test_the_activation_stands_behind_the_addition(name, middle):
    assert block_drawn(plot_stages(build_without_data(name)))[2] == middle


@pytest.mark.parametrize("name", ["resnet50", "deeplabv3_resnet50", "densenet121", "fasterrcnn_resnet50_fpn", "vgg11"])
def test_stages(name):
    model = build_without_data(f"torchvision:{name}")
    stages, sites = find_stages(model), plan_dropblock(model, (1, 2, 3, 4), where=("paper", "output"))
    figure = plot_stages(model, name="a name")
    assert_readable(figure)
    page, levels = figure.get_axes()
    assert levels.get_title(loc="left") == "stages of a name"
    labels = [text.get_text() for text in levels.texts]
    assert labels == [f"stage {s.index}\n{s.channels} x {'x'.join(map(str, s.map_size))}" for s in stages]
    dots = Counter(to_hex(color) for group in levels.collections for color in group.get_facecolors())
    outside = sum(dots.pop(color, 0) for color in (*PART_COLORS.values(), OUTSIDE))
    assert sorted(dots.values()) == sorted(len(stage.blocks) for stage in stages)
    assert bool(outside) is (name != "vgg11")
    assert bool(page.texts) == (name not in ("densenet121", "vgg11"))
    if page.texts:
        shown, skip, middle, branch, _ = block_drawn(figure)
        assert shown == stages[-1].blocks[0].name
        own = Counter(f"site {site.where}" for site in sites if site.block == shown)
        assert Counter(label for label in skip + middle + branch if label.startswith("site")) == own + Counter(
            ["site end"]
        )
        names = [label for label in branch if not label.startswith("site")]
        assert names == ["conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3"]
        assert skip[:2] == ["downsample\n.0", "downsample\n.1"]
        assert middle == ["x", "+", "relu", "site output"]


@pytest.mark.parametrize("name", [*NETWORKS, "timm:efficientnet_b0", "timm:skresnet18", "timm:hrnet_w18"])
def test_the_stages_of_any_network_are_readable(name):
    figure = plot_stages(build_without_data(name))
    assert_readable(figure, widest=10.5)
    page, _ = figure.get_axes()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_bbox_patch().get_window_extent(renderer) for text in page.texts if text.get_bbox_patch()]
    assert_apart(boxes)
    sites = [line.get_window_extent(renderer) for line in page.lines if line.get_gid()]
    assert not any(site.overlaps(box) for site in sites for box in boxes)


def test_a_unet_has_a_decoder():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model, example = smp.Unet("resnet34", encoder_weights=None), torch.empty(1, 3, 256, 256)
    figure = plot_stages(model, example)
    assert_readable(figure)
    levels = figure.get_axes()[1]
    assert "decoder" in [text.get_text() for text in levels.get_legend().get_texts()]
    assert_readable(plot_plan(plan_dropblock(model, None, include="decoder.*", example_input=example), example))


def test_stages_and_another_block():
    model = CifarResNet(2)
    assert block_drawn(plot_stages(model, EXAMPLE, block="stage2.1"))[0] == "stage2.1"
    with pytest.raises(
        ValueError, match=r"no residual block 'stage9' in the trunk; it has stage1.0, stage1.1, stage2.0"
    ):
        plot_stages(model, EXAMPLE, block="stage9")


# Colours as people with one kind of cone missing see them (Machado, Oliveira and Fernandes 2009, severity 1), in linear
# RGB, and their distance in CIE L*a*b*.
VISION = {
    "all cones": np.eye(3),
    "no L cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no M cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no S cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(color, vision):
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(np.array(vision) @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(
    ("colors", "distance"),
    [(COLORS.values(), 16), (("white", DROPPED), 40), ((*STAGE_COLORS, *PART_COLORS.values(), OUTSIDE), 11)],
)
def test_colours_differ_for_the_colour_blind(vision, colors, distance):
    for one, other in combinations(colors, 2):
        assert np.linalg.norm(lab(one, VISION[vision]) - lab(other, VISION[vision])) > distance, (one, other)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "dropblock-inject\[plot\]"') as caught:
        plot_masks()
    assert isinstance(caught.value, DropBlockInjectError)
