"""The settings that the study compares, and the recipes of its trainings."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Setting:
    """A row of a table: how a network is regularised.

    Attributes:
        name: the name of the row.
        drops: True if parts of the feature maps are dropped.
        block_size: a share of the map, or pixels: 1 is Dropout, a block as large as the map SpatialDropout.
        keep_prob: of the last stage; the stage before it drops a quarter as much, as in the paper's code.
        scheduled: True: keep_prob moves from 1 to its target over the training; False: it is constant.
        stages, where: as in inject_dropblock.
        torch_layer: "dropout", "dropout2d" or "drop path": that layer at the same sites, in place of DropBlock.
        label_smoothing: as in torch's cross_entropy.
        weight_decay: as in torch's SGD; None: the recipe's.
        drop_path: the probability to skip a residual block: that of the deepest, the others have proportionally less.
        epochs: the lengths of the trainings; (): the recipe's.
        networks: how many are trained, each from another seed. Together they are an ensemble.
    """

    name: str
    drops: bool = True
    block_size: int | float = 0.5
    keep_prob: float = 0.9
    scheduled: bool = True
    stages: tuple[int, ...] = (-2, -1)
    where: str = "paper"
    torch_layer: str = ""
    label_smoothing: float = 0.0
    weight_decay: float | None = None
    drop_path: float = 0.0
    epochs: tuple[int, ...] = ()
    networks: int = 1


WHOLE_MAP = 1000  # pixels, clipped to the map
_DROPBLOCK = Setting("DropBlock, scheduled")
TABLE = (
    Setting("baseline", drops=False),
    replace(_DROPBLOCK, name="Dropout (block_size=1)", block_size=1, scheduled=False),
    replace(_DROPBLOCK, name="Dropout (torch's)", torch_layer="dropout", scheduled=False),
    replace(_DROPBLOCK, name="SpatialDropout (block as the map)", block_size=WHOLE_MAP, scheduled=False),
    replace(_DROPBLOCK, name="SpatialDropout (torch's Dropout2d)", torch_layer="dropout2d", scheduled=False),
    Setting("DropPath", drops=False, drop_path=0.2),
    Setting("label smoothing", drops=False, label_smoothing=0.1),
    replace(_DROPBLOCK, name="DropBlock, constant", scheduled=False),
    _DROPBLOCK,
    replace(_DROPBLOCK, name="DropBlock, scheduled + label smoothing", label_smoothing=0.1),
)
SWEEPS = (  # each differs in one thing from "DropBlock, scheduled"
    replace(_DROPBLOCK, name="block of one pixel", block_size=1),
    replace(_DROPBLOCK, name="block a quarter of the map", block_size=0.25),
    replace(_DROPBLOCK, name="block three quarters of the map", block_size=0.75),
    *(replace(_DROPBLOCK, name=f"keep_prob {keep_prob}", keep_prob=keep_prob) for keep_prob in (0.95, 0.8, 0.7)),
    replace(_DROPBLOCK, name="last stage only", stages=(-1,)),
    replace(_DROPBLOCK, name="branch only", where="branch"),
)

LENGTHS = (12, 24, 40, 80)
_PLAIN = Setting("none", drops=False, epochs=(40, 80))
_LAST = Setting("DropBlock, last stage", stages=(-1,), epochs=(40, 80))
_VARIANT = replace(_LAST, epochs=(80,))
LONG = (  # long fine-tunings; what drops stands in the last stage, with a schedule
    replace(_PLAIN, epochs=LENGTHS),
    replace(_LAST, epochs=LENGTHS),
    replace(_PLAIN, name="label smoothing 0.1", label_smoothing=0.1),
    replace(_PLAIN, name="weight decay 0.005", weight_decay=5e-3),
    replace(_LAST, name="Dropout (block_size=1)", block_size=1),
    replace(_LAST, name="SpatialDropout (block as the map)", block_size=WHOLE_MAP),
    replace(_PLAIN, name="DropPath 0.2", drop_path=0.2),
    replace(_LAST, name="DropPath, last stage", where="end", torch_layer="drop path"),
    replace(_VARIANT, name="DropBlock, output of the last stage", where="output"),
    replace(_VARIANT, name="DropBlock, last two stages", stages=(-2, -1)),
    replace(_VARIANT, name="DropBlock, keep_prob 0.95", keep_prob=0.95),
    replace(_VARIANT, name="DropBlock, keep_prob 0.8", keep_prob=0.8),
    replace(_VARIANT, name="DropBlock, block a quarter of the map", block_size=0.25),
    replace(_VARIANT, name="DropBlock, block three quarters of the map", block_size=0.75),
)
PARTS = {"table": TABLE, "sweeps": SWEEPS, "long": LONG}

_DOUBTFUL = Setting("DropBlock")
DOUBTS = (  # of the study of uncertainty
    Setting("none", drops=False, networks=5),
    replace(_DOUBTFUL, name="Dropout", block_size=1),
    replace(_DOUBTFUL, name="SpatialDropout", block_size=WHOLE_MAP),
    _DOUBTFUL,
)
DOUBTS_SWEEP = (  # each differs in one thing from "DropBlock" of DOUBTS
    *(replace(_DOUBTFUL, name=f"DropBlock, keep_prob {keep_prob}", keep_prob=keep_prob) for keep_prob in (0.95, 0.8)),
    replace(_DOUBTFUL, name="DropBlock, block a quarter of the map", block_size=0.25),
    replace(_DOUBTFUL, name="DropBlock, block three quarters of the map", block_size=0.75),
    replace(_DOUBTFUL, name="DropBlock, output of the blocks", where="output"),
)


@dataclass(frozen=True)
class Recipe:
    """A training: SGD with momentum, one cycle of the learning rate, shifted and mirrored images.

    Attributes:
        image_size: height and width in pixels.
        images, test_images: the most images to use, the same number of each class, in an order drawn once.
        autocast: True: bfloat16 by torch.autocast.
    """

    image_size: int
    images: int
    epochs: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 5e-4
    test_images: int = 10_000
    autocast: bool = True


RECIPES = {
    "plain": Recipe(image_size=28, images=500, epochs=60, lr=0.05),
    "resnet": Recipe(image_size=28, images=500, epochs=60, lr=0.1),
    # Depthwise convolutions are slower in bfloat16 on a CPU.
    "lite0": Recipe(96, images=250, epochs=12, lr=0.02, batch_size=32, test_images=1000, autocast=False),
}
RECIPES["lite1"] = RECIPES["lite0"]
RECIPES["lite0-224"] = replace(RECIPES["lite0"], image_size=224)

NETWORK_NAMES = {
    "plain": "plain CNN, from scratch",
    "resnet": "ResNet-14, from scratch",
    "lite0": "EfficientNet-Lite0",
    "lite1": "EfficientNet-Lite1",
    "lite0-224": "EfficientNet-Lite0, 224 pixels",
}


def recipe_of(network: str, part: str) -> Recipe:
    """The recipe; the long fine-tunings are measured with twice as many images as the short ones."""
    return replace(RECIPES[network], test_images=2000) if part == "long" else RECIPES[network]


def applies(network: str, part: str, setting: Setting) -> bool:
    """Whether a network is trained with a setting.

    The long fine-tunings are those of pretrained networks. Only Lite0 with 96 pixels has the short ones too. A network
    without shortcuts has no branches and no DropPath.
    """
    if part == "long" or network in ("lite1", "lite0-224"):
        return part == "long" and network.startswith("lite")
    return network != "plain" or not (setting.drop_path or setting.where == "branch")
