"""One look over a restored slide: thumbnails, what changed where, and the distance to focus before and after.

    source, result --block by block--> thumbnails, mean change of every cell
                   --some tiles------> the estimator's word before and after

Blocks that are copies are not read again; the others are read once more from the source and from the finished work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bundle.conventions import from_uint8
from bundle.progress import Progress
from bundle.slide_plan import COPIED, Kind, MapsFocus, SlidePlan
from bundle.slides.grid import Box, TileGrid

THUMBNAIL_PX = 900  # longer side
CELL_PX = 64  # side of the squares whose change is measured
PROBES = 200  # tiles that the estimator looks at before and after, at most


class Readable(Protocol):
    """Gives rectangles of level 0."""

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        """Pixels, (height, width, 3)."""


class Source(Readable, Protocol):
    """The image that was restored."""

    def read_scaled(self, box: Box, downsample: float) -> NDArray[np.uint8]:
        """A rectangle made smaller."""


class Survey(NamedTuple):
    """What was seen."""

    before: NDArray[np.uint8]  # thumbnail of the source, (h, w, 3)
    after: NDArray[np.uint8]  # thumbnail of the result, of the same size
    scale: float  # px of the slide per px of a thumbnail
    change: NDArray[np.float32]  # mean |after - before| of every cell, grey levels of 255, (H / CELL_PX, W / CELL_PX)
    before_um: NDArray[np.float32]  # signed defocus by tile rows and columns, NaN off the tissue
    after_um: NDArray[np.float32]
    probed: int  # tiles that the estimator looked at; the others take the nearest one's word


def survey(source: Source, made: Readable, grid: TileGrid, plan: SlidePlan, block_px: int,
           estimator: MapsFocus, device: torch.device,
           progress: Progress | None = None) -> Survey:  # fmt: skip
    """Look over a finished restoration.

    Args:
        source: the image.
        made: the result.
        grid: of the image.
        plan: that was followed.
        block_px: side of the blocks that were restored at once.
        estimator: D_φ.
        device: of the estimator.
        progress: told of every tile that the estimator looks at, before and after.
    """
    scale = max(1.0, max(grid.height, grid.width) / THUMBNAIL_PX)
    before = source.read_scaled(grid.image, scale)
    after = before.copy()
    change = np.zeros((math.ceil(grid.height / CELL_PX), math.ceil(grid.width / CELL_PX)), np.float64)
    for block in grid.blocks(block_px):
        if all(Kind(int(plan.kinds[grid.place(tile)])) in COPIED for tile in grid.tiles_of(block)):
            continue
        old, new = source.read(*block), made.read(*block)
        _paste(after, new, block, scale)
        _add_change(change, np.abs(new.astype(np.int16) - old).mean(axis=2), block)
    rows, cols = (np.minimum(CELL_PX, length - CELL_PX * np.arange(count))
                  for length, count in zip(grid.image[2:], change.shape, strict=True))  # fmt: skip
    means = (change / rows[:, None] / cols[None, :]).astype(np.float32)
    tissue = plan.kinds != Kind.BACKGROUND
    probes = _probes(tissue)
    looked_at = itertools.count(1)

    def note() -> None:
        if progress is not None:
            progress(next(looked_at), 2 * len(probes))

    before_um = _estimated(source, grid, probes, tissue, estimator, device, note)
    after_um = _estimated(made, grid, probes, tissue, estimator, device, note)
    return Survey(before, after, scale, means, before_um, after_um, len(probes))


def _paste(thumbnail: NDArray[np.uint8], pixels: NDArray[np.uint8], block: Box, scale: float) -> None:
    top, left = round(block.row / scale), round(block.col / scale)
    bottom = min(max(top + 1, round(block.bottom / scale)), thumbnail.shape[0])
    right = min(max(left + 1, round(block.right / scale)), thumbnail.shape[1])
    if bottom > top and right > left:
        small = Image.fromarray(pixels).resize((right - left, bottom - top), Image.Resampling.BOX)
        thumbnail[top:bottom, left:right] = np.asarray(small)


def _add_change(change: NDArray[np.float64], difference: NDArray[np.float64], block: Box) -> None:
    """Add the sums over cells; a cell that two blocks share gets both."""
    rows = (block.row + np.arange(block.height)) // CELL_PX
    cols = (block.col + np.arange(block.width)) // CELL_PX
    by_row = np.add.reduceat(difference, np.flatnonzero(np.diff(rows, prepend=-1)), axis=0)
    by_cell = np.add.reduceat(by_row, np.flatnonzero(np.diff(cols, prepend=-1)), axis=1)
    change[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] += by_cell


def _probes(tissue: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """At most `PROBES` tissue tiles, evenly among all in reading order."""
    places = np.argwhere(tissue)
    chosen = np.unique(np.linspace(0, len(places) - 1, min(PROBES, len(places))).round().astype(int))
    return [(int(i), int(j)) for i, j in places[chosen]]


def _estimated(image: Readable, grid: TileGrid, probes: list[tuple[int, int]], tissue: NDArray[np.bool_],
               estimator: MapsFocus, device: torch.device, note: Callable[[], None]) -> NDArray[np.float32]:
    known = np.full(tissue.shape, np.nan, np.float32)
    for i, j in probes:
        pixels = image.read(grid.rows[i], grid.cols[j], grid.tile_height, grid.tile_width)
        tile = from_uint8(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].contiguous())
        with torch.inference_mode():
            known[i, j] = float(estimator.focus_map(tile.to(device)).mean())
        note()
    nearest = ndimage.distance_transform_edt(np.isnan(known), return_distances=False, return_indices=True)
    return np.where(tissue, known[tuple(nearest)], np.float32(np.nan)).astype(np.float32)
