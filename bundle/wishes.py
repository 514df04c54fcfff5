"""What the user of `mop restore` asked for, and the files that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bundle.slides.associated import associated_file
from bundle.slides.files import Job, file_beside
from bundle.slides.pyramid import Encoding
from bundle.slides.reader import ASSOCIATED, DICOM_FOLDER, DICOM_SUFFIXES, SCANNER_SUFFIXES
from bundle.slides.writer import unfinished_of
from bundle.trust.map import trust_files


class Wishes(NamedTuple):
    """What the user asked for."""

    mode: str = ""  # full, coarse, adaptive, or the default: adaptive for slides, every tile of other images
    mpp: float | None = None  # µm per pixel, over what the file says
    plane: int | None = None  # of a z-stack
    overwrite: bool = False
    compression: str = ""  # lzw, jpeg, or the default: jpeg where a scanner's format becomes OME-TIFF
    quality: int = 90
    subsampling: str = "422"
    strict: bool = False  # a tile that cannot be decoded stops its slide; else it is grey and counted
    report: bool | None = None  # an HTML page beside the result; None: beside slides of scanners and DICOM
    trust: bool = False  # the trust map beside the result
    samples: int = 1  # of P-diffusion; several want the trust map
    revert_untrusted: str = ""  # to coarse or input; wants the trust map
    associated: bool = False  # label and macro beside the result: they may show a patient's name
    binning: int | None = None  # 2: as of a camera that oversamples; None: what images say

    @property
    def judges(self) -> bool:
        """Whether the run judges itself."""
        return self.trust or self.samples > 1 or bool(self.revert_untrusted)

    def reports(self, image: Path) -> bool:
        """Whether an image gets its HTML page."""
        return _is_scanners(image) if self.report is None else self.report

    def beside(self, job: Job) -> list[Path]:
        """The files that come with the result of a job."""
        result = job.results[0]
        page = [report_file(result)] if self.reports(job.image) else []
        return (trust_files(result) if self.judges else []) + page

    def pictures(self, result: Path) -> list[Path]:
        """Where label and macro of a slide go; it may lack them."""
        return [associated_file(result, name) for name in ASSOCIATED] if self.associated else []

    def results(self, image: Path, result: Path) -> list[Path]:
        """All files of a run that must not be there yet: unfinished work may have left some beside its result."""
        beside = [] if unfinished_of(result).is_dir() else self.beside(Job(image, [result]))
        return [result, *beside, *self.pictures(result)]

    def encoding(self, image: Path, result: Path) -> Encoding:
        """How the result of an image is compressed."""
        jpeg = result.suffix.lower() == DICOM_FOLDER or _is_scanners(image)
        return Encoding(self.compression or ("jpeg" if jpeg else "lzw"), self.quality, self.subsampling).checked()


def report_file(result: Path) -> Path:
    """The HTML page beside a result."""
    return file_beside(result, "report.html")


def _is_scanners(image: Path) -> bool:
    return image.suffix.lower() in SCANNER_SUFFIXES + DICOM_SUFFIXES
