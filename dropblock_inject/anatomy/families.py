"""The networks whose trunk is listed by name.

The data flow of these networks does not show which part is the trunk, so we list it here: for the name of a class, the
children that are the trunk. For all other networks the walker goes by the data flow alone.
"""

# The other children of a module of that class are not part of the trunk.
TRUNKS: dict[str, tuple[str, ...]] = {
    # VGG-16, then layers at ever lower resolutions, each with a detector of its own: a pyramid built like a trunk.
    "SSD": ("backbone",),  # torchvision
    "SSDFeatureExtractorVGG": ("features", "extra.0"),
    # Besides its blocks, a stage computes a small summary of the image that the blocks attend to.
    "GlobalContextVitStage": ("downsample", "blocks"),  # timm
    # A loop that refines a flow field by adding to it at the resolution of the trunk.
    "RAFT": ("feature_encoder", "context_encoder"),  # torchvision
}
# Hybrids whose convolutions may all come before the tokens. They are the trunk because there is no other. In a
# transformer such as XCiT or Volo the same convolutions are a patch embedding.
EMBEDDINGS: dict[str, tuple[str, ...]] = {
    "HybridEmbed": ("backbone",),  # timm: vision transformers on a convolutional network
    "Levit": ("stem",),  # timm
    "LevitDistilled": ("stem",),
}
