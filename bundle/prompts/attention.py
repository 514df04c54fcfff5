"""Attention and feed-forward over tokens, within one image; never across the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of (B, N, D) queries to (B, M, K) context; self-attention where they are the same."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}.")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """(B, N, D), (B, M, K) -> (B, N, D)."""
        batch, count, width = tokens.shape
        query = self.query(tokens).view(batch, count, self.heads, -1).transpose(1, 2)
        key, value = self.key_value(context).view(batch, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).reshape(batch, count, width))


def feed_forward(width: int, expansion: int = 4) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))


def position_encoding(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """Fixed sine-cosine positions of a grid of tokens, (rows * columns, width): any tile size works untrained."""
    frequencies = 1e-2 ** torch.linspace(0, 1, width // 4, device=like.device, dtype=like.dtype)
    row = torch.arange(rows, device=like.device, dtype=like.dtype)[:, None] * frequencies
    column = torch.arange(columns, device=like.device, dtype=like.dtype)[:, None] * frequencies
    row, column = torch.cat([row.sin(), row.cos()], 1), torch.cat([column.sin(), column.cos()], 1)
    grid = torch.cat([row[:, None].expand(rows, columns, -1), column[None].expand(rows, columns, -1)], 2)
    return grid.reshape(rows * columns, width)
