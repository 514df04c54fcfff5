"""The transfer functions of bundle/optics/pupil.py, against formulas and figures from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import j1
from torch import Tensor

from bundle.optics.pupil import (
    OPTICS_20X,
    OPTICS_40X,
    Optics,
    best_focus_um,
    check_optics,
    gain_profile,
    on_image_grid,
    transfer_profile,
)

STAGE_UM = torch.arange(7) * 0.8


def frequencies(optics: Optics, points: int) -> Tensor:
    """cycles/µm of a profile's entries."""
    return torch.arange(points) / (points * optics.mpp)


def stokseth(f: np.ndarray, na: float, wavelength_um: float, defocus_um: float) -> np.ndarray:
    """Stokseth's approximation of the defocused OTF (J. Opt. Soc. Am. 59, 1969), object at a large distance.

    q = f / (NA/λ) in 0..2, w = Δz (1 - cos α): the path error at the rim of the pupil,
    (1 - 0.69 q + 0.0076 q² + 0.043 q³) · 2 J1(x) / x with x = 4π (w/λ) (1 - q/2) q.
    """
    q = f * wavelength_um / na
    w = defocus_um * (1 - math.cos(math.asin(na)))
    x = np.maximum(4 * math.pi * w / wavelength_um * (1 - q / 2) * q, 1e-9)
    return np.where(q < 2, (1 - 0.69 * q + 0.0076 * q**2 + 0.043 * q**3) * 2 * j1(x) / x, 0.0)


@pytest.mark.parametrize("na", [0.4, 0.75])
@pytest.mark.parametrize("defocus_um", [0.0, 0.4, 0.8, 1.6, 3.2, 4.8])
def test_the_transfer_function_agrees_with_stokseth(green: Optics, na: float, defocus_um: float) -> None:
    """A wrong phase or a wrong grid blurs training data by an amount that no scanner shows."""
    optics = green._replace(na=na)
    absorption, _ = transfer_profile(optics, torch.tensor([defocus_um]))
    known = stokseth(frequencies(optics, 256).numpy(), na, 0.55, defocus_um)
    assert np.abs(absorption[0, 0].numpy() - known).max() < 0.1


def test_the_focused_transfer_function_is_the_textbook_one(green: Optics) -> None:
    """The OTF of a full circular pupil has a closed form: a grid that is too coarse would miss it."""
    absorption, phase = transfer_profile(green, torch.zeros(1))
    s = (frequencies(green, 256) * 0.55 / (2 * 0.75)).clamp(max=1)
    known = 2 / math.pi * (s.acos() - s * (1 - s.square()).sqrt())
    assert torch.allclose(absorption[0, 0], known, atol=0.01)
    assert float(phase.abs().max()) < 1e-6


def test_detail_of_stage_offsets_falls_as_measured(green: Optics) -> None:
    """The golden figures of the method, 0.2 to 1.0 cycles/µm: the scale of all simulated defocus."""
    absorption, _ = transfer_profile(green, STAGE_UM)
    f = frequencies(green, 256)
    detail = absorption[:, 0, (f >= 0.2) & (f <= 1.0)].abs().mean(1)
    known = torch.tensor([1, 0.606, 0.187, 0.067, 0.029, 0.020, 0.016])
    assert torch.allclose(detail / detail[0], known, atol=0.004)


@pytest.mark.parametrize("optics", [OPTICS_40X, OPTICS_20X, Optics(condenser=0.6, phase_ratio=0.5)])
def test_light_is_neither_lost_nor_made(optics: Optics) -> None:
    """A gain other than 1 at frequency 0 would make defocused tiles darker than sharp ones."""
    gains = gain_profile(optics, torch.tensor([-4.8, -0.8, 0.0, 2.4]))
    assert torch.allclose(gains[..., 0], torch.ones(4, 3), atol=1e-5)


def test_no_defocus_changes_nothing() -> None:
    """A focused plane must come out as it went in, whatever errors the objective has."""
    gains = gain_profile(OPTICS_40X, torch.zeros(1))
    assert torch.allclose(gains, torch.ones_like(gains), atol=1e-4)


def test_a_perfect_objective_blurs_alike_above_and_below(green: Optics) -> None:
    """Without aberrations the sign of defocus cannot be seen: if it can here, the phase is wrong."""
    gains = gain_profile(green, torch.tensor([-1.6, 1.6]))
    assert torch.allclose(gains[0], gains[1], atol=1e-5)


def test_aberrations_show_the_sign_of_defocus() -> None:
    """The estimator learns the sign from this difference; without it the sign is a coin toss."""
    gains = gain_profile(OPTICS_40X, torch.tensor([-1.6, 1.6]))
    assert float((gains[0] - gains[1]).abs().amax()) > 0.05


def test_red_focuses_where_its_chromatic_shift_says(green: Optics) -> None:
    """chromatic_um is a stage position: with the opposite sign the estimator learns the wrong direction."""
    shifted = green._replace(chromatic_um=(0.6,))
    absorption, _ = transfer_profile(shifted, torch.tensor([-0.6, 0.0, 0.6]))
    focused, _ = transfer_profile(green, torch.zeros(1))
    assert torch.allclose(absorption[2], focused[0], atol=1e-5)
    assert float(absorption[2, 0, 40]) > float(absorption[1, 0, 40]) > float(absorption[0, 0, 40])


def test_glass_defocuses_less_than_air(green: Optics) -> None:
    """The stage moves in air and the tissue lies in glass: 1.7 times at NA 0.75."""
    per_depth = float(best_focus_um(1.0, green))
    assert abs(per_depth) == pytest.approx(1 / 1.7, abs=0.02)
    both, _ = transfer_profile(green, torch.tensor([3.0 * per_depth]), torch.tensor([3.0]))
    focused, _ = transfer_profile(green, torch.zeros(1))
    assert torch.allclose(both, focused, atol=0.02)


def test_a_half_open_condenser_gives_phase_contrast_odd_in_defocus() -> None:
    """Weak-object theory: absorption even, phase odd in defocus. Mixed up, real brightfield is simulated backwards."""
    optics = Optics(wavelengths_um=(0.55,), chromatic_um=(0.0,), spherical_waves=0.0, condenser=0.6)
    absorption, phase = transfer_profile(optics, torch.tensor([-1.6, 1.6]))
    assert torch.allclose(absorption[0], absorption[1], atol=1e-4)
    assert torch.allclose(phase[0], -phase[1], atol=1e-4)
    assert float(phase.abs().max()) > 0.1


def test_a_profile_lands_on_the_image_grid_at_its_own_frequency() -> None:
    """Off by one entry, or by the aspect of a tile that is not square, and the blur is not round."""
    profile = torch.linspace(0, 1, 128)  # value = entry / 127, entry i at i / 128 cycles/px
    grid = on_image_grid(profile, 48, 80)
    expected = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.rfftfreq(80)[None, :]) * 128 / 127
    assert grid.shape == (48, 41)
    assert np.allclose(grid.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("wrong", "rule"), [
    (Optics(na=1.4), "na must lie"), (Optics(mpp=0.0), "mpp and condenser"), (Optics(condenser=-1.0), "mpp and"),
    (Optics(wavelengths_um=(0.55,)), "same channels")])
def test_an_impossible_objective_is_refused(wrong: Optics, rule: str) -> None:
    """NA 1.4 in air gives NaN phases and, hours later, a NaN loss."""
    with pytest.raises(ValueError, match=rule):
        check_optics(wrong)
