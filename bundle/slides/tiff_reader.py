"""TIFF and OME-TIFF, decoded where it is read: a huge tiled image never lies in memory.

A segment is a tile or a strip of the file. Segments are read by position (`pread`), so that a forked process
does not disturb its parent's place in the file.
"""

from __future__ import annotations

import logging
import os
import struct
import xml.etree.ElementTree as ET
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from bundle.slides.grid import Box
from bundle.slides.reader import MAX_PIXELS, ImageError, ImageReader, reason_of

CACHE_BYTES = 128 * 2**20  # decoded segments kept: a row of strips or tiles of a wide image is read once, not per block
_RGB, _YCBCR, _JPEG = 2, 6, 7
_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00B5m": 1.0, "nm": 1e-3, "mm": 1e3,
                "cm": 1e4, "m": 1e6}  # fmt: skip
# Beyond these a resolution is a printer's (72 dpi is 353 µm), not a microscope's.
_PLAUSIBLE_MPP = (0.01, 20.0)


class TiffReader(ImageReader):
    """One RGB plane of a TIFF, at full resolution; levels of a pyramid below it are not read.

    Args:
        path: the file.
        plane: index of the plane in a focal stack; None where the file must hold a single plane.

    Attributes:
        planes: focal planes in the file.
        spacing_um: between them, None where the file does not say.
    """

    def __init__(self, path: Path, plane: int | None = None) -> None:
        self._fd = -1
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0
        with ExitStack() as undo, _damage_reports() as reports:
            try:
                self._tiff = undo.enter_context(tifffile.TiffFile(path))
                pages = _planes(self._tiff, path)
                if plane is None and len(pages) != 1:
                    series = self._tiff.series[0]
                    raise ImageError(f"a TIFF must hold a single RGB plane, {path.name} holds axes {series.axes} of "
                                     f"{series.shape}: save the plane to restore.")
                self.planes, self.spacing_um = len(pages), read_spacing_um(self._tiff)
                self._page = pages[plane or 0].aspage()
                _refuse_unless_rgb(self._page, path)
                _refuse_truncated(self._page, path, reports)
                profile = self._page.tags.get(34675)
                size = (int(self._page.imagelength), int(self._page.imagewidth))
                mpp = read_mpp(self._tiff, self._page, path)
                super().__init__(path, size, mpp, bytes(profile.value) if profile else None)
                self._lay_out()
                self._fd = os.open(path, os.O_RDONLY)
                undo.callback(self.close)
                self._segment(0)  # a codec that is missing or a damaged start shows now, not after an hour
            except (ImageError, PermissionError):
                raise
            # What a library makes of damaged structures: found by cutting files at many places.
            except (ValueError, OSError, RuntimeError, struct.error, LookupError, TypeError, AttributeError) as error:
                raise ImageError(f"{path.name} cannot be opened as TIFF: {reason_of(error)}.") from error
            undo.pop_all()

    def _lay_out(self) -> None:
        page = self._page
        tiled = page.is_tiled
        self._height = int(page.tilelength if tiled else min(page.rowsperstrip, page.imagelength))
        self._width = int(page.tilewidth if tiled else page.imagewidth)
        if self._height * self._width > MAX_PIXELS:
            raise ImageError(
                f"a tile or strip of a TIFF may have up to {MAX_PIXELS} px, "
                f"{self.path.name} has {self._height} x {self._width}."
            )
        self._across = -(-int(page.imagewidth) // self._width)
        self._down = -(-int(page.imagelength) // self._height)
        self._separate = int(page.planarconfig) == 2  # R, G and B lie in segments of their own
        self._jpeg_tables = page.jpegtables

    def _read(self, box: Box) -> NDArray[np.uint8]:
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        for row in range(box.row // self._height, (box.bottom - 1) // self._height + 1):
            for col in range(box.col // self._width, (box.right - 1) // self._width + 1):
                cell = Box(row * self._height, col * self._width, self._height, self._width)
                shared = cell.overlap(box)
                target, source = shared.within(box), shared.within(cell)
                index = row * self._across + col
                if not self._separate:
                    pixels[target] = self._segment(index)[source]
                    continue
                for channel in range(3):
                    plane = self._segment(index + channel * self._across * self._down)
                    pixels[..., channel][target] = plane[source][..., 0]
        return pixels

    def _segment(self, index: int) -> NDArray[np.uint8]:
        """The decoded segment, (rows, cols, 3 or 1); the last strips may be short."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        count, offset = self._page.databytecounts[index], self._page.dataoffsets[index]
        try:
            data = os.pread(self._fd, count, offset) if count else None
            pixels, _, shape = self._page.decode(data, index, jpegtables=self._jpeg_tables)
        # Every codec raises an error of its own, all of them of these kinds.
        except (ValueError, RuntimeError, ImportError, TypeError, struct.error) as error:
            raise ImageError(f"segment {index} of {self.path.name} cannot be decoded: {reason_of(error)}.") from error
        if pixels is None:  # a segment left out by the writer
            pixels = np.full(shape, self._page.nodata, np.uint8)
        pixels = np.asarray(pixels[0], np.uint8)
        self._cache[index] = pixels
        self._cached_bytes += pixels.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._cache.clear()
        self._tiff.close()


def _planes(tiff: tifffile.TiffFile, path: Path) -> list[tifffile.TiffPage | tifffile.TiffFrame]:
    """The full-size pages.

    Raises:
        ImageError: images of several sizes or kinds.
    """
    series = tiff.series
    if len(series) != 1:
        kinds = ", ".join(f"{one.shape} {one.dtype}" for one in series[:3])
        raise ImageError(f"a TIFF must hold a single RGB plane, or planes of one size and depth, "
                         f"{path.name} holds {len(series)} images: {kinds}.")
    pages = list(series[0].pages)
    if any(page is None for page in pages):
        raise ImageError(f"{path.name} is truncated or damaged: a plane that its metadata names is missing.")
    return pages


def _refuse_unless_rgb(page: tifffile.TiffPage, path: Path) -> None:
    rule = "an image must be 8-bit RGB brightfield"
    if page.dtype is None or page.dtype != np.uint8 or page.bitspersample != 8:
        raise ImageError(f"{rule}, {path.name} has {page.bitspersample}-bit {page.dtype} pixels: save it with 8 bits.")
    if page.samplesperpixel == 4:
        raise ImageError(f"{rule} without alpha, {path.name} has 4 channels (alpha or CMYK): save it with 3.")
    photometric = int(page.photometric)
    if page.samplesperpixel != 3:
        kind = "grey or palette" if page.samplesperpixel == 1 else "not RGB"
        raise ImageError(f"{rule}, {path.name} has {page.samplesperpixel} channel(s) ({kind}).")
    if photometric != _RGB and not (photometric == _YCBCR and int(page.compression) == _JPEG):
        raise ImageError(f"{rule}, {path.name} has photometric interpretation {photometric}.")
    if page.imagedepth != 1:
        raise ImageError(f"a TIFF must hold a single RGB plane, {path.name} holds a volume of depth {page.imagedepth}.")
    orientation = page.tags.get(274)
    if orientation is not None and int(orientation.value) != 1:
        raise ImageError(f"a TIFF must be stored upright (orientation 1), {path.name} has {int(orientation.value)}.")


def _refuse_truncated(page: tifffile.TiffPage, path: Path, reports: list[str]) -> None:
    if reports:
        raise ImageError(f"{path.name} is truncated or damaged: {reports[0]}.")
    if not page.dataoffsets or len(page.dataoffsets) != len(page.databytecounts):
        raise ImageError(f"{path.name} is truncated or damaged: it does not say where its pixels lie.")
    needed = max(offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    size = path.stat().st_size
    if needed > size:
        raise ImageError(f"{path.name} is truncated: it needs {needed} bytes and has {size}.")


@contextmanager
def _damage_reports() -> Iterator[list[str]]:
    """What tifffile logs instead of raising about values outside the file: our user must hear one sentence."""
    reports: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR and "offset" in record.getMessage():
                reports.append("a value lies outside the file")

    logger, listener = tifffile.logger(), Listener()
    propagate, level = logger.propagate, logger.level
    logger.addHandler(listener)
    logger.propagate = False
    logger.setLevel(logging.ERROR)  # the command line silences the logger: its reports are wanted here all the same
    try:
        yield reports
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        logger.removeHandler(listener)


def read_mpp(tiff: tifffile.TiffFile, page: tifffile.TiffPage, path: Path) -> float | None:
    """µm per pixel from the OME metadata, else ImageJ's, else the resolution tags; None where none is plausible.

    Raises:
        ImageError: pixels are not square (more than 1 % apart).
    """
    sides = _ome_sides(tiff.ome_metadata) if tiff.is_ome else None
    sides = sides or _tag_sides(tiff, page)
    if sides is None or not all(_PLAUSIBLE_MPP[0] <= side <= _PLAUSIBLE_MPP[1] for side in sides):
        return None
    if abs(sides[0] - sides[1]) > 0.01 * max(sides):
        raise ImageError(f"pixels must be square, {path.name} has {sides[1]:.4g} x {sides[0]:.4g} µm.")
    return float(sides[0])


def read_spacing_um(tiff: tifffile.TiffFile) -> float | None:
    """µm between focal planes from the OME metadata or ImageJ's, None where neither says."""
    spacing = _ome_size_um(tiff.ome_metadata, "Z") if tiff.is_ome else None
    if spacing is None and tiff.is_imagej and tiff.imagej_metadata:
        scale = _UM_PER_UNIT.get(str(tiff.imagej_metadata.get("unit")))
        given = tiff.imagej_metadata.get("spacing")
        spacing = None if scale is None or given is None else float(given) * scale
    return spacing if spacing is not None and spacing > 0 else None


def _ome_sides(xml: str | None) -> tuple[float, float] | None:
    """Width and height of a pixel in the OME metadata, µm."""
    width, height = _ome_size_um(xml, "X"), _ome_size_um(xml, "Y")
    return None if width is None or height is None else (width, height)


def _ome_size_um(xml: str | None, axis: str) -> float | None:
    """Size of a voxel along X, Y or Z in the OME metadata, µm."""
    try:
        root = ET.fromstring(xml or "<none/>")
    except ET.ParseError:
        return None
    pixels = next((node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    scale = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    size = pixels.get(f"PhysicalSize{axis}")
    return None if scale is None or size is None else float(size) * scale


def _tag_sides(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[float, float] | None:
    """Width and height of a pixel from XResolution and YResolution, µm."""
    tags = page.tags.get(282), page.tags.get(283)
    if tags[0] is None or tags[1] is None:
        return None
    unit = page.tags.get(296)
    um_per_unit: float | None = {2: 25_400.0, 3: 10_000.0}.get(int(unit.value) if unit is not None else 2)
    if um_per_unit is None and tiff.is_imagej and tiff.imagej_metadata:
        um_per_unit = _UM_PER_UNIT.get(str(tiff.imagej_metadata.get("unit")))
    counts = [(int(tag.value[0]), int(tag.value[1])) for tag in tags]
    if um_per_unit is None or any(pixels <= 0 or units <= 0 for pixels, units in counts):
        return None
    return um_per_unit * counts[0][1] / counts[0][0], um_per_unit * counts[1][1] / counts[1][0]
