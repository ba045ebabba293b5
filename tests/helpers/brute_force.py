"""Blocks and the pixels that they cover, by enumeration."""

import itertools

import numpy as np


def seed_positions(map_size, block):
    return list(itertools.product(*(range(size - b + 1) for size, b in zip(map_size, block, strict=True))))


def covered_by(map_size, block):
    """Bool array with a row per seed position and a column per pixel: whether the block covers the pixel."""
    rows = []
    for position in seed_positions(map_size, block):
        pixels = np.zeros(map_size, dtype=bool)
        pixels[tuple(slice(start, start + b) for start, b in zip(position, block, strict=True))] = True
        rows.append(pixels.ravel())
    return np.stack(rows)
