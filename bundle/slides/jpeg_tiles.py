"""A source's JPEG tiles go into the result byte by byte where nothing was changed, and new tiles fit between them.

    tile     a cell of level 0 in a TIFF, a JPEG stream
    tables   quantisation (DQT) and Huffman (DHT) tables that all tiles of a level share, or None: each has its own

A decoder may keep tables from one tile to the next. A new tile among tiles that share tables therefore brings its
quantisation tables under the numbers 2 and 3, which leaves the shared 0 and 1 alone, and takes the shared Huffman
tables.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from bundle.slides.grid import Box
from bundle.slides.reader import ImageReader, reason_of

_SOI, _SOF0, _DHT, _DQT, _SOS, _APP0, _APP14, _APP15, _COM = 0xD8, 0xC0, 0xC4, 0xDB, 0xDA, 0xE0, 0xEE, 0xEF, 0xFE
_RGB, _JPEG = 2, 7
_LARGEST_PX = 1024  # a row of tiles lies in memory: 0.3 GB where a slide is 100,000 px wide
_NAMES = {(1, 1): "444", (2, 1): "422", (2, 2): "420"}


class CannotCopyError(ValueError):
    """A source's tiles cannot be copied; the message says why."""


class Segment(NamedTuple):
    """A part of a JPEG stream before its data."""

    marker: int
    content: bytes  # without marker and length


def segments_of(stream: bytes) -> tuple[list[Segment], bytes]:
    """The segments of a JPEG stream up to and with the start of scan, and all that follows.

    Raises:
        CannotCopyError: it is no JPEG stream.
    """
    if stream[:2] != bytes((0xFF, _SOI)):
        raise CannotCopyError("a tile does not begin as JPEG")
    segments: list[Segment] = []
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF and (not segments or segments[-1].marker != _SOS):
        (length,) = struct.unpack_from(">H", stream, at + 2)
        segments.append(Segment(stream[at + 1], stream[at + 4 : at + 2 + length]))
        at += 2 + length
    return segments, stream[at:]


def _joined(segments: list[Segment], rest: bytes) -> bytes:
    parts = [struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments]
    return b"".join((bytes((0xFF, _SOI)), *parts, rest))


def _huffman_tables(segments: list[Segment]) -> dict[int, bytes]:
    """Huffman tables by class and number."""
    tables = {}
    for content in (content for marker, content in segments if marker == _DHT):
        at = 0
        while at + 17 <= len(content):
            length = 17 + sum(content[at + 1 : at + 17])
            tables[content[at]] = content[at + 1 : at + length]
            at += length
    return tables


def _renumbered(segment: Segment) -> Segment:
    """Quantisation tables 0 and 1, and what refers to them, as 2 and 3."""
    content = bytearray(segment.content)
    if segment.marker == _DQT:
        for at in range(0, len(content), 65):  # 8-bit tables: a baseline encoder writes no others
            content[at] += 2
    elif segment.marker == _SOF0:
        for at in range(8, len(content), 3):
            content[at] += 2
    return Segment(segment.marker, bytes(content))


