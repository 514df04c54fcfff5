"""A slide as pyramidal TIFF or OME-TIFF, from strips of rows that never lie in memory together.

    strips of level 0 --encode--> tiles in the file
           |--halve--> level 1 --encode--> spool --> tiles in the file
                          |--halve--> level 2 ...

Every level is a SubIFD of the first page, as OME-TIFF wants it, and the next page of the main chain too, where
OpenSlide, cuCIM and libvips look for it: one pointer says both.
"""

from __future__ import annotations

import itertools
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from bundle.slides.jpeg_tiles import JpegTiles

TILE_PX = 256
STRIP_PX = 512  # rows of level 0 in memory at a time: 154 MB where a slide is 100,000 px wide
LAST_LEVEL_PX = 1024  # halved until no side is longer
SUBSAMPLINGS = {"420": (2, 2), "422": (2, 1)}
_BIGTIFF_BYTES = 2**32 * 0.6  # of raw pixels: noise grows under LZW, and levels add a third
_WORKERS = 4  # of encoding, which releases Python's lock


class Encoding(NamedTuple):
    """How tiles are compressed. Only what every reader reads rightly: JPEG 4:4:4, deflate and zstd are not."""

    compression: str = "lzw"  # lzw, without loss, or jpeg
    quality: int = 90  # of JPEG, 1..100
    subsampling: str = "422"  # of JPEG's colours: 422 or 420

    def checked(self) -> Encoding:
        """This encoding.

        Raises:
            ValueError: a value is not one that is written.
        """
        if self.compression not in ("lzw", "jpeg"):
            raise ValueError(f"compression must be lzw or jpeg, got {self.compression}.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie in 1..100, got {self.quality}.")
        if self.subsampling not in SUBSAMPLINGS:
            raise ValueError(f"subsampling must be 420 or 422, got {self.subsampling}.")
        return self

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """One tile, (TILE_PX, TILE_PX, 3)."""
        if self.compression == "jpeg":
            return bytes(imagecodecs.jpeg8_encode(tile, level=self.quality, colorspace="RGB", outcolorspace="YCBCR",
                                                  subsampling=self.subsampling))  # fmt: skip
        return bytes(imagecodecs.lzw_encode(imagecodecs.delta_encode(tile, axis=1).tobytes()))

    def tags(self) -> dict[str, Any]:
        """What tifffile must say about tiles of `encode`."""
        if self.compression == "jpeg":
            sampling = SUBSAMPLINGS[self.subsampling]
            return {"compression": "jpeg", "photometric": "ycbcr", "subsampling": sampling}
        return {"compression": "lzw", "predictor": True, "photometric": "rgb"}


