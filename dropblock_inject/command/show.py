"""``dropblock-inject show``: the feature maps of a picture, and what three ways of dropping leave of them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from ..plot import plot_feature_maps
from .arguments import MODEL, CommandParser, integer, options_of, pixels_or_share
from .features import features_of
from .models import build_model, load_weights


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("picture", type=Path, help="an image file")
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--pretrained", action="store_true", help="download the library's weights")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights: a state dict")
    help = "the layer whose output is shown (the last block of the last stage but one)"
    parser.add_argument("--layer", metavar="NAME", help=help)
    for name, help, type in (
        ("channels", "1 to 16 maps", integer(1, 16)),
        ("seed", "of the random numbers", integer(0)),
        ("block_size", "pixels, or a share of the map", pixels_or_share),
    ):
        parser.add_option(plot_feature_maps, name, help, type=type, metavar="N")
    parser.add_option(plot_feature_maps, "keep_prob", "share of the map to keep", type=float, metavar="P")
    parser.add_image_size()
    parser.add_output(required=True)


def run(arguments: Namespace) -> tuple[str, Any]:
    model = build_model(arguments.model, pretrained=arguments.pretrained)
    if arguments.checkpoint:
        load_weights(model, arguments.checkpoint)
    picture, features, layer = features_of(model, arguments.picture, arguments.layer, arguments.image_size)
    title = f"{layer} of {arguments.model.rpartition(':')[2]}"
    figure = plot_feature_maps(picture, features, title=title, **options_of(plot_feature_maps, arguments))
    trained = arguments.pretrained or arguments.checkpoint or ".py:" in arguments.model
    return "" if trained else "its weights are random; give --pretrained or --checkpoint FILE for trained ones", figure