class JpegTiles:
    """The tiles of a source's level 0.

    Args:
        reader: the source.
        untouched: whether the result holds the source's own pixels throughout a rectangle.
        quality: of new tiles, 1..100; they take size and subsampling of the source's.

    Attributes:
        height, width: of a tile, px.
        count: of tiles.
        copied: tiles that `stored` gave so far.

    Raises:
        CannotCopyError: the source holds none, or new tiles would not fit between them.
    """

    def __init__(self, reader: ImageReader, untouched: Callable[[Box], bool], quality: int) -> None:
        if reader.tiff_page is None:
            raise CannotCopyError("the source's format keeps no tiles that a TIFF can take")
        self._reader, self._untouched, self._quality, self.copied = reader, untouched, quality, 0
        try:
            with tifffile.TiffFile(reader.path) as tiff:
                page = tiff.pages[reader.tiff_page]
                key = page.keyframe
                if int(key.compression) != _JPEG or not key.is_tiled or int(key.planarconfig) != 1:
                    raise CannotCopyError(f"the source's pixels are {key.compression.name} and not JPEG tiles")
                self._offsets, self._counts = page.dataoffsets, page.databytecounts
                self.height, self.width, self.tables = int(key.tilelength), int(key.tilewidth), key.jpegtables
                photometric = int(key.photometric)
        except (ValueError, OSError, RuntimeError, struct.error, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, CannotCopyError):
                raise
            raise CannotCopyError(f"the source cannot be read as TIFF: {reason_of(error)}") from error
        self.count = len(self._counts)
        self.across = -(-reader.shape[1] // self.width)
        if self.height % 16 or self.width % 16 or max(self.height, self.width) > _LARGEST_PX:
            size = f"{self.height} x {self.width}"
            raise CannotCopyError(f"its tiles of {size} px are not multiples of 16 up to {_LARGEST_PX}")
        self._fd = os.open(reader.path, os.O_RDONLY)
        try:
            self._learn(photometric)
        except BaseException:
            self.close()
            raise

    def _learn(self, photometric: int) -> None:
        """What the first tile says of all: colours, subsampling, and whether new tiles fit beside it."""
        first = next((k for k, count in enumerate(self._counts) if count), None)
        if first is None:
            raise CannotCopyError("the source holds no tile")
        segments, _ = segments_of(self._stream(first))
        found = dict(segments)
        if _SOF0 not in found or len(found[_SOF0]) != 15 or found[_SOF0][0] != 8:
            raise CannotCopyError("its tiles are not baseline JPEG of three colours")
        frame = found[_SOF0]
        if struct.unpack_from(">HH", frame, 1) != (self.height, self.width):
            raise CannotCopyError("its tiles have another size than the file says")
        sampling = (frame[7] >> 4, frame[7] & 15)
        if sampling not in _NAMES or (frame[10], frame[13]) != (0x11, 0x11):
            raise CannotCopyError(f"its colours are subsampled {sampling[0]} x {sampling[1]}")
        self.sampling = sampling
        # A stream's own word counts more than the file's: writers have called YCbCr RGB.
        self.rgb = photometric == _RGB and sampling == (1, 1) and _APP0 not in found
        if _APP14 in found and len(found[_APP14]) >= 12:
            self.rgb = found[_APP14][11] == 0
        self._shared = _huffman_tables(segments_of(self.tables)[0]) if self.tables else {}
        grey = np.full((self.height, self.width, 3), 128, np.uint8)
        made = _huffman_tables(segments_of(self._encoded(grey))[0])
        if self._shared and any(self._shared.get(number) != table for number, table in made.items()):
            raise CannotCopyError("its Huffman tables are not the standard ones")

    def _stream(self, index: int) -> bytes:
        return os.pread(self._fd, self._counts[index], self._offsets[index])

    def tags(self) -> dict[str, Any]:
        """What tifffile must say about the tiles."""
        return {
            "tile": (self.height, self.width), "compression": "jpeg", "photometric": "rgb",
            "subsampling": self.sampling, "jpegtables": self.tables,
            "compressionargs": {"outcolorspace": "RGB" if self.rgb else "YCBCR"},
        }  # fmt: skip

    def stored(self, index: int) -> bytes | None:
        """The source's own stream of a tile whose pixels are untouched, else None."""
        row, col = index // self.across * self.height, index % self.across * self.width
        box = Box(row, col, self.height, self.width).overlap(Box(0, 0, *self._reader.shape))
        if not self._counts[index] or not self._untouched(box):
            return None
        self.copied += 1
        return self._stream(index)

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """A new tile, (height, width, 3), as a stream that stands beside the source's."""
        stream = self._encoded(tile)
        if self.tables is None:
            return stream
        segments, rest = segments_of(stream)
        return _joined([_renumbered(segment) for segment in self._needed(segments)], rest)

    def _needed(self, segments: list[Segment]) -> Iterator[Segment]:
        for segment in segments:
            application = _APP0 <= segment.marker <= _APP15 or segment.marker == _COM
            if not application and not (segment.marker == _DHT and self._shared):
                yield segment

    def _encoded(self, tile: NDArray[np.uint8]) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(tile, level=self._quality, colorspace="RGB",
                                              outcolorspace="RGB" if self.rgb else "YCBCR",
                                              subsampling=_NAMES[self.sampling]))  # fmt: skip

    def close(self) -> None:
        os.close(self._fd)
