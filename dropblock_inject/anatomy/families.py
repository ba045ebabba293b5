"""What no trace can tell: where the trunk of some networks is.

The walker goes by data flow alone. These few networks have nothing in their data flow that would tell their trunk from
what is none elsewhere, so that it is written down here: by the name of the class, the children that are the trunk.
"""

# What else is in a module of that class is no trunk.
TRUNKS: dict[str, tuple[str, ...]] = {
    # VGG-16, then layers at ever lower resolutions, each with a detector of its own: a pyramid built like a trunk.
    "SSD": ("backbone",),  # torchvision
    "SSDFeatureExtractorVGG": ("features", "extra.0"),
    # Besides its blocks a stage makes a small summary of the image for them to ask.
    "GlobalContextVitStage": ("downsample", "blocks"),  # timm
    # A loop that refines a flow field by adding to it at the resolution of the trunk.
    "RAFT": ("feature_encoder", "context_encoder"),  # torchvision
}
# Hybrids of which the convolutions may all stand in front of the tokens. In transformers such as XCiT or Volo the same
# is a patch embedding and no trunk; here it is one for want of another.
EMBEDDINGS: dict[str, tuple[str, ...]] = {
    "HybridEmbed": ("backbone",),  # timm: vision transformers on a convolutional network
    "Levit": ("stem",),  # timm
    "LevitDistilled": ("stem",),
}
