"""The parts of a Restormer block: layer norm over channels, MDTA, and changes of resolution.

Source: Zamir et al. 2022, Restormer, equations 1 and 2; written from the paper.
    x       features                                    (B, C, H, W)
    MDTA    multi-Dconv head transposed attention: attention among channels, its cost linear in pixels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        pixels = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return pixels.permute(0, 3, 1, 2)


class Mdta(nn.Module):
    """Multi-Dconv head transposed attention: softmax(q kᵀ · temperature) v, q and k unit vectors along the pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels must be a multiple of heads, got {channels} and {heads}.")
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, channels * 3, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(channels * 3, channels * 3, 3, padding=1, groups=channels * 3, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        # Channels stay beside each other, as the convolutions around leave them: nothing is copied.
        qkv = self.qkv_dwconv(self.qkv(x)).permute(0, 2, 3, 1)
        qkv = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, H W, C/heads) each
        # Unit vectors as functional.normalize makes them, norms below 1e-12 count as that; faster in this layout.
        query, key = (one * one.square().sum(-2, keepdim=True).clamp_min(1e-24).rsqrt() for one in (query, key))
        attention = (query.transpose(-2, -1) @ key * self.temperature).softmax(-1)  # (B, heads, C/heads, C/heads)
        mixed = (value @ attention.transpose(-2, -1)).transpose(1, 2).reshape(batch, height, width, channels)
        return self.project_out(mixed.permute(0, 3, 1, 2))


class Downsample(nn.Module):
    """Halves the size and doubles the channels: 3x3 convolution, then pixel-unshuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 C, H / 2, W / 2)."""
        return self.body(x)


class Upsample(nn.Module):
    """Doubles the size and halves the channels: 3x3 convolution, then pixel-shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C / 2, 2 H, 2 W)."""
        return self.body(x)
