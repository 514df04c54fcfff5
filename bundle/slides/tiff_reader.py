"""TIFF and OME-TIFF with their levels and planes, decoded where it is read: a slide never lies in memory.

A segment is a tile or a strip of the file. Segments are read by position (`pread`), so that a forked process
does not disturb its parent's place in the file.
"""

from __future__ import annotations

import logging
import os
import re
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
from bundle.slides.reader import (
    MAX_PIXELS,
    PLAUSIBLE_MPP,
    ImageError,
    ImageReader,
    Level,
    SlideFacts,
    reason_of,
    refuse_plane,
)

CACHE_BYTES = 128 * 2**20  # decoded segments kept: a row of strips or tiles of a wide image is read once, not per block
_RGB, _YCBCR, _JPEG = 2, 6, 7
_UM_PER_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00B5m": 1.0, "nm": 1e-3, "mm": 1e3,
                "cm": 1e4, "m": 1e6}  # fmt: skip
# Beyond these a resolution is a printer's (72 dpi is 353 µm), not a microscope's.


class _Plane:
    """Where the segments of one page lie: one level of one focal plane."""

    def __init__(self, page: tifffile.TiffPage | tifffile.TiffFrame, path: Path) -> None:
        self.page, key = page, page.keyframe
        tiled = key.is_tiled
        self.height, self.width = int(key.imagelength), int(key.imagewidth)
        self.cell_height = int(key.tilelength if tiled else min(key.rowsperstrip, key.imagelength))
        self.cell_width = int(key.tilewidth if tiled else key.imagewidth)
        if self.cell_height * self.cell_width > MAX_PIXELS:
            size = f"{self.cell_height} x {self.cell_width}"
            raise ImageError(f"a tile or strip of a TIFF may have up to {MAX_PIXELS} px, {path.name} has {size}.")
        self.across = -(-self.width // self.cell_width)
        self.down = -(-self.height // self.cell_height)
        self.separate = int(key.planarconfig) == 2  # R, G and B lie in segments of their own
        self.jpeg_tables = key.jpegtables


def is_cut_short(tiff: tifffile.TiffFile) -> bool:
    """Whether the chain of pages goes on where the file has ended: those that are left look like a smaller stack."""
    words, file, last = tiff.tiff, tiff.filehandle, tiff.pages[len(tiff.pages) - 1]
    file.seek(last.offset)
    (tags,) = struct.unpack(words.tagnoformat, file.read(words.tagnosize))
    file.seek(last.offset + words.tagnosize + tags * words.tagsize)
    onward = file.read(words.offsetsize)
    return len(onward) < words.offsetsize or struct.unpack(words.offsetformat, onward)[0] != 0


class TiffReader(ImageReader):
    """One RGB plane of a TIFF with its levels.

    Args:
        path: the file.
        plane: of a z-stack, from 0; None where there is only one.

    Attributes:
        planes: focal planes in the file.
        spacing_um: between them, None where the file does not say.
    """

    def __init__(self, path: Path, plane: int | None = None) -> None:
        self._fd = -1
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0
        with ExitStack() as undo, _damage_reports() as reports:
            try:
                self._tiff = undo.enter_context(tifffile.TiffFile(path))
                self.planes, pages = _pages_of(self._tiff, path, plane)
                if is_cut_short(self._tiff):
                    raise ImageError(f"{path.name} is cut short: it names pages that lie beyond its end.")
                self.spacing_um = read_spacing_um(self._tiff)
                for page in pages:
                    _refuse_unless_rgb(page.keyframe, path)
                    _refuse_truncated(page, path, reports)
                self._planes = [_Plane(page, path) for page in pages]
                first, key = self._planes[0], pages[0].keyframe
                profile = key.tags.get(34675)
                levels = tuple(Level(held.height, held.width, first.width / held.width) for held in self._planes)
                mpp = read_mpp(self._tiff, key, path)
                facts = SlideFacts(mpp, bytes(profile.value) if profile else None, levels,
                                   objective=_objective(self._tiff.ome_metadata))  # fmt: skip
                super().__init__(path, (first.height, first.width), facts)
                self._fd = os.open(path, os.O_RDONLY)
                undo.callback(self.close)
                self._segment(0, 0)  # a codec that is missing or a damaged start shows now, not after an hour
            except (ImageError, PermissionError):
                raise
            # What a library makes of damaged structures: found by cutting files at many places.
            except (ValueError, OSError, RuntimeError, struct.error, LookupError, TypeError, AttributeError) as error:
                raise ImageError(f"{path.name} cannot be opened as TIFF: {reason_of(error)}.") from error
            undo.pop_all()

    @property
    def tiff_page(self) -> int | None:
        index = self._planes[0].page.index
        return index if isinstance(index, int) else None

    def _read(self, box: Box, level: int) -> NDArray[np.uint8]:
        held = self._planes[level]
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        for row in range(box.row // held.cell_height, (box.bottom - 1) // held.cell_height + 1):
            for col in range(box.col // held.cell_width, (box.right - 1) // held.cell_width + 1):
                cell = Box(row * held.cell_height, col * held.cell_width, held.cell_height, held.cell_width)
                shared = cell.overlap(box)
                target, source = shared.within(box), shared.within(cell)
                index = row * held.across + col
                if not held.separate:
                    pixels[target] = self._segment(level, index)[source]
                    continue
                for channel in range(3):
                    part = self._segment(level, index + channel * held.across * held.down)
                    pixels[..., channel][target] = part[source][..., 0]
        return pixels

    def _segment(self, level: int, index: int) -> NDArray[np.uint8]:
        """The decoded segment, (rows, cols, 3 or 1); the last strips may be short."""
        place = (level, index)
        if place in self._cache:
            self._cache.move_to_end(place)
            return self._cache[place]
        held = self._planes[level]
        count, offset = held.page.databytecounts[index], held.page.dataoffsets[index]
        key = held.page.keyframe
        try:
            data = os.pread(self._fd, count, offset) if count else None
            pixels, _, shape = key.decode(data, index, jpegtables=held.jpeg_tables)
        # Every codec raises an error of its own, all of them of these kinds.
        except (ValueError, RuntimeError, ImportError, TypeError, struct.error) as error:
            raise ImageError(f"segment {index} of {self.path.name} cannot be decoded: {reason_of(error)}.") from error
        if pixels is None:  # a segment left out by the writer
            pixels = np.full(shape, key.nodata, np.uint8)
        pixels = np.asarray(pixels[0], np.uint8)
        self._cache[place] = pixels
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


def _pages_of(
    tiff: tifffile.TiffFile, path: Path, plane: int | None
) -> tuple[int, list[tifffile.TiffPage | tifffile.TiffFrame]]:
    """How many focal planes there are, and the pages of one of them, one a level, finest first.

    Raises:
        ImageError: several images, time points or channels, or several planes and none chosen.
    """
    if not tiff.series:
        raise ImageError(f"{path.name} is truncated or damaged: it holds no image.")
    # The label and the macro image beside a slide carry names of patients: they are no candidates. The name of an only
    # image is often its file's: macrophages.ome.tiff is one.
    beside = re.compile(r"\b(label|macro|overview|thumbnail)\b", re.IGNORECASE)
    series = [one for one in tiff.series if len(tiff.series) == 1 or not beside.search(one.name)]
    if len(series) != 1:
        kinds = ", ".join(f"{one.shape} {one.dtype}" for one in series[:3])
        rule = "a TIFF must hold a single RGB plane, or planes of one size and depth"
        raise ImageError(f"{rule}, {path.name} holds {len(series)} images: {kinds}.")
    stack = series[0]
    planes = len(stack.pages)
    held = f"axes {stack.axes} of {stack.shape}"
    refusal = f"a TIFF must hold a single RGB plane, {path.name} holds {held}: save the plane to restore"
    if any(page is None for page in stack.pages):
        raise ImageError(f"{path.name} is truncated or damaged: a plane that its metadata names is missing.")
    if planes > 1 and plane is None:
        raise ImageError(f"{refusal} or choose one by --plane 0..{planes - 1}.")
    refuse_plane(path, plane, planes)
    if planes > 1 and sum(side > 1 for side in stack.shape) != 4:  # planes, rows, columns, colours
        raise ImageError(f"{refusal}.")
    levels = [level for level in stack.levels if len(level.pages) == planes]
    return planes, [level.pages[plane or 0] for level in levels]


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


def _refuse_truncated(page: tifffile.TiffPage | tifffile.TiffFrame, path: Path, reports: list[str]) -> None:
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
    if sides is None or not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in sides):
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


def _objective(xml: str | None) -> float | None:
    """Nominal magnification of the first objective in the OME metadata, or that of a restored slide's annotation."""
    found = re.search(r'NominalMagnification="([0-9.]+)"|<M K="objective">([0-9.]+)</M>', xml or "")
    return float(found.group(1) or found.group(2)) if found else None


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
