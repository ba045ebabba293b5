"""Compiles the Triton kernels for two GPUs, without one and without the interpreter. A test runs this script."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dropblock_inject.ops import triton_kernels as kernels

POINTERS = {"words_ptr": "*i32", "dropped_ptr": "*i64", "seed_ptr": "*i64"}
DRAWN = {"VALID_D": 1, "VALID_H": 8, "VALID_W": 8, "BLOCK_D": 1, "BLOCK_H": 7, "BLOCK_W": 7}
DRAWN |= {"HEIGHT": 14, "WIDTH": 14, "SPAN": 2, "PER_SAMPLE": False, "MAPS": 128}
MASKED = {"CHANNELS": 1024, "PIXELS": 196, "WORDS": 7}


def compile_for(target, kernel, types, constants):
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    binary = triton.compile(source, target=target).asm
    print(kernel.__name__, target.arch, len(binary["cubin"]))


for capability, half in ((75, "fp16"), (90, "bf16")):
    gpu = GPUTarget("cuda", capability, 32)
    compile_for(gpu, kernels._draw_kernel, {**POINTERS, "per_miss": "fp32"}, DRAWN)
    for dtype, scale in ((half, "fp32"), ("fp64", "fp64")):
        types = {**POINTERS, "input_ptr": f"*{dtype}", "output_ptr": f"*{dtype}", "scale_ptr": f"*{scale}"}
        for per_channel in (True, False):
            options = {**MASKED, "PER_CHANNEL": per_channel, "PER_SAMPLE": not per_channel}
            compile_for(gpu, kernels._mask_channels_first_kernel, types, {**options, "ELEMENTS": 4096})
            compile_for(gpu, kernels._mask_channels_last_kernel, types, {**options, "BLOCK": 128})
