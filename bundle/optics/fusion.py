"""Fuse a focal stack: registered planes -> all-in-focus image and depth map.

    plane       position in the stack as a real number, 0 .. P-1
    E_k         focus energy of plane k: its Laplacian of Gaussian, squared and averaged over a window

    E_k per plane -> arg-max, refined by a parabola on log E -> holes without detail filled -> median (edges stay)
    -> planes around that position interpolated -> fine detail lifted to what focus shows, its noise shrunk

The blend is Catmull-Rom's cubic over four planes, not the line through two: halfway between planes 0.8 µm apart both
neighbours have lost detail, and the line keeps that loss (43.4 dB on the simulated stack of the tests, cubic 49.6).
Detail and noise: `fused_detail`. Source: Keys 1981 (cubic convolution).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from bundle.optics.fused_detail import HALO_PX, fading, lifted_and_shrunk, noise_levels, unit
from bundle.optics.registration import check_stack, register

__all__ = ["FusedStack", "fuse", "register"]

Array = NDArray[np.float32]

# Best plane's energy over the worst plane's. Below the first, noise may have chosen; below the second, something that
# does not defocus (a seam, dust on the camera). Between them lies a 20x stack within its depth of field: it counts
# where the rise is as many energies of noise.
CONFIDENT, LEAST_RISE, FAR_ABOVE_NOISE = 3.0, 1.5, 10.0
COARSE_PX = 4  # depth is filtered every fourth pixel: energies are smooth over a window
MEDIAN = 7  # side of the median filter, coarse pixels
STRIP_PX = 256  # rows blended at once: a whole field in float64 would take gigabytes


class FusedStack(NamedTuple):
    """What a focal stack tells of its field."""

    image: Tensor  # all-in-focus, (3, H, W), [0, 1]
    depth_um: Tensor  # stage position of best focus, (H, W), µm
    plane: Tensor  # the same as a position in the stack, (H, W), 0..P-1


def fuse(stack: Tensor, positions_um: Tensor, log_sigma_px: float = 2.0, window_px: float = 8.0,
         denoise: bool = True) -> FusedStack:
    """All-in-focus image and depth map of registered planes.

    Simulated stack of 13 planes, relief ±2.4 µm: PSNR 49.5 dB, 44.2 dB at noise σ = 2/255, depth error .02 µm (median).

    Planes are taken one at a time: 8-bit planes stay 8-bit, and the work needs about 50 bytes a pixel beside them.

    Args:
        stack: registered planes, (P, 3, H, W), sRGB, float in [0, 1] or uint8.
        positions_um: stage position of each plane, (P,), µm, rising, evenly spaced as far as the stage allows.
        log_sigma_px: σ of the Laplacian of Gaussian: the scale of detail that tells focus.
        window_px: σ of the window over which its energy is averaged.
        denoise: shrink what the noise estimate explains; exact for white noise, close to nothing on a clean stack.

    Raises:
        ValueError: wrong shape, fewer than two planes, NaN, values outside [0, 1], positions that are not (P,) and
            rising, or a σ that is not positive.
    """
    check_stack(stack)
    if positions_um.shape != (len(stack),) or not bool((positions_um.diff() > 0).all()):
        raise ValueError(f"positions_um must hold one rising position for each of the {len(stack)} planes, "
                         f"got {positions_um.tolist()}.")
    if log_sigma_px <= 0 or window_px <= 0:
        raise ValueError(f"log_sigma_px and window_px must be positive, got {log_sigma_px} and {window_px}.")
    planes = stack.detach().cpu().numpy()
    levels = noise_levels(planes)
    grey = (unit(plane).mean(0) for plane in planes)
    best, most, least = _sharpest_plane(grey, log_sigma_px, window_px)
    noise = FAR_ABOVE_NOISE * _noise_energy(levels, log_sigma_px) + 1e-9
    clear = (most > CONFIDENT * least + 1e-9) | ((most > LEAST_RISE * least) & (most > least + noise))
    position = _smooth_depth(best, clear)
    image = _all_in_focus(planes, position, levels if denoise else None)
    indices = np.arange(len(planes))
    depth = np.interp(position, indices, positions_um.detach().cpu().numpy()).astype(np.float32)
    like: dict[str, Any] = {"device": stack.device}
    if stack.is_floating_point():
        like["dtype"] = stack.dtype
    fused, depth_um, plane = (torch.from_numpy(result).to(**like) for result in (image, depth, position))
    return FusedStack(fused.clamp(0, 1), depth_um, plane)


def _noise_energy(levels: Array, log_sigma_px: float) -> float:
    """Focus energy of noise alone in a grey plane, the mean of three channels."""
    impulse = np.zeros((65, 65))
    impulse[32, 32] = 1.0
    passed = np.square(ndimage.gaussian_laplace(impulse, log_sigma_px)).sum()
    return float(levels[0] ** 2 / 3 * passed)  # levels[0] is of (R + G + B) / √3


def _sharpest_plane(grey: Iterable[Array], log_sigma_px: float, window_px: float) -> tuple[Array, Array, Array]:
    """Position of the largest energy, (H, W) 0..P-1, that energy and the smallest one."""
    last, previous = -1, np.zeros(0, np.float32)
    for last, plane in enumerate(grey):  # one plane's energy at a time
        detail = np.square(ndimage.gaussian_laplace(plane, log_sigma_px))
        energy = ndimage.gaussian_filter(detail, window_px)
        log = np.log(energy + np.float32(1e-12))
        if last == 0:
            best = np.zeros(log.shape, np.int16)
            before, peak, after = log.copy(), log.copy(), log.copy()
            most, least = energy.copy(), energy.copy()
        else:
            np.copyto(after, log, where=best == last - 1)
            higher = log > peak
            np.copyto(before, previous, where=higher)
            np.copyto(peak, log, where=higher)
            best[higher] = last
            np.maximum(most, energy, out=most)
            np.minimum(least, energy, out=least)
        previous = log
    bend = before - 2 * peak + after
    # The first and last plane have no neighbour on one side: no parabola, the plane itself.
    curved = (best > 0) & (best < last) & (bend < -1e-6)
    offset = np.where(curved, 0.5 * (before - after) / np.where(curved, bend, 1.0), 0.0)
    return (best + offset.clip(-0.5, 0.5)).astype(np.float32), most, least


def _smooth_depth(position: Array, confident: NDArray[np.bool_]) -> Array:
    """Fill the places without detail from the nearest one with detail, then a median: steps of depth stay steps."""
    if not bool(confident.any()):
        return np.full_like(position, np.median(position))
    nearest = ndimage.distance_transform_edt(~confident, return_distances=False, return_indices=True)
    filled = position[tuple(nearest)]
    coarse = ndimage.median_filter(filled[::COARSE_PX, ::COARSE_PX], MEDIAN, mode="nearest")
    rows, columns = (np.arange(size, dtype=np.float32) / COARSE_PX for size in position.shape)
    grid = np.meshgrid(rows, columns, indexing="ij")
    return np.asarray(ndimage.map_coordinates(coarse, grid, order=1, mode="nearest"), dtype=np.float32)


def _all_in_focus(planes: NDArray[Any], position: Array, levels: Array | None) -> Array:
    """Blend of the planes at `position`, (3, H, W), its detail lifted, its noise shrunk by `levels`; strip by strip."""
    height = position.shape[0]
    image = np.empty(planes.shape[1:], np.float32)
    fades = fading(planes, position)
    for top in range(0, height, STRIP_PX):
        bottom = min(height, top + STRIP_PX)
        rows = slice(max(0, top - HALO_PX), min(height, bottom + HALO_PX))
        strip = lifted_and_shrunk(*_blend(planes[:, :, rows], position[rows], fades), levels)
        image[:, top:bottom] = strip[:, top - rows.start:bottom - rows.start]
    return image


def _blend(planes: NDArray[Any], position: Array, fades: Sequence[float]) -> tuple[Array, list[Array], Array]:
    """Cubic convolution along the focal axis: image at `position`, what it keeps of each band, Σ weights²."""
    last = len(planes) - 1
    lower = np.floor(position).astype(np.intp).clip(0, max(0, last - 1))
    u = position - lower
    weights = (-0.5 * u + u**2 - 0.5 * u**3, 1 - 2.5 * u**2 + 1.5 * u**3, 0.5 * u + 2 * u**2 - 1.5 * u**3,
               -0.5 * u**2 + 0.5 * u**3)
    image = np.zeros(planes.shape[1:], np.float32)
    kept = [np.zeros_like(position) for _ in fades]
    for step, weight in enumerate(weights, start=-1):
        index = (lower + step).clip(0, last)
        image += weight * unit(np.take_along_axis(planes, index[None, None], 0)[0])
        away = np.square(index - position, dtype=np.float32)
        for share, fade in zip(kept, fades):
            share += weight * np.exp(-fade * away)
    return image, kept, sum(np.square(weight) for weight in weights)
