"""One way to read images and slides: rectangles of 8-bit RGB at any level, and the size of a pixel.

    PNG, JPEG                                   decoded once and held as uint8     (this file)
    TIFF, OME-TIFF, pyramids, z-stacks          tile by tile where it is read      tiff_reader.py
    SVS, NDPI, MRXS, SCN, BIF, Philips and on   by OpenSlide                       openslide_reader.py
    DICOM slide microscopy                      by wsidicom                        dicom_reader.py

What is refused, in one sentence, instead of guessed: grey, alpha, palette TIFF, 16-bit and floating pixels, several
planes without a chosen one, orientation tags in TIFF, anything below `MIN_SIDE_PX`. EXIF orientation of a PNG or JPEG
is applied: the image is read as a viewer shows it. Label and macro images, which carry names, are read by `associated`
alone.
"""

from __future__ import annotations

import math
import struct
import threading
import warnings
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bundle.slides.grid import Box

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MIN_SIDE_PX = 32  # one cell of the defocus estimator: below it there is no detail to judge focus by
MAX_PIXELS = 500_000_000  # of a PNG or JPEG, which is decoded whole: 1.5 GB; a TIFF has no limit
JPEG_SUFFIXES = (".jpg", ".jpeg")
RASTER_SUFFIXES = (".png", *JPEG_SUFFIXES)
TIFF_SUFFIXES = (".tif", ".tiff")
PICTURE_SUFFIXES = RASTER_SUFFIXES + TIFF_SUFFIXES
SCANNER_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide")
DICOM_SUFFIXES = (".dcm",)
DICOM_FOLDER = ".dicom"  # of a folder with the files of one series, as results are written
IMAGE_SUFFIXES = PICTURE_SUFFIXES + SCANNER_SUFFIXES + DICOM_SUFFIXES
WHITE = (255, 255, 255)
PLAUSIBLE_MPP = (0.01, 20.0)  # beyond these a resolution is a printer's or a scanner's mistake
_PIXELS_AT_ONCE = 2**24  # read for a scaled region: 48 MiB


class ImageError(ValueError):
    """An image that cannot be restored; the message names the rule and the value."""


class Level(NamedTuple):
    """One resolution of a slide; level 0 is the full one."""

    height: int
    width: int
    downsample: float  # level-0 pixels per pixel


ASSOCIATED = ("label", "macro")  # pictures that a scanner takes of the glass


class SlideFacts(NamedTuple):
    """What a file says about itself beside its pixels."""

    mpp: float | None = None  # µm per pixel of level 0, None where the file does not say
    icc_profile: bytes | None = None  # embedded colour profile; pixels are never converted by it
    levels: tuple[Level, ...] = ()  # finest first; none: the one level of the image
    background: tuple[int, int, int] = WHITE  # colour where nothing was scanned
    objective: float | None = None  # magnification
    scanned: bool = False  # the file's format is that of a scanner


