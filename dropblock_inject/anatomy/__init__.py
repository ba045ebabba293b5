"""A trace read as a network: feature maps, residual adds, convolution units, blocks, the trunk, its stages.

May import: tracing, errors.
"""
