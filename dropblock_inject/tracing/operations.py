"""What kinds of operations there are, by their names in torch's operator set."""

_ACTIVATIONS = (
    *("celu", "clamp", "clamp_max", "clamp_min", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish"),
    *("_prelu_kernel", "prelu", "relu", "relu6", "rrelu_with_noise", "selu", "silu", "softplus", "tanh", "threshold"),
    *("log_sigmoid", "log_sigmoid_forward"),
)
_ATTENTION = (
    "_safe_softmax",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_attention",
)
# Activations that put out values in [0, 1]: what they end is a gate on a feature map, not a feature map.
GATES = frozenset(("_softmax", "hardsigmoid", "sigmoid", "softmax"))
NONLINEAR = GATES.union(_ACTIVATIONS, _ATTENTION)
# Activations f with f(c * x) = c * f(x) for c > 0: a mask and its scale may as well stand before them.
HOMOGENEOUS = frozenset(("_prelu_kernel", "leaky_relu", "prelu", "relu"))
# Operations of which the backward pass needs the output.
SAVES_OUTPUT = frozenset(("_safe_softmax", "_softmax", "exp", "relu", "rsqrt", "sigmoid", "softmax", "sqrt", "tanh"))
# Functions of each pixel; activations that are written by hand consist of them.
CURVED = (NONLINEAR - {"_softmax", "softmax", *_ATTENTION}).union(
    ("abs", "atan", "cos", "erf", "exp", "expm1", "log", "log1p", "masked_fill", "maximum", "minimum", "pow"),
    ("reciprocal", "rsqrt", "sign", "sin", "sqrt", "where"),
)
# Of these the ones that no normalisation consists of.
BENT = CURVED - {"abs", "pow", "reciprocal", "rsqrt", "sqrt"}
PRODUCTS = frozenset(("div", "mul"))
POINTWISE = CURVED.union(PRODUCTS, ("_to_copy", "add", "alias", "clone", "contiguous", "detach", "ge", "gt", "le"))
POINTWISE |= {"lt", "neg", "rsub", "sub"}
WEIGHTED = frozenset(("addmm", "baddbmm", "bmm", "convolution", "mm"))
NORMS = frozenset(
    (
        *("_batch_norm_no_update", "_batch_norm_with_update", "_native_batch_norm_legit_no_training"),
        *("cudnn_batch_norm", "native_batch_norm", "native_group_norm", "native_layer_norm", "_fused_rms_norm"),
    )
)
SAME_VALUES = frozenset(("_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh"))
# The same numbers in another order of the axes.
MOVES = frozenset(("permute", "transpose"))
RESHAPES = frozenset(("_unsafe_view", "view"))
SLICES = frozenset(("index_select", "narrow", "select", "slice", "split", "split_with_sizes", "unbind", "unsafe_split"))
POOLS = frozenset(("avg_pool2d", "avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices"))
# Paddings: they change the size of a map, not its resolution.
PADS = frozenset(
    ("constant_pad_nd", *(f"{kind}_pad{axes}d" for kind in ("reflection", "replication") for axes in "123"))
)
RESAMPLES = frozenset(
    f"upsample_{how}"
    for how in ("bicubic2d", "bilinear2d", "linear1d", "nearest1d", "nearest2d", "nearest3d", "trilinear3d")
) | {"_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d"}
# Operations that raise the resolution of a map, or may; a transposed convolution does so too.
UPSAMPLES = RESAMPLES | {"max_unpool2d", "max_unpool3d", "pixel_shuffle"}
# Poolings to a number of pixels that is fixed beforehand.
GRIDS = frozenset(
    (
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
    )
)
# Operations between maps of different size, of which the sizes tell how their resolutions are related.
RESIZES = RESAMPLES | {
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "convolution",
    "grid_sampler_2d",
    "grid_sampler_3d",
    "max_unpool2d",
    "max_unpool3d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "slice",
}
