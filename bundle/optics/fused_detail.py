"""The fine detail of a blend of planes: what lies between two planes is lifted, what is noise is shrunk.

    B_j       detail between Gaussians of σ SIGMAS_PX[j-1] and SIGMAS_PX[j], the first from 0 px
    g_j       share of B_j that is left one plane beside best focus: one number for the whole field
    a_j       -ln g_j: detail fades as exp(-a_j z²), z in planes from best focus
    kept_j    share of B_j that a blend of planes i with weights w_i keeps: Σ_i w_i exp(-a_j (i - position)²)

g_j is measured where plane i is in focus, by products of planes, each of which has noise of its own:
    g_j = <B_j,i-1 B_j,i+1> / <B_j,i (B_j,i-1 + B_j,i+1) / 2>
A blend at position + 0.5 shows no plane that was in focus there: of the finest detail it keeps about nine tenths.

Sources: Immerkær 1996 (noise estimate), Lee 1980 (local Wiener filter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]

SIGMAS_PX = (0.6, 1.2, 2.4)
SHRUNK = 2  # bands, from the finest: coarser ones stand far above the noise
HALO_PX = 24  # what a pixel sees: 2 + 5 + 10 px of the bands, 8 px of their energy
NEAR = 0.2  # planes from best focus that count as in focus
LEAST_KEPT = 0.6  # no band is lifted by more than 1 / 0.6
STRIPS, STRIP_PX = 4, 256  # rows of a field that are looked at to learn how detail fades
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])  # grey, red-blue, green-magenta


def unit(pixels: NDArray[Any]) -> Array:
    """uint8 or float pixels as float32 [0, 1]."""
    if pixels.dtype == np.uint8:
        return np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)
    return pixels.astype(np.float32, copy=False)


def fading(planes: NDArray[Any], position: Array) -> list[float]:
    """How fast each band of detail fades beside best focus: a_j, 0 where the stack does not tell.

    Args:
        planes: registered, (P, 3, H, W), float [0, 1] or uint8.
        position: of best focus, (H, W), 0..P-1.
    """
    height, last = position.shape[0], len(planes) - 1
    beside, within = np.zeros(len(SIGMAS_PX)), np.zeros(len(SIGMAS_PX))
    for top in np.linspace(0, max(0, height - STRIP_PX), min(STRIPS, math.ceil(height / STRIP_PX))).astype(int):
        rows = slice(top, top + STRIP_PX)
        bands = [_bands(unit(plane[:, rows]).mean(0)) for plane in planes]
        for index in range(1, last):
            focused = np.abs(position[rows] - index) < NEAR
            if not focused.any():
                continue
            for band in range(len(SIGMAS_PX)):
                below, here, above = (bands[index + step][band][focused] for step in (-1, 0, 1))
                beside[band] += float((below * above).sum(dtype=np.float64))
                within[band] += float((here * (below + above)).sum(dtype=np.float64)) / 2
    # Beyond 0 and 1 it is no share of detail: nothing was in focus, or the band holds noise alone.
    return [-math.log(up / down) if 0 < up < down else 0.0 for up, down in zip(beside, within)]


def noise_levels(planes: NDArray[Any]) -> Array:
    """σ of the noise in each opponent channel, (3,): of the plane that shows the least detail."""
    levels = []
    for plane in planes:
        pixels = unit(plane)
        for axis in (1, 2):  # twice [1, -2, 1]: what is left of detail is least, what is left of noise is 6 σ
            pixels = np.diff(pixels, n=2, axis=axis)
        levels.append([np.median(np.abs(np.tensordot(channel, pixels, 1))) / (6 * 0.6745)
                       for channel in OPPONENT.astype(np.float32)])
    return np.min(levels, axis=0).astype(np.float32)


def lifted_and_shrunk(image: Array, kept: Sequence[Array], share: Array, levels: Array | None) -> Array:
    """A blend with the detail that it lost lifted again and, with `levels`, a local Wiener filter of the finest bands.

    Args:
        image: (3, H, W).
        kept: kept_j of each band, (H, W).
        share: variance of the blend's noise over that of a plane, (H, W).
        levels: σ of a plane's noise per opponent channel, (3,); None: nothing is shrunk.
    """
    rest = np.tensordot(OPPONENT, image, 1)
    impulse = np.zeros((1, 65, 65))
    impulse[0, 32, 32] = 1.0
    detail = np.zeros_like(rest)
    for number, (sigma, share_kept) in enumerate(zip(SIGMAS_PX, kept, strict=True)):
        coarser, coarser_impulse = (ndimage.gaussian_filter(x, (0, sigma, sigma)) for x in (rest, impulse))
        band, passed = rest - coarser, np.square(impulse - coarser_impulse).sum()
        if levels is not None and number < SHRUNK:
            energy = ndimage.gaussian_filter(np.square(band), (0, 2.0, 2.0))
            noise = np.square(levels)[:, None, None] * share * passed
            band *= ((energy - noise) / np.maximum(energy, 1e-12)).clip(0, 1)
        detail += band / np.maximum(share_kept, LEAST_KEPT)
        rest, impulse = coarser, coarser_impulse
    return np.tensordot(OPPONENT.T, detail + rest, 1).astype(np.float32)


def _bands(grey: Array) -> list[Array]:
    bands, rest = [], grey
    for sigma in SIGMAS_PX:
        coarser = ndimage.gaussian_filter(rest, sigma)
        bands.append(rest - coarser)
        rest = coarser
    return bands
