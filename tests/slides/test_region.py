"""A region is the one that a viewer means: (x, y) of level 0, a size and a level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from bundle.slides import region
from bundle.slides.reader import ImageReader, open_image
from bundle.slides.region import Region, read_region, region_of

FULL: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (160, 224, 3)).astype(np.uint8)
HALF = np.ascontiguousarray(FULL[::2, ::2])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageReader]:
    """Two levels, the second at half the resolution."""
    file = tmp_path_factory.mktemp("region") / "slide.tif"
    with tifffile.TiffWriter(file) as writer:
        writer.write(FULL, subifds=1, tile=(64, 64), photometric="rgb")
        writer.write(HALF, subfiletype=1, tile=(64, 64), photometric="rgb")
    with open_image(file) as reader:
        yield reader


def test_x_comes_before_y_and_width_before_height(slide: ImageReader) -> None:
    """Swapped, another place of the tissue is restored, and nobody sees it in a square region."""
    read = read_region(slide, region_of({"location": [100, 20], "size": [70, 50], "seed": 3}))
    assert np.array_equal(read, FULL[20:70, 100:170])


def test_a_location_is_of_level_0_and_a_size_of_the_level(slide: ImageReader) -> None:
    """Viewers say it so; read at the level's own coordinates the region lies at twice the distance."""
    read = read_region(slide, Region((100, 20), (40, 30), 1))
    assert np.array_equal(read, HALF[10:40, 50:90])


def test_no_size_is_all_that_is_left(slide: ImageReader) -> None:
    """A picture is asked for as a whole."""
    assert np.array_equal(read_region(slide, Region()), FULL)
    assert np.array_equal(read_region(slide, Region((10, 4), level=1)), HALF[2:, 5:])


@pytest.mark.parametrize(("wishes", "sentence"), [
    ({"location": [200, 0], "size": [64, 64]}, "a region must lie inside"),
    ({"location": [300, 0]}, "a region must lie inside"),
    ({"level": 2}, r"level must lie in 0\.\.1, got 2"),
    ({"level": True}, "level must be a whole number from 0 on, got True"),
    ({"location": [-1, 0]}, "location must be a whole number from 0 on, got -1"),
    ({"size": [64]}, r"size must be two whole numbers, got \[64\]"),
    ({"size": "64"}, "size must be two whole numbers, got '64'"),
])
def test_a_wrong_region_is_one_sentence(slide: ImageReader, wishes: dict[str, Any], sentence: str) -> None:
    """A server passes the sentence on to a person who cannot see its log."""
    with pytest.raises(ValueError, match=sentence):
        read_region(slide, region_of(wishes))


def test_a_whole_slide_is_refused(slide: ImageReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide read as one array takes a server's memory and every other user's request with it."""
    monkeypatch.setattr(region, "MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match="a region may have up to 1000 px, got 224 x 160"):
        read_region(slide, Region())
    assert read_region(slide, Region(size=(20, 50))).shape == (50, 20, 3)
