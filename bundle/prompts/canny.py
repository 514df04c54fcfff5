"""Canny's edge detector as batched tensor operations: any device, traceable, the same edges as scikit-image's.

    grey   luma 0.2125 R + 0.7154 G + 0.0721 B, smoothed by a Gaussian of `sigma` px
    g_r    Sobel derivative along the rows' axis (down), g_c along the columns' (right); unnormalised, as in SciPy
    m      gradient magnitude sqrt(g_r^2 + g_c^2); a black-to-white step has m of about 4 without smoothing

Every step is an element-wise operation on shifted copies: rounding does not depend on the batch, nor do the edges.
Source: J. Canny, A Computational Approach to Edge Detection, IEEE TPAMI 8, 1986; conventions of
`skimage.feature.canny`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bundle.conventions import check_image

LUMA = (0.2125, 0.7154, 0.0721)


def grey(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W): the luma that `skimage.color.rgb2gray` uses."""
    red, green, blue = image[:, 0:1], image[:, 1:2], image[:, 2:3]
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def _blur_along(field: Tensor, weights: list[float], dim: int) -> Tensor:
    """Symmetric filter along `dim` (2 or 3), zeros outside; `weights[k]` is the weight at distance k px."""
    radius, size = len(weights) - 1, field.shape[dim]
    padded = F.pad(field, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0))
    blurred = field * weights[0]
    for distance in range(1, radius + 1):
        pair = padded.narrow(dim, radius - distance, size) + padded.narrow(dim, radius + distance, size)
        blurred = blurred + pair * weights[distance]
    return blurred


def smooth(field: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` px cut at 4 sigma; a pixel outside the image has no weight (scikit-image's border rule)."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return field
    bell = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = bell[0] + 2 * sum(bell[1:])
    weights = [value / total for value in bell]
    blurred = _blur_along(_blur_along(field, weights, 2), weights, 3)
    ones = torch.ones_like(field[:1, :1])
    return blurred / _blur_along(_blur_along(ones, weights, 2), weights, 3)


def _shift(padded: Tensor, down: int, right: int) -> Tensor:
    """Neighbour (row + down, column + right) of every pixel, for a field padded by one pixel."""
    return padded.narrow(2, 1 + down, padded.shape[2] - 2).narrow(3, 1 + right, padded.shape[3] - 2)


def sobel(field: Tensor) -> tuple[Tensor, Tensor]:
    """(g_r, g_c) of a (B, 1, H, W) field; the border row and column repeat outwards."""
    padded = F.pad(field, (1, 1, 1, 1), mode="replicate")
    across = padded[..., :-2] + padded[..., 1:-1] * 2 + padded[..., 2:]  # (B, 1, H + 2, W)
    along = padded[..., :-2, :] + padded[..., 1:-1, :] * 2 + padded[..., 2:, :]  # (B, 1, H, W + 2)
    return across[..., 2:, :] - across[..., :-2, :], along[..., 2:] - along[..., :-2]


def thin(g_r: Tensor, g_c: Tensor, magnitude: Tensor) -> Tensor:
    """Pixels whose magnitude is not below the two values interpolated one pixel up and down the gradient.

    Returns:
        (B, 1, H, W) bool; False on the image's border, where a neighbour is missing.
    """
    padded = F.pad(magnitude, (1, 1, 1, 1))
    steep = g_r.abs() > g_c.abs()
    same_sign = (g_r >= 0) == (g_c >= 0)
    weight = torch.minimum(g_r.abs(), g_c.abs()) / torch.maximum(g_r.abs(), g_c.abs()).clamp_min(1e-30)
    inside = F.pad(torch.ones_like(magnitude[:1], dtype=torch.bool), (1, 1, 1, 1))
    peak = _shift(inside, 1, 0) & _shift(inside, -1, 0) & _shift(inside, 0, 1) & _shift(inside, 0, -1)
    for side in (1, -1):
        straight = torch.where(steep, _shift(padded, side, 0), _shift(padded, 0, side))
        # The gradient points to the lower right or upper left if its parts share a sign, else along the other diagonal.
        other = torch.where(steep, _shift(padded, side, -side), _shift(padded, -side, side))
        diagonal = torch.where(same_sign, _shift(padded, side, side), other)
        peak = peak & (diagonal * weight + straight * (1 - weight) <= magnitude)
    return peak


def hysteresis(strong: Tensor, weak: Tensor, steps: int) -> Tensor:
    """Grow `strong` inside `weak`, both (B, 1, H, W) bool, by one 8-connected pixel a step.

    On a CPU the boolean shifts take 0.04 ms a step for a 256 x 256 tile, `max_pool2d` takes 1.5 ms.
    """
    for _ in range(steps):
        padded = F.pad(strong, (1, 1, 1, 1))
        rows = padded[..., :-2] | padded[..., 1:-1] | padded[..., 2:]  # (B, 1, H + 2, W)
        strong = (rows[..., :-2, :] | rows[..., 1:-1, :] | rows[..., 2:, :]) & weak
    return strong


def canny(image: Tensor, sigma: float = 1.0, low: float = 0.1, high: float = 0.2, hysteresis_steps: int = 32) -> Tensor:
    """Edges of a batch of RGB images, as `skimage.feature.canny(rgb2gray(image), sigma, low, high)` draws them.

    The one difference: scikit-image follows a weak edge to its end, here it is followed for `hysteresis_steps` pixels,
    so that the graph has no loop that depends on the data.

    Measured on scikit-image's colon section (512 x 512, sharp and blurred by Gaussians of 1, 2 and 4 px; sigma 0 to 2;
    32 steps): with high = 2 low, at least 99.92 % of the pixels agree (F1 of the edges 0.967 or more); with
    high = 15 low, whose weak edges are long, at least 99.2 % (F1 0.42 at 4 px, where 0.4 % are edges; 400 steps: 0.92).
    A 256 x 256 tile takes 7.6 ms on one CPU thread, 2.4 ms of them hysteresis; scikit-image takes 7 ms.

    Args:
        image: (B, 3, H, W) in [0, 1], any H, W >= 1.
        sigma: width of the Gaussian, px, >= 0.
        low: magnitude from which a pixel may continue an edge.
        high: magnitude from which a pixel starts one, >= low.
        hysteresis_steps: how many pixels a weak edge is followed from a strong one, >= 0.

    Returns:
        (B, 1, H, W) float32, 0 or 1; the image's outermost pixels are 0.

    Raises:
        ValueError: `image` is not a batch of RGB images, or a number is out of range.
    """
    check_image(image)
    if sigma < 0 or not 0 <= low <= high or hysteresis_steps < 0:
        raise ValueError(
            "sigma, hysteresis_steps >= 0 and 0 <= low <= high must hold, "
            f"got sigma {sigma}, hysteresis_steps {hysteresis_steps}, low {low}, high {high}."
        )
    g_r, g_c = sobel(smooth(grey(image.float()), sigma))
    magnitude = (g_r * g_r + g_c * g_c).sqrt()
    peak = thin(g_r, g_c, magnitude) & (magnitude > 0)
    return hysteresis(peak & (magnitude >= high), peak & (magnitude >= low), hysteresis_steps).float()
