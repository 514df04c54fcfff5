"""Slides of scanners, z-stacks and DICOM: the pixels of the libraries that are trusted, at every level."""

import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from bundle.slides.grid import Box
from bundle.slides.openslide_reader import OpenSlideReader
from bundle.slides.reader import ASSOCIATED, ImageError, open_image

# A folder with slides of scanners and DICOM files; tests write the others themselves.
SLIDES = Path(os.environ.get("MOP_TEST_SLIDES", Path(__file__).parents[2].parent / "shared" / "data" / "slides"))
needs_slides = pytest.mark.skipif(not SLIDES.is_dir(), reason="needs MOP_TEST_SLIDES, a folder of slides")

APERIO = "Aperio Image Library v10.0.51\r\n{w}x{h} [0,0 {w}x{h}] (240x240) JPEG/RGB Q=70"
RED, BLUE = (254, 0, 0), (0, 0, 254)  # of the label and of the macro picture
FACTS = "|AppMag = 20|StripeWidth = 1000|MPP = 0.4990|Left = 25.7"


def smooth(height: int = 520, width: int = 700) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    waves = [150 + 80 * np.sin(rows / 31 + k) * np.cos(cols / 47 - k) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def write_svs(path: Path, pixels: np.ndarray | None = None) -> Path:
    """As an Aperio scanner does: the slide, its thumbnail, a level, label and macro."""
    pixels = smooth() if pixels is None else pixels
    jpeg = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    level, red, blue = pixels[::2, ::2], *(np.full((64, 96, 3), colour, np.uint8) for colour in (RED, BLUE))
    with tifffile.TiffWriter(path) as tiff:
        height, width = pixels.shape[:2]
        tiff.write(pixels, tile=(128, 128), description=APERIO.format(w=width, h=height) + FACTS, **jpeg)
        tiff.write(pixels[::8, ::8], description=APERIO.format(w=width // 8, h=height // 8), rowsperstrip=16, **jpeg)
        tiff.write(level, tile=(128, 128), description=APERIO.format(w=level.shape[1], h=level.shape[0]) + FACTS,
                   subfiletype=1, **jpeg)
        tiff.write(red, description=APERIO.format(w=96, h=64) + "\r\nlabel 96x64", subfiletype=1, **jpeg)
        tiff.write(blue, description=APERIO.format(w=96, h=64) + "\r\nmacro 96x64", subfiletype=9, **jpeg)
    return path


def test_a_scanners_slide_is_read_as_tifffile_decodes_it(tmp_path: Path) -> None:
    """SVS is the most common format of all; its levels, its pixel size and its objective must be right."""
    path = write_svs(tmp_path / "a.svs")
    with open_image(path) as reader, tifffile.TiffFile(path) as tiff:
        assert isinstance(reader, OpenSlideReader) and reader.is_slide
        assert reader.shape == (520, 700) and [level[:2] for level in reader.levels] == [(520, 700), (260, 350)]
        assert reader.mpp == pytest.approx(0.499) and reader.objective == 20
        for k, (row, col, height, width) in enumerate([(111, 37, 260, 399), (13, 200, 247, 150)]):
            oracle = tiff.pages[2 * k].asarray()[row : row + height, col : col + width]
            assert np.abs(reader.read(row, col, height, width, k).astype(int) - oracle).max() <= 2


def test_label_and_macro_are_never_read_as_tissue(tmp_path: Path) -> None:
    """They carry the patient's name; a restored slide must not."""
    with open_image(write_svs(tmp_path / "a.svs")) as reader:
        assert len(reader.levels) == 2
        for level, held in enumerate(reader.levels):
            pixels = reader.read(0, 0, held.height, held.width, level)
            for colour in (RED, BLUE):
                assert not (np.abs(pixels.astype(int) - colour).max(axis=2) < 5).any()
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        tiff.write(smooth(), photometric="rgb", tile=(128, 128), metadata={"axes": "YXS", "Name": "slide"})
        tiff.write(smooth(64, 96), photometric="rgb", metadata={"axes": "YXS", "Name": "Label image"})
    with open_image(tmp_path / "a.ome.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, 0, *reader.shape), smooth())


def test_label_and_macro_are_given_to_who_asks(tmp_path: Path) -> None:
    """An archive may need them beside the restored slide; a label in the macro's place shows a name."""
    path = write_svs(tmp_path / "a.svs")
    with open_image(path) as reader:
        for name, colour in zip(ASSOCIATED, (RED, BLUE), strict=True):
            picture = reader.associated(name)
            assert picture is not None and picture.shape == (64, 96, 3)
            assert np.abs(picture.astype(int) - colour).max() <= 2
    with tifffile.TiffFile(path) as tiff:
        damaged, size = tiff.pages[3].dataoffsets[0], tiff.pages[3].databytecounts[0]
    with path.open("r+b") as file:
        file.seek(damaged)
        file.write(bytes(size))
    with open_image(path) as reader:
        with pytest.raises(ImageError, match=r"the label of a\.svs cannot be decoded"):
            reader.associated("label")
        assert reader.associated("macro") is not None and reader.read(0, 0, 32, 32).shape == (32, 32, 3)
    tifffile.imwrite(tmp_path / "b.tif", smooth(), photometric="rgb")
    with open_image(tmp_path / "b.tif") as reader:
        assert reader.associated("label") is None


@needs_slides
def test_a_dicom_slide_without_a_label_says_so() -> None:
    """wsidicom answers None, not an error, where a series has no such picture."""
    with open_image(SLIDES / "sm_image.dcm") as reader:
        assert [reader.associated(name) for name in ASSOCIATED] == [None, None]


def test_what_was_not_scanned_has_the_background_colour(tmp_path: Path) -> None:
    """Black where nothing was scanned would be restored as tissue and counted as such."""

    class Handle:
        def __init__(self) -> None:
            self.level_dimensions, self.level_downsamples, self.color_profile = ((90, 60),), (1.0,), None
            self.properties = {"openslide.background-color": "F0E8F4"}

        def read_region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
            pixels = np.zeros((size[1], size[0], 4), np.uint8)
            pixels[:, : size[0] // 2] = (10, 200, 30, 255)
            return pixels

        def close(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openslide, "OpenSlide", lambda path: Handle())
        with OpenSlideReader(tmp_path / "a.mrxs") as reader:
            region = reader.read(0, 0, 60, 90)
    assert reader.background == (0xF0, 0xE8, 0xF4)
    assert (region[:, :45] == (10, 200, 30)).all() and (region[:, 45:] == reader.background).all()


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.99])
def test_a_slide_cut_anywhere_is_refused_in_one_sentence(tmp_path: Path, share: float) -> None:
    """A copy over the network that broke off is the usual damage."""
    path = write_svs(tmp_path / "a.svs")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"^a\.svs cannot be") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_tile_is_named_and_the_rest_stays_readable(tmp_path: Path) -> None:
    """OpenSlide refuses everything after its first error: one bad tile would cost the slide."""
    path = write_svs(tmp_path / "a.svs")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[8], tiff.pages[0].databytecounts[8]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with open_image(path) as reader:
        before = reader.read(0, 0, 100, 100)
        with pytest.raises(ValueError, match=r"^a\.svs cannot be decoded \(64 x 64 px at row 140, column 270\)"):
            reader.read(140, 270, 64, 64)
        np.testing.assert_array_equal(reader.read(0, 0, 100, 100), before)


def write_stack(path: Path, levels: int) -> np.ndarray:
    planes = np.stack([np.roll(smooth(), 9 * k, axis=1) // (k + 1) for k in range(3)])
    with tifffile.TiffWriter(path, ome=True) as tiff:
        options = {"photometric": "rgb", "tile": (64, 128), "compression": "zlib"}
        tiff.write(planes, subifds=levels, metadata={"axes": "ZYXS"}, **options)
        for k in range(1, levels + 1):
            tiff.write(planes[:, :: 2**k, :: 2**k], subfiletype=1, metadata=None, **options)
    return planes


@pytest.mark.parametrize("levels", [0, 2])
def test_one_plane_of_a_stack_is_chosen(tmp_path: Path, levels: int) -> None:
    """The plane next to the one that was asked for looks alike and is out of focus elsewhere."""
    planes = write_stack(tmp_path / "a.ome.tif", levels)
    for k in range(3):
        with open_image(tmp_path / "a.ome.tif", plane=k) as reader:
            assert len(reader.levels) == levels + 1
            for level in range(levels + 1):
                expected = planes[k, :: 2**level, :: 2**level]
                np.testing.assert_array_equal(reader.read(0, 0, *expected.shape[:2], level), expected)
    with pytest.raises(ValueError, match=r"or choose one by --plane 0\.\.2"):
        open_image(tmp_path / "a.ome.tif")
    with pytest.raises(ValueError, match=r"--plane must lie in 0\.\.2 for a\.ome\.tif, got 3"):
        open_image(tmp_path / "a.ome.tif", plane=3)
    with pytest.raises(ValueError, match=r"--plane must lie in 0\.\.0 for a\.svs, got 1"):
        open_image(write_svs(tmp_path / "a.svs"), plane=1)


@pytest.mark.parametrize("name", ["a.svs", "a.ome.tif"])
def test_a_region_at_a_wanted_size_is_the_mean_of_its_pixels(tmp_path: Path, name: str) -> None:
    """Tissue is judged on it: a shifted small picture marks glass as tissue and tissue as glass."""
    if name == "a.svs":
        write_svs(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, smooth(), photometric="rgb", tile=(64, 64), ome=True,
                         metadata={"axes": "YXS", "PhysicalSizeX": 0.499, "PhysicalSizeY": 0.499})
    with open_image(tmp_path / name) as reader:
        box = Box(40, 80, 400, 560)
        for factor in (4, 8):
            mean = smooth()[40:440, 80:640].reshape(400 // factor, factor, 560 // factor, factor, 3).mean(axis=(1, 3))
            for small in (reader.read_scaled(box, factor), reader.read_at(box, 0.499 * factor)):
                assert small.shape == mean.shape
                # Level 1 of the stand-in scanner picks pixels instead of averaging them: half a pixel of shift.
                assert np.abs(small.astype(float) - mean).mean() < (4 if name == "a.svs" else 0.6)
        assert reader.read_scaled(Box(0, 0, *reader.shape), 7.3).shape == (72, 96, 3)
        reader.mpp = None
        with pytest.raises(ValueError, match="does not say it: give --mpp"):
            reader.read_at(box, 1.0)


@needs_slides
@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides_agree_with_tifffile(name: str) -> None:
    """Scanners write what no test thinks of: JPEG as RGB, JPEG 2000."""
    with open_image(SLIDES / name) as reader, tifffile.TiffFile(SLIDES / name) as tiff:
        oracle = tiff.series[0].levels[0].asarray()[601:800, 333:700]
        assert np.abs(reader.read(601, 333, 199, 367).astype(int) - oracle).max() <= 2


@needs_slides
@pytest.mark.parametrize("name", ["sm_image.dcm", "multiframe_camelyon_challenge_image.dcm"])
def test_dicom_agrees_with_openslide(name: str) -> None:
    """Two readers of one standard: where they differ, one of them shows another patient's pixels."""
    with open_image(SLIDES / name) as reader, openslide.OpenSlide(SLIDES / name) as oracle:
        height, width = reader.shape
        assert (width, height) == oracle.dimensions
        row, col = height // 3, width // 5
        region = np.asarray(oracle.read_region((col, row), 0, (width - col, height - row)))[..., :3]
        assert np.abs(reader.read(row, col, height - row, width - col).astype(int) - region).max() <= 2
        assert reader.files == [SLIDES / name] and reader.is_slide


@needs_slides
@pytest.mark.parametrize("name", ["broken.svs", "unopenable.tiff", "small.svs"])
def test_files_that_are_no_slides_are_refused(name: str) -> None:
    """Each was made to break a reader."""
    with pytest.raises(ValueError) as caught:
        open_image(SLIDES / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
