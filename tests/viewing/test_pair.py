"""Deep zoom of two images: the browser gets the very region that it asks for."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.slides.pyramid import Record
from bundle.slides.reader import ImageError, open_image
from bundle.slides.writer import open_sink
from bundle.viewing.pair import SlidePair, open_pair, source_name


def smooth(height: int, width: int, phase: float) -> np.ndarray:
    """A picture that JPEG keeps to a few grey levels, different everywhere."""
    rows, cols = np.mgrid[:height, :width] / 90.0
    return np.stack([127 + 110 * np.sin(rows + phase), 127 + 110 * np.sin(cols), 127 + 60 * np.cos(rows - cols)],
                    -1).astype(np.uint8)  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A source as PNG and a result as OME-TIFF of 700 x 430 px, which names its source."""
    source, result = tmp_path / "field.png", tmp_path / "restored.ome.tiff"
    Image.fromarray(smooth(430, 700, 0)).save(source)
    notes = {"source name": "../elsewhere/field.png"}
    with open_sink(result, (430, 700), Record("restored", 0.25, None, notes)) as sink:
        sink.write(0, 0, smooth(430, 700, 1))
    return source, result


def decoded(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def test_tiles_of_every_level_show_their_region_of_their_image(files: tuple[Path, Path]) -> None:
    """A tile at the wrong place or of the other image, and the comparison compares nothing."""
    with open_pair(files[1], files[0]) as pair:
        assert (pair.min_level, pair.max_level) == (8, 10)
        for which, phase in (("before", 0), ("after", 1)):
            whole = smooth(430, 700, phase)
            corner = decoded(pair.tile(which, 10, 2, 1))
            assert corner.shape == (430 - 256, 700 - 512, 3)
            assert np.abs(corner - whole[256:, 512:]).max() < 12
            halved = decoded(pair.tile(which, 9, 1, 0))
            assert halved.shape == (215, 350 - 256, 3)
            assert np.abs(halved - np.asarray(Image.fromarray(whole).reduce(2))[:, 256:]).max() < 12


@pytest.mark.parametrize("place", [("before", 10, 3, 0), ("after", 11, 0, 0), ("before", 7, 0, 0), ("truth", 9, 0, 0)])
def test_a_tile_that_is_not_there_is_a_lookup_error(files: tuple[Path, Path], place: tuple) -> None:
    """A browser may ask for anything; the server answers that it has no such thing."""
    with open_pair(files[1], files[0]) as pair, pytest.raises(LookupError):
        pair.tile(*place)


def test_the_source_is_found_by_the_name_that_the_result_tells(files: tuple[Path, Path]) -> None:
    """`mop view restored.ome.tiff` alone; a name that leads elsewhere is taken for its last part."""
    assert source_name(files[1]) == "field.png" and source_name(files[0]) == ""
    with open_pair(files[1]) as pair:
        assert pair.readers["before"].path.name == "field.png"
    files[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"field\.png, which is not beside it: give --source\."):
        open_pair(files[1])


def test_images_of_different_sizes_are_no_pair(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Two scans of one glass look alike, but their pixels do not lie on each other."""
    other = tmp_path / "other.png"
    Image.fromarray(smooth(430, 701, 0)).save(other)
    with pytest.raises(ImageError, match=r"701 x 430 px \(other.png\) and 700 x 430 px"):
        SlidePair(open_image(other), open_image(files[1]))
