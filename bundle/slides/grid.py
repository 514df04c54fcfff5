"""Where the tiles of an image lie: pure geometry, no pixels.

The grid is one for the whole image, so that any rectangle of it can be restored on its own and gets the same tiles.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of an image, px; `bottom` and `right` are exclusive."""

    row: int
    col: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.row + self.height

    @property
    def right(self) -> int:
        return self.col + self.width

    def overlap(self, other: Box) -> Box:
        """The rectangle that both cover; height or width is 0 where they do not touch."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height, width = min(self.bottom, other.bottom) - row, min(self.right, other.right) - col
        return Box(row, col, max(height, 0), max(width, 0))

    def within(self, outer: Box) -> tuple[slice, slice]:
        """This box as slices of an array that holds the pixels of `outer`."""
        row, col = self.row - outer.row, self.col - outer.col
        return slice(row, row + self.height), slice(col, col + self.width)


def centred(side_px: int, crop_px: int) -> tuple[int, int]:
    """First pixel and length of the middle of a side: at most `crop_px` of it, all of it where that is 0."""
    length = min(side_px, crop_px) if crop_px else side_px
    return (side_px - length) // 2, length


class TileGrid:
    """The tiles of an image of `height` x `width` px.

    All tiles of one image have the same size: `tile_px` square, or the image's own side where that is shorter.

    Args:
        height: px, positive.
        width: px, positive.
        tile_px: side of a tile, positive.
        overlap_px: px shared by neighbouring tiles, 0..tile_px / 2; the last two of a row share more.

    Attributes:
        rows, cols: where tiles begin, px, rising.

    Raises:
        ValueError: a size is not positive or the overlap is out of range.
    """

    def __init__(self, height: int, width: int, tile_px: int = 256, overlap_px: int = 64) -> None:
        if height < 1 or width < 1:
            raise ValueError(f"an image must have at least 1 x 1 px, got {height} x {width}.")
        if tile_px < 1:
            raise ValueError(f"tile_px must be positive, got {tile_px}.")
        if not 0 <= overlap_px <= tile_px // 2:
            raise ValueError(f"overlap_px must lie in 0..tile_px / 2 = 0..{tile_px // 2}, got {overlap_px}.")
        self.height, self.width = height, width
        self.overlap_px = overlap_px
        self.stride_px = tile_px - overlap_px
        self.tile_height, self.tile_width = min(tile_px, height), min(tile_px, width)
        self.rows = self._starts(height, tile_px)
        self.cols = self._starts(width, tile_px)

    def _starts(self, length: int, tile_px: int) -> list[int]:
        if length <= tile_px:
            return [0]
        # The last tile is moved back inside the image instead of padded past it:
        # invented pixels would reach the network as tissue.
        return [*range(0, length - tile_px, self.stride_px), length - tile_px]

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    @property
    def image(self) -> Box:
        """The whole image."""
        return Box(0, 0, self.height, self.width)

    def place(self, tile: Box) -> tuple[int, int]:
        """Which row and which column of tiles a tile lies in.

        Raises:
            ValueError: no tile of this grid starts there.
        """
        row, col = bisect_left(self.rows, tile.row), bisect_left(self.cols, tile.col)
        if self.rows[row : row + 1] != [tile.row] or self.cols[col : col + 1] != [tile.col]:
            raise ValueError(f"a tile must be one of the grid's, got {tuple(tile)}.")
        return row, col

    def some(self, most: int) -> list[Box]:
        """At most so many tiles, evenly among all in reading order."""
        count = min(most, len(self))
        chosen = (k * (len(self) - 1) // max(1, count - 1) for k in range(count))
        places = (divmod(k, len(self.cols)) for k in chosen)
        return [Box(self.rows[row], self.cols[col], self.tile_height, self.tile_width) for row, col in places]

    def tiles_of(self, block: Box) -> list[Box]:
        """Every tile that touches `block`, row by row.

        Raises:
            ValueError: `block` is empty or reaches outside the image.
        """
        if block.overlap(self.image) != block or 0 in (block.height, block.width):
            raise ValueError(f"a block must lie inside the {self.height} x {self.width} px image, got {tuple(block)}.")
        rows = _touching(self.rows, self.tile_height, block.row, block.bottom)
        cols = _touching(self.cols, self.tile_width, block.col, block.right)
        return [Box(row, col, self.tile_height, self.tile_width) for row in rows for col in cols]

    def blocks(self, block_px: int) -> Iterator[Box]:
        """The image cut into blocks of `block_px` (shorter at the right and the bottom), row by row.

        Raises:
            ValueError: `block_px` is not positive.
        """
        if block_px < 1:
            raise ValueError(f"block_px must be positive, got {block_px}.")
        for row in range(0, self.height, block_px):
            for col in range(0, self.width, block_px):
                yield Box(row, col, block_px, block_px).overlap(self.image)


def _touching(starts: list[int], length: int, begin: int, end: int) -> list[int]:
    """The starts of the intervals of `length` that meet [begin, end)."""
    return starts[bisect_right(starts, begin - length) : bisect_left(starts, end)]
