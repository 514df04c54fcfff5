"""The tile grid: every pixel is covered, and a block sees the tiles of the image's one grid."""

import random
from itertools import pairwise

import numpy as np
import pytest

from bundle.slides.grid import Box, TileGrid


def random_grids(count: int) -> list[TileGrid]:
    draw = random.Random(7)
    grids = []
    for _ in range(count):
        tile = draw.randint(1, 40)
        grids.append(TileGrid(draw.randint(1, 150), draw.randint(1, 150), tile, draw.randint(0, tile // 2)))
    return grids


def test_the_default_grid_of_a_known_image() -> None:
    """The anchor: 600 px are cut at 0, 192, 344 and not past the border."""
    tiles = TileGrid(600, 300).tiles_of(Box(0, 0, 600, 300))
    assert [(t.row, t.col) for t in tiles] == [(0, 0), (0, 44), (192, 0), (192, 44), (344, 0), (344, 44)]
    assert {(t.height, t.width) for t in tiles} == {(256, 256)}


def test_every_pixel_is_covered_by_equal_tiles_inside_the_image() -> None:
    """A hole would be written as NaN or black; a tile outside would be read as tissue that does not exist."""
    for grid in random_grids(60):
        covered = np.zeros((grid.height, grid.width), int)
        tiles = grid.tiles_of(grid.image)
        assert len(tiles) == len(grid) == len(set(tiles))
        for tile in tiles:
            assert tile.overlap(grid.image) == tile
            assert (tile.height, tile.width) == (grid.tile_height, grid.tile_width)
            covered[tile.within(grid.image)] += 1
        assert covered.min() >= 1


def test_neighbouring_tiles_share_at_least_the_overlap() -> None:
    """Without shared pixels there is nothing to feather and a seam shows."""
    for grid in random_grids(60):
        for starts, length in ((grid.rows, grid.tile_height), (grid.cols, grid.tile_width)):
            for left, right in pairwise(starts):
                assert left < right <= left + length - grid.overlap_px


def test_a_block_gets_exactly_the_tiles_that_touch_it() -> None:
    """A missing tile changes the pixels near a block's border: seams that follow the block size."""
    draw = random.Random(3)
    for grid in random_grids(60):
        row, col = draw.randrange(grid.height), draw.randrange(grid.width)
        block = Box(row, col, draw.randint(1, grid.height - row), draw.randint(1, grid.width - col))
        touching = [t for t in grid.tiles_of(grid.image) if t.overlap(block).height * t.overlap(block).width]
        assert grid.tiles_of(block) == touching


def test_blocks_partition_the_image() -> None:
    """A pixel written twice or never."""
    for grid in random_grids(20):
        for block_px in (1, 7, 64, 1000):
            count = np.zeros((grid.height, grid.width), int)
            for block in grid.blocks(block_px):
                count[block.within(grid.image)] += 1
            assert (count == 1).all()


def test_an_image_smaller_than_a_tile_is_one_tile_of_its_own_size() -> None:
    """Small images are restored as they are, not padded here."""
    assert TileGrid(100, 30).tiles_of(Box(5, 5, 1, 1)) == [Box(0, 0, 100, 30)]


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "rule"),
    [
        (0, 5, 8, 2, "at least 1 x 1 px, got 0 x 5"),
        (5, 5, 0, 0, "tile_px must be positive, got 0"),
        (5, 5, 8, 5, "0..4, got 5"),
        (5, 5, 8, -1, "0..4, got -1"),
    ],
)
def test_a_grid_states_its_rule(height: int, width: int, tile: int, overlap: int, rule: str) -> None:
    """An overlap above half a tile leaves the grid with three tiles per pixel and no single-tile zone."""
    with pytest.raises(ValueError, match=rule.replace(".", r"\.")):
        TileGrid(height, width, tile, overlap)


@pytest.mark.parametrize("block", [Box(-1, 0, 4, 4), Box(0, 0, 11, 4), Box(0, 0, 0, 4)])
def test_a_block_outside_the_image_is_refused(block: Box) -> None:
    """It would be filled with zeros: black tissue."""
    with pytest.raises(ValueError, match="inside the 10 x 10 px image"):
        TileGrid(10, 10, 4, 2).tiles_of(block)
    with pytest.raises(ValueError, match="block_px must be positive, got 0"):
        list(TileGrid(10, 10, 4, 2).blocks(0))
