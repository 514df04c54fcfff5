"""A slide as DICOM whole slide microscopy by wsidicomizer: a folder with one file a level, JPEG.

    NAME.dicom/level_0.dcm, level_1.dcm, …      instances of one series, tiles of 256 px, levels as in pyramid.py

The patient's name and all else that a source says of the patient stay out; how the image was made goes in: ImageType
DERIVED, the derivation in words, and the instances of a DICOM source. The same run gives the same bytes: UIDs are named
after the content, and the date is the one of the source file.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset, config

from bundle.slides.pyramid import Encoding, Record, write_pyramid
from bundle.slides.whole_files import folder_when_done, refuse_folder
from bundle.slides.writer import LedgerSink

MARK = "level_0.dcm"  # every such folder holds it: only a folder with it is ever replaced
_PYRAMID = "pyramid.tif"
_LONGEST, _LONGEST_NAME = 1024, 64  # characters of DICOM's short text, and of an identifier
_NAMED_ELSEWHERE = ("warning", "software", "objective")


class DicomSink(LedgerSink):
    """DICOM with levels; see `LedgerSink`.

    Args:
        path, shape, record, overwrite, block_px, job: see `LedgerSink`; the record names the pixel size.
        encoding: of the tiles, JPEG.

    Raises:
        ValueError: the encoding is not JPEG, or nobody knows the pixel size.
    """

    def __init__(self, path: Path, shape: tuple[int, int], record: Record, overwrite: bool, block_px: int,
                 job: Mapping[str, Any] | None, encoding: Encoding) -> None:
        self.encoding = encoding.checked()
        if encoding.compression != "jpeg":
            raise ValueError(f"a DICOM result is JPEG, got --compression {encoding.compression}.")
        if record.mpp is None:
            raise ValueError(f"a DICOM result must say its µm per pixel, {path.name} would not: give --mpp.")
        super().__init__(path, shape, record, overwrite, block_px, job)

    def _refuse_existing(self) -> None:
        refuse_folder(self.path, MARK, self.overwrite)

    def _save(self) -> None:
        with folder_when_done(self.path, MARK, self.overwrite, self.ledger.folder) as folder:
            pyramid = folder / _PYRAMID
            with pyramid.open("x+b") as file:
                write_pyramid(file, self.shape, self._rows, self.encoding, Record(self.path.name), False, folder)
            _write_levels(pyramid, folder, self.record)
            pyramid.unlink()


@contextmanager
def _pydicom_as_it_was() -> Iterator[None]:
    """wsidicomizer makes pydicom strict on import: slides that are read afterwards would be refused."""
    strict, future = config.enforce_valid_values, config._use_future
    try:
        yield
    finally:
        config.enforce_valid_values = strict
        config.future_behavior(future)


def _write_levels(pyramid: Path, folder: Path, record: Record) -> None:
    with _pydicom_as_it_was():
        from wsidicom import metadata as words
        from wsidicom.codec import JpegSettings
        from wsidicom.geometry import SizeMm
        from wsidicomizer import WsiDicomizer

        from bundle.slides.dicom_source import PyramidSource, uid_of

        made = datetime.fromtimestamp(record.made_s, UTC).replace(tzinfo=None)
        spacing = (record.mpp or 0.0) / 1000
        objective = record.notes.get("objective")
        path = words.OpticalPath(
            "0", icc_profile=record.icc_profile or _srgb(),
            objective=words.Objectives(objective_power=float(objective)) if objective else None,
        )  # fmt: skip
        described = words.WsiMetadata(
            study=words.Study(date=made.date(), time=made.time()),
            series=words.Series(number=1, description=record.notes.get("warning")),
            patient=words.Patient(),
            equipment=words.Equipment("MoP contributors", "MoP", "none", [record.notes.get("software", "MoP")]),
            slide=words.Slide(identifier=record.name[:_LONGEST_NAME]),
            pyramid=words.Pyramid(words.Image(made, pixel_spacing=SizeMm(spacing, spacing)), [path]),
            label=words.Label(),
        )
        seed = sha256(repr((record.name, record.made_s, sorted(record.notes.items()))).encode()).digest()
        count = itertools.count()

        def next_uid() -> pydicom.uid.UID:
            return uid_of(sha256(seed + b"%d" % next(count)).digest())

        with WsiDicomizer.open(
            pyramid, metadata=described, encoding=JpegSettings(), preferred_source=PyramidSource,
            metadata_post_processor=_derivation(record), uid_generator=next_uid,
        ) as slide:  # fmt: skip
            files = slide.save(folder, next_uid, workers=1, include_labels=False, include_overviews=False,
                               include_thumbnails=False, add_missing_levels=False)  # fmt: skip
    widths = {}
    for path_of_file in files:
        held = pydicom.dcmread(path_of_file, stop_before_pixels=True)
        _date(Path(path_of_file), held, made)
        widths[int(held.TotalPixelMatrixColumns)] = Path(path_of_file)
    for k, width in enumerate(sorted(widths, reverse=True)):
        widths[width].rename(folder / f"level_{k}.dcm")


def _srgb() -> bytes:
    """The profile that the standard wants where the source has none; the time of its making is set to a fixed one."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(profile)


def _date(file: Path, held: Dataset, made: datetime) -> None:
    """Put a date where the writer put the time of the clock; both fields have a fixed length."""
    with file.open("r+b") as stream:
        for field, text in (("ContentDate", f"{made:%Y%m%d}"), ("ContentTime", f"{made:%H%M%S.%f}")):
            element = held[field]
            place = element.file_tell or 0
            stream.seek(place)
            if stream.read(len(text)) != str(element.value).encode():
                raise ValueError(f"{field} of {file.name} must be text of {len(text)} characters, got {element.value}.")
            stream.seek(place)
            stream.write(text.encode())


def _derivation(record: Record) -> Dataset:
    """What a reader must know of a computed image."""
    told = [record.notes[name] for name in ("warning", "software") if name in record.notes]
    told += [f"{name}: {value}" for name, value in record.notes.items() if name not in _NAMED_ELSEWHERE]
    derivation = Dataset()
    derivation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of files are in any language
    derivation.DerivationDescription = "; ".join(told)[:_LONGEST]
    references = [reference for file in record.sources if (reference := _reference(file)) is not None]
    if references:
        derivation.SourceImageSequence = references
    derivation.BurnedInAnnotation = "NO"
    return derivation


def _reference(file: Path) -> Dataset | None:
    """The instance that a DICOM file holds, None where it is another format."""
    try:
        held = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = held.SOPClassUID, held.SOPInstanceUID
    except (pydicom.errors.InvalidDicomError, AttributeError):
        return None
    return reference