class ImageReader(ABC):
    """An RGB image or slide that gives rectangles of itself.

    Attributes:
        path: the file.
        shape: (height, width) px of level 0.
        mpp: µm per pixel of level 0, None where the file does not say; a caller that knows better sets it.
        icc_profile, levels, background, objective: see `SlideFacts`.
        is_slide: a scanner's format, or more than one level.
    """

    def __init__(self, path: Path, shape: tuple[int, int], facts: SlideFacts) -> None:
        if min(shape) < MIN_SIDE_PX:
            raise ImageError(
                f"an image must have at least {MIN_SIDE_PX} x {MIN_SIDE_PX} px, "
                f"{path.name} has {shape[0]} x {shape[1]}."
            )
        self.path, self.shape, self.mpp, self.icc_profile = path, shape, facts.mpp, facts.icc_profile
        self.levels = facts.levels or (Level(*shape, 1.0),)
        self.background, self.objective = facts.background, facts.objective
        self.is_slide = facts.scanned or len(self.levels) > 1
        self._turn = threading.RLock()  # one thread reads ahead while another copies: a file has one position

    @property
    def files(self) -> list[Path]:
        """Every file that holds pixels of the image."""
        return [self.path]

    @property
    def tiff_page(self) -> int | None:
        """Which page of a TIFF, from 0, holds level 0 with its pixels in place; None where none does."""
        return None

    def read(self, row: int, col: int, height: int, width: int, level: int = 0) -> NDArray[np.uint8]:
        """The pixels of a rectangle of a level, (height, width, 3) uint8, a copy.

        Args:
            row, col, height, width: px of that level.
            level: 0 is the full resolution.

        Raises:
            ValueError: the rectangle is empty or reaches outside the level, or the file's data is damaged there.
        """
        if not 0 <= level < len(self.levels):
            raise ValueError(f"level must lie in 0..{len(self.levels) - 1}, got {level}.")
        box, held = Box(row, col, height, width), self.levels[level]
        if min(height, width) < 1 or box.overlap(Box(0, 0, held.height, held.width)) != box:
            inside = f"{held.height} x {held.width} px image"
            raise ValueError(f"a region must lie inside the {inside}, got {tuple(box)}.")
        with self._turn:
            return self._read(box, level)

    def damaged(self, box: Box, level: int = 0) -> bool:
        """Whether the reading of exactly this rectangle met pixels that cannot be decoded; see damage.py."""
        return False

    def associated(self, name: str) -> NDArray[np.uint8] | None:
        """The slide's label or its macro picture, (h, w, 3) uint8, None where it has none: one of `ASSOCIATED`.

        Both may show a patient's name: only for who asks for them.

        Raises:
            ImageError: it is there and cannot be decoded.
        """
        return None

    def read_at(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """A rectangle of level 0 at a wanted µm per pixel; see `read_scaled`.

        Raises:
            ImageError: the image does not say its own µm per pixel.
        """
        if self.mpp is None:
            raise ImageError(f"a region in µm needs the pixel size, {self.path.name} does not say it: give --mpp.")
        return self.read_scaled(box, mpp / self.mpp)

    def read_scaled(self, box: Box, downsample: float) -> NDArray[np.uint8]:
        """A rectangle of level 0, made smaller (or larger) from the nearest finer level.

        Args:
            box: px of level 0.
            downsample: level-0 pixels per pixel, positive.

        Returns:
            (ceil(box.height / downsample), ceil(box.width / downsample), 3) uint8, averaged over each pixel's area.
        """
        from PIL import Image

        # Levels are rarely exact powers of two: 4.01 counts as 4.
        level = max(k for k, held in enumerate(self.levels) if held.downsample <= max(1.0, downsample * 1.02))
        height, width = (math.ceil(round(side / downsample, 6)) for side in (box.height, box.width))
        held = self.levels[level]
        zoom = held.downsample
        pixels = np.empty((height, width, 3), np.uint8)
        rows_at_once = max(1, int(_PIXELS_AT_ONCE / max(1.0, box.width / zoom) * zoom / downsample))
        for row in range(0, height, rows_at_once):
            rows = min(rows_at_once, height - row)
            # The exact window in the level's pixels; Pillow weighs the pixels that it cuts.
            top = (box.row + row * downsample) / zoom
            bottom = min((box.row + (row + rows) * downsample) / zoom, box.bottom / zoom, held.height)
            left, right = box.col / zoom, min(box.right / zoom, held.width)
            top, left = min(top, bottom - 0.5), min(left, right - 0.5)
            first_row, first_col = math.floor(top), math.floor(left)
            part = self.read(
                first_row, first_col, math.ceil(bottom) - first_row, math.ceil(right) - first_col, level
            )
            window = (left - first_col, top - first_row, right - first_col, bottom - first_row)
            scaled = Image.fromarray(part).resize((width, rows), Image.Resampling.BOX, window)
            pixels[row : row + rows] = np.asarray(scaled)
        return pixels

    @abstractmethod
    def _read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """The pixels of a box that lies inside a level."""

    @abstractmethod
    def close(self) -> None:
        """Give the file or the memory back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_image(path: str | Path, plane: int | None = None) -> ImageReader:
    """Open an image or a slide.

    Args:
        path: the file; of a DICOM series any of its files, or its folder where that is named `.dicom`.
        plane: which focal plane of a z-stack, from 0; None where there is only one.

    Raises:
        FileNotFoundError: no such file.
        ImageError: not an image that can be restored; the sentence names the rule.
    """
    path = Path(path)
    if path.suffix.lower() == DICOM_FOLDER and path.is_dir():
        path = next((file for file in sorted(path.iterdir()) if file.suffix.lower() in DICOM_SUFFIXES), path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is {'not a file' if path.exists() else 'missing'}.")
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise ImageError(f"an image must be {', '.join(IMAGE_SUFFIXES)}, got {path.name}.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path.name} is empty (0 bytes).")
    try:
        if suffix in DICOM_SUFFIXES:
            from bundle.slides.dicom_reader import DicomReader

            return DicomReader(path, plane)
        if suffix in SCANNER_SUFFIXES or (suffix in TIFF_SUFFIXES and _scanner_of(path)):
            from bundle.slides.openslide_reader import OpenSlideReader

            refuse_plane(path, plane)
            return OpenSlideReader(path)
    except ModuleNotFoundError as error:
        raise ImageError(f"{path.name} needs the package {error.name}, which is not installed here.") from error
    if suffix in TIFF_SUFFIXES:
        from bundle.slides.tiff_reader import TiffReader

        return TiffReader(path, plane)
    refuse_plane(path, plane)
    return RasterReader(path)


def refuse_plane(path: Path, plane: int | None, planes: int = 1) -> None:
    """Refuse a focal plane that the file does not have.

    Raises:
        ImageError: `plane` is not one of `planes`, or there are several and none was chosen.
    """
    if plane is None and planes > 1:
        raise ImageError(f"one focal plane is restored, {path.name} has {planes}: choose by --plane 0..{planes - 1}.")
    if plane is not None and not 0 <= plane < planes:
        raise ImageError(f"--plane must lie in 0..{planes - 1} for {path.name}, got {plane}.")


def _scanner_of(path: Path) -> str | None:
    """The scanner's format that a TIFF is written in, None for a plain one."""
    import openslide

    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return None if vendor in (None, "generic-tiff") else vendor


class RasterReader(ImageReader):
    """A PNG or JPEG, decoded once. It carries no trustworthy pixel size: `mpp` is None."""

    def __init__(self, path: Path) -> None:
        self._pixels, icc_profile = _decode_raster(path)
        facts = SlideFacts(icc_profile=icc_profile)
        super().__init__(path, (self._pixels.shape[0], self._pixels.shape[1]), facts)

    def _read(self, box: Box, level: int) -> NDArray[np.uint8]:
        return self._pixels[box.row : box.bottom, box.col : box.right].copy()

    def close(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def _decode_raster(path: Path) -> tuple[NDArray[np.uint8], bytes | None]:
    """All pixels, (H, W, 3), upright, and the colour profile."""
    from PIL import Image, ImageOps

    limit = Image.MAX_IMAGE_PIXELS
    # Pillow's guard against decompression bombs stays, at our limit: it warns above the limit, and the warning is
    # made an error here. The module's own value is put back.
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                _refuse_unless_rgb(image, path)
                icc_profile = image.info.get("icc_profile")
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        rule = f"a PNG or JPEG may have up to {MAX_PIXELS} px"
        raise ImageError(f"{rule}, {path.name} has more: save it as TIFF.") from None
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise ImageError(f"{path.name} cannot be decoded as PNG or JPEG: {reason_of(error)}.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return pixels, icc_profile


def _refuse_unless_rgb(image: ImageFile, path: Path) -> None:
    rule = "an image must be 8-bit RGB brightfield"
    if "transparency" in image.info or "A" in image.getbands():
        raise ImageError(f"{rule} without alpha, {path.name} has an alpha channel: save it without.")
    # Pillow reads a 16-bit RGB PNG as 8-bit and tells nobody; only the raw mode shows it.
    raw_mode = str(image.tile[0][3]) if image.tile else ""
    if "16" in image.mode + raw_mode:
        raise ImageError(f"{rule}, {path.name} has 16 bits per channel: save it with 8.")
    if image.mode not in ("RGB", "P"):
        raise ImageError(f"{rule}, {path.name} has mode {image.mode} (grey, CMYK or other).")
    frames = getattr(image, "n_frames", 1)
    if image.format == "PNG" and frames > 1:
        raise ImageError(f"an image must be a single one, {path.name} is an animation of {frames}.")


def reason_of(error: BaseException) -> str:
    """A library's message as the tail of our sentence: one line, without the file's path."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "its content is something else"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
