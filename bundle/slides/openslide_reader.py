"""Slides of scanners by OpenSlide: SVS, NDPI, MRXS, SCN, BIF, Philips, Trestle, Sakura.

One handle serves all threads and forked processes: OpenSlide is exact there (measured over 8 threads and 4 forks).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from bundle.slides.grid import Box
from bundle.slides.reader import PLAUSIBLE_MPP, WHITE, ImageError, ImageReader, Level, SlideFacts, reason_of


class OpenSlideReader(ImageReader):
    """A scanner's slide. What was never scanned has the slide's background colour."""

    def __init__(self, path: Path) -> None:
        try:
            self._slide = openslide.OpenSlide(path)
            properties = self._slide.properties
            levels = tuple(
                Level(height, width, downsample)
                for (width, height), downsample in zip(
                    self._slide.level_dimensions, self._slide.level_downsamples, strict=True
                )
            )
            icc_profile = self._slide.color_profile
        except (openslide.OpenSlideError, OSError, ValueError) as error:
            raise ImageError(f"{path.name} cannot be opened as a slide: {_reason(error)}.") from error
        facts = SlideFacts(
            mpp_of(properties, path),
            icc_profile.tobytes() if icc_profile is not None else None,
            levels,
            _colour_of(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)),
            _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
            scanned=True,
        )
        try:
            super().__init__(path, (levels[0].height, levels[0].width), facts)
            self.read(0, 0, 1, 1)  # a codec that is missing or a damaged start shows now, not after an hour
            self.read(levels[0].height - 1, levels[0].width - 1, 1, 1)  # and the end: an interrupted copy
        except ImageError:
            self.close()
            raise

    @property
    def files(self) -> list[Path]:
        """The slide and, for MRXS and VMS, the files beside it that hold its pixels."""
        folder = self.path.with_suffix("")
        if self.path.suffix.lower() == ".mrxs":
            return [self.path, *sorted(path for path in folder.glob("*") if path.is_file())]
        if self.path.suffix.lower() in (".vms", ".vmu"):
            stem = self.path.stem
            return [self.path, *sorted(path for path in self.path.parent.glob(f"{stem}*") if path != self.path)]
        return [self.path]

    @property
    def tiff_page(self) -> int | None:
        # Of the others some overlap their tiles, some keep several areas, some have no file at hand to try.
        return 0 if self._slide.properties.get(openslide.PROPERTY_NAME_VENDOR) == "aperio" else None

    def associated(self, name: str) -> NDArray[np.uint8] | None:
        try:
            # Not by `in`: it decodes the picture.
            held = name in list(self._slide.associated_images)
            return np.asarray(self._slide.associated_images[name].convert("RGB")) if held else None
        except openslide.OpenSlideError as error:
            self._reopen()
            raise ImageError(f"the {name} of {self.path.name} cannot be decoded: {_reason(error)}.") from error

    def _reopen(self) -> None:
        """After an error OpenSlide refuses everything: a new handle keeps the rest of the slide readable."""
        self._slide.close()
        self._slide = openslide.OpenSlide(self.path)

    def _read(self, box: Box, level: int) -> NDArray[np.uint8]:
        zoom = self.levels[level].downsample
        corner = (round(box.col * zoom), round(box.row * zoom))
        try:
            region = self._slide.read_region(corner, level, (box.width, box.height))
        except openslide.OpenSlideError as error:
            self._reopen()
            where = f"{box.height} x {box.width} px at row {box.row}, column {box.col}"
            raise ImageError(f"{self.path.name} cannot be decoded ({where}): {_reason(error)}.") from error
        pixels = np.asarray(region)
        seen, colours = pixels[..., 3:], pixels[..., :3]
        if seen.min() == 255:
            return np.ascontiguousarray(colours)
        share = seen.astype(np.uint16)
        mixed = (colours * share + np.array(self.background, np.uint16) * (255 - share) + 127) // 255
        return mixed.astype(np.uint8)

    def close(self) -> None:
        self._slide.close()


def mpp_of(properties: Mapping[str, str], path: Path) -> float | None:
    """µm per pixel of OpenSlide's properties, None where the slide does not say.

    Raises:
        ImageError: pixels are not square (more than 1 % apart).
    """
    sides = [_number(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    width, height = sides
    if width is None or height is None:
        return None
    if not all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in (width, height)):
        return None
    if abs(width - height) > 0.01 * max(width, height):
        raise ImageError(f"pixels must be square, {path.name} has {height:.4g} x {width:.4g} µm.")
    return width


def _number(text: str | None) -> float | None:
    """A property as a number; scanners also write `20x`, `unknown` and nothing."""
    found = re.match(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)", text or "")
    try:
        return float(found.group(1)) if found else None
    except ValueError:
        return None


def _colour_of(text: str | None) -> tuple[int, int, int]:
    if text is None or not re.fullmatch(r"[0-9a-fA-F]{6}", text):
        return WHITE
    return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)


def _reason(error: BaseException) -> str:
    return reason_of(error).replace("Unsupported or missing image file", "no format of a scanner that OpenSlide knows")
