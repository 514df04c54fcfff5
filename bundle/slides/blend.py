"""Tiles become one block again: a feathered mean, in the same order whatever the block.

    w(p)    weight of a tile at its pixel p, 0 < w <= 1: product of a row ramp and a column ramp
    block   sum(w * tile) / sum(w) over the tiles that touch it, summed row by row of the grid

A pixel's tiles, their weights and their order depend on the image's grid alone. Hence every block size gives the
same pixels to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bundle.slides.grid import Box, TileGrid


def _ramp(begin: int, length: int, image_length: int, overlap_px: int) -> Tensor:
    """Weights along one axis, (length,): rises and falls over the overlap, flat at the image's own border."""
    weight = torch.ones(length)
    # Half-pixel steps: two neighbours sum to 1, and no pixel of a tile weighs nothing.
    rise = (torch.arange(overlap_px, dtype=torch.float32) + 0.5) / max(overlap_px, 1)
    rise = rise[:length]
    if begin > 0:
        weight[: len(rise)] = rise
    if begin + length < image_length:
        weight[length - len(rise) :] = torch.minimum(weight[length - len(rise) :], rise.flip(0))
    return weight


def tile_weight(grid: TileGrid, tile: Box) -> Tensor:
    """How much a tile counts at each of its pixels, (height, width) in (0, 1]."""
    rows = _ramp(tile.row, tile.height, grid.height, grid.overlap_px)
    cols = _ramp(tile.col, tile.width, grid.width, grid.overlap_px)
    return rows[:, None] * cols[None, :]


class BlockBlend:
    """The pixels of one block, gathered from its tiles.

    Args:
        grid: the image's grid.
        block: the rectangle to fill.
        channels: of the tiles.
    """

    def __init__(self, grid: TileGrid, block: Box, channels: int = 3) -> None:
        self.grid, self.block = grid, block
        self._awaited = grid.tiles_of(block)[::-1]
        self._sum = torch.zeros(channels, block.height, block.width)
        self._weight = torch.zeros(block.height, block.width)

    def add(self, tile: Box, pixels: Tensor) -> None:
        """Add one tile; tiles come in the order of `grid.tiles_of(block)`.

        Args:
            tile: where it lies.
            pixels: (channels, tile.height, tile.width) float32.

        Raises:
            ValueError: another tile is due: floating sums depend on their order; or the pixels do not fit the tile.
        """
        if not self._awaited or tile != self._awaited[-1]:
            due = tuple(self._awaited[-1]) if self._awaited else "none"
            raise ValueError(f"tiles must be added in the grid's order: due is {due}, got {tuple(tile)}.")
        if pixels.shape != (self._sum.shape[0], tile.height, tile.width):
            expected = (self._sum.shape[0], tile.height, tile.width)
            raise ValueError(f"pixels must have the tile's shape {expected}, got {tuple(pixels.shape)}.")
        self._awaited.pop()
        shared = tile.overlap(self.block)
        rows, cols = shared.within(tile)
        weight = tile_weight(self.grid, tile)[rows, cols]
        target = shared.within(self.block)
        # Multiplied, then added: a fused operation could round differently at another block's width.
        self._sum[:, *target] += weight * pixels[:, rows, cols].float()
        self._weight[target] += weight

    def result(self) -> Tensor:
        """The blended block, (channels, height, width) float32.

        Raises:
            ValueError: tiles are missing.
        """
        if self._awaited:
            raise ValueError(
                f"every tile of a block must be added before reading it, {len(self._awaited)} are missing."
            )
        return self._sum / self._weight
