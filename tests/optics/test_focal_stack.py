"""The simulated focal stack: light is kept, the sign holds, relief acts where it lies, no image sees another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.ndimage import laplace
from torch import Tensor

from bundle.conventions import plane_defocus_um, plane_positions_um
from bundle.optics.focal_stack import (
    GainTable,
    defocus,
    random_relief_um,
    simulate_plane,
    simulate_stack,
    to_linear,
    to_srgb,
)
from bundle.optics.pupil import OPTICS_40X, Optics, gain_profile, on_image_grid


def sharpness(image: Tensor) -> float:
    return float(laplace(image.mean(0).numpy()).var())


@pytest.fixture(scope="module")
def tile(section: Tensor) -> Tensor:
    return section[:, 120:248, 200:360].contiguous()  # not square


@pytest.fixture(scope="module")
def table() -> GainTable:
    return GainTable(Optics(), reach_um=6.0, grid_px=128)


def test_srgb_and_linear_light_are_inverses() -> None:
    """Blur in the wrong light makes dark nuclei spread as no lens does."""
    values = torch.linspace(0, 1, 1001)
    assert torch.allclose(to_srgb(to_linear(values)), values, atol=1e-5)
    assert float(to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-4)
    assert to_srgb(torch.tensor([1.2, -0.1])).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_a_focused_plane_is_the_sharp_field(tile: Tensor, table: GainTable) -> None:
    """What is in focus must not be touched: the label would differ from the image for no reason."""
    plane = simulate_plane(tile, 0.0, torch.zeros(tile.shape[-2:]), table)
    assert torch.allclose(plane, tile, atol=2e-3)


@pytest.mark.parametrize("distance_um", [-4.8, -1.6, 0.8, 3.2])
def test_defocus_keeps_the_mean_of_a_tile(tile: Tensor, table: GainTable, distance_um: float) -> None:
    """Energy preserved: a network would learn to change brightness if defocus did."""
    light = to_linear(tile)
    blurred = defocus(light, torch.full(tile.shape[-2:], distance_um), table)
    assert torch.allclose(blurred.mean((1, 2)), light.mean((1, 2)), rtol=0.01)


def test_uniform_relief_is_plain_filtering(tile: Tensor, table: GainTable) -> None:
    """The layered blur against its slow oracle: one gain for the whole image, at a distance on a layer."""
    light = to_linear(tile)
    layered = defocus(light, torch.full(tile.shape[-2:], 1.6), table, margin_px=0)
    gain = on_image_grid(gain_profile(Optics(), torch.tensor([1.6]), grid_px=128), *tile.shape[-2:])[0]
    assert torch.allclose(layered, torch.fft.irfft2(torch.fft.rfft2(light) * gain, s=tile.shape[-2:]), atol=1e-4)


def test_the_sharpest_plane_lies_at_the_tissues_best_focus(tile: Tensor, table: GainTable) -> None:
    """The sign of defocus_um: tissue whose best focus is at +1.6 µm is sharpest in the plane at +1.6 µm."""
    stack = simulate_stack(tile, torch.full(tile.shape[-2:], 1.6), table, plane_positions_um(9))
    sharpest = max(range(9), key=lambda plane: sharpness(stack[plane]))
    assert float(plane_positions_um(9)[sharpest]) == pytest.approx(1.6)


def test_a_plane_above_focus_has_positive_defocus(tile: Tensor, table: GainTable) -> None:
    """Sharpness alone cannot tell a mirrored axis: the plane at +1.6 µm must show the gain at +1.6 µm."""
    assert plane_defocus_um(1.6, 0.4) == pytest.approx(1.2)
    plane = simulate_plane(tile, 1.6, torch.zeros(tile.shape[-2:]), table)
    right, wrong = (to_srgb(defocus(to_linear(tile), torch.full(tile.shape[-2:], um), table)) for um in (1.6, -1.6))
    assert torch.allclose(plane, right, atol=1e-5) and not torch.allclose(plane, wrong, atol=0.02)


def test_the_two_sides_of_focus_differ(tile: Tensor, table: GainTable) -> None:
    """With equal blur above and below, no network could tell which way to turn the knob."""
    flat = torch.zeros(tile.shape[-2:])
    above, below = simulate_plane(tile, 1.6, flat, table), simulate_plane(tile, -1.6, flat, table)
    assert float((above - below).abs().mean()) > 2 / 255


def test_a_slope_blurs_one_side_only(section: Tensor, table: GainTable) -> None:
    """Relief transposed or mirrored would blur the side that the depth map calls sharp."""
    relief = torch.linspace(0, 4, 160)[None, :].expand(96, 160)
    sharp = section[:, 100:196, 100:260]
    plane = simulate_plane(sharp, 0.0, relief, table)
    kept = [sharpness(plane[..., side]) / sharpness(sharp[..., side]) for side in (slice(0, 40), slice(120, 160))]
    assert kept[0] > 5 * kept[1]


def test_more_defocus_leaves_less_detail(tile: Tensor, table: GainTable) -> None:
    """A gain table in the wrong order would still look blurred."""
    flat = torch.zeros(tile.shape[-2:])
    detail = [sharpness(simulate_plane(tile, position, flat, table)) for position in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert detail == sorted(detail, reverse=True)


def test_relief_is_smooth_bounded_and_repeatable() -> None:
    """A relief beyond its amplitude leaves the gain table; one that is rough has no meaning as tissue."""
    first, again, other = (random_relief_um(120, 200, 2.4, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.abs().max()) == pytest.approx(2.4, abs=1e-4)
    assert float(first.diff(dim=1).abs().max()) < 0.2


def test_planes_agree_with_layers_blurred_once_for_all(field: Any, ideal_table: GainTable) -> None:
    """The stack that fusion is measured on is put together another way: both ways must give one plane."""
    plane = simulate_plane(field.sharp, float(field.positions_um[8]), field.relief_um, ideal_table)
    assert torch.allclose(plane, field.stack[8], atol=1e-3)


def test_a_stack_has_thirteen_planes_by_default(tile: Tensor, table: GainTable) -> None:
    """Planes of the protocol: 0.8 µm apart, the middle one at 0."""
    small = tile[:, :32, :48]
    assert simulate_stack(small, torch.zeros(32, 48), table).shape == (13, 3, 32, 48)
    assert plane_positions_um()[6] == 0 and float(plane_positions_um()[12]) == pytest.approx(4.8)


def test_a_single_pixel_can_be_defocused(table: GainTable) -> None:
    """The smallest image a user may send must not crash on its border."""
    assert simulate_plane(torch.full((3, 1, 1), 0.5), 1.0, torch.zeros(1, 1), table).shape == (3, 1, 1)


def test_defocus_beyond_the_table_is_refused(tile: Tensor, table: GainTable) -> None:
    """Clamping would label a plane at 7 µm with the blur of 6."""
    with pytest.raises(ValueError, match=r"within ±6.0 µm"):
        simulate_plane(tile, 7.0, torch.zeros(tile.shape[-2:]), table)


def test_tables_of_one_objective_share_their_gains_and_thickness_is_not_mixed_up(table: GainTable) -> None:
    """Gains take seconds an objective; a table that got another one's would blur wrongly without notice."""
    again = GainTable(table.optics, table.reach_um)
    assert again.profiles is GainTable(table.optics, table.reach_um).profiles
    thick = GainTable(table.optics, table.reach_um, thickness_um=2.0)
    assert thick.profiles.shape == again.profiles.shape and not torch.equal(thick.profiles, again.profiles)
    other = GainTable(table.optics._replace(na=0.5), table.reach_um)
    assert not torch.equal(other.profiles, again.profiles)


def test_a_thick_specimen_fades_more_slowly_and_stays_as_it_is_in_focus() -> None:
    """A sharp tile that thickness alone would blur teaches a network to sharpen what is in focus."""
    thin, thick = (GainTable(OPTICS_40X, 4.0, grid_px=64, layer_um=0.4, thickness_um=depth) for depth in (0.0, 4.0))
    middle = len(thin.profiles) // 2
    assert len(thick.profiles) == len(thin.profiles)
    resolved = thin.profiles[middle] > 0.5
    assert torch.allclose(thick.profiles[middle][resolved], torch.ones(()), atol=1e-6)
    assert (thick.profiles[middle + 4, 1, 4:8] > thin.profiles[middle + 4, 1, 4:8] + 0.1).all()
    assert thick.profiles.abs().max() <= 1.2
