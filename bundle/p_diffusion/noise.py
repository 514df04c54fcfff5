"""Noise tied to the slide's coordinates: a pixel's noise depends on where it is, not on the tile that covers it.

    noise[c, row, col] = Box-Muller(hash(seed, draw, channel, row, col))

Overlapping tiles see the same noise and blend without a seam; no tile depends on its batch or its turn. The hash is
the finaliser of MurmurHash3 (public domain) in 32-bit integer arithmetic, so every device draws the same integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mixed(x: Tensor) -> Tensor:
    """MurmurHash3's finaliser on the low 32 bits of int64; products wrap, their low bits are right."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def _uniform(key: Tensor) -> Tensor:
    """Integers of 32 bits -> floats in (0, 1)."""
    return ((_mixed(key) >> 8).float() + 0.5) / 2**24


def noise_at(location: Tensor, height: int, width: int, seed: int, draw: int, channels: int = 3) -> Tensor:
    """Standard normal noise of tiles.

    Args:
        location: (row, col) of each tile's upper left pixel in the slide, (B, 2) int64.
        height, width: of a tile, px.
        seed: of the field.
        draw: which field: the start and every step of a chain have their own.
        channels: of an image.

    Returns:
        (B, channels, height, width) float32.
    """
    device = location.device
    rows = location[:, 0].view(-1, 1, 1, 1) + torch.arange(height, device=device).view(1, 1, -1, 1)
    columns = location[:, 1].view(-1, 1, 1, 1) + torch.arange(width, device=device).view(1, 1, 1, -1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    stream = _mixed(torch.tensor((seed * 0x9E3779B1 + draw * 0x7F4A7C15 + 0x165667B1) & _MASK, device=device))
    key = _mixed((stream + channel * 0x27D4EB2F) & _MASK)
    key = _mixed(key ^ ((rows * 0x9E3779B1) & _MASK))
    key = _mixed(key ^ ((columns * 0x85EBCA77) & _MASK))
    radius = (-2 * _uniform(key ^ 0x2545F491).log()).sqrt()
    return radius * (2 * math.pi * _uniform(key ^ 0x68E31DA4)).cos()
