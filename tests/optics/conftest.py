"""A real section and its simulated focal stack, computed once for the tests of this folder."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from skimage.data import immunohistochemistry
from torch import Tensor

from bundle.conventions import from_uint8, plane_positions_um
from bundle.optics.focal_stack import LAYER_UM, GainTable, defocus, random_relief_um, to_linear, to_srgb
from bundle.optics.pupil import Optics

IDEAL = Optics(chromatic_um=(0.0, 0.0, 0.0), spherical_waves=0.0)
GREEN = Optics(wavelengths_um=(0.55,), chromatic_um=(0.0,), spherical_waves=0.0)


class Field(NamedTuple):
    """A sharp field and what a scanner saw of it."""

    sharp: Tensor  # (3, H, W)
    relief_um: Tensor  # (H, W)
    stack: Tensor  # (13, 3, H, W)
    positions_um: Tensor  # (13,)

    def noisy(self, sigma: float = 2 / 255, seed: int = 1) -> Tensor:
        noise = torch.randn(self.stack.shape, generator=torch.Generator().manual_seed(seed))
        return (self.stack + sigma * noise).clamp(0, 1)


@pytest.fixture(scope="session")
def green() -> Optics:
    """An objective without errors at one wavelength, for known answers."""
    return GREEN


@pytest.fixture(scope="session")
def section() -> Tensor:
    """scikit-image's colon section, (3, 512, 512) [0, 1]."""
    return from_uint8(torch.from_numpy(immunohistochemistry().copy())).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="session")
def ideal_table() -> GainTable:
    return GainTable(IDEAL, reach_um=7.2, grid_px=128)


@pytest.fixture(scope="session")
def field(section: Tensor, ideal_table: GainTable) -> Field:
    """The section on relief of ±2.4 µm, 13 planes 0.8 µm apart."""
    relief, positions = random_relief_um(512, 512, 2.4, torch.Generator().manual_seed(0)), plane_positions_um()
    light = to_linear(section)
    planes = torch.zeros(13, *section.shape)
    # simulate_stack blurs every plane's layers anew; planes share their layers, so here each is blurred once.
    for layer in range(-36, 37):
        weights = (1 - ((positions[:, None, None] - relief) / LAYER_UM - layer).abs()).clamp(min=0)
        if bool(weights.any()):
            blurred = defocus(light, torch.full((512, 512), layer * LAYER_UM), ideal_table)
            planes += weights[:, None] * blurred
    return Field(section, relief, to_srgb(planes), positions)
