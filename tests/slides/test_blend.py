"""Blending: cutting and blending gives the image back, bit by bit the same for every block size."""

import pytest
import torch
from torch import Tensor

from bundle.conventions import from_uint8, to_uint8
from bundle.slides.blend import BlockBlend, tile_weight
from bundle.slides.grid import Box, TileGrid

GRIDS = [(97, 61, 32, 8), (64, 64, 64, 16), (20, 200, 48, 24), (130, 130, 33, 0), (75, 75, 16, 5), (1, 40, 9, 3)]


def blend_image(grid: TileGrid, tiles: dict[Box, Tensor], block_px: int, channels: int = 3) -> Tensor:
    image = torch.full((channels, grid.height, grid.width), torch.nan)
    for block in grid.blocks(block_px):
        blend = BlockBlend(grid, block, channels)
        for tile in grid.tiles_of(block):
            blend.add(tile, tiles[tile])
        image[:, *block.within(grid.image)] = blend.result()
    return image


@pytest.mark.parametrize(("height", "width", "tile_px", "overlap_px"), GRIDS)
def test_cut_then_blend_is_the_identity(height: int, width: int, tile_px: int, overlap_px: int) -> None:
    """An image that needs no change must leave with its own pixels, in every grid."""
    grid = TileGrid(height, width, tile_px, overlap_px)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = from_uint8(pixels)
    tiles = {tile: image[:, *tile.within(grid.image)] for tile in grid.tiles_of(grid.image)}
    blended = blend_image(grid, tiles, 40)
    torch.testing.assert_close(blended, image, rtol=0, atol=1e-6)
    assert torch.equal(to_uint8(blended), pixels)


@pytest.mark.parametrize(("height", "width", "tile_px", "overlap_px"), GRIDS)
def test_every_block_size_gives_the_same_bits(height: int, width: int, tile_px: int, overlap_px: int) -> None:
    """Otherwise a resumed or distributed run differs from a plain one."""
    grid = TileGrid(height, width, tile_px, overlap_px)
    draw = torch.Generator().manual_seed(2)
    tiles = {t: torch.rand((3, t.height, t.width), generator=draw) for t in grid.tiles_of(grid.image)}
    whole = blend_image(grid, tiles, 1000)
    for block_px in (5, 13, 37, 64):
        assert torch.equal(blend_image(grid, tiles, block_px), whole)


def test_known_weights_of_an_inner_tile() -> None:
    """The anchor: a ramp over 4 px rises by quarters from an eighth; a corner is the product."""
    grid = TileGrid(30, 30, 12, 4)
    weight = tile_weight(grid, Box(8, 8, 12, 12))
    assert weight[6].tolist() == [0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]
    assert weight[0, 1].item() == 0.125 * 0.375


def test_there_is_no_feather_at_the_image_border() -> None:
    """The weight at the border is not needed there, and a ramp would shift the balance with the third tile."""
    grid = TileGrid(30, 30, 12, 4)
    assert tile_weight(grid, Box(0, 18, 12, 12))[0].tolist() == [0.125, 0.375, 0.625, 0.875] + [1.0] * 8


def test_the_step_between_two_tiles_is_spread_over_the_overlap() -> None:
    """A plain mean, or no feathering, leaves a visible step: the seam."""
    grid = TileGrid(16, 28, 16, 4)
    tiles = {Box(0, 0, 16, 16): torch.zeros(1, 16, 16), Box(0, 12, 16, 16): torch.ones(1, 16, 16)}
    line = blend_image(grid, tiles, 100, channels=1)[0, 5]
    assert line[:12].tolist() == [0.0] * 12
    assert line[12:16].tolist() == [0.125, 0.375, 0.625, 0.875]
    assert line[16:].tolist() == [1.0] * 12


def test_tiles_out_of_order_or_missing_are_refused() -> None:
    """Floating sums depend on their order: another order would be another image."""
    grid = TileGrid(16, 28, 16, 4)
    first, second = grid.tiles_of(grid.image)
    blend = BlockBlend(grid, grid.image)
    with pytest.raises(ValueError, match="grid's order"):
        blend.add(second, torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="tile's shape"):
        blend.add(first, torch.zeros(3, 16, 15))
    blend.add(first, torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="1 are missing"):
        blend.result()
    blend.add(second, torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="due is none"):
        blend.add(second, torch.zeros(3, 16, 16))
