"""``dropblock-inject show``: the feature maps of a picture, and what three ways of dropping leave of them."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..plot import plot_feature_maps
from .arguments import options_of
from .features import features_of
from .models import build_model, load_weights, source_of, title_of


def run(arguments: Namespace) -> tuple[str, Any, str]:
    source, remark = source_of(arguments.model)
    model = build_model(source, pretrained=arguments.pretrained)
    if arguments.checkpoint:
        load_weights(model, arguments.checkpoint)
    picture, features, layer = features_of(model, arguments.picture, arguments.layer, arguments.image_size)
    trained = arguments.pretrained or arguments.checkpoint or ".py:" in arguments.model
    title = f"{layer} of {title_of(source)}" + ("" if trained else ", random weights")
    figure = plot_feature_maps(picture, features, title=title, **options_of(plot_feature_maps, arguments))
    return (
        "" if trained else "its weights are random; give --pretrained or --checkpoint FILE for trained ones",
        figure,
        remark,
    )
