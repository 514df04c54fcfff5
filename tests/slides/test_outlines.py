"""Outlines cover exactly the cells of their region."""

import numpy as np
from shapely import Point
from shapely.geometry import shape

from bundle.slides.outlines import geometry_of, patches_of


def test_a_point_lies_in_an_outline_where_its_cell_lies_in_the_region() -> None:
    """A region drawn beside its place, or over a hole in it, sends the pathologist to the wrong tissue."""
    mask = np.random.default_rng(2).random((9, 13)) < 0.6
    rows_px, cols_px = [*range(0, 9 * 40, 40), 351], [*range(0, 13 * 40, 40), 510]
    patches = patches_of(mask)
    assert [patch.cells.sum() for patch in patches] == sorted((patch.cells.sum() for patch in patches), reverse=True)
    covered = np.zeros(mask.shape, int)
    for patch in patches:
        outline = shape(geometry_of(patch, rows_px, cols_px))
        assert outline.is_valid and outline.geom_type == "Polygon"
        for row, col in np.ndindex(mask.shape):
            covered[row, col] += outline.contains(Point(40 * col + 15, 40 * row + 25))
    np.testing.assert_array_equal(covered, mask)


def test_cells_that_touch_by_a_corner_are_two_regions() -> None:
    """A polygon that pinches itself to a point is refused by QuPath's geometry."""
    assert len(patches_of(np.eye(3, dtype=bool))) == 3 and patches_of(np.zeros((2, 3), bool)) == []
