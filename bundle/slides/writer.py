"""Results reach the disk whole or not at all: a temporary name, fsync, rename.

PNG is lossless, JPEG quality 95 without chroma subsampling, TIFF and OME-TIFF LZW in tiles with the pixel size.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bundle.slides.grid import Box
from bundle.slides.reader import RASTER_SUFFIXES, TIFF_SUFFIXES

TIFF_TILE_PX = 256
_BIGTIFF_BYTES = 2**32 - 2**25  # above this a classic TIFF's 32-bit offsets could run out


@contextmanager
def replace_when_done(path: Path, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """A new file that gets its name only when the body ends without an error; else nothing remains of it.

    Args:
        path: the final name; its folder is made if needed.
        overwrite: replace a file of that name.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False.
    """
    _refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of the tempfile module: its files are readable by their owner alone, and the name keeps that mode.
    temporary = path.parent / f".mop-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse_existing(path, overwrite)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def folder_when_done(path: Path, mark: str, overwrite: bool = False) -> Iterator[Path]:
    """A new folder that gets its name only when the body ends without an error; else nothing remains of it.

    Args:
        path: the final name.
        mark: a file that every such folder holds: only a folder that holds it is ever replaced.
        overwrite: replace an earlier folder of that name.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False, or it is not a folder of this kind.
    """
    if path.exists() and not (overwrite and (path / mark).is_file()):
        rule = f"has no {mark}, so it is not replaced" if overwrite else "exists: --overwrite replaces it"
        raise FileExistsError(f"{path} {rule}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, older = (path.parent / f".mop-{secrets.token_hex(8)}.tmp" for _ in range(2))
    unfinished.mkdir()
    try:
        yield unfinished
        if path.exists():
            path.rename(older)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if older.exists() and not path.exists():
            older.rename(path)
        shutil.rmtree(older, ignore_errors=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists: --overwrite replaces a file.")


class ImageSink(ABC):
    """Takes the blocks of an image in any order and writes the file when the `with` body ends without an error.

    Args:
        path: result, its suffix picks the format.
        shape: (height, width) px.
        mpp: µm per pixel to record, or None.
        icc_profile: colour profile to embed, or None.
        overwrite: replace a file of that name.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], mpp: float | None, icc_profile: bytes | None, overwrite: bool
    ) -> None:
        _refuse_existing(path, overwrite)
        self.path, self.shape, self.mpp, self.icc_profile, self.overwrite = path, shape, mpp, icc_profile, overwrite
        self._missing = shape[0] * shape[1]

    def write(self, row: int, col: int, pixels: NDArray[np.uint8]) -> None:
        """Put a block, (height, width, 3) uint8, at (row, col). Blocks must not overlap.

        Raises:
            ValueError: the block is not uint8 RGB or reaches outside the image.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"a block must be (h, w, 3) uint8, got {pixels.shape} {pixels.dtype}.")
        box = Box(row, col, pixels.shape[0], pixels.shape[1])
        if box.overlap(Box(0, 0, *self.shape)) != box:
            inside = f"{self.shape[0]} x {self.shape[1]} px image"
            raise ValueError(f"a block must lie inside the {inside}, got {tuple(box)}.")
        self._put(box, pixels)
        self._missing -= box.height * box.width

    @abstractmethod
    def _put(self, box: Box, pixels: NDArray[np.uint8]) -> None:
        """Keep a block that lies inside the image."""

    @abstractmethod
    def _encode(self, file: IO[bytes]) -> None:
        """Write the whole image."""

    @abstractmethod
    def _release(self) -> None:
        """Give back what holds the blocks."""

    def __enter__(self) -> ImageSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._release()

    def _finish(self) -> None:
        if self._missing:
            raise ValueError(f"every pixel of {self.path.name} must be written once, {self._missing} are left.")
        with replace_when_done(self.path, self.overwrite) as file:
            self._encode(file)


class RasterSink(ImageSink):
    """PNG or JPEG, held in memory until it is encoded, as its input was."""

    def __init__(
        self, path: Path, shape: tuple[int, int], mpp: float | None, icc_profile: bytes | None, overwrite: bool
    ) -> None:
        super().__init__(path, shape, mpp, icc_profile, overwrite)
        self._pixels = np.zeros((*shape, 3), np.uint8)

    def _put(self, box: Box, pixels: NDArray[np.uint8]) -> None:
        self._pixels[box.row : box.bottom, box.col : box.right] = pixels

    def _encode(self, file: IO[bytes]) -> None:
        from PIL import Image

        image = Image.fromarray(self._pixels)
        profile: dict[str, Any] = {"icc_profile": self.icc_profile} if self.icc_profile else {}
        if self.path.suffix.lower() == ".png":
            image.save(file, "PNG", **profile)
        else:
            image.save(file, "JPEG", quality=95, subsampling=0, **profile)

    def _release(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


class TiffSink(ImageSink):
    """TIFF or OME-TIFF, encoded row of tiles by row of tiles from a nameless file beside the result.

    Blocks arrive as squares and a TIFF is written in rows: the raw pixels wait on the disk, not in memory. The
    file has no name, so that even a killed process leaves nothing behind.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], mpp: float | None, icc_profile: bytes | None, overwrite: bool
    ) -> None:
        super().__init__(path, shape, mpp, icc_profile, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._raw = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (closed by _release)

    def _put(self, box: Box, pixels: NDArray[np.uint8]) -> None:
        for offset, line in enumerate(pixels):
            self._raw.seek(((box.row + offset) * self.shape[1] + box.col) * 3)
            self._raw.write(np.ascontiguousarray(line).data)

    def _tiles(self) -> Iterator[NDArray[np.uint8]]:
        height, width = self.shape
        self._raw.flush()
        for row in range(0, height, TIFF_TILE_PX):
            rows = min(TIFF_TILE_PX, height - row)
            self._raw.seek(row * width * 3)
            strip = np.frombuffer(self._raw.read(rows * width * 3), np.uint8).reshape(rows, width, 3)
            for col in range(0, width, TIFF_TILE_PX):
                tile = strip[:, col : col + TIFF_TILE_PX]
                missing = (TIFF_TILE_PX - rows, TIFF_TILE_PX - tile.shape[1])
                # The format wants whole tiles; the padding lies outside the image and no reader shows it.
                yield np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")

    def _encode(self, file: IO[bytes]) -> None:
        import tifffile

        ome = is_ome_name(self.path)
        options: dict[str, Any] = {"metadata": None}
        if ome:
            options["metadata"] = {"axes": "YXS", "Name": self.path.name}
        if self.mpp is not None:
            options |= {"resolution": (1e4 / self.mpp, 1e4 / self.mpp), "resolutionunit": "CENTIMETER"}
            if ome:
                options["metadata"] |= {f"PhysicalSize{axis}": self.mpp for axis in "XY"}
                options["metadata"] |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        big = self.shape[0] * self.shape[1] * 3 > _BIGTIFF_BYTES
        with tifffile.TiffWriter(file, bigtiff=big, ome=ome) as tiff:
            tiff.write(
                self._tiles(), shape=(*self.shape, 3), dtype=np.uint8, tile=(TIFF_TILE_PX, TIFF_TILE_PX),
                photometric="rgb", compression="lzw", predictor=True, iccprofile=self.icc_profile,
                buffersize=16 * 2**20, software="MoP", **options,
            )  # fmt: skip

    def _release(self) -> None:
        self._raw.close()


def is_ome_name(path: Path) -> bool:
    """Whether the name asks for OME-TIFF: `.ome.tif` or `.ome.tiff`."""
    return path.name.lower().endswith((".ome.tif", ".ome.tiff"))


def open_sink(
    path: Path,
    shape: tuple[int, int],
    mpp: float | None = None,
    icc_profile: bytes | None = None,
    overwrite: bool = False,
) -> ImageSink:
    """The sink for a result's name; see `ImageSink`.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        ValueError: the suffix is not one that is written.
    """
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        return TiffSink(path, shape, mpp, icc_profile, overwrite)
    if suffix in RASTER_SUFFIXES:
        return RasterSink(path, shape, mpp, icc_profile, overwrite)
    raise ValueError(f"a result must be {', '.join(RASTER_SUFFIXES + TIFF_SUFFIXES)}, got {path.name}.")
