"""The pyramid: levels that OpenSlide, tifffile and Pillow see alike, and the words beside them."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from bundle.slides.pyramid import Encoding, Record, halved, level_shapes, write_pyramid
from bundle.slides.reader import open_image
from bundle.slides.writer import open_sink

SHAPE = (711, 1105)  # three levels: 1105, 552 and 276; odd sides, two strips, and the last tiles are cut
SMALLEST = 300
NOTES = {"software": "MoP 1", "warning": "a <b> & c", "objective": "20"}
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def smooth() -> np.ndarray:
    """A picture whose colours move slowly: JPEG keeps it within a few grey levels."""
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    waves = [128 + 90 * np.sin(rows / 41 + k) * np.cos(cols / 57 - k) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, encoding: Encoding, **words: object) -> Path:
    with path.open("x+b") as file:
        write_pyramid(file, pixels.shape[:2], lambda row, rows: pixels[row : row + rows], encoding,
                      Record(path.name, **words), path.name.endswith(".ome.tiff"), path.parent)
    return path


@pytest.fixture(autouse=True, scope="module")
def small_levels() -> Iterator[None]:
    """Levels down to 300 px, so that a small picture has some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bundle.slides.pyramid.LAST_LEVEL_PX", SMALLEST)
        yield


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One slide per way of writing."""
    folder = tmp_path_factory.mktemp("slides")
    words = {"mpp": 0.25, "icc_profile": b"profile" * 20, "notes": dict(NOTES)}
    return {
        "lzw": write(folder / "lzw.ome.tiff", smooth(), Encoding("lzw"), **words),
        "422": write(folder / "422.ome.tiff", smooth(), Encoding("jpeg", 90, "422"), **words),
        "420": write(folder / "420.ome.tiff", smooth(), Encoding("jpeg", 85, "420"), **words),
        "plain": write(folder / "plain.tif", smooth(), Encoding("lzw"), **words),
    }


def levels_of_truth() -> list[np.ndarray]:
    """Each level as the mean of the finer one, by NumPy."""
    levels = [smooth()]
    while max(levels[-1].shape) > SMALLEST:
        finer = levels[-1][: levels[-1].shape[0] // 2 * 2, : levels[-1].shape[1] // 2 * 2].astype(float)
        height, width = finer.shape[0] // 2, finer.shape[1] // 2
        levels.append(np.floor(finer.reshape(height, 2, width, 2, 3).mean(axis=(1, 3)) + 0.5).astype(np.uint8))
    return levels


@pytest.mark.parametrize("kind", ["lzw", "422", "420", "plain"])
def test_openslide_tifffile_and_our_reader_see_every_level(slides: dict[str, Path], kind: str) -> None:
    """OpenSlide ignores SubIFDs and other readers want nothing else: a slide with one level stutters in its viewer."""
    truth = levels_of_truth()
    shapes = [level.shape[:2] for level in truth]
    assert shapes == level_shapes(SHAPE) == [(711, 1105), (355, 552), (177, 276)]
    allowed = 0 if kind in ("lzw", "plain") else 12  # of JPEG; its mean is below 1.5
    with openslide.OpenSlide(slides[kind]) as slide, tifffile.TiffFile(slides[kind]) as tiff:
        assert [(h, w) for w, h in slide.level_dimensions] == shapes and len(tiff.pages) == len(shapes)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-3)
        with open_image(slides[kind]) as reader:
            assert [level[:2] for level in reader.levels] == shapes and reader.is_slide
            assert reader.mpp == pytest.approx(0.25) and reader.icc_profile == b"profile" * 20
            for k, level in enumerate(truth):
                height, width = shapes[k]
                seen = np.asarray(slide.read_region((0, 0), k, (width, height)))[..., :3]
                ours = reader.read(0, 0, height, width, k)
                theirs = tiff.pages[0].asarray() if k == 0 else tiff.series[0].levels[k].asarray()
                error = np.abs(ours.astype(int) - level)
                assert error.max() <= allowed and error.mean() < 1.5
                assert np.abs(ours.astype(int) - theirs).max() == 0
                assert np.abs(seen.astype(int) - ours).max() <= (0 if allowed == 0 else 2)
    with Image.open(slides[kind]) as image:  # libtiff
        assert np.abs(np.asarray(image).astype(int) - truth[0]).max() <= allowed


def test_the_annotation_says_where_the_slide_comes_from(slides: dict[str, Path]) -> None:
    """A restored slide that does not say so is read as a scan."""
    with tifffile.TiffFile(slides["422"]) as tiff:
        xml = tiff.ome_metadata
        assert tiff.pages[0].photometric == tifffile.PHOTOMETRIC.YCBCR and tiff.pages[0].subsampling == (2, 1)
    assert '<M K="software">MoP 1</M>' in xml and '<M K="warning">a &lt;b&gt; &amp; c</M>' in xml
    assert 'PhysicalSizeX="0.25"' in xml and 'Name="RGB"' in xml


def test_the_magnification_stands_where_ome_keeps_it(slides: dict[str, Path]) -> None:
    """QuPath and Bio-Formats read the instrument and no annotation; a place of our own is no place."""
    with tifffile.TiffFile(slides["422"]) as tiff:
        root = ET.fromstring(tiff.ome_metadata)
    order = [element.tag.removeprefix(OME) for element in root]
    assert order == ["Instrument", "Image", "StructuredAnnotations"]  # as the schema wants it
    inside = [element.tag.removeprefix(OME) for element in root[1]]
    assert inside[:3] == ["InstrumentRef", "ObjectiveSettings", "Pixels"]
    objective = root[0].find(f"{OME}Objective")
    assert objective.get("NominalMagnification") == "20"
    assert root[1].find(f"{OME}ObjectiveSettings").get("ID") == objective.get("ID")
    with open_image(slides["422"]) as reader:
        assert reader.objective == 20


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, slides: dict[str, Path]) -> None:
    """A clock or a random name in the file would hide a real difference between two runs."""
    words = {"mpp": 0.25, "icc_profile": b"profile" * 20, "notes": dict(NOTES)}
    again = write(tmp_path / "422.ome.tiff", smooth(), Encoding("jpeg", 90, "422"), **words)
    assert again.read_bytes() == slides["422"].read_bytes()


def test_jpeg_colours_have_the_subsampling_that_was_asked_for(slides: dict[str, Path]) -> None:
    """4:4:4 in a tag over 4:2:0 in the tiles shows as false colours in some viewers and not in others."""
    for kind, sampling in (("422", (2, 1)), ("420", (2, 2))):
        with tifffile.TiffFile(slides[kind]) as tiff:
            page = tiff.pages[0]
            tile = slides[kind].read_bytes()[page.dataoffsets[0] : page.dataoffsets[0] + page.databytecounts[0]]
            start = re.search(rb"\xff[\xc0\xc1]", tile).start()
            factors = struct.unpack(">B", tile[start + 11 : start + 12])[0]
            assert (factors >> 4, factors & 15) == sampling == page.subsampling
            assert imagecodecs.jpeg8_decode(tile).shape == (256, 256, 3)


def test_a_small_image_has_one_level(tmp_path: Path) -> None:
    """A field of a camera must not come back as a "slide"."""
    path = write(tmp_path / "a.ome.tiff", smooth()[:230, :290], Encoding())
    with open_image(path) as reader:
        assert len(reader.levels) == 1 and not reader.is_slide
        np.testing.assert_array_equal(reader.read(0, 0, 230, 290), smooth()[:230, :290])


def test_halving_takes_means_and_leaves_odd_rows_out() -> None:
    """Picked instead of averaged pixels make low zoom glitter."""
    pixels = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)
    expected = [[np.floor(pixels[:2, c : c + 2].reshape(4, 3).mean(axis=0) + 0.5) for c in (0, 2)]]
    np.testing.assert_array_equal(halved(pixels), expected)
    assert halved(pixels[:1]).shape == (0, 2, 3)


@pytest.mark.parametrize(("encoding", "rule"), [
    (Encoding("zstd"), "compression must be lzw or jpeg, got zstd"),
    (Encoding("jpeg", 0), "quality must lie in 1..100, got 0"),
    (Encoding("jpeg", 90, "444"), "subsampling must be 420 or 422, got 444"),
])
def test_an_encoding_that_some_readers_misread_is_refused(tmp_path: Path, encoding: Encoding, rule: str) -> None:
    """4:4:4 shows false colours in Bio-Formats, zstd gives wrong pixels in libvips."""
    with pytest.raises(ValueError, match=re.escape(rule)):
        open_sink(tmp_path / "a.tif", (64, 64), encoding=encoding)
    assert list(tmp_path.iterdir()) == []
