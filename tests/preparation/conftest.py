"""Focal stacks of known relief and known shifts, simulated once from a real section."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.data import immunohistochemistry
from torch import Tensor

from bundle.conventions import from_uint8, plane_positions_um
from bundle.data.focal_stacks import FocalStack
from bundle.optics.focal_stack import GainTable, defocus, random_relief_um, to_linear, to_srgb
from bundle.optics.pupil import OPTICS_40X
from bundle.optics.registration import moved_by
from bundle.slides.grid import Box

PLANES, HEIGHT, WIDTH = 9, 320, 400
NOISE = 2.0  # σ, of 0..255
LAYER_UM = 0.2


class HeldStack(FocalStack):
    """A stack that lies in memory."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels, self.planes, self.shape = pixels, len(pixels), (pixels.shape[1], pixels.shape[2])

    def read(self, plane: int, box: Box) -> NDArray[np.uint8]:
        return self.pixels[plane, box.row:box.bottom, box.col:box.right]


class Scanned(NamedTuple):
    """A sharp field and what a scanner recorded of it."""

    sharp: Tensor  # (3, H, W) [0, 1]
    clean: Tensor  # planes without shift and noise, (P, 3, H, W) [0, 1]
    relief_um: Tensor  # (H, W)
    shifts_px: NDArray[np.float64]  # (P, 2)
    stack: HeldStack


def scan(sharp: Tensor, table: GainTable, planes: int, relief_um: float, seed: int) -> Scanned:
    """What a scanner records of a sharp field, (3, H, W): planes 0.8 µm apart, shifts up to 3 px, noise σ 2/255.

    Args:
        sharp: the field.
        table: of an objective without aberrations, whose best focus is where the relief says.
        planes: how many.
        relief_um: the relief reaches from minus this to this.
        seed: of relief, shifts and noise.
    """
    relief = random_relief_um(*sharp.shape[-2:], relief_um, torch.Generator().manual_seed(seed))
    positions_um = plane_positions_um(planes)
    light, clean = to_linear(sharp), torch.zeros(planes, *sharp.shape)
    reach = round(table.reach_um / LAYER_UM)
    for layer in range(-reach, reach + 1):  # planes share their layers of blur: each is computed once
        weights = (1 - ((positions_um[:, None, None] - relief) / LAYER_UM - layer).abs()).clamp(min=0)
        if bool(weights.any()):
            clean += weights[:, None] * defocus(light, torch.full(sharp.shape[-2:], layer * LAYER_UM), table)
    clean = to_srgb(clean)
    random = np.random.default_rng(seed + 2)
    shifts_px = random.uniform(-3, 3, (planes, 2))
    shifts_px[0], shifts_px[planes // 2] = (3.0, -3.0), 0.0
    pixels = np.stack([moved_by(plane.double().numpy(), shift) * 255 + random.normal(scale=NOISE, size=plane.shape)
                       for plane, shift in zip(clean, shifts_px)])
    recorded = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return Scanned(sharp, clean, relief, shifts_px, HeldStack(recorded))


@pytest.fixture(scope="session")
def perfect_40x() -> GainTable:
    """A 40x objective without aberrations: with them, coarse and fine detail differ in where they are sharpest."""
    return GainTable(OPTICS_40X._replace(chromatic_um=(0.0, 0.0, 0.0), spherical_waves=0.0), 4.6, grid_px=128)


@pytest.fixture(scope="session")
def scanned(perfect_40x: GainTable) -> Scanned:
    """A colon section on relief of ±1.2 µm, 9 planes."""
    section = from_uint8(torch.from_numpy(immunohistochemistry().copy())).permute(2, 0, 1)
    return scan(section[:, 60:60 + HEIGHT, 40:40 + WIDTH].contiguous(), perfect_40x, PLANES, 1.2, seed=3)
