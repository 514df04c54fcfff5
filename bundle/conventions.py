"""The names, ranges and signs that every room shares; the only place where [0, 1] and [-1, 1] meet.

    image          defocused RGB          (B, 3, H, W) float32 in [0, 1], sRGB
    label          all-in-focus RGB       (B, 3, H, W) float32 in [0, 1], sRGB
    defocus_um     signed distance to best focus, µm of stage travel; positive: the plane lies above best focus
    contrast       share of the detail contrast that is left, in [0, 1]
    mpp            µm per pixel
    location       (row, col) in px at the read level
"""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE = "image"
LABEL = "label"
DEFOCUS_UM = "defocus_um"
CONTRAST = "contrast"
MPP = "mpp"

PLANES = 13
SPACING_UM = 0.8


def plane_positions_um(planes: int = PLANES, spacing_um: float = SPACING_UM) -> Tensor:
    """Stage position of every plane, µm, (planes,): `spacing_um * (k - (planes - 1) / 2)`; the middle plane is 0.

    Raises:
        ValueError: `planes` is not positive or `spacing_um` is not positive.
    """
    if planes < 1 or spacing_um <= 0:
        raise ValueError(f"planes and spacing_um must be positive, got {planes} and {spacing_um}.")
    return spacing_um * (torch.arange(planes, dtype=torch.float32) - (planes - 1) / 2)


def plane_defocus_um(position_um: Tensor | float, best_focus_um: Tensor | float) -> Tensor | float:
    """Signed defocus of a plane at `position_um` for tissue whose sharpest plane is at `best_focus_um`."""
    return position_um - best_focus_um


def to_signed(image: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1], the range of P-diffusion."""
    return image * 2 - 1


def to_unit(image: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]; not clipped."""
    return (image + 1) / 2


def to_uint8(image: Tensor) -> Tensor:
    """[0, 1] -> uint8 0..255: rounded and clipped, so that 1.2 is white and not 51.

    Raises:
        ValueError: `image` holds NaN or infinity.
    """
    if not bool(torch.isfinite(image).all()):
        raise ValueError("image must be finite to be written as uint8, got NaN or infinity.")
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def from_uint8(image: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [0, 1].

    Raises:
        TypeError: `image` is not uint8.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}.")
    return image.float() / 255


def check_image(image: Tensor) -> None:
    """Refuse what is not a batch of RGB images.

    Raises:
        ValueError: wrong number of axes or channels, or an empty image.
    """
    if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < 1:
        raise ValueError(f"image must have shape (B, 3, H, W), got {tuple(image.shape)}.")
