"""Lay the planes of a focal stack on the middle one: sub-pixel translation that defocus does not bias.

    m        plane to move         r      reference plane
    s        displacement of m's content against r's, (rows, columns), px
    B_j r    r split into bands of detail, j = 1..4
    c_j(x)   how much of band j plane m shows at x, linear in x within a patch

Correlation takes uneven blur for motion: where defocus changes across the field, so does the contrast of edges, and
the peak moves by up to a pixel over the stack. Blur is even, motion is odd, so each patch solves for both,
    m(x) = Σ_j c_j(x) B_j r(x) + offset(x) - s · ∇m(x),
with one s for all patches. In linear light, where blur is linear: in sRGB the same estimate is off by 0.3 px.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch import Tensor

from bundle.optics.focal_stack import to_linear

Array = NDArray[np.float64]

BANDS_PX = (2.0, 3.0, 5.0, 9.0)  # σ between which detail is split; the first also smooths the noise
PATCH_PX = 80  # c_j is linear within a patch
PATCHES = 64  # patches with the most detail take part
MARGIN_PX = 16  # reflected border of a shift, not used by the patches
SMALLEST_PX = 64
CONVERGED_PX = 0.004


def register(stack: Tensor, max_shift_px: int = 12) -> tuple[Tensor, Tensor]:
    """Undo the translation of every plane against the middle one.

    Neighbours are compared first (their detail is alike), then every plane with the middle one.
    On a simulated stack of 13 planes with shifts to 3 px and noise σ = 2/255 the error is below 0.05 px
    on a field of 512 px and below 0.1 px on 320 px.

    Args:
        stack: (P, 3, H, W) sRGB [0, 1].
        max_shift_px: largest displacement between neighbouring planes.

    Returns:
        The registered stack, (P, 3, H, W) in [0, 1], its uncovered borders reflected; and the displacement of each
        plane's content against the middle plane's (index P // 2), (P, 2) px, (rows, columns): what was undone.

    Raises:
        ValueError: wrong shape, fewer than two planes, NaN, values outside [0, 1], or sides under 64 px.
    """
    check_stack(stack)
    if min(stack.shape[-2:]) < SMALLEST_PX:
        raise ValueError(f"planes must measure at least {SMALLEST_PX} x {SMALLEST_PX} px to be registered, "
                         f"got {tuple(stack.shape[-2:])}.")
    shifts = displacements(to_linear(stack.cpu().double()).mean(1).numpy(), max_shift_px)
    pixels = stack.cpu().double().numpy()
    moved_back = np.stack([moved_by(plane, -shift) for plane, shift in zip(pixels, shifts)])
    registered = torch.from_numpy(moved_back).clamp(0, 1).to(stack)
    return registered, torch.from_numpy(shifts).float()


def displacements(grey: Array, max_shift_px: int = 12) -> Array:
    """Displacement of each plane's content against the middle plane's.

    Args:
        grey: planes in linear light, (P, H, W), sides of at least 64 px.
        max_shift_px: largest displacement between neighbouring planes.

    Returns:
        (P, 2) px, (rows, columns); 0 for the middle plane, index P // 2.
    """
    planes, middle = len(grey), len(grey) // 2
    shifts = np.zeros((planes, 2))
    for reference, moved in _outwards(planes):
        start = _coarse_shift(grey[reference], grey[moved], max_shift_px)
        shifts[moved] = shifts[reference] + _Reference(grey[reference]).displacement(grey[moved], start)
    target = _Reference(grey[middle])
    for k in range(planes):
        if k != middle:
            shifts[k] = target.displacement(grey[k], shifts[k])
    return shifts


def agreement(grey: Array, shifts: Array) -> Array:
    """How alike each plane and its neighbour towards the middle are once laid on each other.

    Args:
        grey: planes in linear light, (P, H, W).
        shifts: of `displacements`, (P, 2) px.

    Returns:
        (P,) correlation of detail between σ 2 and 8 px, -1..1, 0 where a plane has none; 1 for the middle plane.
        Neighbours of one field agree by 0.9 and more, planes of different fields by less than 0.1.
    """
    margin = MARGIN_PX + math.ceil(float(np.abs(shifts).max()))
    inside = tuple(slice(margin, size - margin) for size in grey.shape[-2:])
    details = []
    for plane, shift in zip(grey, shifts):
        moved = moved_by(plane, -shift)
        detail = (_smooth(moved, 2.0) - _smooth(moved, 8.0))[inside]
        details.append(detail - detail.mean() if detail.size else np.zeros((1, 1)))
    alike = np.ones(len(grey))
    for reference, moved_plane in _outwards(len(grey)):
        one, other = details[reference], details[moved_plane]
        energy = math.sqrt(float(np.square(one).sum() * np.square(other).sum()))
        alike[moved_plane] = float((one * other).sum()) / energy if energy > 0 else 0.0
    return alike


def _outwards(planes: int) -> list[tuple[int, int]]:
    """Neighbours (nearer to the middle, farther), from the middle plane outwards."""
    middle = planes // 2
    return [(k + 1, k) for k in range(middle - 1, -1, -1)] + [(k, k + 1) for k in range(middle, planes - 1)]


def check_stack(stack: Tensor) -> None:
    """Refuse what is not a focal stack.

    Raises:
        ValueError: wrong shape, fewer than two planes, NaN, or values outside [0, 1] (0..255 as uint8).
    """
    if stack.ndim != 4 or stack.shape[1] != 3 or min(stack.shape[-2:]) < 1:
        raise ValueError(f"stack must have shape (P, 3, H, W), got {tuple(stack.shape)}.")
    if len(stack) < 2:
        raise ValueError(f"stack must hold at least two planes, got {len(stack)}.")
    if stack.dtype == torch.uint8:
        return
    if not bool(torch.isfinite(stack).all()):
        raise ValueError("stack must be finite, got NaN or infinity.")
    low, high = float(stack.min()), float(stack.max())
    if low < 0 or high > 1:
        raise ValueError(f"stack must lie in [0, 1], got {low:.3g} to {high:.3g}.")


def moved_by(image: Array, shift_px: Array) -> Array:
    """Move (..., H, W) by (rows, columns) px; borders are reflected."""
    return _Movable(image, MARGIN_PX + math.ceil(float(np.abs(shift_px).max()))).by(shift_px)


class _Movable:
    """An image that moves through its Fourier transform, so that no detail is lost on the way."""

    def __init__(self, image: Array, margin_px: int) -> None:
        self.size = image.shape[-2:]
        self.margin = min(margin_px, *self.size)
        margins = [(self.margin, fft.next_fast_len(size + 2 * self.margin, True) - size - self.margin)
                   for size in self.size]
        padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + margins, mode="symmetric")
        self.padded = padded.shape[-2:]
        self.spectrum = fft.rfft2(padded)

    def by(self, shift_px: Array) -> Array:
        # In the precision of the image: a field of float32 would else be moved in twice the memory.
        kind = self.spectrum.dtype
        rows = np.exp(-2j * np.pi * shift_px[0] * fft.fftfreq(self.padded[0])).astype(kind)
        columns = np.exp(-2j * np.pi * shift_px[1] * fft.rfftfreq(self.padded[1])).astype(kind)
        moved = fft.irfft2(self.spectrum * rows[:, None] * columns[None, :], s=self.padded)
        inside = tuple(slice(self.margin, self.margin + size) for size in self.size)
        return np.asarray(moved[(..., *inside)])


def _coarse_shift(reference: Array, moved: Array, max_shift_px: int) -> Array:
    """Whole-pixel displacement: the peak of the correlation of both planes' coarse detail."""
    window = np.hanning(reference.shape[0])[:, None] * np.hanning(reference.shape[1])[None, :]
    spectra = [fft.rfft2((_smooth(plane, 2.0) - _smooth(plane, 8.0)) * window) for plane in (moved, reference)]
    correlation = fft.irfft2(spectra[0] * spectra[1].conj(), s=reference.shape)
    reach = np.arange(-max_shift_px, max_shift_px + 1)
    near = correlation[np.ix_(reach, reach)]
    row, column = np.unravel_index(int(near.argmax()), near.shape)
    if near[row, column] <= 0:  # no detail to compare
        return np.zeros(2)
    return np.array([reach[row], reach[column]], dtype=np.float64)


def _smooth(plane: Array, sigma_px: float) -> Array:
    return np.asarray(ndimage.gaussian_filter(plane, sigma_px, mode="reflect"))


class _Reference:
    """A plane and, per patch, the space of everything that uneven blur can turn it into."""

    def __init__(self, plane: Array) -> None:
        levels = [_smooth(plane, sigma) for sigma in BANDS_PX]
        bands = [fine - coarse for fine, coarse in zip(levels, levels[1:])] + [levels[-1]]
        self.patches = _patches(levels[0] - levels[-1])
        self.blurs = [self._blur_space([band[patch] for band in bands]) for patch in self.patches]

    @staticmethod
    def _blur_space(bands: list[Array]) -> Array:
        """Orthonormal basis of {bands, 1} x {1, row, column}, (pixels, 15)."""
        rows = np.linspace(-1, 1, bands[0].shape[0])[:, None]
        columns = np.linspace(-1, 1, bands[0].shape[1])[None, :]
        terms = [band * term for band in [*bands, np.ones_like(bands[0])] for term in (1.0, rows, columns)]
        blur = np.stack([term.ravel() / max(float(np.linalg.norm(term)), 1e-12) for term in terms], 1)
        scale, axes = np.linalg.eigh(blur.T @ blur)  # five times faster than QR on so few columns
        held = scale > 1e-9
        return np.asarray(blur @ (axes[:, held] / np.sqrt(scale[held])))

    def displacement(self, moved: Array, start: Array, rounds: int = 6) -> Array:
        """Displacement of `moved` against this plane, (2,) px, from a guess within about 2 px."""
        shift = np.array(start, dtype=np.float64)
        smoothed = _Movable(_smooth(moved, BANDS_PX[0]), 2 * MARGIN_PX)
        for _ in range(rounds):
            step = self._step(smoothed.by(-shift))
            shift += step
            if np.abs(step).max() < CONVERGED_PX:
                break
        return shift

    def _step(self, plane: Array) -> Array:
        """Motion that is left over once blur has explained what it can, (2,) px."""
        normal, right = np.zeros((2, 2)), np.zeros(2)
        gradient = np.gradient(plane)
        for patch, blur in zip(self.patches, self.blurs):
            parts = np.stack([plane[patch].ravel(), gradient[0][patch].ravel(), gradient[1][patch].ravel()], 1)
            rest = parts - blur @ (blur.T @ parts)
            normal += rest[:, 1:].T @ rest[:, 1:]
            right -= rest[:, 1:].T @ rest[:, 0]
        # lstsq: a blank plane has no gradient and no displacement.
        return np.clip(np.linalg.lstsq(normal, right, rcond=1e-9)[0], -1.0, 1.0)


def _patches(detail: Array) -> list[tuple[slice, slice]]:
    """The patches with the most detail, every second pixel of each: planes are smoothed to σ 2 px."""
    height, width = detail.shape
    size = min(PATCH_PX, height - 2 * MARGIN_PX, width - 2 * MARGIN_PX)
    corners = [(row, column) for row in range(MARGIN_PX, height - MARGIN_PX - size + 1, size)
               for column in range(MARGIN_PX, width - MARGIN_PX - size + 1, size)]
    patches = [(slice(row, row + size, 2), slice(column, column + size, 2)) for row, column in corners]
    patches.sort(key=lambda patch: -float(np.square(detail[patch]).sum()))
    return patches[:PATCHES]
