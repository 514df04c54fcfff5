"""DICOM slide microscopy by wsidicom: all files of a series are one slide.

Any file of the series names it; the others are looked for in the same folder. Labels and overviews are
read by `associated` alone.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from wsidicom import WsiDicom
from wsidicom.errors import WsiDicomError, WsiDicomFileError, WsiDicomNotFoundError

from bundle.slides.grid import Box
from bundle.slides.reader import (
    PLAUSIBLE_MPP,
    WHITE,
    ImageError,
    ImageReader,
    Level,
    SlideFacts,
    reason_of,
    refuse_plane,
)

# What wsidicom and pydicom make of damaged files: found by cutting files at many places.
_DAMAGE = (WsiDicomError, WsiDicomFileError, WsiDicomNotFoundError, InvalidDicomError, OSError, EOFError, ValueError,
           RuntimeError, LookupError, TypeError, AttributeError, struct.error)  # fmt: skip


class DicomReader(ImageReader):
    """One focal plane of a DICOM series, RGB."""

    def __init__(self, path: Path, plane: int | None = None) -> None:
        self._files = series_of(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom warns of every value that is longer than the standard says
                self._slide = WsiDicom.open(self._files)
                pyramid = self._slide.pyramids[0]
                base = pyramid.base_level
                photometric = base.default_instance.image_data.samples_per_pixel
                planes = sorted(base.focal_planes)
                profiles = [optical.icc_profile for optical in pyramid.metadata.optical_paths]
                objective = next((o.objective for o in pyramid.metadata.optical_paths if o.objective), None)
                mpp = (base.mpp.width, base.mpp.height)
        except _DAMAGE as error:
            raise ImageError(f"{path.name} cannot be opened as a DICOM slide: {_reason(error)}.") from error
        try:
            if photometric != 3:
                raise ImageError(f"an image must be 8-bit RGB brightfield, {path.name} has {photometric} channel(s).")
            refuse_plane(path, plane, len(planes))
            if abs(mpp[0] - mpp[1]) > 0.01 * max(mpp):
                raise ImageError(f"pixels must be square, {path.name} has {mpp[1]:.4g} x {mpp[0]:.4g} µm.")
            self._numbers = [level.level for level in pyramid.levels]  # of wsidicom: gaps where a level is missing
            self._z = planes[plane or 0]
            shape = (base.size.height, base.size.width)
            facts = SlideFacts(
                mpp[0] if PLAUSIBLE_MPP[0] <= mpp[0] <= PLAUSIBLE_MPP[1] else None,
                profiles[0] if profiles else None,
                tuple(Level(held.size.height, held.size.width, shape[1] / held.size.width) for held in pyramid.levels),
                _colour_of(base.default_instance.image_data.blank_color),
                float(objective.objective_power) if objective and objective.objective_power else None,
                scanned=True,
            )
            super().__init__(path, shape, facts)
            self.read(0, 0, 1, 1)
            self.read(shape[0] - 1, shape[1] - 1, 1, 1)  # an interrupted copy shows now, not after an hour
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> list[Path]:
        """Every file of the series."""
        return self._files

    def associated(self, name: str) -> NDArray[np.uint8] | None:
        slide = self._slide
        held, read = ((slide.labels, slide.read_label) if name == "label" else (slide.overviews, slide.read_overview))
        try:
            return np.asarray(read().convert("RGB")) if held is not None else None
        except _DAMAGE as error:
            raise ImageError(f"the {name} of {self.path.name} cannot be decoded: {_reason(error)}.") from error

    def _read(self, box: Box, level: int) -> NDArray[np.uint8]:
        try:
            region = self._slide.read_region(
                (box.col, box.row), self._numbers[level], (box.width, box.height), z=self._z
            )
            return np.array(region.convert("RGB"))
        except _DAMAGE as error:
            where = f"{box.height} x {box.width} px at row {box.row}, column {box.col}"
            raise ImageError(f"{self.path.name} cannot be decoded ({where}): {_reason(error)}.") from error

    def close(self) -> None:
        self._slide.close()


def series_uid(path: Path) -> str | None:
    """The series that a file belongs to, None where it is no DICOM."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    except _DAMAGE:
        return None
    return str(header.get("SeriesInstanceUID", "")) or None


def series_of(path: Path) -> list[Path]:
    """The DICOM files of the folder that belong to the series of `path`, sorted; at least `path` itself."""
    uid = series_uid(path)
    if uid is None:
        return [path]
    return [other for other in sorted(path.parent.glob("*")) if other.suffix.lower() == path.suffix.lower()
            and (other == path or series_uid(other) == uid)]  # fmt: skip


def one_per_series(paths: Iterable[Path]) -> list[Path]:
    """Of DICOM files the first of every series, in order; a file without a series stays."""
    seen: set[str] = set()
    kept = []
    for path in paths:
        uid = series_uid(path)
        if uid is None or uid not in seen:
            kept.append(path)
        seen |= {uid} if uid else set()
    return kept


def _colour_of(value: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (value[0], value[1], value[2]) if isinstance(value, tuple) and len(value) == 3 else WHITE


def _reason(error: BaseException) -> str:
    """Without wsidicom's repetition of the whole path."""
    return re.sub(r"WsiDicomReadIO\(.*?\): ", "", reason_of(error))
