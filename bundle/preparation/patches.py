"""Patches of a prepared field: signed distance and contrast on every plane, and why a patch is left out.

    defocus_um[k]   position of plane k minus the median depth of the patch: positive above best focus
    contrast[k]     the contrast value of plane k against the all-in-focus target, 0..1

A patch is left out when it is empty (too little tissue, or a target without detail), outside of the stack (much of it
is sharpest on the first or the last plane: true focus may lie beyond), or saturated (much of its tissue is clipped).
Patches lie side by side; the last of a row or column is moved back inside the field.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bundle.conventions import plane_defocus_um
from bundle.optics.contrast import contrast_value
from bundle.slides.grid import TileGrid

PATCH_PX = 256
EMPTY, OUTSIDE, SATURATED = "empty", "outside of the stack", "saturated"
REASONS = (EMPTY, OUTSIDE, SATURATED)

LEAST_TISSUE = 0.1  # share of a patch
TISSUE_SATURATION, TISSUE_GREY = 0.07, 0.75  # (max - min) of R, G, B above the one, or grey below the other
MOST_OUTSIDE = 0.1  # share of a patch that is sharpest within half a plane of the stack's ends
END_PLANES = 0.25  # planes from the first or last that count as its end
MOST_CLIPPED = 0.2  # share of a patch's tissue
CLIPPED_LOW, CLIPPED_HIGH = 1, 254  # of 0..255: two channels at once, one alone is common in pale eosin


class Patch(NamedTuple):
    """One patch on all planes."""

    location: tuple[int, int]  # (row, col) of its first pixel in the prepared field
    defocus_um: list[float]  # per plane
    contrast: list[float]  # per plane


def tissue_mask(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a field shows tissue and not glass: (3, H, W) uint8 -> (H, W)."""
    spread = image.max(0).astype(np.int16) - image.min(0)
    grey = image.mean(0, dtype=np.float32)
    return np.asarray((spread > TISSUE_SATURATION * 255) | (grey < TISSUE_GREY * 255))


def label_patches(
    planes: NDArray[np.uint8],
    target: NDArray[np.uint8],
    depth_um: NDArray[np.float32],
    plane: NDArray[np.float32],
    positions_um: NDArray[np.float32],
    mpp: float,
) -> tuple[list[Patch], dict[str, int]]:
    """Labels of the patches that are kept, and how many were left out, by reason.

    Args:
        planes: registered, (P, 3, H, W).
        target: all in focus, (3, H, W).
        depth_um: stage position of best focus, (H, W).
        plane: the same as a position in the stack, (H, W), 0..P-1.
        positions_um: of the planes, (P,).
        mpp: µm per pixel.
    """
    height, width = target.shape[-2:]
    tissue = tissue_mask(target)
    at_end = (plane < END_PLANES) | (plane > len(planes) - 1 - END_PLANES)
    clipped = ((target >= CLIPPED_HIGH).sum(0) > 1) | ((target <= CLIPPED_LOW).sum(0) > 1)
    kept: list[Patch] = []
    left_out = dict.fromkeys(REASONS, 0)
    grid = TileGrid(height, width, PATCH_PX, overlap_px=0)
    for box in grid.tiles_of(grid.image):
        place = (slice(box.row, box.bottom), slice(box.col, box.right))
        reason = _reason(tissue[place], at_end[place], clipped[place])
        contrast = None if reason else _contrasts(planes[:, :, *place], target[:, *place], mpp)
        if contrast is None:
            left_out[reason or EMPTY] += 1
            continue
        best_um = float(np.median(depth_um[place]))
        defocus_um = [round(float(plane_defocus_um(float(one), best_um)), 4) for one in positions_um]
        kept.append(Patch((box.row, box.col), defocus_um, contrast))
    return kept, left_out


def _reason(tissue: NDArray[np.bool_], at_end: NDArray[np.bool_], clipped: NDArray[np.bool_]) -> str | None:
    """Why a patch is left out. Black counts as tissue, white as glass: a white patch is empty, a black one clipped."""
    if tissue.mean() < LEAST_TISSUE:
        return EMPTY
    if clipped[tissue].mean() > MOST_CLIPPED:
        return SATURATED
    return OUTSIDE if at_end[tissue].mean() > MOST_OUTSIDE else None


def _contrasts(planes: NDArray[np.uint8], target: NDArray[np.uint8], mpp: float) -> list[float] | None:
    """Contrast of each plane of a patch, None where the target has too little detail to compare."""
    images = torch.from_numpy(planes).float() / 255
    reference = (torch.from_numpy(target).float() / 255).expand(len(images), -1, -1, -1)
    values = contrast_value(images, reference, mpp)
    return None if bool(values.isnan().any()) else [round(value, 4) for value in values.tolist()]
