"""Restore an image of any size: blocks of it, tiles of a block, one block of memory.

    image --TileGrid--> tiles --tile restorer--> tiles --BlockBlend--> block --sink--> image

Blocks only bound the memory. The tiles belong to the image's grid, and each one is told where it lies, so the pixels
are the same whatever the block size.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bundle.conventions import from_uint8, to_uint8
from bundle.slides.blend import BlockBlend
from bundle.slides.grid import Box, TileGrid
from bundle.slides.reader import ImageReader
from bundle.slides.writer import ImageSink

if TYPE_CHECKING:
    from bundle.restoration import TileRestorer

FOCUS_MAP_SIDE_PX = 2048  # a focus map is averaged down to at most this many values a side

Progress = Callable[[int, int], None]  # tiles done, tiles in all


class SlideReport(NamedTuple):
    """What became of one image; every tile of the grid counts once."""

    height: int
    width: int
    tiles: int
    untouched: float  # share of pixels that left as they came: in focus and skipped
    mean_defocus_um: float  # mean of |defocus| over the tiles, µm
    seconds: float


class FocusMap(NamedTuple):
    """Signed distance to best focus over an image."""

    defocus_um: NDArray[np.float32]  # (ceil(H / scale), ceil(W / scale)), µm
    scale: int  # image pixels per value, along each side


class TileFigures(NamedTuple):
    """What is kept of a tile for the report."""

    defocus_um: float
    untouched: float  # share of its pixels


class TileResult(NamedTuple):
    """A tile on its way into a block, on the CPU."""

    pixels: Tensor  # (channels, h, w) float32
    figures: TileFigures


# Tiles (B, 3, h, w) in [0, 1] and their (row, col), (B, 2) -> results in the same order.
RunTiles = Callable[[Tensor, Tensor], list[TileResult]]


class SlideRestorer:
    """Runs a tile restorer over an image.

    Args:
        tile_restorer: network of one tile, on its device and with its options set.
        tile_px: side of a tile; an image with a shorter side gets tiles of that side.
        overlap_px: px shared by neighbours and feathered, 0..tile_px / 2.
        block_px: side of a block; only memory (about 50 bytes a pixel) and time depend on it: tiles on a block's lower
            edge are restored twice, 10 % of all at 2048 px, 20 % at 1024.
        batch: tiles per call of the network.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        tile_restorer: TileRestorer,
        tile_px: int = 256,
        overlap_px: int = 64,
        block_px: int = 2048,
        batch: int = 1,
    ) -> None:
        if batch < 1 or block_px < 1:
            raise ValueError(f"batch and block_px must be positive, got {batch} and {block_px}.")
        TileGrid(1, 1, tile_px, overlap_px)  # states its rules before any image is opened
        self.tile_restorer, self.batch = tile_restorer, batch
        self.tile_px, self.overlap_px, self.block_px = tile_px, overlap_px, block_px
        held = next(itertools.chain(tile_restorer.parameters(), tile_restorer.buffers()), torch.zeros(()))
        self.device = held.device

    def restore(self, reader: ImageReader, sink: ImageSink, progress: Progress | None = None) -> SlideReport:
        """Restore `reader` into `sink`, block by block; the caller closes both.

        Args:
            reader: the image.
            sink: takes the restored blocks.
            progress: called after every tile.
        """
        started = time.perf_counter()
        grid = self._grid(reader)
        stride = self.tile_px - self.overlap_px
        # Block edges on tile starts: a block then shares one row of tiles with the next instead of two.
        block_px = max(1, self.block_px // stride) * stride
        distances: list[float] = []
        untouched: list[float] = []
        for block, pixels, figures in self._blocks(reader, grid, block_px, self._run_restorer, 3, progress):
            sink.write(block.row, block.col, to_uint8(pixels).permute(1, 2, 0).contiguous().numpy())
            distances += [abs(tile.defocus_um) for tile in figures]
            untouched += [tile.untouched for tile in figures]
        seconds = time.perf_counter() - started
        return SlideReport(*reader.shape, len(grid), float(np.mean(untouched)), float(np.mean(distances)), seconds)

    def focus_map(self, reader: ImageReader, progress: Progress | None = None) -> FocusMap:
        """Signed focus map of the whole image by the defocus estimator alone, feathered like the pixels.

        Averaged down by a whole factor so that neither side has more than `FOCUS_MAP_SIDE_PX` values.
        """
        grid = self._grid(reader)
        scale = math.ceil(max(reader.shape) / FOCUS_MAP_SIDE_PX)
        height, width = (math.ceil(side / scale) for side in reader.shape)
        defocus_um = np.empty((height, width), np.float32)
        block_px = max(1, self.block_px // scale) * scale  # no value straddles two blocks
        for block, pixels, _ in self._blocks(reader, grid, block_px, self._run_estimator, 1, progress):
            coarse = functional.avg_pool2d(pixels, scale, ceil_mode=True)[0]
            row, col = block.row // scale, block.col // scale
            defocus_um[row : row + coarse.shape[0], col : col + coarse.shape[1]] = coarse.numpy()
        return FocusMap(defocus_um, scale)

    def _grid(self, reader: ImageReader) -> TileGrid:
        return TileGrid(*reader.shape, self.tile_px, self.overlap_px)

    def _run_restorer(self, image: Tensor, location: Tensor) -> list[TileResult]:
        restoration = self.tile_restorer.restore(image, location)
        distances = restoration.defocus_um.tolist()
        results = []
        for source, restored, distance in zip(image, restoration.restored, distances, strict=True):
            # Copied to a tensor of its own: a kept view would hold the whole batch.
            pixels = restored.float().cpu().clone()
            untouched = float((restored == source).all(0).float().mean())
            results.append(TileResult(pixels, TileFigures(distance, untouched)))
        return results

    def _run_estimator(self, image: Tensor, location: Tensor) -> list[TileResult]:
        del location  # the estimator draws no noise
        maps = self.tile_restorer.prompter.estimator.focus_map(image).float().cpu()
        return [TileResult(one.clone(), TileFigures(float(one.mean()), 0.0)) for one in maps]

    def _blocks(
        self,
        reader: ImageReader,
        grid: TileGrid,
        block_px: int,
        run: RunTiles,
        channels: int,
        progress: Progress | None,
    ) -> Iterator[tuple[Box, Tensor, list[TileFigures]]]:
        """Every block with its blended pixels and the figures of the tiles that start in it."""
        total, done = _tiles_to_run(grid, block_px), 0
        kept: dict[Box, TileResult] = {}
        for block in grid.blocks(block_px):
            tiles = grid.tiles_of(block)
            fresh = self._run(reader, [tile for tile in tiles if tile not in kept], run)
            blend, own, next_kept = BlockBlend(grid, block, channels), [], {}
            for tile in tiles:
                if tile in kept:
                    result = kept[tile]
                else:
                    result, done = next(fresh), done + 1
                blend.add(tile, result.pixels)
                if tile.row >= block.row and tile.col >= block.col:
                    own.append(result.figures)
                if tile.right > block.right:
                    next_kept[tile] = result
                if progress is not None:
                    progress(done, total)
            yield block, blend.result(), own
            kept = next_kept

    def _run(self, reader: ImageReader, tiles: list[Box], run: RunTiles) -> Iterator[TileResult]:
        """Results of `tiles`, in their order, `batch` at a time."""
        for first in range(0, len(tiles), self.batch):
            batch = tiles[first : first + self.batch]
            pixels = torch.stack([torch.from_numpy(reader.read(*tile)).permute(2, 0, 1) for tile in batch])
            location = torch.tensor([(tile.row, tile.col) for tile in batch], device=self.device)
            with torch.inference_mode():
                results = run(from_uint8(pixels.contiguous().to(self.device)), location)
            yield from results


def _tiles_to_run(grid: TileGrid, block_px: int) -> int:
    """Runs of the network over an image: tiles at the right edge of a block are kept for the next one."""
    count, kept = 0, set[Box]()
    for block in grid.blocks(block_px):
        tiles = grid.tiles_of(block)
        count += sum(tile not in kept for tile in tiles)
        kept = {tile for tile in tiles if tile.right > block.right}
    return count
