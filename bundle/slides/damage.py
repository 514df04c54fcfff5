"""Slides with tiles that nobody can decode: the rest is read, the damaged place is grey and remembered.

A rectangle that cannot be decoded is read in halves, and these in halves, down to cells of `CELL_PX` on a raster of the
level. So what is grey depends on the rectangle alone, not on what was read before. For damaged cells of a smaller level
the next finer one stands in.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.slides.grid import Box
from bundle.slides.reader import ImageError, ImageReader, SlideFacts

CELL_PX = 64
MARK = (128, 128, 128)  # neither glass nor tissue: a viewer sees that something is missing


class MarkingReader(ImageReader):
    """A reader that goes on where its source cannot be decoded; the source stays the caller's to close.

    Attributes:
        marked: rectangles of level 0 that are grey.
    """

    def __init__(self, source: ImageReader) -> None:
        facts = SlideFacts(source.mpp, source.icc_profile, source.levels, source.background, source.objective)
        super().__init__(source.path, source.shape, facts)
        self.is_slide, self._source = source.is_slide, source
        self.marked: set[Box] = set()
        self._damaged: set[tuple[Box, int]] = set()

    @property
    def files(self) -> list[Path]:
        return self._source.files

    @property
    def tiff_page(self) -> int | None:
        return self._source.tiff_page

    def associated(self, name: str) -> NDArray[np.uint8] | None:
        return self._source.associated(name)

    def damaged(self, box: Box, level: int = 0) -> bool:
        return (box, level) in self._damaged

    def _read(self, box: Box, level: int) -> NDArray[np.uint8]:
        try:
            return self._source.read(*box, level)
        except ImageError:
            self._damaged.add((box, level))
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        parts = [box]
        while parts:
            part = parts.pop()
            target = part.within(box)
            try:
                pixels[target] = self._source.read(*part, level)
            except ImageError:
                halves = _halves(part)
                parts += halves
                if not halves and level == 0:
                    pixels[target] = MARK
                    self.marked.add(part)
                elif not halves:
                    pixels[target] = self._from_finer(part, level)
        return pixels

    def _from_finer(self, part: Box, level: int) -> NDArray[np.uint8]:
        """A rectangle of a level out of the next finer one: grey would not count as tissue in a plan."""
        zoom = self.levels[level].downsample / self.levels[level - 1].downsample
        finer = self.levels[level - 1]
        # The exact window in the finer level's pixels; Pillow weighs the pixels that it cuts.
        top, left = min(part.row * zoom, finer.height - 1), min(part.col * zoom, finer.width - 1)
        bottom, right = min(part.bottom * zoom, finer.height), min(part.right * zoom, finer.width)
        row, col = math.floor(top), math.floor(left)
        pixels = self._read(Box(row, col, math.ceil(bottom) - row, math.ceil(right) - col), level - 1)
        window = (left - col, top - row, right - col, bottom - row)
        small = Image.fromarray(pixels).resize((part.width, part.height), Image.Resampling.BOX, window)
        return np.asarray(small)

    def close(self) -> None:
        self._source.close()


def _halves(box: Box) -> list[Box]:
    """A rectangle cut once along the raster of cells, none where it lies in one cell."""
    row, col = _middle(box.row, box.bottom), _middle(box.col, box.right)
    if row and (box.height >= box.width or not col):
        return [Box(box.row, box.col, row - box.row, box.width), Box(row, box.col, box.bottom - row, box.width)]
    if col:
        return [Box(box.row, box.col, box.height, col - box.col), Box(box.row, col, box.height, box.right - col)]
    return []


def _middle(begin: int, end: int) -> int:
    """The line of the raster inside (begin, end) that is nearest to the middle, 0 where there is none."""
    lines = range((begin // CELL_PX + 1) * CELL_PX, end, CELL_PX)
    return min(lines, key=lambda line: abs(2 * line - begin - end), default=0)
