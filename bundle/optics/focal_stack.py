"""Simulate what a scanner records at other focal planes of a sharp field.

    sharp field, sRGB -> linear light -> blurred by the gain of every layer of depth -> planes of the stack
    -> camera (noise, sRGB, JPEG)

    best_focus_um   (H, W) stage position at which each pixel of the tissue is sharpest, µm: the tissue's relief
    position_um     stage position of a plane, µm
    defocus_um      position_um - best_focus_um, per pixel; of a tile: with the median of its relief

A tile already holds the focused transfer function, so blurring multiplies by the gain of `pupil.gain_profile`.
Relief within a tile: layers of equal defocus every 0.2 µm, interpolated per pixel.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from bundle.conventions import plane_defocus_um, plane_positions_um
from bundle.optics.pupil import GRID_PX, Optics, gain_profile, on_image_grid

LAYER_UM = 0.2  # defocus between two layers of the blur
FAINT = 0.05  # detail of a thick specimen that has faded below this in focus is not divided further
MOST_GAIN = 1.2
MARGIN_PX = 32  # reflected around an image before blurring: a PSF at ±6 µm reaches about as far


def to_linear(image: Tensor) -> Tensor:
    """sRGB [0, 1] -> linear light [0, 1] (IEC 61966-2-1)."""
    return torch.where(image <= 0.04045, image / 12.92, ((image.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Tensor) -> Tensor:
    """Linear light [0, 1] -> sRGB [0, 1]; values outside are clipped, as a camera does."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


class GainTable:
    """Gains of one objective, computed once at every layer of defocus and interpolated between.

    Args:
        optics: the objective.
        reach_um: largest distance, either way.
        grid_px: of the pupil.
        layer_um: distance between two layers; also of the blur in `defocus`.
        thickness_um: of the specimen, rounded to layers: detail fades with the mean over this depth around each
            distance, compared with the mean around focus, since a sharp tile of a thick specimen has faded so far.
    """

    def __init__(self, optics: Optics, reach_um: float = 8.0, grid_px: int = GRID_PX, layer_um: float = LAYER_UM,
                 thickness_um: float = 0.0) -> None:
        self.optics, self.layer_um = optics, layer_um
        reach, half = math.ceil(reach_um / layer_um), round(thickness_um / 2 / layer_um)
        self.reach_um = reach * layer_um
        profiles = _layer_profiles(optics, reach + half, layer_um, grid_px)
        if half:
            profiles = profiles.unfold(0, 2 * half + 1, 1).mean(-1)
            profiles = (profiles / profiles[reach].clamp(min=FAINT)).clamp(-MOST_GAIN, MOST_GAIN)
        self.profiles = profiles

    def gains(self, defocus_um: Tensor, height: int, width: int) -> Tensor:
        """Gains at the distances (K,) on the rfft2 grid of an image, (K, 3, height, width // 2 + 1).

        Raises:
            ValueError: a distance lies beyond the table's reach.
        """
        if float(defocus_um.abs().max()) > self.reach_um + 1e-4:
            farthest = float(defocus_um.abs().max())
            raise ValueError(f"defocus must lie within ±{self.reach_um} µm, got {farthest:.2f} µm.")
        profiles = self.profiles.to(defocus_um.device)
        entry = (defocus_um + self.reach_um) / self.layer_um
        lower = entry.floor().long().clamp(0, len(profiles) - 2)
        share = (entry - lower).view(-1, 1, 1)
        mixed = profiles[lower] * (1 - share) + profiles[lower + 1] * share
        return on_image_grid(mixed, height, width)


@functools.lru_cache(maxsize=256)  # a training asks for 50 objectives, and a table's rows all for the same ones
def _layer_profiles(optics: Optics, reach: int, layer_um: float, grid_px: int) -> Tensor:
    """Gains at the layers -reach..reach, (2 reach + 1, 3, grid_px); shared by all who ask, never written to."""
    return gain_profile(optics, torch.arange(-reach, reach + 1) * layer_um, grid_px=grid_px)


def random_relief_um(height: int, width: int, amplitude_um: float, generator: torch.Generator,
                     feature_px: float = 200.0) -> Tensor:
    """Smooth relief of tissue: a tilt plus a low-frequency field, (H, W) µm, from -amplitude_um to amplitude_um."""
    nodes = (max(2, round(height / feature_px) + 1), max(2, round(width / feature_px) + 1))
    field = torch.randn(1, 1, *nodes, generator=generator)
    field = functional.interpolate(field, (height, width), mode="bicubic", align_corners=True)[0, 0]
    tilt = torch.randn(2, generator=generator)
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    relief = field + tilt[0] * rows[:, None] + tilt[1] * columns[None, :]
    relief = relief - relief.mean()
    return relief * (amplitude_um / relief.abs().max().clamp(min=1e-6))


def defocus(light: Tensor, defocus_um: Tensor, table: GainTable, margin_px: int = MARGIN_PX) -> Tensor:
    """Blur one image in linear light by a distance per pixel.

    Args:
        light: (3, H, W), linear.
        defocus_um: (H, W), signed.
        table: gains of the objective.
        margin_px: reflected border, cut off again.

    Returns:
        (3, H, W), linear, not clipped.
    """
    height, width = light.shape[-2:]
    margins = [min(margin_px, size - 1) for size in (width, width, height, height)]
    padded = functional.pad(light[None], margins, mode="reflect")[0]
    position = defocus_um / table.layer_um
    first, last = int(position.min().floor()), int(position.max().ceil())
    spectrum = torch.fft.rfft2(padded)
    blurred = torch.zeros_like(light)
    for layer in range(first, last + 1):  # one at a time: a whole field has tens of layers
        # Weight of this layer: 1 where the distance hits it, falling to 0 at its neighbours.
        weight = (1 - (position - layer).abs()).clamp(min=0)
        if not bool(weight.any()):
            continue
        distance = torch.tensor([layer * table.layer_um], device=light.device)
        gain = table.gains(distance, *padded.shape[-2:])[0]
        plane = torch.fft.irfft2(spectrum * gain, s=padded.shape[-2:])
        blurred += weight * plane[:, margins[2]:margins[2] + height, margins[0]:margins[0] + width]
    return blurred


def simulate_plane(sharp: Tensor, position_um: float, relief_um: Tensor, table: GainTable) -> Tensor:
    """One plane of a stack, free of noise: sharp (3, H, W) sRGB [0, 1] and relief (H, W) -> (3, H, W) sRGB [0, 1]."""
    distance = plane_defocus_um(position_um, relief_um)
    return to_srgb(defocus(to_linear(sharp), torch.as_tensor(distance), table))


def simulate_stack(sharp: Tensor, relief_um: Tensor, table: GainTable, positions_um: Tensor | None = None) -> Tensor:
    """Every plane of a stack, free of noise, (planes, 3, H, W) sRGB [0, 1]; 13 planes 0.8 µm apart by default."""
    positions = plane_positions_um() if positions_um is None else positions_um
    return torch.stack([simulate_plane(sharp, float(position), relief_um, table) for position in positions])
