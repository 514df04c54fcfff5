"""Sinks that take the blocks of a result and write it whole or not at all (whole_files.py).

PNG is lossless, JPEG quality 95 without chroma subsampling, TIFF and OME-TIFF pyramids of tiles (pyramid.py), OME-Zarr
(zarr_writer.py) and DICOM (dicom_writer.py) folders of levels. Finished blocks of those with levels wait in a ledger
beside them (ledger.py), so that a killed run can go on.
"""

from __future__ import annotations

import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.progress import Progress
from bundle.slides.grid import Box
from bundle.slides.jpeg_tiles import JpegTiles
from bundle.slides.ledger import FIGURES, BlockLedger, drop_unfinished, is_remainder
from bundle.slides.pyramid import Encoding, Record, told, write_pyramid
from bundle.slides.reader import DICOM_FOLDER, PICTURE_SUFFIXES, RASTER_SUFFIXES, TIFF_SUFFIXES, ImageReader
from bundle.slides.whole_files import refuse_existing, replace_when_done

BLOCK_PX = 2048
ZARR_SUFFIX = ".zarr"


class ImageSink(ABC):
    """Takes the blocks of an image in any order and writes the file when the `with` body ends without an error.

    Args:
        path: result, its suffix picks the format.
        shape: (height, width) px.
        record: what to say beside the pixels.
        overwrite: replace a file of that name.
    """

    keeps_work = False  # whether finished blocks survive the process
    progress: Progress | None = None  # told of rows written and rows in all

    def __init__(self, path: Path, shape: tuple[int, int], record: Record, overwrite: bool) -> None:
        self.path, self.shape, self.record, self.overwrite = path, shape, record, overwrite
        self._refuse_existing()
        self._missing = shape[0] * shape[1]

    def write(self, row: int, col: int, pixels: NDArray[np.uint8], figures: Sequence[float] = (0.0,) * FIGURES) -> None:
        """Put a block, (height, width, 3) uint8, at (row, col). Blocks must not overlap.

        Args:
            row, col: px.
            pixels: of the block.
            figures: what to remember of the block beside its pixels.

        Raises:
            ValueError: the block is not uint8 RGB or reaches outside the image.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"a block must be (h, w, 3) uint8, got {pixels.shape} {pixels.dtype}.")
        box = Box(row, col, pixels.shape[0], pixels.shape[1])
        self._put(self._counted(box), pixels, figures)

    def copy(self, block: Box, source: ImageReader) -> None:
        """Let a block be the source's own pixels, read when they are needed; `source` must stay open."""
        self._copy(self._counted(block), source)

    def resume(self, block: Box) -> NDArray[np.float64] | None:
        """The figures of a block that an earlier run finished, which then counts as written; else None."""
        figures = self._finished(block)
        if figures is not None:
            self._counted(block)
        return figures

    @abstractmethod
    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        """Pixels of finished blocks, (height, width, 3), before the file is written."""

    def _counted(self, box: Box) -> Box:
        if box.overlap(Box(0, 0, *self.shape)) != box:
            inside = f"{self.shape[0]} x {self.shape[1]} px image"
            raise ValueError(f"a block must lie inside the {inside}, got {tuple(box)}.")
        self._missing -= box.height * box.width
        return box

    @abstractmethod
    def _put(self, box: Box, pixels: NDArray[np.uint8], figures: Sequence[float]) -> None:
        """Keep a block that lies inside the image."""

    def _copy(self, box: Box, source: ImageReader) -> None:
        self._put(box, source.read(*box), (0.0,) * FIGURES)

    def _finished(self, block: Box) -> NDArray[np.float64] | None:
        return None

    def _refuse_existing(self) -> None:
        refuse_existing(self.path, self.overwrite)

    @abstractmethod
    def _save(self) -> None:
        """Write the whole image under its name."""

    @abstractmethod
    def _release(self, failed: bool) -> None:
        """Give back what holds the blocks."""

    def __enter__(self) -> ImageSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = True
        try:
            if kind is None:
                self._finish()
                failed = False
        finally:
            self._release(failed)

    def _finish(self) -> None:
        if self._missing:
            raise ValueError(f"every pixel of {self.path.name} must be written once, {self._missing} are left.")
        self._refuse_lost()
        self._save()

    def _refuse_lost(self) -> None:  # noqa: B027 - what is kept in memory is not lost
        pass


class RasterSink(ImageSink):
    """PNG or JPEG, held in memory until it is encoded, as its input was."""

    def __init__(self, path: Path, shape: tuple[int, int], record: Record, overwrite: bool) -> None:
        super().__init__(path, shape, record, overwrite)
        self._pixels = np.zeros((*shape, 3), np.uint8)

    def _put(self, box: Box, pixels: NDArray[np.uint8], figures: Sequence[float]) -> None:
        self._pixels[box.row : box.bottom, box.col : box.right] = pixels

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        return self._pixels[row : row + height, col : col + width].copy()

    def _save(self) -> None:
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        image = Image.fromarray(self._pixels)
        profile: dict[str, Any] = {"icc_profile": self.record.icc_profile} if self.record.icc_profile else {}
        notes = told(self.record.notes)
        with replace_when_done(self.path, self.overwrite) as file:
            if self.path.suffix.lower() == ".png":
                texts = PngInfo()
                texts.add_text("Description", notes)
                image.save(file, "PNG", pnginfo=texts if notes else None, **profile)
            else:
                image.save(file, "JPEG", quality=95, subsampling=0, comment=notes, **profile)

    def _release(self, failed: bool) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


