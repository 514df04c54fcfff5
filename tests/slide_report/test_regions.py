"""Places worth a look, and what the survey finds."""

import numpy as np
import torch
from torch import nn

from bundle.slide_plan import Kind, SlidePlan
from bundle.slide_report.regions import pick_regions
from bundle.slide_report.survey import CELL_PX, survey
from bundle.slides.grid import Box, TileGrid


class Pixels:
    """An image in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.asked = pixels, 0

    def read(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        self.asked += height * width
        return self.pixels[row : row + height, col : col + width]

    def read_scaled(self, box: Box, downsample: float) -> np.ndarray:
        assert downsample == 1.0
        return self.pixels.copy()


class Brightness(nn.Module):
    """Says 10 µm for white and 0 for black."""

    def focus_map(self, image: torch.Tensor) -> torch.Tensor:
        return 10 * image.mean(1, keepdim=True)


def test_the_highest_squares_are_chosen_and_none_lies_over_another() -> None:
    """Four views of one spot hide the other three."""
    score = np.full((20, 30), 0.1, np.float32)
    score[3:6, 4:7], score[14:17, 22:25], score[0, 29] = 9, 5, 30
    score[10, 10] = np.nan
    regions = pick_regions(score, 64, (20 * 64, 30 * 64 - 20), 192, 3, "doubt")
    assert [region.why for region in regions] == ["doubt"] * 3
    first, second, third = (region.box for region in regions)
    assert first == Box(3 * 64, 4 * 64, 192, 192) and regions[0].score == 9
    assert second == Box(14 * 64, 22 * 64, 192, 192)
    assert third.row == 0 and third.right == 30 * 64 - 20  # moved back into the slide
    assert not pick_regions(np.zeros((4, 5), np.float32), 64, (256, 320), 192, 3, "doubt")
    assert pick_regions(np.ones((1, 1), np.float32), 64, (50, 40), 192, 3, "doubt")[0].box == Box(0, 0, 50, 40)


def test_the_survey_sees_what_changed_where() -> None:
    """The report's maps must show the slide's places: a swapped axis would send the reader elsewhere."""
    grid = TileGrid(330, 520, 64, 16)
    old = np.full((330, 520, 3), 102, np.uint8)
    new = old.copy()
    new[:144, 288:432] = 153
    kinds = np.full((len(grid.rows), len(grid.cols)), Kind.BACKGROUND, np.uint8)
    for tile in (Box(row, col, 64, 64) for row in grid.rows for col in grid.cols):
        if tile.bottom <= 144 and tile.col >= 288 and tile.right <= 432:
            kinds[grid.place(tile)] = Kind.STRONG
    plan = SlidePlan(kinds, np.full(kinds.shape, np.nan, np.float32))
    source, made = Pixels(old), Pixels(new)
    seen = survey(source, made, grid, plan, 144, Brightness(), torch.device("cpu"))
    np.testing.assert_array_equal(seen.after, new)
    np.testing.assert_array_equal(seen.before, old)
    assert seen.change.shape == (6, 9)
    # 288 px lie in the middle of the fifth cell of a row: half of it changed by 51 grey levels.
    np.testing.assert_allclose(seen.change[0], [0, 0, 0, 0, 25.5, 51, 38.25, 0, 0])
    np.testing.assert_allclose(seen.change[2], seen.change[0] * (144 - 2 * CELL_PX) / CELL_PX)
    assert not seen.change[3:].any()
    tissue = kinds == Kind.STRONG
    np.testing.assert_allclose(seen.before_um[tissue], 4, rtol=1e-6)
    np.testing.assert_allclose(seen.after_um[tissue], 6, rtol=1e-6)
    assert np.isnan(seen.after_um[~tissue]).all() and seen.probed == tissue.sum() > 3
    # Glass is not read again: neighbours of the changed block at the most.
    assert made.asked < old.shape[0] * old.shape[1]
