"""Where tissue lies: Otsu's threshold on the saturation of a small picture of the slide, then clean-up.

Glass is grey at any brightness, stain is coloured: saturation finds pale tissue that brightness misses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bundle.slides.grid import Box
from bundle.slides.reader import ImageReader

PICTURE_PX = 1280  # longer side of the small picture: 0.1 s
# Otsu always cuts: on bare glass through its noise, where all is tissue through the tissue. Hence these bounds.
LEAST_SATURATION, MOST_SATURATION = 0.05, 0.08
_CLEAN_PX = 2  # specks narrower than twice this vanish, and gaps close


class TissueMask(NamedTuple):
    """Tissue on a coarse raster over the slide."""

    mask: NDArray[np.bool_]  # (h, w)
    downsample: float  # level-0 pixels per cell, along each side
    saturation: float  # the threshold

    def touches(self, box: Box) -> bool:
        """Whether any cell under a rectangle of level 0 is tissue."""
        rows = slice(int(box.row / self.downsample), math.ceil(box.bottom / self.downsample))
        cols = slice(int(box.col / self.downsample), math.ceil(box.right / self.downsample))
        return bool(self.mask[rows, cols].any())

    @property
    def share(self) -> float:
        """Of the slide's area."""
        return float(self.mask.mean())


def find_tissue(reader: ImageReader, picture_px: int = PICTURE_PX) -> TissueMask:
    """Tissue of a slide.

    Args:
        reader: the slide.
        picture_px: longer side of the picture that is judged.
    """
    from skimage.filters import threshold_otsu

    downsample = max(1.0, max(reader.shape) / picture_px)
    picture = reader.read_scaled(Box(0, 0, *reader.shape), downsample)
    saturation = ndimage.gaussian_filter(saturation_of(picture), 1.0)
    low, high = LEAST_SATURATION, MOST_SATURATION
    threshold = float(min(high, max(low, threshold_otsu(saturation)))) if saturation.min() < saturation.max() else low
    mask = saturation > threshold
    disc = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), _CLEAN_PX)
    # Mirrored beyond the border: opening would else eat tissue that the slide's edge cuts.
    padded = np.pad(mask, 2 * _CLEAN_PX, mode="edge")
    padded = ndimage.binary_closing(ndimage.binary_opening(padded, disc), disc)
    inner = slice(2 * _CLEAN_PX, -2 * _CLEAN_PX)
    return TissueMask(padded[inner, inner], downsample, threshold)


def saturation_of(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(max - min) / max of the colours, (H, W) in [0, 1]; black has none."""
    high, low = picture.max(axis=2).astype(np.float32), picture.min(axis=2).astype(np.float32)
    # Nearly black pixels (a marker, a cover slip's edge) have a saturation of chance.
    return np.where(high > 24, (high - low) / np.maximum(high, 1), np.float32(0))