class LedgerSink(ImageSink):
    """A format with levels. Finished blocks wait on the disk; copied ones cost nothing until the end.

    Args:
        path, shape, record, overwrite: see `ImageSink`.
        block_px: side of the blocks that will come.
        job: identifies the work: an unfinished run of the same job is gone on with; None keeps nothing of a failure.
    """

    def __init__(self, path: Path, shape: tuple[int, int], record: Record, overwrite: bool, block_px: int,
                 job: Mapping[str, Any] | None) -> None:
        super().__init__(path, shape, record, overwrite)
        self.keeps_work, self.block_px = job is not None, block_px
        folder = path.parent / f".mop-{secrets.token_hex(8)}.tmp" if job is None else unfinished_of(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.ledger = BlockLedger(folder, shape, block_px, job or {})
        except ValueError:
            if not overwrite:
                raise
            drop_unfinished(folder)
            self.ledger = BlockLedger(folder, shape, block_px, job or {})
        self.ledger.lock()
        self._copied: dict[tuple[int, int], ImageReader] = {}

    def _put(self, box: Box, pixels: NDArray[np.uint8], figures: Sequence[float]) -> None:
        self.ledger.put(box, pixels, figures)

    def _copy(self, box: Box, source: ImageReader) -> None:
        self._copied[box.row, box.col] = source

    def _finished(self, block: Box) -> NDArray[np.float64] | None:
        return self.ledger.figures(block) if self.ledger.has(block) else None

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        box = Box(row, col, height, width)
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(row // self.block_px * self.block_px, box.bottom, self.block_px):
            for left in range(col // self.block_px * self.block_px, box.right, self.block_px):
                part = Box(top, left, self.block_px, self.block_px).overlap(box)
                source = self._copied.get((top, left))
                pixels[part.within(box)] = self.ledger.read(part) if source is None else source.read(*part)
        return pixels

    def _rows(self, row: int, rows: int) -> NDArray[np.uint8]:
        """Rows for the file, asked for from top to bottom."""
        pixels = self.read(row, 0, rows, self.shape[1])
        self._tell_rows(row + rows)
        return pixels

    def _tell_rows(self, read: int) -> None:
        if self.progress is not None:
            self.progress(read, self.shape[0])

    def _refuse_lost(self) -> None:
        """A block that vanished from the disk would be read back black."""
        for row in range(0, self.shape[0], self.block_px):
            for col in range(0, self.shape[1], self.block_px):
                block = Box(row, col, self.block_px, self.block_px).overlap(Box(0, 0, *self.shape))
                if (row, col) not in self._copied and not self.ledger.has(block):
                    raise ValueError(f"{self.ledger.folder} lacks a finished block: it was removed while this ran.")

    def _release(self, failed: bool) -> None:
        self._copied.clear()
        if not (failed and self.keeps_work) or self.ledger.empty:
            self.ledger.remove()
        self.ledger.release()


class TiffSink(LedgerSink):
    """TIFF or OME-TIFF with levels.

    Args:
        path, shape, record, overwrite, block_px, job: see `LedgerSink`.
        encoding: of the tiles.

    Attributes:
        source_tiles: go into the result as they are where nothing was changed.
    """

    def __init__(self, path: Path, shape: tuple[int, int], record: Record, overwrite: bool, block_px: int,
                 job: Mapping[str, Any] | None, encoding: Encoding) -> None:
        self.encoding = encoding.checked()
        self.source_tiles: JpegTiles | None = None
        super().__init__(path, shape, record, overwrite, block_px, job)

    def _save(self) -> None:
        # What a killed run leaves in the ledger's folder goes with it.
        with replace_when_done(self.path, self.overwrite, self.ledger.folder) as file:
            write_pyramid(file, self.shape, self._rows, self.encoding, self.record, is_ome_name(self.path),
                          self.ledger.folder, self.source_tiles)  # fmt: skip

    def _release(self, failed: bool) -> None:
        if self.source_tiles is not None:
            self.source_tiles.close()
        super()._release(failed)


def unfinished_of(path: Path) -> Path:
    """The folder where unfinished work of a result waits."""
    return path.parent / f"{path.name}.partial"


def drop_leftovers(path: Path) -> None:
    """Remove what a run left behind that was killed after its result had got its name."""
    folder = unfinished_of(path)
    if path.exists() and folder.is_dir() and is_remainder(folder):
        shutil.rmtree(folder, ignore_errors=True)


def is_ome_name(path: Path) -> bool:
    """Whether the name asks for OME-TIFF: `.ome.tif` or `.ome.tiff`."""
    return path.name.lower().endswith((".ome.tif", ".ome.tiff"))


def open_sink(
    path: Path,
    shape: tuple[int, int],
    record: Record | None = None,
    overwrite: bool = False,
    encoding: Encoding | None = None,
    block_px: int = BLOCK_PX,
    job: Mapping[str, Any] | None = None,
) -> ImageSink:
    """The sink for a result's name; see `ImageSink` and `LedgerSink`.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        ValueError: the suffix is not one that is written, or another job's work is unfinished here.
    """
    suffix = path.suffix.lower()
    record = record or Record(path.name)
    if suffix in TIFF_SUFFIXES:
        return TiffSink(path, shape, record, overwrite, block_px, job, encoding or Encoding())
    if suffix == ZARR_SUFFIX:
        from bundle.slides.zarr_writer import ZarrSink

        return ZarrSink(path, shape, record, overwrite, block_px, job)
    if suffix == DICOM_FOLDER:
        from bundle.slides.dicom_writer import DicomSink

        return DicomSink(path, shape, record, overwrite, block_px, job, encoding or Encoding("jpeg"))
    if suffix in RASTER_SUFFIXES:
        return RasterSink(path, shape, record, overwrite)
    written = ", ".join((*PICTURE_SUFFIXES, ZARR_SUFFIX, DICOM_FOLDER))
    raise ValueError(f"a result must be {written}, got {path.name}.")
