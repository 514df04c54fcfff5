"""Tiles of an image through a network, blended block by block.

Blocks are independent: the same block has the same pixels whichever blocks were made before it, also when the network
rounds otherwise in another batch. So batches are fixed by the grid: tiles of one row that start in the same block and
take the same way. What the block on the left has run already is taken from it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.beside import ReadAhead
from bundle.conventions import from_uint8
from bundle.slide_plan import COPIED, Kind, SlidePlan
from bundle.slides.blend import BlockBlend
from bundle.slides.grid import Box, TileGrid
from bundle.slides.reader import ImageReader


class TileFigures(NamedTuple):
    """What is kept of a tile for the report."""

    defocus_um: float  # NaN where nobody looked
    untouched: float  # share of its pixels
    unreadable: bool = False  # parts of it could not be decoded


class TileResult(NamedTuple):
    """A tile on its way into a block, on the CPU."""

    pixels: Tensor  # (channels, h, w) float32
    figures: TileFigures


# Tiles (B, 3, h, w) in [0, 1], their (row, col), (B, 2), and their kind -> results in the same order.
RunTiles = Callable[[Tensor, Tensor, Kind], list[TileResult]]


Batch = tuple[Box, ...]  # tiles that go through the network together


class MadeBlock(NamedTuple):
    """A block that is ready for its sink."""

    pixels: Tensor  # (channels, h, w), blended
    figures: list[TileFigures]  # of the tiles that start in it


class TileRuns:
    """Makes blocks of one image, from left to right and top to bottom; leaving some out changes nothing.

    Args:
        reader: the image.
        grid: its tiles.
        plan: what each tile needs.
        block_px: side of a block.
        batch: tiles per call of the network.
        device: of the network.
        run: the network.
        channels: of its results.
    """

    def __init__(self, reader: ImageReader, grid: TileGrid, plan: SlidePlan, block_px: int, batch: int,
                 device: torch.device, run: RunTiles, channels: int) -> None:
        self.reader, self.grid, self.plan, self.block_px, self.batch = reader, grid, plan, block_px, batch
        self.device, self.run, self.channels = device, run, channels
        self._kept: dict[Box, TileResult] = {}

    def kind(self, tile: Box) -> Kind:
        """What a tile needs."""
        return Kind(int(self.plan.kinds[self.grid.place(tile)]))

    def is_copy(self, block: Box) -> bool:
        """Whether no tile of a block is changed."""
        return all(self.kind(tile) in COPIED for tile in self.grid.tiles_of(block))

    def own_figures(self, block: Box) -> list[TileFigures]:
        """Figures of the tiles that start in a block that is a copy."""
        return [self._figures_of_copy(tile) for tile in self.own_tiles(block)]

    def own_tiles(self, block: Box) -> list[Box]:
        """Tiles that start in a block."""
        return [tile for tile in self.grid.tiles_of(block) if _starts_in(tile, block)]

    def made(self, blocks: Iterable[Box], note: Callable[[], None]) -> Generator[MadeBlock, None, None]:
        """The blocks, one after the other; their tiles are read while the network is at work on those before.

        Args:
            blocks: of `grid.blocks(block_px)`, in their order.
            note: called after every tile that was run for a block.
        """
        blocks, self._kept = list(blocks), {}
        with ReadAhead(self._pixels, self._batches(blocks)) as ahead:
            for block in blocks:
                yield self._block(block, ahead, note)

    def _batches(self, blocks: Iterable[Box]) -> Iterator[Batch]:
        """What the network is run on, in this order."""
        for tiles in self._tiles_to_run(blocks):
            yield from dict.fromkeys(self._batch_of(tile) for tile in tiles)

    def _tiles_to_run(self, blocks: Iterable[Box]) -> Iterator[list[Box]]:
        """Of every block, the tiles that it does not take from the block on its left."""
        kept: set[Box] = set()
        for block in blocks:
            tiles = [tile for tile in self.grid.tiles_of(block) if self.kind(tile) not in COPIED]
            yield [tile for tile in tiles if tile not in kept]
            kept = {tile for tile in tiles if tile.right > block.right}

    def _block(self, block: Box, ahead: ReadAhead[Batch, NDArray[np.uint8]], note: Callable[[], None]) -> MadeBlock:
        blend, own = BlockBlend(self.grid, block, self.channels), []
        next_kept: dict[Box, TileResult] = {}
        fresh: dict[Box, TileResult] = {}
        for tile in self.grid.tiles_of(block):
            if self.kind(tile) in COPIED:
                result = self._copy(tile)
            else:
                if tile in self._kept:
                    result = self._kept[tile]
                else:
                    if tile not in fresh:
                        batch = self._batch_of(tile)
                        fresh |= self._run_batch(batch, ahead.take(batch))
                    result = fresh.pop(tile)
                    note()
                if tile.right > block.right:
                    next_kept[tile] = result
            blend.add(tile, result.pixels)
            if _starts_in(tile, block):
                own.append(result.figures)
        self._kept = next_kept
        return MadeBlock(blend.result(), own)

    def runs(self, blocks: Iterable[Box]) -> dict[Kind, int]:
        """Runs of the network for these blocks, by kind, in this order."""
        counts = dict.fromkeys(Kind, 0)
        for tiles in self._tiles_to_run(blocks):
            for tile in tiles:
                counts[self.kind(tile)] += 1
        return counts

    def _figures_of_copy(self, tile: Box) -> TileFigures:
        return TileFigures(float(self.plan.defocus_um[self.grid.place(tile)]), 1.0)

    def _copy(self, tile: Box) -> TileResult:
        """The source's pixels; channels beyond its three are 0."""
        pixels, figures = _as_images(self._pixels((tile,)))[0], self._figures_of_copy(tile)
        pixels = torch.cat([pixels, pixels.new_zeros(self.channels - 3, *pixels.shape[1:])])
        return TileResult(pixels, figures._replace(unreadable=self.reader.damaged(tile)))

    def _pixels(self, batch: Batch) -> NDArray[np.uint8]:
        """(B, h, w, 3)."""
        return np.stack([self.reader.read(*tile) for tile in batch])

    def _batch_of(self, tile: Box) -> Batch:
        """The one batch that `tile` belongs to."""
        kind, grid = self.kind(tile), self.grid
        starts = [col for col in grid.cols if col // self.block_px == tile.col // self.block_px]
        row = [Box(tile.row, col, grid.tile_height, grid.tile_width) for col in starts]
        alike = [one for one in row if self.kind(one) == kind]
        first = alike.index(tile) // self.batch * self.batch
        return tuple(alike[first : first + self.batch])

    def _run_batch(self, batch: Batch, pixels: NDArray[np.uint8]) -> dict[Box, TileResult]:
        location = torch.tensor([(one.row, one.col) for one in batch], device=self.device)
        with torch.inference_mode():
            results = self.run(_as_images(pixels).to(self.device), location, self.kind(batch[0]))
        # A tile that is damaged takes its place in the batch, which would round otherwise without it, and is copied.
        return {one: self._copy(one) if self.reader.damaged(one) else result
                for one, result in zip(batch, results, strict=True)}  # fmt: skip


def _as_images(pixels: NDArray[np.uint8]) -> Tensor:
    """(B, h, w, 3) -> (B, 3, h, w) in [0, 1]."""
    return from_uint8(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


def _starts_in(tile: Box, block: Box) -> bool:
    return block.row <= tile.row < block.bottom and block.col <= tile.col < block.right
