"""Two images of one size, and the tiles of their deep zoom.

    level  L - k holds every 2^k-th pixel, L = ceil(log2(longer side)); tiles of `TILE_PX`, as in Deep Zoom
"""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.etree import ElementTree as ET

from PIL import Image

from bundle.slides.grid import Box
from bundle.slides.reader import TIFF_SUFFIXES, ImageError, ImageReader, open_image

TILE_PX = 256
_QUALITY = 92  # of the tiles' JPEG
_TILES_HELD = 400  # about 12 MB


class SlidePair:
    """The image before and the image after; both are closed with the pair.

    Args:
        before: the source.
        after: its restoration.

    Raises:
        ImageError: their sizes differ.
    """

    def __init__(self, before: ImageReader, after: ImageReader) -> None:
        if before.shape != after.shape:
            sizes = " and ".join(f"{reader.shape[1]} x {reader.shape[0]} px ({reader.path.name})"
                                 for reader in (before, after))  # fmt: skip
            before.close()
            after.close()
            raise ImageError(f"before and after must have one size, got {sizes}: choose the source by --source.")
        self.readers = {"before": before, "after": after}
        self.height, self.width = before.shape
        self.max_level = math.ceil(math.log2(max(before.shape)))
        self.min_level = min(self.max_level, int(math.log2(TILE_PX)))
        self.mpp = after.mpp or before.mpp
        self._lock = threading.Lock()  # readers are not asked by two threads at once
        self._held: OrderedDict[tuple[str, int, int, int], bytes] = OrderedDict()

    def tile(self, which: str, level: int, x: int, y: int) -> bytes:
        """One tile as JPEG.

        Args:
            which: before or after.
            level: of the deep zoom.
            x, y: column and row of the tile.

        Raises:
            LookupError: there is no such tile.
        """
        if which not in self.readers or not self.min_level <= level <= self.max_level:
            raise LookupError(f"a tile must lie in {self.min_level}..{self.max_level} of before or after.")
        zoom = 2 ** (self.max_level - level)
        whole = Box(0, 0, self.height, self.width)
        box = Box(y * TILE_PX * zoom, x * TILE_PX * zoom, TILE_PX * zoom, TILE_PX * zoom).overlap(whole)
        if min(x, y) < 0 or not box.height or not box.width:
            raise LookupError(f"level {level} has no tile {x}_{y}.")
        key = (which, level, x, y)
        with self._lock:
            if key not in self._held:
                file = io.BytesIO()
                pixels = self.readers[which].read_scaled(box, zoom)
                Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
                self._held[key] = file.getvalue()
                if len(self._held) > _TILES_HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]

    def close(self) -> None:
        """Close both images."""
        with self._lock:
            for reader in self.readers.values():
                reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_pair(restored: Path, source: Path | None = None, plane: int | None = None) -> SlidePair:
    """A restored image beside its source.

    Args:
        restored: the result.
        source: what it came from; None looks beside the result for the name that the result itself tells.
        plane: of the source, where it is a z-stack.

    Raises:
        FileNotFoundError: the source is not there.
        ImageError: an image cannot be read, or the sizes differ.
    """
    after = open_image(restored)
    try:
        before = open_image(source or _source_of(restored), plane)
    except BaseException:
        after.close()
        raise
    return SlidePair(before, after)


def _source_of(restored: Path) -> Path:
    name = source_name(restored)
    if not name:
        raise ImageError(f"{restored.name} does not say what it was restored from: give --source.")
    for folder in (restored.parent, Path.cwd()):
        if (folder / name).is_file() and (folder / name).resolve() != restored.resolve():
            return folder / name
    raise FileNotFoundError(f"{restored.name} was restored from {name}, which is not beside it: give --source.")


def source_name(restored: Path) -> str:
    """The file name of the source that an OME-TIFF of ours tells; empty where none is told."""
    import tifffile

    if restored.suffix.lower() not in TIFF_SUFFIXES:
        return ""
    try:
        with tifffile.TiffFile(restored) as file:
            text = file.ome_metadata or ""
        entries = ET.fromstring(text).iterfind(".//{*}M[@K='source name']") if text else iter(())
        # A name, never a way to somewhere else: the file's author is not the user.
        return Path(next((entry.text or "" for entry in entries), "")).name
    except (tifffile.TiffFileError, ET.ParseError):
        return ""
