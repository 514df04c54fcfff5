"""Fuse a focal stack: registered planes -> all-in-focus image and depth map.

    plane       position in the stack as a real number, 0 .. P-1
    E_k         focus energy of plane k: its Laplacian of Gaussian, squared and averaged over a window

    E_k per plane -> arg-max, refined by a parabola on log E -> holes without detail filled -> median (edges stay)
    -> planes around that position interpolated -> noise of fine detail shrunk

The blend is Catmull-Rom's cubic over four planes, not the line through two: halfway between planes 0.8 µm apart both
neighbours have lost detail, and the line keeps that loss (43.4 dB on the simulated stack of the tests, cubic 49.6).
Sources: Keys 1981 (cubic convolution), Immerkær 1996 (noise estimate), Lee 1980 (local Wiener filter).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from bundle.optics.registration import check_stack, register

__all__ = ["FusedStack", "fuse", "register"]

Array = NDArray[np.float32]

CONFIDENT = 3.0  # best plane's energy over the worst plane's: below, noise may have chosen
COARSE_PX = 4  # depth is filtered every fourth pixel: energies are smooth over a window
MEDIAN = 7  # side of the median filter, coarse pixels
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])  # grey, red-blue, green-magenta


class FusedStack(NamedTuple):
    """What a focal stack tells of its field."""

    image: Tensor  # all-in-focus, (3, H, W), [0, 1]
    depth_um: Tensor  # stage position of best focus, (H, W), µm
    plane: Tensor  # the same as a position in the stack, (H, W), 0..P-1


def fuse(stack: Tensor, positions_um: Tensor, log_sigma_px: float = 2.0, window_px: float = 8.0,
         denoise: bool = True) -> FusedStack:
    """All-in-focus image and depth map of registered planes.

    Simulated stack of 13 planes, relief ±2.4 µm: PSNR 49.5 dB, 44.2 dB at noise σ = 2/255, depth error .02 µm (median).

    Args:
        stack: registered planes, (P, 3, H, W), sRGB [0, 1].
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
    planes: Array = stack.detach().cpu().float().numpy()
    position = _smooth_depth(*_sharpest_plane(planes.mean(1), log_sigma_px, window_px))
    image, share = _blend(planes, position)
    if denoise:
        image = _shrink_noise(image, share, _noise_levels(planes))
    indices = np.arange(len(planes))
    depth = np.interp(position, indices, positions_um.detach().cpu().numpy())
    fused = torch.from_numpy(image).clamp(0, 1).to(stack)
    return FusedStack(fused, torch.from_numpy(depth).to(stack), torch.from_numpy(position).to(stack))


def _sharpest_plane(grey: Array, log_sigma_px: float, window_px: float) -> tuple[Array, NDArray[np.bool_]]:
    """Position of the largest energy, (H, W) 0..P-1, and where it stands out from noise."""
    energy = np.stack([ndimage.gaussian_filter(np.square(ndimage.gaussian_laplace(plane, log_sigma_px)), window_px)
                       for plane in grey])
    logs = np.log(energy + 1e-12)
    best = logs.argmax(0)
    inner = best.clip(1, max(1, len(logs) - 2))

    def at(index: NDArray[np.intp]) -> Array:
        return np.take_along_axis(logs, index.clip(0, len(logs) - 1)[None], 0)[0]

    before, peak, after = at(inner - 1), at(inner), at(inner + 1)
    bend = before - 2 * peak + after
    # The first and last plane have no neighbour on one side: no parabola, the plane itself.
    curved = (best == inner) & (bend < -1e-6) & (len(logs) > 2)
    offset = np.where(curved, 0.5 * (before - after) / np.where(curved, bend, 1.0), 0.0)
    confident = energy.max(0) > CONFIDENT * energy.min(0) + 1e-9
    return (best + offset.clip(-0.5, 0.5)).astype(np.float32), confident


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


def _blend(planes: Array, position: Array) -> tuple[Array, Array]:
    """Image at `position` by cubic convolution along the focal axis, (3, H, W), and Σ weights² (H, W)."""
    last = len(planes) - 1
    lower = np.floor(position).astype(np.intp).clip(0, max(0, last - 1))
    u = position - lower
    weights = (-0.5 * u + u**2 - 0.5 * u**3, 1 - 2.5 * u**2 + 1.5 * u**3, 0.5 * u + 2 * u**2 - 1.5 * u**3,
               -0.5 * u**2 + 0.5 * u**3)
    image = np.zeros_like(planes[0])
    for step, weight in enumerate(weights, start=-1):
        index = (lower + step).clip(0, last)
        image += weight * np.take_along_axis(planes, index[None, None], 0)[0]
    return image, sum(np.square(weight) for weight in weights)


def _noise_levels(planes: Array) -> Array:
    """σ of the noise in each opponent channel, (3,): of the plane that shows the least detail."""
    mask = np.outer([1, -2, 1], [1, -2, 1])[None] / 6
    levels = [np.median(np.abs(ndimage.convolve(np.tensordot(OPPONENT, plane, 1), mask)), axis=(1, 2)) / 0.6745
              for plane in planes]
    return np.min(levels, axis=0).astype(np.float32)


def _shrink_noise(image: Array, share: Array, levels: Array) -> Array:
    """Local Wiener filter of the two finest bands, per opponent channel.

    Args:
        image: (3, H, W).
        share: variance of the blend's noise over that of a plane, (H, W).
        levels: σ of a plane's noise per opponent channel, (3,).
    """
    rest = np.tensordot(OPPONENT, image, 1)
    impulse = np.zeros((1, 33, 33))
    impulse[0, 16, 16] = 1.0
    kept = np.zeros_like(rest)
    for sigma in (0.6, 1.2):
        coarser, coarser_impulse = (ndimage.gaussian_filter(x, (0, sigma, sigma)) for x in (rest, impulse))
        band, passed = rest - coarser, np.square(impulse - coarser_impulse).sum()
        energy = ndimage.gaussian_filter(np.square(band), (0, 2.0, 2.0))
        noise = np.square(levels)[:, None, None] * share * passed
        kept += band * ((energy - noise) / np.maximum(energy, 1e-12)).clip(0, 1)
        rest, impulse = coarser, coarser_impulse
    return np.tensordot(OPPONENT.T, kept + rest, 1).astype(np.float32)
