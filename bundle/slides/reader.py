"""One way to read PNG, JPEG, TIFF and OME-TIFF: rectangles of 8-bit RGB, and the size of a pixel.

What is refused, in one sentence, instead of guessed: grey, alpha, palette TIFF, 16-bit and floating pixels, several
planes or pages, orientation tags in TIFF, anything below `MIN_SIDE_PX`. EXIF orientation of a PNG or JPEG is
applied: the image is read as a viewer shows it.

A PNG or JPEG is decoded once and held as uint8. A TIFF is decoded tile by tile or strip by strip, where it is read.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from bundle.slides.grid import Box

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MIN_SIDE_PX = 32  # one cell of the defocus estimator: below it there is no detail to judge focus by
MAX_PIXELS = 500_000_000  # of a PNG or JPEG, which is decoded whole: 1.5 GB; a TIFF has no limit
RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")


class ImageError(ValueError):
    """An image that cannot be restored; the message names the rule and the value."""


class ImageReader(ABC):
    """An RGB image that gives rectangles of itself.

    Attributes:
        path: the file.
        shape: (height, width) px.
        mpp: µm per pixel, None where the file does not say.
        icc_profile: the embedded colour profile, or None; pixels are never converted by it.
    """

    def __init__(self, path: Path, shape: tuple[int, int], mpp: float | None, icc_profile: bytes | None) -> None:
        if min(shape) < MIN_SIDE_PX:
            raise ImageError(
                f"an image must have at least {MIN_SIDE_PX} x {MIN_SIDE_PX} px, "
                f"{path.name} has {shape[0]} x {shape[1]}."
            )
        self.path, self.shape, self.mpp, self.icc_profile = path, shape, mpp, icc_profile

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        """The pixels of a rectangle, (height, width, 3) uint8, a copy.

        Raises:
            ValueError: the rectangle is empty or reaches outside the image, or the file's data is damaged there.
        """
        box = Box(row, col, height, width)
        if min(height, width) < 1 or box.overlap(Box(0, 0, *self.shape)) != box:
            inside = f"{self.shape[0]} x {self.shape[1]} px image"
            raise ValueError(f"a region must lie inside the {inside}, got {tuple(box)}.")
        return self._read(box)

    @abstractmethod
    def _read(self, box: Box) -> NDArray[np.uint8]:
        """The pixels of a box that lies inside the image."""

    @abstractmethod
    def close(self) -> None:
        """Give the file or the memory back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_image(path: str | Path) -> ImageReader:
    """Open an image by its suffix.

    Raises:
        FileNotFoundError: no such file.
        ImageError: not an image that can be restored; the sentence names the rule.
    """
    from bundle.slides.tiff_reader import TiffReader

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is {'not a file' if path.exists() else 'missing'}.")
    suffix = path.suffix.lower()
    if suffix not in RASTER_SUFFIXES + TIFF_SUFFIXES:
        raise ImageError(f"an image must be {', '.join(RASTER_SUFFIXES + TIFF_SUFFIXES)}, got {path.name}.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path.name} is empty (0 bytes).")
    return TiffReader(path) if suffix in TIFF_SUFFIXES else RasterReader(path)


class RasterReader(ImageReader):
    """A PNG or JPEG, decoded once. It carries no trustworthy pixel size: `mpp` is None."""

    def __init__(self, path: Path) -> None:
        self._pixels, icc_profile = _decode_raster(path)
        super().__init__(path, (self._pixels.shape[0], self._pixels.shape[1]), None, icc_profile)

    def _read(self, box: Box) -> NDArray[np.uint8]:
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