class Record(NamedTuple):
    """What a file says beside its pixels."""

    name: str
    mpp: float | None = None  # µm per pixel
    icc_profile: bytes | None = None
    notes: Mapping[str, str] = {}  # provenance, of an OME-TIFF; text by name
    sources: tuple[Path, ...] = ()  # files that the pixels come from; DICOM names their instances
    made_s: float = 0.0  # date of a DICOM result, seconds since 1970: that of its source


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of every level, halved and rounded down until no side exceeds `LAST_LEVEL_PX`."""
    shapes = [shape]
    while max(shapes[-1]) > LAST_LEVEL_PX and min(shapes[-1]) > 1:
        shapes.append((shapes[-1][0] // 2, shapes[-1][1] // 2))
    return shapes


def write_pyramid(file: IO[bytes], shape: tuple[int, int], rows_at: Callable[[int, int], NDArray[np.uint8]],
                  encoding: Encoding, record: Record, ome: bool, spool_dir: Path, source: JpegTiles | None = None
                  ) -> None:
    """Write every level.

    Args:
        file: empty, open for reading and writing.
        shape: (height, width) of level 0, px.
        rows_at: (first row, number of rows) -> pixels of level 0, (rows, width, 3) uint8; asked from top to bottom.
        encoding: of the tiles.
        record: what to say beside the pixels.
        ome: with OME metadata.
        spool_dir: where encoded lower levels wait in nameless files: about a third of the result.
        source: gives level 0 its tiles where they are untouched, and encodes the others to fit; None encodes all.
    """
    shapes = level_shapes(shape)
    with ThreadPoolExecutor(_WORKERS) as pool:
        spools: list[_Spool] = []
        try:
            for _ in shapes[1:]:
                spools.append(_Spool(spool_dir, encoding, pool))
            for finer, coarser in itertools.pairwise(spools):
                finer.coarser = coarser
            big = shape[0] * shape[1] * 3 > _BIGTIFF_BYTES
            with tifffile.TiffWriter(file, bigtiff=big, ome=ome) as tiff:
                cells = _FreshTiles(encoding) if source is None else source
                tiles = _level_0(shape, rows_at, cells, spools[0] if spools else None, pool)
                tags = _tags(record, shapes[0], shape, encoding) | cells.tags() | _description(record, ome)
                tiff.write(tiles, subifds=len(spools) or None, iccprofile=record.icc_profile, **tags)
                for spool, reduced in zip(spools, shapes[1:], strict=True):
                    tags = _tags(record, reduced, shape, encoding)
                    tiff.write(spool.tiles(), subfiletype=1, metadata=None, iccprofile=record.icc_profile, **tags)
        finally:
            for spool in spools:
                spool.close()
    if ome and "objective" in record.notes:
        _name_objective(file, record.notes["objective"])
    _link_levels(file)


def _tags(record: Record, shape: tuple[int, int], full: tuple[int, int], encoding: Encoding) -> dict[str, Any]:
    tags: dict[str, Any] = {"shape": (*shape, 3), "dtype": np.uint8, "tile": (TILE_PX, TILE_PX), "software": "MoP"}
    if record.mpp is not None:
        density = 1e4 / (record.mpp * full[1] / shape[1])
        tags |= {"resolution": (density, density), "resolutionunit": "CENTIMETER"}
    return tags | encoding.tags()


def _description(record: Record, ome: bool) -> dict[str, Any]:
    if not ome:
        return {"metadata": None, "description": told(record.notes)}
    metadata: dict[str, Any] = {"axes": "YXS", "Name": record.name, "Channel": {"Name": "RGB"}}
    # Named after its content, not after the clock: the same run gives the same file.
    digest = sha256(repr((record.name, sorted(record.notes.items()))).encode()).digest()
    metadata["UUID"] = f"urn:uuid:{UUID(bytes=digest[:16], version=4)}"
    if record.mpp is not None:
        metadata |= {f"PhysicalSize{axis}": record.mpp for axis in "XY"}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    if record.notes:
        metadata["MapAnnotation"] = {"Namespace": "mop/provenance", **record.notes}
    return {"metadata": metadata}


def told(notes: Mapping[str, str]) -> str:
    """The provenance as text, for formats that have a comment alone; ASCII, as TIFF and JPEG want it."""
    text = "; ".join(f"{name}: {value}" for name, value in notes.items())
    return text.encode("ascii", "backslashreplace").decode()


class _FreshTiles:
    """Tiles of `TILE_PX`, all of them encoded here."""

    height = width = TILE_PX

    def __init__(self, encoding: Encoding) -> None:
        self.encode = encoding.encode

    def tags(self) -> dict[str, Any]:
        return {}

    def stored(self, index: int) -> bytes | None:
        return None


def _encoded_row(pixels: NDArray[np.uint8], first: int, cells: _FreshTiles | JpegTiles, pool: ThreadPoolExecutor
                 ) -> list[Future[bytes]]:  # fmt: skip
    """One row of tiles, from left to right, being encoded; `first`: which tile of its level the leftmost is."""
    futures = []
    for index, col in enumerate(range(0, pixels.shape[1], cells.width), first):
        stored = cells.stored(index)
        if stored is not None:
            done: Future[bytes] = Future()
            done.set_result(stored)
            futures.append(done)
            continue
        tile = pixels[:, col : col + cells.width]
        missing = (cells.height - tile.shape[0], cells.width - tile.shape[1])
        # The format wants whole tiles; the padding lies outside the image and no reader shows it.
        whole = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        futures.append(pool.submit(cells.encode, np.ascontiguousarray(whole)))
    return futures


def _level_0(shape: tuple[int, int], rows_at: Callable[[int, int], NDArray[np.uint8]], cells: _FreshTiles | JpegTiles,
             spool: _Spool | None, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """Encoded tiles of level 0; the coarser levels go to their spools on the way."""
    waiting: list[Future[bytes]] = []
    strip_px = max(1, STRIP_PX // cells.height) * cells.height
    across = -(-shape[1] // cells.width)
    for row in range(0, shape[0], strip_px):
        strip = rows_at(row, min(strip_px, shape[0] - row))
        # The strip before this one was encoded while this one was read.
        yield from (tile.result() for tile in waiting)
        waiting = []
        for top in range(0, len(strip), cells.height):
            first = (row + top) // cells.height * across
            waiting += _encoded_row(strip[top : top + cells.height], first, cells, pool)
        if spool is not None:
            spool.add(halved(strip))
    # Before the last tiles: tifffile asks for as many as there are and never resumes this generator after them.
    if spool is not None:
        spool.finish()
    yield from (tile.result() for tile in waiting)


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2 x 2 px, rounded; an odd last row or column is left out."""
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    if 0 in (height, width):
        return np.zeros((height // 2, width // 2, 3), np.uint8)
    return np.asarray(Image.fromarray(pixels[:height, :width]).reduce(2))


class _Spool:
    """A level's rows on their way: whole rows of tiles are encoded into a nameless file and halved for the next."""

    def __init__(self, folder: Path, encoding: Encoding, pool: ThreadPoolExecutor) -> None:
        self.coarser: _Spool | None = None
        self._cells, self._pool = _FreshTiles(encoding), pool
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        self._lengths: list[int] = []
        self._rows: list[NDArray[np.uint8]] = []
        self._held = 0

    def add(self, rows: NDArray[np.uint8]) -> None:
        """Rows below those that came before."""
        if not len(rows):
            return
        self._rows.append(rows)
        self._held += len(rows)
        if self._held >= TILE_PX:
            held = np.concatenate(self._rows)
            whole = self._held // TILE_PX * TILE_PX
            self._rows, self._held = [held[whole:]], self._held - whole
            self._pass_on(held[:whole])

    def finish(self) -> None:
        """No more rows come: the last ones may be fewer than a tile."""
        if self._held:
            self._pass_on(np.concatenate(self._rows))
        if self.coarser is not None:
            self.coarser.finish()

    def _pass_on(self, rows: NDArray[np.uint8]) -> None:
        for top in range(0, len(rows), TILE_PX):
            for future in _encoded_row(rows[top : top + TILE_PX], 0, self._cells, self._pool):
                tile = future.result()
                self._file.write(tile)
                self._lengths.append(len(tile))
        if self.coarser is not None:
            self.coarser.add(halved(rows))

    def tiles(self) -> Iterator[bytes]:
        """Every tile, in its order."""
        self._file.seek(0)
        yield from (self._file.read(length) for length in self._lengths)

    def close(self) -> None:
        self._file.close()


def _name_objective(file: IO[bytes], magnification: str) -> None:
    """Say the magnification where OME keeps it and viewers look for it: tifffile writes no instrument."""
    instrument = f'<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="{magnification}"/>'
    used = '<InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>'
    file.flush()
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        text = tiff.ome_metadata or ""
        text = text.replace("<Image ", f"{instrument}</Instrument><Image ", 1)
        text = text.replace("<Pixels ", f"{used}<Pixels ", 1)
        tiff.pages[0].aspage().tags["ImageDescription"].overwrite(text.encode())


def _link_levels(file: IO[bytes]) -> None:
    """Let the main chain of pages go on from the first page to its SubIFDs, which already follow each other."""
    file.flush()
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        form, first = tiff.tiff, tiff.pages[0]
        levels: Iterable[int] = first.subifds or ()
        chain = [first.offset, *levels]
    tag_count = form.byteorder + ("H" if form.tagnosize == 2 else "Q")
    pointer = form.byteorder + ("I" if form.offsetsize == 4 else "Q")
    for here, following in itertools.pairwise(chain):
        file.seek(here)
        (tags,) = struct.unpack(tag_count, file.read(form.tagnosize))
        file.seek(here + form.tagnosize + tags * form.tagsize)
        file.write(struct.pack(pointer, following))
