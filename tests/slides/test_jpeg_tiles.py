"""Tiles copied from a JPEG TIFF: their bytes are the source's, their neighbours look right in every library."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from bundle.slides.grid import Box
from bundle.slides.jpeg_tiles import CannotCopyError, JpegTiles, _joined, segments_of
from bundle.slides.pyramid import Encoding, Record, write_pyramid
from bundle.slides.reader import open_image

SHAPE, SIDE = (330, 500), (112, 144)  # of the slide and of its tiles: 3 x 4 tiles, the last ones cut


def smooth() -> np.ndarray:
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    waves = [150 + 80 * np.sin(rows / 31 + k) * np.cos(cols / 47 - k) for k in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def streams(pixels: np.ndarray, space: str, subsampling: str) -> list[bytes]:
    """Whole JPEG streams of coarse quality, as scanners write them."""
    made = []
    for row in range(0, SHAPE[0], SIDE[0]):
        for col in range(0, SHAPE[1], SIDE[1]):
            tile = pixels[row : row + SIDE[0], col : col + SIDE[1]]
            missing = [(0, SIDE[k] - tile.shape[k]) for k in (0, 1)]
            whole = np.ascontiguousarray(np.pad(tile, (*missing, (0, 0)), mode="edge"))
            made.append(imagecodecs.jpeg8_encode(whole, level=60, colorspace="RGB", outcolorspace=space,
                                                 subsampling=subsampling))  # fmt: skip
    return made


def write_source(path: Path, space: str, subsampling: str, shared: bool, description: str | None = None) -> Path:
    """A TIFF of JPEG tiles; `shared`: their tables lie in the file once, as in an SVS."""
    made, tables = streams(smooth(), space, subsampling), None
    if shared:
        parts = [segments_of(stream) for stream in made]
        tables = _joined([segment for segment in parts[0][0] if segment.marker in (0xDB, 0xC4)], b"\xff\xd9")
        made = [_joined([segment for segment in segments if segment.marker in (0xC0, 0xDA)], rest)
                for segments, rest in parts]  # fmt: skip
    sampling = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling]
    tifffile.imwrite(path, iter(made), shape=(*SHAPE, 3), dtype=np.uint8, tile=SIDE, photometric="rgb",
                     compression="jpeg", subsampling=sampling, jpegtables=tables, metadata=None,
                     description=description, resolution=(4e4, 4e4), resolutionunit=3,
                     compressionargs={"outcolorspace": space})  # fmt: skip
    return path


def write_result(source: Path, result: Path, untouched: Callable[[Box], bool]) -> int:
    """The source with what is touched made darker; the number of tiles copied."""
    with open_image(source) as reader, result.open("x+b") as file:
        tiles = JpegTiles(reader, untouched, 95)
        pixels = darker_where(reader.read(0, 0, *SHAPE), untouched)
        write_pyramid(file, SHAPE, lambda row, rows: pixels[row : row + rows], Encoding("jpeg"),
                      Record(result.name, 0.25), True, result.parent, tiles)  # fmt: skip
        tiles.close()
    return tiles.copied


def darker_where(pixels: np.ndarray, untouched: Callable[[Box], bool]) -> np.ndarray:
    changed = pixels.copy()
    for row in range(0, SHAPE[0], SIDE[0]):
        for col in range(0, SHAPE[1], SIDE[1]):
            if not untouched(Box(row, col, *SIDE).overlap(Box(0, 0, *SHAPE))):
                changed[row : row + SIDE[0], col : col + SIDE[1]] //= 2
    return changed


def every_other(box: Box) -> bool:
    return (box.row // SIDE[0] + box.col // SIDE[1]) % 2 == 0


def raw_tiles(path: Path) -> list[bytes]:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        data = path.read_bytes()
        return [data[at : at + count] for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("space", "subsampling"), [("YCBCR", "422"), ("YCBCR", "420"), ("RGB", "444")])
def test_untouched_tiles_have_the_sources_bytes_and_all_have_their_pixels(
    tmp_path: Path, space: str, subsampling: str, shared: bool
) -> None:
    """A second JPEG pass over glass and sharp tissue costs detail for nothing; wrong tables cost the whole picture."""
    source = write_source(tmp_path / "a.tif", space, subsampling, shared)
    result = tmp_path / "b.ome.tiff"
    assert write_result(source, result, every_other) == 6
    before, after = raw_tiles(source), raw_tiles(result)
    kept = [every_other(Box(k // 4 * SIDE[0], k % 4 * SIDE[1], 1, 1)) for k in range(12)]
    assert [one == other for one, other in zip(before, after, strict=True)] == kept
    with open_image(source) as reader:
        expected = darker_where(reader.read(0, 0, *SHAPE), every_other).astype(int)
    untouched = darker_where(np.full((*SHAPE, 3), 255, np.uint8), every_other) == 255
    seen = {"tifffile": tifffile.imread(result).astype(int)}
    with openslide.OpenSlide(result) as slide:
        seen["OpenSlide"] = np.asarray(slide.read_region((0, 0), 0, SHAPE[::-1]).convert("RGB")).astype(int)
    with open_image(result) as reader:
        seen["ours"] = reader.read(0, 0, *SHAPE).astype(int)
        assert reader.mpp == pytest.approx(0.25)
    for name, pixels in seen.items():
        assert (pixels[untouched] == expected[untouched]).all(), name
        assert np.abs(pixels - expected).max() <= 24 and np.abs(pixels - expected).mean() < 1.5, name


def test_tiles_that_another_decoder_reads_in_any_order_do_not_take_each_others_tables(tmp_path: Path) -> None:
    """libtiff keeps tables from tile to tile: after a new tile, a copied one would get the new one's."""
    source = write_source(tmp_path / "a.tif", "YCBCR", "420", True)
    write_result(source, tmp_path / "b.ome.tiff", every_other)
    with tifffile.TiffFile(tmp_path / "b.ome.tiff") as tiff:
        shared = {content[0] for marker, content in segments_of(tiff.pages[0].jpegtables)[0] if marker == 0xDB}
    own = [{content[0] for marker, content in segments_of(tile)[0] if marker == 0xDB}
           for tile in raw_tiles(tmp_path / "b.ome.tiff")]  # fmt: skip
    assert shared == {0, 1} and {frozenset(one) for one in own} == {frozenset(), frozenset({2, 3})}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("png", "keeps no tiles that a TIFF can take"),
        ("lzw", "LZW and not JPEG tiles"),
        ("strips", "JPEG and not JPEG tiles"),
        ("16 x 8", "subsampled 4 x 1"),
        ("huffman", "Huffman tables are not the standard ones"),
    ],
)
def test_a_source_whose_tiles_cannot_be_copied_says_why(tmp_path: Path, kind: str, reason: str) -> None:
    """The report must not claim bits that were encoded anew."""
    path, pixels = tmp_path / ("a.png" if kind == "png" else "a.tif"), smooth()
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(pixels))
    elif kind == "lzw":
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="lzw", photometric="rgb")
    elif kind == "strips":
        tifffile.imwrite(path, pixels, rowsperstrip=16, compression="jpeg", photometric="rgb")
    elif kind == "16 x 8":
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="jpeg", photometric="rgb", subsampling=(4, 1))
    else:
        write_source(path, "YCBCR", "420", True)
        data = path.read_bytes()
        with tifffile.TiffFile(path) as tiff:
            tables = tiff.pages[0].jpegtables
        at = data.index(tables) + tables.index(b"\xff\xc4") + 21  # a value of the first Huffman table
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with open_image(path) as reader, pytest.raises(CannotCopyError, match=reason):
        JpegTiles(reader, every_other, 90)
